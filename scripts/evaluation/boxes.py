"""Boxes: what was detected against what was drawn.

Put here: overlap, matching, average precision, and the figures of detected objects.
Keep out: whose face it is (faces).

Sources: the COCO detection protocol (interpolated precision at 101 recalls) at an overlap of one half, as in PASCAL VOC.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evaluation.figures import Figure, Row, share
from evaluation.views import Box, Rows, View, box_of

MIN_OVERLAP = 0.5
RECALLS = np.linspace(0.0, 1.0, 101)
MAP50_TARGET = 0.95


def overlap(first: Box, second: Box) -> float:
    """Give intersection over union, 0…1."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(0.0, width) * max(0.0, height)
    union = _area(first) + _area(second) - common
    return common / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def match_boxes(found: Sequence[Box], true: Sequence[Box]) -> list[int | None]:
    """Give for each found box, surest first, the true box that it alone takes: the one that it overlaps most."""
    free = set(range(len(true)))
    taken: list[int | None] = []
    for box in found:
        overlaps = {k: value for k in free if (value := overlap(box, true[k])) >= MIN_OVERLAP}
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        free.discard(-1 if best is None else best)
        taken.append(best)
    return taken


def average_precision(confidences: Sequence[float], hits: Sequence[bool], n_true: int) -> float:
    """Give the mean over 101 recalls of the best precision at that recall or above; 0 at recalls never reached."""
    if not hits or not n_true:
        return 0.0
    ranked = np.asarray(hits)[np.argsort(-np.asarray(confidences), kind="stable")]
    n_hits = np.cumsum(ranked)
    precision = n_hits / np.arange(1, len(ranked) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(n_hits / n_true, RECALLS - 1e-12)
    reached: npt.NDArray[np.float64] = np.append(best_from_here, 0.0)[at]
    return float(reached.mean())


@dataclass(slots=True)
class _Class:
    confidences: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    n_true: int = 0


def measure_objects(views: Sequence[View], rows: Sequence[Row]) -> list[Figure]:
    """Measure the table detected_objects; where the table leaves out unsure ones, that limits recall and so mAP."""
    classes: dict[str, _Class] = {}
    worst: list[str] = []
    found_in = Rows(rows)
    for view in views:
        found = found_in.of(view)
        for label in {row["label"] for row in found} | {box.label for box in view.scene.label_boxes}:
            worst += _count(classes.setdefault(label, _Class()), label, found, view)
    scores = {name: average_precision(c.confidences, c.hits, c.n_true) for name, c in classes.items() if c.n_true}
    n_true = sum(each.n_true for each in classes.values())
    n_hits = sum(sum(each.hits) for each in classes.values())
    n_found = sum(len(each.hits) for each in classes.values())
    lowest = [f"{name} {scores[name]:.3f}" for name in sorted(scores, key=scores.__getitem__)[:4]]
    floor = min((row["confidence"] for row in rows), default=0.0)
    counts = f"{len(scores)} classes on {len(views)} pictures, confidence from {floor:.2f}; lowest: {', '.join(lowest)}"
    map50 = float(np.mean(list(scores.values()))) if scores else 0.0
    return [
        Figure("map50", map50, n_true, counts, MAP50_TARGET),
        share("object_recall", n_hits, n_true, worst=worst),
        share("object_precision", n_hits, n_found),
    ]


def _count(score: _Class, label: str, found: Sequence[Row], view: View) -> list[str]:
    """Add one class of one picture; returns its misses and its inventions."""
    own = sorted((row for row in found if row["label"] == label), key=lambda row: -row["confidence"])
    true = [view.to_stored(box) for box in view.scene.label_boxes if box.label == label]
    taken = match_boxes([box_of(row) for row in own], true)
    score.confidences += [row["confidence"] for row in own]
    score.hits += [k is not None for k in taken]
    score.n_true += len(true)
    missed = [f"missed {label} on {view.place}"] * (len(true) - len([k for k in taken if k is not None]))
    invented = [
        f"no {label} ({row['confidence']:.2f}) on {view.place}" for row, k in zip(own, taken, strict=True) if k is None
    ]
    return missed + invented
