"""A question → ranked moments: which object, from when to when (or which page), why, and a picture.

Put here: opening what a question needs, and the order of work. Keep out: each of the steps.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.errors import ConfigError, SchemaError
from mm_assets.identity import vector_id
from mm_assets.indexing import GrownIndex, GrownSelection
from mm_assets.lake import ARRIVALS, Lake
from mm_assets.mirror import drop_copies
from mm_assets.retrieval.answers import Link, Pictures, to_rows
from mm_assets.retrieval.fusing import choose, fuse
from mm_assets.retrieval.indexes import open_grown_index, open_grown_texts
from mm_assets.retrieval.naming import NameSignal
from mm_assets.retrieval.questions import MAX_ANSWERS, Question
from mm_assets.retrieval.signals import (
    Encoder,
    FaceFinder,
    FaceSignal,
    MeaningSignal,
    Ranked,
    TextEncoder,
    VisualSignal,
    WordSignal,
)
from mm_assets.retrieval.tables import NothingPublishedError, segments_where
from mm_assets.spaces import ALL_SPACES, SPACES, WORDS, Space
from mm_assets.vectors import Floats

if TYPE_CHECKING:
    import polars as pl

_CANDIDATES = 100  # of each signal, at least
_CHECKED_EVERY_S = 10.0
_KEPT_CONDITIONS = 16
# So much of what came since is opened, the newest; the rest shows after the refresh. Vectors cost their bytes; texts are
# indexed anew each time: 60,000 utterances, 10.8 MB, took 4.2 s (November 2026, on a core that was not alone).
_ARRIVED_BYTES = {"visual": 64 << 20, "face": 64 << 20, "text": 64 << 20, "words": 4 << 20}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes
    ----------
    rows : one row per moment, see ``answers.SCHEMA``
    notes : what was done otherwise than asked, in words
    """

    rows: pa.Table
    notes: tuple[str, ...] = ()

    @property
    def frame(self) -> "pl.DataFrame":
        """The rows as a polars frame."""
        import polars as pl

        frame = pl.from_arrow(self.rows)
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  of a table, and not of an array
        return frame


@dataclass(frozen=True)
class Models:
    """What encodes questions, and the recipes that made what they are compared with.

    Attributes
    ----------
    recipes : step → recipe under the settings; an index made by another one is refused, never mixed
    """

    encoder: Encoder
    finder: FaceFinder
    texts: TextEncoder
    recipes: Mapping[str, str]


class Retriever:
    """Answers questions from the lake alone: indexes, their rows, and the models that made the vectors.

    Parameters
    ----------
    cache : folder for copies of a lake in a bucket
    link : alias and key → address of an object
    """

    def __init__(self, lake: Lake, models: Models, *, cache: Path, link: Link | None = None) -> None:
        self._lake = lake
        self._models = models
        self._cache = cache
        self._link = link
        self._opened: _Opened | None = None
        self._checked_at = 0.0

    def search(self, *, has_thumbnails: bool = False, **question: Any) -> "pl.DataFrame":
        """Return the moments that answer a question, best first; the arguments are those of ``Question``.

        What was done otherwise than asked is logged as a warning.

        Raises
        ------
        ConfigError
            The question cannot be asked, or what it needs is not indexed, or was indexed by another model.
        """
        answer = self.ask(Question(**question), has_thumbnails=has_thumbnails)
        for note in answer.notes:
            _log.warning(note)
        return answer.frame

    def ask(self, question: Question, *, has_thumbnails: bool = False) -> Answer:
        """Return the moments that answer a question; raises as ``search`` does."""
        opened = self._current()
        try:
            return opened.answer(question, self._link, has_thumbnails=has_thumbnails)
        except (ObjectNotFoundError, SchemaError, FileNotFoundError):
            if not self._was_replaced(opened):
                raise
            self._opened = None  # a newer generation took its place, and its files went, while we read them
            return self._current().answer(question, self._link, has_thumbnails=has_thumbnails)

    def _current(self) -> "_Opened":
        """Return what is indexed now, looking for newer generations every ten seconds."""
        if self._opened is None or time.monotonic() - self._checked_at > _CHECKED_EVERY_S:
            if self._opened is None or self._was_replaced(self._opened):
                self._opened = _Opened(self._lake, self._models, self._cache)
            self._opened.forget_conditions()
            self._checked_at = time.monotonic()
        return self._opened

    def _was_replaced(self, opened: "_Opened") -> bool:
        return _look(self._lake, self._models.recipes) != opened.seen


@dataclass(frozen=True)
class _Seen:
    """What the lake has of a space.

    Attributes
    ----------
    manifest : of its index, None where there is none yet
    arrived : keys of what batches made since, the newest within a bound
    is_whole : whether all of that is among them
    """

    manifest: dict[str, Any] | None
    arrived: tuple[str, ...]
    is_whole: bool


def _look(lake: Lake, recipes: Mapping[str, str]) -> dict[str, _Seen]:
    return {space.name: _look_at(lake, space, recipes.get(space.table, "")) for space in ALL_SPACES}


def _look_at(lake: Lake, space: Space, recipe: str) -> _Seen:
    came = lake.arrivals(space.name, "" if space == WORDS else recipe)
    files = sorted(came, key=lambda stored: (stored.modified_at, stored.key), reverse=True)
    manifest = lake.current_generation(space.generation_name)  # after them: what is swept meanwhile is in it
    total = accumulate(stored.size_bytes for stored in files)
    kept = [
        stored.key for stored, size_bytes in zip(files, total, strict=True) if size_bytes <= _ARRIVED_BYTES[space.name]
    ]
    return _Seen(manifest, tuple(kept), len(kept) == len(files))


class _Opened:
    """The generations that were current at one moment; each is opened when a question first needs it."""

    def __init__(self, lake: Lake, models: Models, cache: Path) -> None:
        self._lake, self._models, self._cache = lake, models, cache
        self.seen = _look(lake, models.recipes)
        self._within: dict[str, pa.Array] = {}
        manifests = [seen.manifest for seen in self.seen.values() if seen.manifest]
        drop_copies(lake, "indexes/", cache, keep={key for of in manifests for key in lake.generation_keys(of)})
        drop_copies(lake, ARRIVALS, cache, keep={key for seen in self.seen.values() for key in seen.arrived})

    def answer(self, question: Question, link: Link | None, *, has_thumbnails: bool) -> Answer:
        k = min(question.k, MAX_ANSWERS)
        notes = [f"{MAX_ANSWERS} answers at most are given, not {question.k}"] if question.k > k else []
        if not all(seen.is_whole for seen in self.seen.values()):
            notes.append("more was processed than is searched before it is published; run `mm ingest`")
        if (question.where or question.names) and any(seen.arrived for seen in self.seen.values()):
            notes.append(
                "what was processed since the last publish is in no table yet: it passes no condition and has no name"
            )
        n = max(_CANDIDATES, 2 * k)
        within = self._segments(question.where) if question.where else None
        signals, more = self._rank(question, n, within)
        chosen = choose(fuse(signals, question), question, self._vectors)[:k]
        pictures = Pictures(self._lake, self._recipe_of_segments) if has_thumbnails else None
        return Answer(to_rows(chosen, link, pictures), (*notes, *more))

    def forget_conditions(self) -> None:
        """Read conditions anew: tables change also where no index does, when tags do."""
        self._within.clear()

    def _rank(self, question: Question, n: int, within: pa.Array | None) -> tuple[list[Ranked], list[str]]:
        signals: list[Ranked] = []
        notes: list[str] = []
        if question.uses("visual") and (question.text or question.image or question.like):
            signals += self._visual.rank(question, n, self._select(self._visual.index, within))
        if question.uses("face") and question.face:
            found, told = self._face.rank(question, n, self._select(self._face.index, within))
            signals, notes = signals + found, notes + told
        if question.text and question.uses("text") and self._is_compared(SPACES["text"], question, notes):
            signals += self._meaning.rank(question, n, self._select(self._meaning.index, within))
        is_worded = question.said or question.shown or (question.text and self._has(WORDS))
        if question.uses("words") and is_worded:
            allowed = None if within is None else self._words.rows.ids_where("segment_id", within)
            signals += self._words.rank(question, n, allowed)
        if question.uses("names") and question.names:
            found, told = NameSignal(self._lake, self._cache).rank(question, n, within)
            signals, notes = signals + found, notes + told
        return signals, notes

    def _segments(self, where: str) -> pa.Array:
        if where not in self._within:
            while len(self._within) >= _KEPT_CONDITIONS:
                del self._within[next(iter(self._within))]
            self._within[where] = segments_where(self._lake, self._cache, where)
        return self._within[where]

    def _select(self, index: GrownIndex, within: pa.Array | None) -> GrownSelection | None:
        return None if within is None else index.select(index.rows.ids_where("segment_id", within))

    def _vectors(self, segment_ids: Sequence[str]) -> Floats:
        """Return the vectors of keyframes, zeros where there is none."""
        rows = self._visual.index.rows
        ids = np.array([vector_id(segment_id) for segment_id in segment_ids], np.int64)
        is_known = np.isin(ids, rows.known(ids))
        matrix = np.zeros((len(ids), rows.dim), np.float32)
        matrix[is_known] = rows.gather(ids[is_known])
        return matrix

    @cached_property
    def _recipe_of_segments(self) -> str:
        return self._lake.published().get("segments") or self._models.recipes["segments"]

    @cached_property
    def _visual(self) -> VisualSignal:
        index = self._open(SPACES["visual"])
        self._models.encoder.load()
        return VisualSignal(index, self._models.encoder)

    @cached_property
    def _face(self) -> FaceSignal:
        return FaceSignal(self._open(SPACES["face"]), self._models.finder)

    @cached_property
    def _meaning(self) -> MeaningSignal:
        index = self._open(SPACES["text"])
        self._models.texts.load()
        return MeaningSignal(index, self._models.texts)

    @cached_property
    def _words(self) -> WordSignal:
        seen = self._seen(WORDS)
        return WordSignal(*open_grown_texts(self._lake, seen.manifest, seen.arrived, self._cache))

    def _open(self, space: Space) -> GrownIndex:
        seen = self._seen(space)
        return open_grown_index(self._lake, space, seen.manifest, seen.arrived, self._cache)

    def _has(self, space: Space) -> bool:
        seen = self.seen[space.name]
        return bool(seen.manifest or seen.arrived)

    def _is_compared(self, space: Space, question: Question, notes: list[str]) -> bool:
        """Whether a space takes part in a question; one that was asked for by name is, or the question fails."""
        if space.name in question.spaces:
            return True
        if self._has(space) and self._is_of_other_recipe(space):
            notes.append(
                f"the {space.name} index is of other models than the settings', and not asked; run `mm ingest`"
            )
            return False
        return self._has(space)

    def _is_of_other_recipe(self, space: Space) -> bool:
        manifest = self.seen[space.name].manifest
        made_by = manifest["recipes"] if manifest and manifest["n_rows"] else None
        return bool(space != WORDS and made_by and self._models.recipes[space.table] not in made_by)

    def _seen(self, space: Space) -> _Seen:
        """Return what there is to compare questions with.

        Raises
        ------
        NothingPublishedError
            Nothing is indexed yet.
        ConfigError
            Another model made the index than the one that would encode the question.
        """
        seen = self.seen[space.name]
        if not self._has(space):
            msg = f"nothing is indexed for {space.name} yet; run `mm ingest`"
            raise NothingPublishedError(msg)
        if self._is_of_other_recipe(space):
            msg = (
                f"the {space.name} index was made by another model than the one in the settings; "
                "run `mm ingest` to rebuild it, or set back `models`"
            )
            raise ConfigError(msg)
        return seen
