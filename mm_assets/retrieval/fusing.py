"""Ranks of several signals → one order of moments.

Put here: reciprocal rank fusion (Cormack, Clarke, Büttcher 2009; k = 60), what belongs to one moment, grouping,
diversity, near-duplicates. Keep out: where ranks come from.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mm_assets.indexing import Row
from mm_assets.retrieval.questions import Question
from mm_assets.retrieval.signals import Ranked
from mm_assets.vectors import Floats, Ids

Scores = npt.NDArray[np.float64]

RANK_CONSTANT = 60
NEAR_DUPLICATE = 0.97  # cosine of keyframes; of the same picture in another size or quality
_PLACE = ("object_id", "segment_id", "start_s", "end_s", "page_number")


class Evidence(NamedTuple):
    """One signal's word for a moment: an item that it named.

    Attributes
    ----------
    place : of the item among all that the signal named, from 1
    share : of the moment's score
    """

    ranked: Ranked
    place: int
    row: Row
    share: float

    @property
    def score(self) -> float:
        """Cosine or BM25."""
        return float(self.ranked.scores[self.place - 1])


@dataclass
class Fused:
    """A moment and who names it.

    Attributes
    ----------
    start_s, end_s : the narrowest of what the signals name; None for images and pages
    score : sum of weight / (60 + rank) over the signals
    """

    object_id: str
    segment_id: str
    start_s: float | None
    end_s: float | None
    page_number: int | None
    score: float = 0.0
    evidence: list[Evidence] = field(default_factory=list)

    def is_at(self, item: Mapping[str, Any]) -> bool:
        """Whether an item of the same object is of this moment: some time is common to both, or the picture or page."""
        if self.start_s is None or self.end_s is None or item["start_s"] is None or item["end_s"] is None:
            return bool(self.segment_id == item["segment_id"])
        return bool(min(self.end_s, item["end_s"]) > max(self.start_s, item["start_s"]))


def fuse(signals: Sequence[Ranked], question: Question) -> list[Fused]:
    """Return the moments that signals name, best first, without some that cannot be among the k best.

    Items of one picture or page, or of one object at a common time (a scene, and what is said in it), are one moment, of
    each signal its best item counts. What is said twice in a scene is two moments.
    """
    objects: dict[str, list[Evidence]] = defaultdict(list)
    shares = [_shares(ranked, question) for ranked in signals]
    for ranked, of, places in zip(signals, shares, _contenders(signals, shares, question), strict=True):
        rows = ranked.rows.at(ranked.ids[places])
        for place, row, share in zip(places.tolist(), rows, of[places].tolist(), strict=True):
            objects[row["object_id"]].append(Evidence(ranked, place + 1, row, share))
    found = [moment for items in objects.values() for moment in _moments(items)]
    return sorted(found, key=lambda moment: (-moment.score, moment.segment_id, moment.start_s or 0.0))


def _shares(ranked: Ranked, question: Question) -> Scores:
    """Return what each item of a signal adds to the score of its moment."""
    return question.weight(ranked.signal) / (RANK_CONSTANT + 1 + np.arange(len(ranked.ids)))


def _contenders(signals: Sequence[Ranked], shares: Sequence[Scores], question: Question) -> list[Ids]:
    """Return for each signal which of its items to read, which costs most.

    Left out are those of objects that together have less than k other objects have by one item each.
    """
    ends = [0, *accumulate(len(ranked.ids) for ranked in signals)]
    is_read = np.ones(ends[-1], bool)
    if not (question.diversify or question.collapse) and ends[-1] > question.k:
        _, of = np.unique(np.concatenate([s.rows.object_numbers(s.ids) for s in signals]), return_inverse=True)
        share, best = np.concatenate(shares), np.zeros(len(of))
        np.maximum.at(best, of, share)
        is_read = (np.bincount(of, share) >= np.sort(best)[-question.k])[of]
    return [np.flatnonzero(is_read[start:end]) for start, end in pairwise(ends)]


def _moments(items: Sequence[Evidence]) -> list[Fused]:
    """Put together the items of one object."""
    moments: list[Fused] = []
    for evidence in items:
        item = {name: evidence.row[name] for name in _PLACE}
        moment = next((moment for moment in moments if moment.is_at(item)), None)
        if moment is None:
            moment = Fused(**item)
            moments.append(moment)
        if all(other.ranked is not evidence.ranked for other in moment.evidence):
            _support(moment, evidence, item)
    return moments


def _support(moment: Fused, evidence: Evidence, item: Mapping[str, Any]) -> None:
    moment.score += evidence.share
    moment.evidence.append(evidence)
    if moment.start_s is not None and item["start_s"] is not None:
        moment.start_s, moment.end_s = (
            max(moment.start_s, item["start_s"]),
            min(moment.end_s or math.inf, item["end_s"]),
        )


def choose(moments: Sequence[Fused], question: Question, vectors: Callable[[Sequence[str]], Floats]) -> list[Fused]:
    """Return the moments that are answered: grouped, without near-duplicates, diversified, at most k.

    Parameters
    ----------
    vectors : segment ids → (n, dim) vectors of their keyframes, zeros where there is none
    """
    chosen = list(moments)
    if question.group_by == "object":
        chosen = list({moment.object_id: moment for moment in reversed(chosen)}.values())[::-1]
        chosen.sort(key=lambda moment: (-moment.score, moment.segment_id))
    if not question.collapse and not question.diversify:
        return chosen[: question.k]
    matrix = vectors([moment.segment_id for moment in chosen])
    return [chosen[row] for row in _spread(chosen, matrix, question)]


def _spread(moments: Sequence[Fused], matrix: Floats, question: Question) -> list[int]:
    """Take the best again and again, less what it has in common with those taken (Carbonell and Goldstein 1998)."""
    scores = np.array([moment.score for moment in moments])
    scores = scores / scores.max() if len(scores) else scores
    nearest = np.full(len(moments), -1.0)
    taken: list[int] = []
    is_left = np.ones(len(moments), bool)
    while len(taken) < question.k and is_left.any():
        value = (1 - question.diversify) * scores - question.diversify * nearest.clip(min=0)
        row = int(np.where(is_left, value, -np.inf).argmax())
        taken.append(row)
        nearest = np.maximum(nearest, np.vecdot(matrix, matrix[row]))
        is_left[row] = False
        if question.collapse:
            is_left &= nearest < NEAR_DUPLICATE
    return taken
