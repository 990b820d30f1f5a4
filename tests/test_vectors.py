"""Unit vectors: checks, ids, Arrow, neighbours."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_factory import grouped, unit

from mm_assets import vectors
from mm_assets.errors import SchemaError
from mm_assets.identity import vector_id


def random_units(n: int, dim: int, seed: int = 0) -> vectors.Floats:
    """Draw directions without any groups."""
    return unit(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3)),
        np.full((1, 3), np.nan),
        np.array([[np.inf, 0, 0]]),
        np.array([1.0, 0, 0]),
        np.empty((0, 0)),
        np.array([[2.0, 0, 0]]),
    ],
    ids=["zero", "nan", "infinite", "flat", "no columns", "too long"],
)
def test_as_unit_vectors_refuses_what_is_no_matrix_of_unit_vectors(wrong: np.ndarray) -> None:
    """Anything but an (n, d) matrix of finite rows of length 1 is a SchemaError."""
    with pytest.raises(SchemaError, match="vectors"):
        vectors.as_unit_vectors(wrong)


def test_as_unit_vectors_refuses_another_dimension() -> None:
    """Vectors of another space are named by their shape."""
    with pytest.raises(SchemaError, match=r"shape \(n, 8\).*shape \(2, 4\)"):
        vectors.as_unit_vectors(random_units(2, 4), 8)


def test_as_unit_vectors_converts_without_writing() -> None:
    """A float64 matrix in Fortran order comes back as contiguous float32 and stays as it was."""
    given_matrix = np.asfortranarray(random_units(5, 4).astype(np.float64))
    before = given_matrix.copy()
    matrix = vectors.as_unit_vectors(given_matrix)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    np.testing.assert_array_equal(given_matrix, before)


def test_as_vector_ids_names_the_id_that_occurs_twice() -> None:
    """The message holds the duplicated id and how often it occurs."""
    with pytest.raises(SchemaError, match="'b' 3 times"):
        vectors.as_vector_ids(["a", "b", "c", "b", "b"])


def test_as_vector_ids_wants_one_for_each_row() -> None:
    """A column of ids shorter than the matrix cannot be joined to it by accident."""
    with pytest.raises(SchemaError, match="3 item ids"):
        vectors.as_vector_ids(["a", "b"], 3)


@given(st.lists(st.text(max_size=20), unique=True), st.lists(st.text(max_size=20)))
def test_rows_of_finds_each_known_id(known: list[str], asked: list[str]) -> None:
    """A row is given for exactly the ids that are there, and holds that id."""
    ascending = np.sort(vectors.as_vector_ids(known))
    wanted = np.array([vector_id(text) for text in asked], np.int64)
    rows = vectors.rows_of(wanted, ascending)
    assert [row >= 0 for row in rows] == [text in known for text in asked]
    assert (ascending[rows[rows >= 0]] == wanted[rows >= 0]).all()


@given(n=st.integers(0, 20), dim=st.integers(1, 9), start=st.integers(0, 20), pieces=st.integers(1, 3))
def test_arrow_round_trips(n: int, dim: int, start: int, pieces: int) -> None:
    """A vector column gives back the same bits, also when sliced and in chunks."""
    matrix = random_units(n, dim)
    column = pa.chunked_array([vectors.to_arrow(matrix)] * pieces)
    expected = np.concatenate([matrix] * pieces)[start:]
    np.testing.assert_array_equal(vectors.from_arrow(column.slice(start)), expected)
    assert column.type == pa.list_(pa.float32(), dim)


@pytest.mark.parametrize("column", [pa.array([[1.0]]), pa.array([[1.0], None], pa.list_(pa.float32(), 1))])
def test_from_arrow_refuses_other_types_and_nulls(column: pa.Array) -> None:
    """A null or a variable-length list would shift all rows after it."""
    with pytest.raises(SchemaError):
        vectors.from_arrow(column)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 60), k=st.integers(1, 70), seed=st.integers(0, 999))
def test_nearest_is_exact(n: int, k: int, seed: int) -> None:
    """Distances are those of all pairs, ascending, and belong to the rows given."""
    base, queries = random_units(n, 6, seed), random_units(7, 6, seed + 1)
    distance, rows = vectors.nearest(queries, base, k)
    everything = np.linalg.norm(queries[:, None] - base[None], axis=2)
    np.testing.assert_allclose(distance, np.sort(everything, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(distance, np.take_along_axis(everything, rows, 1), atol=1e-6)


def test_nearest_puts_equal_vectors_at_zero_in_any_batch() -> None:
    """The distance of a vector to its copy is 0 and not rounding noise, alone as among many."""
    base = random_units(200, 64)
    alone = np.concatenate([vectors.nearest(base[i : i + 1], base, 1)[0] for i in range(5)])
    assert (alone == 0).all()
    assert (vectors.nearest(base, base, 1)[0] == 0).all()


def test_nearest_others_leaves_out_the_row_and_not_its_copies() -> None:
    """Equal vectors are neighbours of each other; no row is its own, even among more copies than neighbours."""
    matrix = np.concatenate([np.repeat(random_units(1, 16), 9, axis=0), random_units(40, 16, 1)])
    distance, rows = vectors.nearest_others(matrix, 4)
    assert (distance[:9] == 0).all()
    assert (rows[:9] < 9).all()
    assert (rows != np.arange(len(matrix))[:, None]).sum() >= rows.size - 9  # a copy may stand for the row itself
    assert (distance[9:] > 0).all()
    assert (rows[9:] != np.arange(9, len(matrix))[:, None]).all()


def test_nearest_others_agrees_with_all_pairs_above_the_exhaustive_size() -> None:
    """The inverted file misses less than one neighbour in a hundred on clustered data."""
    n = vectors.EXHAUSTIVE_ROWS + 1
    matrix, _ = grouped(n, 32, 200)
    distance, rows = vectors.nearest_others(matrix, 5)
    truth = vectors.nearest(matrix[:300], matrix, 6)[0][:, 1:]
    assert (np.abs(distance[:300] - truth) < 1e-6).mean() > 0.99
    assert (rows != np.arange(n)[:, None]).all()
