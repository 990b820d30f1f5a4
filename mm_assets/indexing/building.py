"""Building an index, changing it, and measuring what it finds.

Put here: vectors → index. Keep out: searching, and when an index is made.
"""

from typing import Any

import numpy as np

from mm_assets.errors import ConfigError
from mm_assets.indexing.parts import Numbers, Rows
from mm_assets.indexing.searching import VectorIndex, bits_of, selector_of
from mm_assets.vectors import SEED, Floats, Ids, rows_of

_MEASURED_AT = 10  # recall is measured for this many answers
_RECALL_QUERIES = 400  # with 200, .9965 was measured where it is .993
_QUERY_NOISE = 1.0  # cosine .71 to the vector a query is made from; smaller noise calls too few lists enough
_TIE = 1e-5  # as good as the true tenth: equal vectors under other ids, and rounding
_FIRST_MARGIN, _WIDER = 0.5, 1.25  # standard deviations, and how much wider each next one is
_RESERVE = 2.0  # times the codes that the bar takes
# Half of what FAISS advises: of 1,000,000 vectors, 32 of 2,000 lists find as much as 32 of 4,000 in no more time, and are
# made in 55 core-s instead of 128 (November 2026).
_LISTS_PER_ROOT = 2
_TRAINING_ROWS_PER_LIST = 39  # FAISS warns below this
_TRAINING_ROUNDS = 8
_REBUILD_SHARE = 0.25  # added and removed since the lists were made; older lists fit their vectors less and less


def build_index(rows: Rows, *, exact_rows: int, min_recall: float) -> VectorIndex:
    """Build an index and measure its recall; the same vectors give the same index, whatever their parts.

    Up to ``exact_rows`` every vector is compared. Above, an inverted file of 2·√n lists holds one bit per dimension,
    and the best candidates are compared by their vectors; lists that are farther and farther are visited until
    ``min_recall`` is reached.

    Parameters
    ----------
    min_recall : lowest recall@10 that is accepted, 0…1

    Raises
    ------
    ConfigError
        ``min_recall`` is not reached even when all lists are visited. Only other settings help, so nothing is returned
        that could be promoted.
    """
    if len(rows) <= exact_rows or len(rows) == 0:
        return _build_exact(rows)
    test = _RecallTest(rows)
    return _with_reserve(_tune(_build_inverted(rows), test, min_recall), test, min_recall)


def update_index(current: VectorIndex, rows: Rows, *, exact_rows: int, min_recall: float) -> VectorIndex:
    """Return an index of these rows, made from ``current``, which must have been opened to be changed.

    Rows that left or changed are taken out and new ones are put into the lists there are. It is built anew where the
    lists have grown old (a quarter of their rows came or went), where it would be exact, and where recall is not
    reached; raises as ``build_index`` does.
    """
    gone, come = _changes(current.rows, rows)
    n_changed = current.parameters["n_changed"] + len(gone) + len(come)
    is_old = n_changed > _REBUILD_SHARE * current.parameters["n_trained"]
    if current.kind == "exact" or len(rows) <= exact_rows or is_old:
        return build_index(rows, exact_rows=exact_rows, min_recall=min_recall)
    try:
        return _change(current, rows, gone, come, n_changed, min_recall)
    except ConfigError:
        return build_index(rows, exact_rows=exact_rows, min_recall=min_recall)


def _changes(old: Rows, new: Rows) -> tuple[Ids, Ids]:
    """Return the ids to take out and the ids to put in; an item with another vector is in both."""
    gone, come = np.setdiff1d(old.ids, new.ids, assume_unique=True), np.setdiff1d(new.ids, old.ids, assume_unique=True)
    both = np.intersect1d(old.ids, new.ids, assume_unique=True)
    names = [np.array([part.name for part in rows.parts], object) for rows in (old, new)]
    at = [rows_of(both, rows.ids) for rows in (old, new)]
    doubtful = both[names[0][old.part_numbers[at[0]]] != names[1][new.part_numbers[at[1]]]]
    changed = doubtful[(old.gather(doubtful) != new.gather(doubtful)).any(axis=1)]
    return np.concatenate([gone, changed]), np.concatenate([come, changed])


def _change(current: VectorIndex, rows: Rows, gone: Ids, come: Ids, n_changed: int, min_recall: float) -> VectorIndex:
    index, before, margin = current.faiss_index, rows_of(rows.ids, current.rows.ids), current.parameters["margin"]
    n_numbers = int(current.numbers.max(initial=-1)) + 1
    leaving = bits_of(current.numbers[rows_of(gone, current.rows.ids)], n_numbers)
    index.remove_ids(selector_of(leaving))
    lists, numbers, stays = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32), before >= 0
    lists[stays], numbers[stays] = current.lists[before[stays]], current.numbers[before[stays]]
    coming = rows_of(come, rows.ids)
    numbers[coming] = np.arange(n_numbers, n_numbers + len(come))
    lists[coming] = _add(index, numbers[coming], rows.gather(come))
    changed = VectorIndex(index, rows, lists, numbers, current.parameters | {"n_changed": n_changed})
    test = _RecallTest(rows)
    tuned = _tune(changed, test, min_recall)
    return tuned if tuned.parameters["margin"] == margin else _with_reserve(tuned, test, min_recall)


def _add(index: Any, numbers: Numbers, matrix: Floats) -> Numbers:
    """Put vectors into their nearest lists; returns the list of each."""
    import faiss

    lists: Ids = index.quantizer.search(matrix, 1)[1][:, 0]
    ids = numbers.astype(np.int64)
    index.add_core(len(ids), faiss.swig_ptr(matrix), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
    return lists.astype(np.int32)


def _parameters(kind: str, rows: Rows, n_lists: int = 1) -> dict[str, Any]:
    import faiss

    return {
        "kind": kind,
        "dim": rows.dim,
        "recall_at_10": 1.0,
        "n_lists": n_lists,
        "margin": _FIRST_MARGIN,
        "n_trained": len(rows),
        "n_changed": 0,
        "seed": SEED,
        "faiss_version": faiss.__version__,
    }


def _build_exact(rows: Rows) -> VectorIndex:
    import faiss

    index = faiss.IndexFlatIP(rows.dim)
    for _, matrix in rows.blocks():
        index.add(matrix)
    built = VectorIndex(index, rows, np.zeros(len(rows), np.int32), _as_they_come(rows), _parameters("exact", rows))
    return _RecallTest(rows).measured(built)


def _as_they_come(rows: Rows) -> Numbers:
    """Return numbers in the order of the ids, so that the bytes do not depend on the order of the rows."""
    return np.arange(len(rows), dtype=np.int32)


def _build_inverted(rows: Rows) -> VectorIndex:
    import faiss

    n = len(rows)
    n_lists = max(1, min(int(_LISTS_PER_ROOT * np.sqrt(n)), n // _TRAINING_ROWS_PER_LIST))
    index: Any = faiss.index_factory(rows.dim, f"IVF{n_lists},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter = SEED, _TRAINING_ROUNDS
    # Ids are hashes, so the lowest are a random sample that does not depend on the order of the rows.
    index.train(rows.gather(rows.ids[: n_lists * _TRAINING_ROWS_PER_LIST]))
    lists, numbers = np.empty(n, np.int32), _as_they_come(rows)
    for block, matrix in rows.blocks():
        lists[block] = _add(index, numbers[block], matrix)
    return VectorIndex(index, rows, lists, numbers, _parameters("ivf", rows, n_lists))


def _tune(index: VectorIndex, test: "_RecallTest", min_recall: float) -> VectorIndex:
    """Measure recall; where it is not enough, visit lists that are farther and farther, all of them in the end."""
    best = 0.0
    while True:
        index = test.measured(index)
        if index.recall >= min_recall:
            return index
        best = max(best, index.recall)
        if test.n_codes(index) >= index.n_rows:
            break
        index = _wider(index)
    msg = (
        f"recall@{_MEASURED_AT} of the index over {index.n_rows} vectors is {best:.4f} at best, "
        f"below refresh.min_recall = {min_recall}; raise refresh.exact_index_rows to {index.n_rows} or more "
        "(exact, slower), or lower refresh.min_recall"
    )
    raise ConfigError(msg)


def _with_reserve(index: VectorIndex, test: "_RecallTest", min_recall: float) -> VectorIndex:
    """Widen the margin as long as it costs little: queries may be less like the vectors than those of the test."""
    least, most = index, _RESERVE * test.n_codes(index)
    while test.n_codes(index) < test.n_codes(wider := _wider(index)) <= most:
        index = wider
    wide = test.measured(index)
    return wide if wide.recall >= min_recall else least


def _wider(index: VectorIndex) -> VectorIndex:
    return index.with_parameters({"margin": _WIDER * index.parameters["margin"]})


class _RecallTest:
    """Queries near the vectors of a collection and not among them, with the true answers."""

    def __init__(self, rows: Rows) -> None:
        random = np.random.default_rng(SEED)
        n = min(len(rows), _RECALL_QUERIES)
        near = rows.gather(np.sort(random.choice(rows.ids, n, replace=False)))
        queries = near + random.normal(scale=_QUERY_NOISE / np.sqrt(rows.dim), size=near.shape)
        self._queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
        self._k = min(_MEASURED_AT, len(rows))
        self._worst_true = _worst_of_best(self._queries, rows, self._k)

    def measured(self, index: VectorIndex) -> VectorIndex:
        """Return the index with its recall@10: an answer as similar as the true tenth counts, so equal vectors do."""
        recall = 1.0
        if self._k:
            similarity, _ = index.search(self._queries, self._k)
            recall = float((similarity >= self._worst_true - _TIE).mean())
        return index.with_parameters({"recall_at_10": recall})

    def n_codes(self, index: VectorIndex) -> float:
        """Return how many codes a query looks at, on average."""
        return index.n_codes(self._queries, self._k)


def _worst_of_best(queries: Floats, rows: Rows, k: int) -> Floats:
    """Return (n, 1) the similarity of each query's k-th nearest vector, by comparing all, part after part."""
    import faiss

    best = np.full((len(queries), k), -np.inf, np.float32)
    for part in rows.parts:
        if k and len(part.ids):
            found, _ = faiss.knn(queries, part.matrix, min(k, len(part.ids)), metric=faiss.METRIC_INNER_PRODUCT)
            best = -np.sort(-np.concatenate([best, found], axis=1), axis=1)[:, :k]
    return best[:, -1:]
