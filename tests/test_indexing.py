"""The vector index: recall, filters, changes, format."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_factory import grouped, names, unit

from mm_assets.errors import ConfigError, SchemaError
from mm_assets.identity import vector_id
from mm_assets.indexing import VectorIndex, build_index
from mm_assets.vectors import Floats, Ids, as_vector_ids

HALF_PRECISION = 2e-3  # error of a cosine between codes of half precision, with room


@pytest.fixture(scope="module")
def large() -> tuple[VectorIndex, Floats, Ids, np.ndarray]:
    """Build an inverted file over 20,000 × 64."""
    matrix, groups = grouped(20_000, 64, 300, spread=0.6)
    index = build_index(names(20_000), matrix, exact_rows=10_000, min_recall=0.95)
    return index, matrix, as_vector_ids(names(20_000)), groups


def shares_found(similarity: Floats, queries: Floats, matrix: Floats) -> float:
    """Share of answers as near as the true last one, by comparing with all rows."""
    truth = -np.sort(-(queries @ matrix.T), axis=1)[:, similarity.shape[1] - 1]
    return float((similarity >= truth[:, None] - HALF_PRECISION).mean())


def test_build_index_is_exact_up_to_the_limit() -> None:
    """At the limit all vectors are compared and recall is 1; one row more makes an inverted file."""
    matrix, _ = grouped(500, 16, 10)
    small = build_index(names(500), matrix, exact_rows=500, min_recall=1.0)
    assert (small.kind, small.recall, small.n_rows) == ("exact", 1.0, 500)
    assert build_index(names(500), matrix, exact_rows=499, min_recall=0.5).kind == "ivf"


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), k=st.integers(1, 80), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_exact_search_equals_sorting_all_that_are_allowed(n: int, k: int, share: float, seed: int) -> None:
    """Answers are the allowed vectors in order of cosine, padded with -1 where there are no more."""
    matrix, _ = grouped(n, 12, 3, seed=seed)
    random = np.random.default_rng(seed)
    ids, is_allowed = as_vector_ids(names(n)), random.random(n) < share
    index = build_index(names(n), matrix, exact_rows=n, min_recall=1.0)
    queries = unit(random.normal(size=(4, 12)))
    similarity, found = index.search(queries, k, ids[is_allowed])
    expected = -np.sort(-(queries @ matrix[is_allowed].T), axis=1)[:, :k]
    width = expected.shape[1]
    np.testing.assert_allclose(similarity[:, :width], expected, atol=1e-5)
    assert set(found[:, :width].ravel()) <= set(ids[is_allowed])
    assert all(len(set(row)) == width for row in found[:, :width])
    assert (found[:, width:] == -1).all()
    assert np.isneginf(similarity[:, width:]).all()


def test_inverted_file_reaches_its_recall_on_other_queries(
    large: tuple[VectorIndex, Floats, Ids, np.ndarray],
) -> None:
    """Recall is .95 and more against all rows: for 10 answers and for 100."""
    index, matrix, _, _ = large
    queries, _ = grouped(300, 64, 300, spread=0.6, seed=77)
    assert index.kind == "ivf"
    assert index.recall >= 0.95
    similarity, _ = index.search(queries, 10)
    assert shares_found(similarity, queries, matrix) >= 0.95
    similarity, _ = index.search(matrix[:100], 100)
    assert shares_found(similarity, matrix[:100], matrix) >= 0.95


def test_search_finds_each_vector_under_its_own_id(large: tuple[VectorIndex, Floats, Ids, np.ndarray]) -> None:
    """The id is ``identity.vector_id`` of the item and not the place in the file."""
    index, matrix, ids, _ = large
    assert ids[5] == vector_id("item-5")
    _, found = index.search(matrix[:200], 1)
    assert (found[:, 0] == ids[:200]).all()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("is_correlated", [False, True])
def test_inverted_file_filters_inside_the_search(
    large: tuple[VectorIndex, Floats, Ids, np.ndarray], share: float, is_correlated: bool
) -> None:
    """Whatever share is allowed, at random or by whole groups, k answers come, all allowed, with recall .95."""
    index, matrix, ids, groups = large
    random = np.random.default_rng(3)
    order = np.argsort(random.random(300)[groups], kind="stable") if is_correlated else random.permutation(20_000)
    rows = order[: int(20_000 * share)]
    queries, _ = grouped(100, 64, 300, spread=0.6, seed=78)
    similarity, found = index.search(queries, 10, ids[rows])
    assert np.isin(found, ids[rows]).all()
    assert shares_found(similarity, queries, matrix[rows]) >= 0.95


def test_search_ignores_allowed_ids_that_it_does_not_hold(
    large: tuple[VectorIndex, Floats, Ids, np.ndarray],
) -> None:
    """A filter made from a table that is newer than the index does no harm, in any order and with repeats."""
    index, matrix, ids, _ = large
    unknown = as_vector_ids([f"newer-{i}" for i in range(50_000)])
    similarity, found = index.search(matrix[:20], 5, np.concatenate([unknown, ids[400:360:-1], ids[380:390]]))
    assert np.isin(found, ids[360:401]).all()
    assert shares_found(similarity, matrix[:20], matrix[361:401]) == 1.0
    assert (index.search(matrix[:2], 5, unknown)[1] == -1).all()
    assert (index.search(matrix[:2], 5, np.empty(0, np.int64))[1] == -1).all()


def test_inverted_file_finds_answers_on_the_far_side() -> None:
    """A filter that leaves only what is opposite to the query, in lists that it would not visit, still has k answers."""
    random = np.random.default_rng(0)
    side = np.repeat([[1.0], [-1.0]], 2_000, axis=0) * np.eye(16)[:1]
    matrix = unit(side + 0.1 * random.normal(size=(4_000, 16)))
    index = build_index(names(4_000), matrix, exact_rows=0, min_recall=0.1)
    allowed = as_vector_ids(names(4_000))[2_000:]
    assert index.parameters["n_probes"] < index.parameters["n_lists"] / 10
    similarity, found = index.search(matrix[:50], 10, allowed)
    assert np.isin(found, allowed).all()
    assert shares_found(similarity, matrix[:50], matrix[2_000:]) == 1.0


def test_build_index_visits_more_lists_until_recall_is_reached() -> None:
    """Data without groups, where lists say little, take more lists than the first try."""
    matrix = unit(np.random.default_rng(0).normal(size=(6_000, 48)))
    easy = build_index(names(6_000), matrix, exact_rows=0, min_recall=0.2)
    hard = build_index(names(6_000), matrix, exact_rows=0, min_recall=0.97)
    assert hard.parameters["n_probes"] > easy.parameters["n_probes"]
    assert hard.recall >= 0.97 > easy.recall


def test_build_index_refuses_to_return_an_index_below_the_bar() -> None:
    """Vectors nearer to each other than half precision can tell: the error names the settings that help."""
    random = np.random.default_rng(0)
    matrix = unit(np.repeat([[1.0], [-1.0]], 38, axis=0) * np.eye(8)[:1] + 0.01 * random.normal(size=(76, 8)))
    with pytest.raises(ConfigError, match=r"refresh\.exact_index_rows to 76 .*lower refresh\.min_recall"):
        build_index(names(76), matrix, exact_rows=0, min_recall=1.0)


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_add_and_remove_change_what_is_found(exact_rows: int) -> None:
    """Removed vectors are not found, added ones are, as if the index had been built so; unknown ids are no error."""
    matrix, _ = grouped(1_000, 32, 20)
    index = build_index(names(1_000)[:900], matrix[:900], exact_rows=exact_rows, min_recall=0.5)
    ids = as_vector_ids(names(1_000))
    index.add(names(1_000)[900:], matrix[900:])
    assert index.remove([*names(1_000)[:100], "unknown"]) == 100
    assert index.remove(names(1_000)[:100]) == 0
    assert index.n_rows == 900
    np.testing.assert_array_equal(index.vector_ids, np.sort(ids[100:]))
    assert (index.search(matrix[100:], 1)[1][:, 0] == ids[100:]).all()
    assert not np.isin(index.search(matrix[:100], 20)[1], ids[:100]).any()
    index.add(names(1_000)[:100], matrix[:100])
    assert (index.search(matrix[:100], 1, ids[:100])[1][:, 0] == ids[:100]).all()


def test_add_refuses_an_id_that_is_there_and_adds_none() -> None:
    """One item would be found twice; nothing of the call is kept."""
    matrix, _ = grouped(100, 16, 4)
    index = build_index(names(100)[:50], matrix[:50], exact_rows=100, min_recall=0.9)
    with pytest.raises(SchemaError, match="'item-49'"):
        index.add(names(100)[49:], matrix[49:])
    assert index.n_rows == 50


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_bytes_are_plain_faiss_and_keep_changing(exact_rows: int) -> None:
    """FAISS alone opens the bytes and finds the same; what came back can be added to and removed from."""
    import faiss

    matrix, _ = grouped(800, 16, 10)
    index = build_index(names(800), matrix, exact_rows=exact_rows, min_recall=0.9)
    alone = faiss.deserialize_index(np.frombuffer(index.to_bytes(), np.uint8))
    np.testing.assert_array_equal(alone.search(matrix[:50], 5)[1], index.search(matrix[:50], 5)[1])
    restored = VectorIndex.from_bytes(index.to_bytes(), index.parameters)
    assert (restored.recall, restored.kind, restored.n_rows) == (index.recall, index.kind, 800)
    assert restored.remove(names(10)) == 10
    restored.add(["fresh"], matrix[:1])
    assert restored.search(matrix[:1], 1)[1].item() == vector_id("fresh")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_from_bytes_refuses_a_cut_file(share: float) -> None:
    """Half an upload is an error and never a smaller index."""
    matrix, _ = grouped(100, 16, 4)
    index = build_index(names(100), matrix, exact_rows=100, min_recall=0.9)
    data = index.to_bytes()
    with pytest.raises(SchemaError, match="unreadable"):
        VectorIndex.from_bytes(data[: int(len(data) * share)], index.parameters)


def test_from_bytes_refuses_the_parameters_of_another_index() -> None:
    """An index of another dimension than its manifest says is refused at loading, not at the first query."""
    matrix, _ = grouped(10, 16, 4)
    index = build_index(names(10), matrix, exact_rows=100, min_recall=0.9)
    with pytest.raises(SchemaError, match="dimension 8"):
        VectorIndex.from_bytes(index.to_bytes(), {**index.parameters, "dim": 8})
