"""Standing queries: what a batch makes is put to every watch, before the ledger says that the work is done.

Put here: watches × rows → matches, and vectors of what watches ask for. Keep out: telling of matches (``delivering``).

A kill before the ledger's word repeats the group, and the same match is known by then; no kill can lose one. Only
what is made for the first time is put to the watches: another model looks at all objects anew, and they are not new.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mm_assets.flows import metrics
from mm_assets.flows.arriving import read_layers
from mm_assets.flows.ends import storable
from mm_assets.flows.preparing import Prepared
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Match, Watch
from mm_assets.retrieval.questions import read_picture
from mm_assets.retrieval.signals import find_largest_face
from mm_assets.texts import parse_question, stand_in, words_of
from mm_assets.vectors import Floats, from_arrow
from mm_assets.wording import texts_of

STEPS: Mapping[str, tuple[str, ...]] = {  # kind of a watch → steps whose results it is put to
    "text": ("visual_embeddings",),
    "image": ("visual_embeddings",),
    "face": ("faces",),
    "said": ("transcripts",),
    "shown": ("ocr_text", "segments"),
}
WORD_KINDS = ("said", "shown")
_PLACE = ("object_id", "segment_id", "start_s", "end_s", "page_number")
_LOG = logging.getLogger(__name__)


class StandingQueries:
    """The watches as they are when a batch begins; those that are added later see the next one."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._watches = workspace.ledger.watches.all()
        self._ready: dict[str, list[Watch]] = {}

    def match(self, group: Sequence[Prepared], results: Mapping[str, Mapping[str, pa.Table]]) -> None:
        """Put what a group made to the watches, and what matches into the ledger.

        Parameters
        ----------
        results : step → object_id → rows
        """
        if not self._watches:
            return
        made = _rows_by_step(group, results)
        found = [match for kind in STEPS for match in self._match(kind, made)]
        if not found:
            return
        names = {watch.watch_id: watch.name for watch in self._watches}
        counts = Counter(names[match.watch_id] for match in self._workspace.ledger.watches.record(found))
        metrics.count(self._workspace, {("matches_total", (("watch", name),)): n for name, n in counts.items()})

    def _match(self, kind: str, made: Mapping[str, pa.Table]) -> list[Match]:
        tables = {step: made[step] for step in STEPS[kind] if step in made}
        watches = self._ready_ones(kind) if tables else []
        if not watches:
            return []
        match = match_words if kind in WORD_KINDS else match_vectors
        found = match(watches, texts_of(tables) if kind in WORD_KINDS else tables[STEPS[kind][0]])
        not_new = self._workspace.ledger.watches.done_before({match.object_id for match in found}, tables)
        return [match for match in found if match.object_id not in not_new]

    def _ready_ones(self, kind: str) -> list[Watch]:
        """Return the watches of a kind that can be compared with what is made now."""
        if kind not in self._ready:
            watches = [renew(self._workspace, watch) for watch in self._watches if watch.kind == kind]
            self._ready[kind] = [watch for watch in watches if not is_of_other_model(self._workspace, watch)]
        return self._ready[kind]


def _rows_by_step(group: Sequence[Prepared], results: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """Return the rows of each step that gave some; of segments the text layers, where they were made by this batch."""
    made = {step: pa.concat_tables(of.values()) for step, of in results.items() if of}
    layers = [read_layers(item) for item in group if ("segments", "done") in {(e.step, e.state) for e in item.ends}]
    made |= {"segments": pa.concat_tables(layers)} if layers else {}
    return {step: rows for step, rows in made.items() if rows.num_rows}


# -- watches × rows ------------------------------------------------------------------------------------------------------


def match_vectors(watches: Sequence[Watch], rows: pa.Table) -> list[Match]:
    """Return the best row of each object for each watch, where its cosine reaches the watch's threshold.

    Parameters
    ----------
    watches : with vectors of the model that made the rows
    rows : with a column ``vector``, of any objects
    """
    asked = np.stack([np.frombuffer(watch.vector or b"", "<f4") for watch in watches])
    scores = asked @ from_arrow(rows["vector"]).T
    owners = np.asarray(rows["object_id"])
    return [
        _match(watch, rows, row, float(of_watch[row]))
        for watch, of_watch in zip(watches, scores, strict=True)
        for row in _best_rows(owners, of_watch, watch.threshold or 0.0)
    ]


def _best_rows(owners: npt.NDArray[Any], scores: Floats, threshold: float) -> Iterator[int]:
    """Yield the row of each owner's highest score, of those that reach the threshold; of equal ones the first."""
    rows = np.flatnonzero(scores >= threshold)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    _, first = np.unique(owners[rows], return_index=True)
    yield from rows[first].tolist()


def match_words(watches: Sequence[Watch], texts: pa.Table) -> list[Match]:
    """Return the first text of each object, for each watch, in which all terms of the watch's question stand.

    Parameters
    ----------
    texts : rows of ``wording.SCHEMA``, of any objects
    """
    asked = [(watch, parse_question(watch.question)) for watch in watches]
    found: dict[tuple[str, str], Match] = {}
    for row, (object_id, text) in enumerate(zip(*(texts[n].to_pylist() for n in ("object_id", "text")), strict=True)):
        words = words_of(text)
        for watch, terms in asked:
            key = watch.watch_id, object_id
            if key not in found and stand_in(words, terms):
                found[key] = _match(watch, texts, row, None)
    return list(found.values())


def _match(watch: Watch, rows: pa.Table, row: int, score: float | None) -> Match:
    place = {name: rows[name][row].as_py() for name in _PLACE}
    return Match(watch.watch_id, score=score, **place)


# -- vectors of what is asked for ----------------------------------------------------------------------------------------


def encode(workspace: Workspace, kind: str, question: str, picture: bytes | None) -> bytes:
    """Return the vector of a question as float32, by the model of the step that it is put to; loads the model.

    Raises
    ------
    ConfigError
        The picture cannot be read, or no face is found in it.
    """
    model: Any = workspace.extractors[STEPS[kind][0]]
    if kind == "text":
        vectors = model.encode_texts([question])
    elif kind == "image":
        vectors = model.encode_images([read_picture(picture or b"")])
    else:
        vectors, _ = find_largest_face(model, picture or b"")
    return np.asarray(vectors[0], "<f4").tobytes()


def renew(workspace: Workspace, watch: Watch) -> Watch:
    """Encode a watch anew where its vector is of another model; where that fails, note why and leave it as it is."""
    if not is_of_other_model(workspace, watch):
        return watch
    book, recipe = workspace.ledger.watches, workspace.recipes[STEPS[watch.kind][0]]
    try:
        vector = encode(workspace, watch.kind, watch.question, book.picture(watch.watch_id))
    except Exception as error:  # noqa: BLE001  whatever it is, the batch goes on; the next one tries again
        _LOG.warning("watch %s cannot be encoded anew: %s", watch.name, error)
        book.encode(watch.watch_id, watch.recipe, watch.vector, storable(str(error)))
        return watch
    book.encode(watch.watch_id, recipe, vector, None)
    return replace(watch, recipe=recipe, vector=vector, error=None)


def is_of_other_model(workspace: Workspace, watch: Watch) -> bool:
    """Whether the vector of a watch may not be compared with what is made now; False for words."""
    return watch.kind not in WORD_KINDS and watch.recipe != workspace.recipes.get(STEPS[watch.kind][0])


def why_stale(workspace: Workspace, watch: Watch) -> str | None:
    """Say why a watch sees nothing now; None when it does."""
    steps = STEPS[watch.kind]
    if not set(steps) & set(workspace.recipes):
        return f"no source has the step {steps[0]}"
    if is_of_other_model(workspace, watch):
        return watch.error or "the model is another one; the next batch encodes the question anew"
    return None
