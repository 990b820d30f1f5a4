"""The contract of everything that is fitted to a collection: index, cluster model, baseline."""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_factory import grouped, names, stored

from mm_assets.anomalies import Baseline, fit_baseline
from mm_assets.clustering import ClusterModel, fit_clusters
from mm_assets.errors import SchemaError
from mm_assets.indexing import INDEX_FILE, ROWS_FILE, VectorIndex, build_index
from mm_assets.vectors import Floats, to_arrow

DIM = 8
Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """How one estimator is fitted, asked and stored."""

    fit: Callable[[list[str], np.ndarray], Any]
    ask: Callable[[Any, list[str], np.ndarray], Arrays]
    store: Callable[[Any], bytes]
    restore: Callable[[bytes, Any], Any]


def to_parquet(model: Any) -> bytes:
    """Write a model's table, in small row groups so that columns come back in chunks."""
    sink = io.BytesIO()
    pq.write_table(model.to_table(), sink, row_group_size=7)
    return sink.getvalue()


def from_parquet(kind: Any) -> Callable[[bytes, Any], Any]:
    """Undo ``to_parquet`` for one class."""
    return lambda data, _: kind.from_table(pq.read_table(pa.BufferReader(data)))


def save_index(index: VectorIndex) -> bytes:
    """Write the files of an index, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder))
        index_bytes, rows = ((Path(folder) / name).read_bytes() for name in (INDEX_FILE, ROWS_FILE))
        return len(index_bytes).to_bytes(8, "big") + index_bytes + rows


def open_index(data: bytes, index: VectorIndex) -> VectorIndex:
    """Undo ``save_index``."""
    with tempfile.TemporaryDirectory() as folder:
        n = 8 + int.from_bytes(data[:8], "big")
        (Path(folder) / INDEX_FILE).write_bytes(data[8:n])
        (Path(folder) / ROWS_FILE).write_bytes(data[n:])
        return VectorIndex.open(Path(folder), index.rows.parts, index.parameters)


def index_case(exact_rows: int) -> Case:
    """Describe an index that is exact up to so many rows."""
    return Case(
        fit=lambda ids, matrix: build_index(stored(ids, matrix), exact_rows=exact_rows, min_recall=0.5),
        ask=lambda index, _, matrix: index.search(matrix, 3),
        store=save_index,
        restore=open_index,
    )


CASES = {
    "exact index": index_case(1_000_000),
    "inverted file": index_case(0),
    "clusters": Case(
        fit=lambda ids, matrix: fit_clusters(ids, matrix, min_cluster_size=5),
        ask=lambda model, ids, matrix: model.assign(ids, matrix),
        store=to_parquet,
        restore=from_parquet(ClusterModel),
    ),
    "baseline": Case(
        fit=lambda ids, matrix: fit_baseline(ids, matrix, n_neighbours=3),
        ask=lambda model, ids, matrix: model.score(ids, matrix),
        store=to_parquet,
        restore=from_parquet(Baseline),
    ),
}
pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def planted(n: int, seed: int = 0) -> Floats:
    """Draw four groups and some strangers."""
    return grouped(n, DIM, 4, seed=seed, has_strangers=True)[0]


def assert_same(left: Arrays, right: Arrays) -> None:
    """Compare both arrays of an answer."""
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fit_takes_no_rows(case: Case) -> None:
    """An empty collection gives a model that answers, and comes back from storage."""
    model = case.fit([], np.empty((0, DIM), np.float32))
    first, second = case.ask(model, names(2), planted(2))
    assert len(first) == len(second) == 2
    assert_same(case.ask(case.restore(case.store(model), model), names(2), planted(2)), (first, second))


def test_ask_takes_no_rows(case: Case) -> None:
    """No question has no answer, and is no error."""
    model = case.fit(names(50), planted(50))
    first, second = case.ask(model, [], np.empty((0, DIM), np.float32))
    assert len(first) == len(second) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_fit_takes_few_rows(case: Case, n: int) -> None:
    """Fewer rows than neighbours or cluster members are no error, for members and for strangers."""
    model = case.fit(names(n), planted(n))
    for ids in (names(n), [f"new-{i}" for i in range(n)]):
        first, second = case.ask(model, ids, planted(n))
        assert len(first) == len(second) == n
        assert not np.isnan(first.astype(float)).any()
        assert not np.isnan(second.astype(float)).any()


def test_fit_takes_constant_data(case: Case) -> None:
    """A collection of one picture many times over is no error, and no number in the answer is NaN."""
    matrix = np.repeat(planted(1), 60, axis=0)
    first, second = case.ask(case.fit(names(60), matrix), ["new"], matrix[:1])
    assert np.isfinite(first.astype(float)).all()
    assert np.isfinite(second.astype(float)).all()


def test_fit_takes_duplicates(case: Case) -> None:
    """Copies among other rows are no error, and no number in the answer is NaN."""
    matrix = np.concatenate([planted(80), np.repeat(planted(3, seed=1), 20, axis=0)])
    first, second = case.ask(case.fit(names(140), matrix), names(140), matrix)
    assert np.isfinite(first.astype(float)).all()
    assert np.isfinite(second.astype(float)).all()


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_fit_ignores_the_order_of_rows(case: Case, seed: int) -> None:
    """A shuffled collection gives the same answers."""
    matrix, order = planted(200), np.random.default_rng(seed).permutation(200)
    questions = planted(20, seed=seed)
    model = case.fit(names(200), matrix)
    shuffled = case.fit([names(200)[i] for i in order], matrix[order])
    ids = [f"new-{i}" for i in range(20)]
    assert_same(case.ask(model, ids, questions), case.ask(shuffled, ids, questions))


def test_fit_is_deterministic(case: Case) -> None:
    """The same input gives the same bytes."""
    assert case.store(case.fit(names(300), planted(300))) == case.store(case.fit(names(300), planted(300)))


def test_store_round_trips(case: Case) -> None:
    """A model that came back from storage gives the same answers to members and strangers, and the same bytes."""
    model = case.fit(names(300), planted(300))
    data = case.store(model)
    restored = case.restore(data, model)
    assert case.store(restored) == data
    for ids, matrix in ((names(300), planted(300)), ([f"new-{i}" for i in range(40)], planted(40, seed=9))):
        assert_same(case.ask(model, ids, matrix), case.ask(restored, ids, matrix))


def test_restore_refuses_what_was_not_stored(case: Case) -> None:
    """A table without the model's parameters, or bytes of something else, is a SchemaError."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"vector": to_arrow(planted(3))}), sink)
    with pytest.raises(SchemaError, match=r"metadata|FAISS index"):
        case.restore(sink.getvalue(), case.fit(names(3), planted(3)))


def test_inputs_are_never_written(case: Case) -> None:
    """Read-only arrays are enough, and hold the same afterwards."""
    matrix = planted(100)
    matrix.flags.writeable = False
    before = matrix.copy()
    case.ask(case.fit(names(100), matrix), names(100), matrix)
    np.testing.assert_array_equal(matrix, before)


def test_fit_refuses_an_id_twice(case: Case) -> None:
    """Two vectors of one id would make every join ambiguous."""
    with pytest.raises(SchemaError, match="'item-1' 2 times"):
        case.fit(["item-0", "item-1", "item-1"], planted(3))


def test_refuses_vectors_that_are_not_unit(case: Case) -> None:
    """Cosine and distance mean nothing for other vectors, at fitting as at asking."""
    with pytest.raises(SchemaError, match="length 1"):
        case.fit(names(3), 2 * planted(3))
    model = case.fit(names(60), planted(60))
    with pytest.raises(SchemaError, match="length 1"):
        case.ask(model, names(3), 2 * planted(3))


def test_ask_refuses_another_dimension(case: Case) -> None:
    """Vectors of another space are refused and not compared."""
    model = case.fit(names(60), planted(60))
    with pytest.raises(SchemaError, match="shape"):
        case.ask(model, ["new"], np.eye(DIM + 1, dtype=np.float32)[:1])
