"""How good search is: answers to golden queries → recall, reciprocal rank and gain.

Put here: when an answer is right, and the figures. Keep out: where answers come from, and how queries are written down.

An answer counts for one of the expected moments: the first in the query's order that it is right for and that no better
answer counted for. So every expected moment counts once, and the relevance of an answer is 0 or 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import Any, TypeAlias

from mm_assets.errors import ConfigError
from mm_assets.retrieval.golden import Expected, Golden, GoldenQuery
from mm_assets.retrieval.questions import Question

ALL = "all"
Row: TypeAlias = Mapping[str, Any]
"""An answer: bucket, key, start_s, end_s and page_number, as in ``answers.SCHEMA``."""
Ask: TypeAlias = Callable[[Question], Sequence[Row]]
"""Question → answers, best first."""


def is_right(answer: Row, expected: Expected, within_s: float | None = None) -> bool:
    """Whether an answer is of the expected object, and at its time or on its page where one is expected.

    Times agree where both stretches have some time in common, and the answer begins at most ``within_s`` from the
    expected start where that is given.
    """
    if expected.object not in (answer["key"], f"{answer['bucket']}/{answer['key']}"):
        return False
    if expected.page is not None:
        return bool(answer["page_number"] == expected.page)
    if expected.stretch is None:
        return True
    if answer["start_s"] is None:
        return False
    start_s, end_s = expected.stretch
    is_near = within_s is None or abs(answer["start_s"] - start_s) <= within_s
    return bool(is_near and answer["start_s"] < end_s and answer["end_s"] > start_s)


def relevance(query: GoldenQuery, answers: Sequence[Row]) -> tuple[bool, ...]:
    """Return for each answer whether it counts for an expected moment."""
    left = list(query.expect)
    counts = []
    for answer in answers:
        found = next((place for place, item in enumerate(left) if is_right(answer, item, query.within_s)), None)
        counts.append(found is not None)
        if found is not None:
            del left[found]
    return tuple(counts)


@dataclass(frozen=True)
class Judged:
    """A golden query with what came back.

    Attributes
    ----------
    number : of the query in its file, from 1
    counts : for each answer, best first, whether it counts for an expected moment
    first : the first answer; None where there was none
    """

    number: int
    query: GoldenQuery
    counts: tuple[bool, ...]
    first: Row | None

    @property
    def rank(self) -> int | None:
        """Rank of the first right answer, from 1; None where there is none."""
        return self.counts.index(True) + 1 if True in self.counts else None

    def recall(self, k: int) -> float:
        """Return the share of the expected moments that k answers hold, of as many as k answers can hold.

        So it is 1 for a hit and 0 for a miss where one moment is expected, and recall@1 says whether the first answer
        is right. Known as capped recall (Thakur et al. 2021, BEIR: the denominator is min(k, number of relevant ones)).
        """
        return sum(self.counts[:k]) / min(k, len(self.query.expect))

    @property
    def reciprocal_rank(self) -> float:
        """1 / rank of the first right answer, 0 without one (Voorhees 1999, TREC-8 question answering)."""
        return 1 / self.rank if self.rank else 0.0

    def ndcg(self, k: int) -> float:
        """Return the gain of k answers, right ones discounted by log2(1 + rank), as a share of the best order's.

        Järvelin and Kekäläinen 2002, with the discount of Burges et al. 2005 and relevance 0 or 1.
        """
        gain = sum(1 / math.log2(1 + rank) for rank, is_counted in enumerate(self.counts[:k], 1) if is_counted)
        return gain / sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(self.query.expect)) + 1))

    def describe(self) -> dict[str, Any]:
        """Return what was asked and expected, and what came, as plain values."""
        return {
            "query": self.number,
            "kind": self.query.kind,
            "asked": str(self.query),
            "expected": [_place(item.object, item.start_s, item.end_s, item.page) for item in self.query.expect],
            "rank": self.rank,
            "came_first": self.first and _place_of(self.first),
        }


def _place_of(row: Row) -> str:
    return _place(f"{row['bucket']}/{row['key']}", row["start_s"], row["end_s"], row["page_number"])


def _place(name: str, start_s: float | None, end_s: float | None, page: int | None) -> str:
    if page is not None:
        return f"{name} page {page}"
    return name if start_s is None or end_s is None else f"{name} {start_s:.1f}-{end_s:.1f} s"


@dataclass(frozen=True)
class Metrics:
    """Figures of some queries; shares and gains are means over the queries, 0…1.

    Attributes
    ----------
    median_rank, worst_rank : of the first right answers, where none is later than any; None where that is none
    """

    n_queries: int
    recall_at_1: float
    recall_at_k: float
    mrr: float
    ndcg_at_k: float
    median_rank: int | None
    worst_rank: int | None


def _measure(judged: Sequence[Judged], k: int) -> Metrics:
    ranks = [item.rank or math.inf for item in judged]
    return Metrics(
        len(judged),
        recall_at_1=fmean(item.recall(1) for item in judged),
        recall_at_k=fmean(item.recall(k) for item in judged),
        mrr=fmean(item.reciprocal_rank for item in judged),
        ndcg_at_k=fmean(item.ndcg(k) for item in judged),
        median_rank=_finite(median_low(ranks)),
        worst_rank=_finite(max(ranks)),
    )


def _finite(rank: float) -> int | None:
    return int(rank) if math.isfinite(rank) else None


@dataclass(frozen=True)
class Evaluation:
    """All golden queries, judged; one at least.

    Attributes
    ----------
    k : answers that were asked for
    """

    k: int
    judged: tuple[Judged, ...]

    @property
    def overall(self) -> Metrics:
        """The figures of all queries."""
        return _measure(self.judged, self.k)

    @property
    def by_kind(self) -> dict[str, Metrics]:
        """The figures of all queries, as ``all``, then of each kind in the file's order."""
        kinds = dict.fromkeys(item.query.kind for item in self.judged)
        of_kind = {kind: [item for item in self.judged if item.query.kind == kind] for kind in kinds}
        return {ALL: self.overall} | {kind: _measure(items, self.k) for kind, items in of_kind.items()}

    @property
    def missed(self) -> list[Judged]:
        """Queries whose first answer is wrong, worst first."""
        return sorted((item for item in self.judged if item.rank != 1), key=lambda item: -(item.rank or math.inf))


def evaluate(golden: Golden, ask: Ask, k: int, report: Callable[[int, int], None] = lambda *_: None) -> Evaluation:
    """Ask every golden query for k answers.

    Parameters
    ----------
    report : told how many of how many queries are answered

    Raises
    ------
    ConfigError
        A query cannot be asked; names it.
    """
    judged = []
    for number, query in enumerate(golden.queries, 1):
        report(number - 1, len(golden.queries))
        try:
            answers = ask(query.question(k))[:k]
        except ConfigError as error:
            msg = f"{golden.file}, query {number}: {error}"
            raise ConfigError(msg) from error
        judged.append(Judged(number, query, relevance(query, answers), answers[0] if answers else None))
    report(len(judged), len(golden.queries))
    return Evaluation(k, tuple(judged))
