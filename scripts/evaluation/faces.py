"""Faces: whether each is found, and told whose it is by a few enrolled ones.

Put here: figures of the table faces.
Keep out: overlap of boxes (boxes).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from evaluation.boxes import match_boxes
from evaluation.figures import Figure, Row, share
from evaluation.views import Rows, View, box_of

N_ENROLLED = 3
RANK1_TARGET = 0.97
Vector: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    vector: Vector
    place: str


def measure_faces(views: Sequence[View], rows: Sequence[Row]) -> list[Figure]:
    """Enrol the first three found faces of each person and name all others by the nearest of them."""
    found_in = Rows(rows)
    known = [face for view in views for face in _named(found_in.of(view), view)]
    n_true = sum(len(view.scene.people) for view in views)
    n_found = sum(len(found_in.of(view)) for view in views)
    missed = [
        f"{len(view.scene.people)} people, {len(found_in.of(view))} faces on {view.place}"
        for view in views
        if len(view.scene.people) != len(found_in.of(view))
    ]
    return [
        _measure_names(known),
        share("face_recall", len(known), n_true, worst=missed),
        share("face_precision", len(known), n_found),
    ]


def _named(found: Sequence[Row], view: View) -> Iterator[_Known]:
    """Give the found faces that lie where a person was drawn."""
    surest_first = sorted(found, key=lambda row: -row["confidence"])
    taken = match_boxes([box_of(row) for row in surest_first], [view.to_stored(box) for box in view.scene.people])
    for row, k in zip(surest_first, taken, strict=True):
        if k is not None:
            yield _Known(view.scene.people[k].name, np.asarray(row["vector"], float), view.place)


def _measure_names(known: Sequence[_Known]) -> Figure:
    by_name: dict[str, list[_Known]] = {}
    for face in known:
        by_name.setdefault(face.name, []).append(face)
    enrolled = [face for faces in by_name.values() for face in faces[:N_ENROLLED]]
    asked = [(face, _nearest(face, enrolled)) for faces in by_name.values() for face in faces[N_ENROLLED:]]
    wrong = [f"{face.name} taken for {other} on {face.place}" for face, other in asked if other != face.name]
    return share("face_rank1", len(asked) - len(wrong), len(asked), target=RANK1_TARGET, worst=wrong)


def _nearest(face: _Known, enrolled: Sequence[_Known]) -> str:
    return max(enrolled, key=lambda other: float(face.vector @ other.vector)).name
