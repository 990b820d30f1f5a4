"""What names moments: each signal turns a part of a question into items, best first.

Put here: question → ranked items of one index. Keep out: putting signals together, and what an answer shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mm_assets.errors import ConfigError
from mm_assets.identity import vector_id
from mm_assets.indexing import GrownIndex, GrownSelection, Rows
from mm_assets.retrieval.questions import Picture, Question, RgbImage, name_of, read_picture
from mm_assets.texts import MOST_WORDS, Term, TextIndex, parse_question, words_of
from mm_assets.vectors import Floats, Ids
from mm_assets.wording import SAID, SHOWN

# Of the demo, November 2026: 77 captions of scenes as questions, ten paraphrases of what is said or written. Where all
# pieces count, recall@1 of the captions is .701 at weight .05 and .532 from weight .2 on. At weight .9 with these two it
# is .961, .987, 1.000 and 1.000 from a cosine of .7, .8, .85 and .9 on, 1.000 without the signal; among ten answers are
# 8, 7, 7 and 6 of the paraphrases, 4 without it.
_NEAR = 0.85  # cosine of question and piece
_ROUNDING = 1e-5  # of a cosine: a vector is not always quite 1 like itself, nor -1 like its opposite
_CROWD = 10  # more pieces than this that are as near say nothing


class TextEncoder(Protocol):
    """A model that compares texts by what they mean."""

    def load(self) -> None:
        """Load the weights."""

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return (n, d) unit vectors."""
        ...


class Encoder(TextEncoder, Protocol):
    """A model whose texts and images share one space."""

    def encode_images(self, images: Sequence[RgbImage]) -> Floats:
        """Return (n, d) unit vectors of RGB images."""
        ...


class FaceFinder(Protocol):
    """A model that finds faces."""

    def find_faces(self, image: RgbImage) -> tuple[Floats, Floats]:
        """Return (n, 4) boxes in pixels and (n, d) unit vectors."""
        ...


@dataclass(frozen=True)
class Ranked:
    """Items that a signal names, best first.

    Attributes
    ----------
    name : of the signal, as the answer shows it, e.g. ``visual`` or ``said``
    signal : whose weight it has
    ids, scores : (m,) items of ``rows``, cosine or BM25, descending
    terms : words that were asked for
    """

    name: str
    signal: str
    ids: Ids
    scores: Floats
    rows: Rows
    terms: tuple[Term, ...] = ()


class VisualSignal:
    """What keyframes look like."""

    def __init__(self, index: GrownIndex, encoder: Encoder) -> None:
        self.index = index
        self._encoder = encoder

    def rank(self, question: Question, n: int, within: GrownSelection | None) -> list[Ranked]:
        """Rank keyframes by the text, the picture and the segment of a question, each by itself."""
        queries: list[tuple[str, Floats]] = []
        if question.text:
            queries.append(("looks like the text", self._encoder.encode_texts([question.text])))
        if question.image is not None:
            queries.append(("looks like the picture", self._encoder.encode_images([read_picture(question.image)])))
        if question.like:
            queries.append(("looks like the segment", self._vector_of(question.like)))
        return [self._ranked(name, query, n, within, question.threshold) for name, query in queries]

    def _vector_of(self, segment_id: str) -> Floats:
        wanted = self.index.rows.known(np.array([vector_id(segment_id)]))
        if not len(wanted):
            msg = f"no keyframe is indexed for segment {segment_id!r}; segment ids are in the answers and in `segments`"
            raise ConfigError(msg)
        return self.index.rows.gather(wanted)

    def _ranked(self, name: str, query: Floats, n: int, within: GrownSelection | None, threshold: float) -> Ranked:
        similarity, ids = self.index.search(query, n, within)
        return _found(name, "visual", ids[0], similarity[0], self.index.rows, threshold)


class FaceSignal:
    """Who is on keyframes."""

    def __init__(self, index: GrownIndex, finder: FaceFinder) -> None:
        self.index = index
        self._finder = finder

    def rank(self, question: Question, n: int, within: GrownSelection | None) -> tuple[list[Ranked], list[str]]:
        """Rank faces by the largest face in the picture; returns what there is to say about that, too.

        Raises
        ------
        ConfigError
            No face is found in the picture.
        """
        if question.face is None:
            return [], []
        vector, n_faces = find_largest_face(self._finder, question.face)
        similarity, ids = self.index.search(vector, n, within)
        told = f"{n_faces} faces are in {name_of(question.face)}; the largest one is asked for"
        notes = [told] if n_faces > 1 else []
        return [_found("has the face", "face", ids[0], similarity[0], self.index.rows, question.threshold)], notes


def find_largest_face(finder: FaceFinder, picture: Picture) -> tuple[Floats, int]:
    """Return the (1, d) vector of the largest face in a picture, and how many faces are in it.

    Raises
    ------
    ConfigError
        The picture cannot be read, or no face is found in it.
    """
    boxes, vectors = finder.find_faces(read_picture(picture))
    if not len(boxes):
        msg = (
            f"no face is found in {name_of(picture)}; give a picture with a face that is larger, or seen from the front"
        )
        raise ConfigError(msg)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest = int(areas.argmax())
    return vectors[largest : largest + 1], len(boxes)


class MeaningSignal:
    """What is said, shown and written, in other words."""

    def __init__(self, index: GrownIndex, encoder: TextEncoder) -> None:
        self.index = index
        self._encoder = encoder

    def rank(self, question: Question, n: int, within: GrownSelection | None) -> list[Ranked]:
        """Rank pieces of texts by how near they are to the text of a question.

        Beside other signals only what is near enough counts, and nothing where a crowd is: the model does not tell the
        question from much else. Where ``spaces`` asks for this signal, everything counts that the threshold lets pass.
        """
        similarity, ids = self.index.search(self._encoder.encode_texts([question.text]), n, within)
        found = _found("means the text", "text", ids[0], similarity[0], self.index.rows, question.threshold)
        if "text" in question.spaces:
            return [found]
        if (similarity[0] >= _NEAR).sum() > _CROWD:
            return []
        n_kept = int((found.scores >= _NEAR).sum())
        return [replace(found, ids=found.ids[:n_kept], scores=found.scores[:n_kept])] if n_kept else []


class WordSignal:
    """What is said and shown."""

    def __init__(self, index: TextIndex, rows: Rows) -> None:
        self._index = index
        self.rows = rows

    def rank(self, question: Question, n: int, allowed: Ids | None) -> list[Ranked]:
        """Rank texts by words said, by words shown, and by the text of a question where it is said or shown in just these words."""
        asked: list[tuple[str, list[Term], list[str]]] = []
        if question.said:
            asked.append(("said", parse_question(question.said), [SAID]))
        if question.shown:
            asked.append(("shown", parse_question(question.shown), [SHOWN]))
        if question.text and (words := tuple(words_of(question.text)[:MOST_WORDS])):
            # As a phrase: pages of prose hold all words of many a question without being an answer to it.
            asked.append(("said or shown", [Term(words, is_needed=True)], []))
        found = []
        for name, terms, kinds in asked:
            scores, ids = self._index.search(terms, n, kinds=kinds, allowed=allowed)
            found.append(Ranked(name, "words", ids, scores, self.rows, tuple(terms)))
        return found


def _found(name: str, signal: str, ids: Ids, scores: Floats, rows: Rows, threshold: float) -> Ranked:
    """Leave out places without an answer, and what is less similar than the threshold."""
    is_there = (ids >= 0) & (scores >= threshold - _ROUNDING)
    return Ranked(name, signal, ids[is_there], scores[is_there], rows)
