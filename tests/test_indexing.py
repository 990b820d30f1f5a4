"""The vector index: recall, filters, changes, format."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_factory import grouped, names, part_rows, stored, unit

from mm_assets.errors import ConfigError, SchemaError
from mm_assets.identity import vector_id
from mm_assets.indexing import (
    INDEX_FILE,
    ROWS_FILE,
    GrownIndex,
    Part,
    Rows,
    VectorIndex,
    build_index,
    read_part,
    read_rows,
    update_index,
    write_part,
)
from mm_assets.indexing.building import _RecallTest
from mm_assets.vectors import Floats, Ids, as_vector_ids

HALF_PRECISION = 2e-3  # error of a cosine between codes of half precision, with room


@pytest.fixture(scope="module")
def large() -> tuple[VectorIndex, Floats, Ids, np.ndarray]:
    """Build an inverted file over 20,000 × 64."""
    matrix, groups = grouped(20_000, 64, 300, spread=0.6)
    index = build_index(stored(names(20_000), matrix), exact_rows=10_000, min_recall=0.95)
    return index, matrix, as_vector_ids(names(20_000)), groups


def shares_found(similarity: Floats, queries: Floats, matrix: Floats) -> float:
    """Share of answers as near as the true last one, by comparing with all rows."""
    truth = -np.sort(-(queries @ matrix.T), axis=1)[:, similarity.shape[1] - 1]
    return float((similarity >= truth[:, None] - HALF_PRECISION).mean())


def test_build_index_is_exact_up_to_the_limit() -> None:
    """At the limit all vectors are compared and recall is 1; one row more makes an inverted file."""
    matrix, _ = grouped(500, 16, 10)
    small = build_index(stored(names(500), matrix), exact_rows=500, min_recall=1.0)
    assert (small.kind, small.recall, small.n_rows) == ("exact", 1.0, 500)
    assert build_index(stored(names(500), matrix), exact_rows=499, min_recall=0.5).kind == "ivf"


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), k=st.integers(1, 80), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_exact_search_equals_sorting_all_that_are_allowed(n: int, k: int, share: float, seed: int) -> None:
    """Answers are the allowed vectors in order of cosine, padded with -1 where there are no more."""
    matrix, _ = grouped(n, 12, 3, seed=seed)
    random = np.random.default_rng(seed)
    ids, is_allowed = as_vector_ids(names(n)), random.random(n) < share
    index = build_index(stored(names(n), matrix), exact_rows=n, min_recall=1.0)
    queries = unit(random.normal(size=(4, 12)))
    similarity, found = index.search(queries, k, index.select(ids[is_allowed]))
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
    similarity, found = index.search(queries, 10, index.select(ids[rows]))
    assert np.isin(found, ids[rows]).all()
    assert shares_found(similarity, queries, matrix[rows]) >= 0.95


def test_search_ignores_allowed_ids_that_it_does_not_hold(
    large: tuple[VectorIndex, Floats, Ids, np.ndarray],
) -> None:
    """A filter made from a table that is newer than the index does no harm, in any order and with repeats."""
    index, matrix, ids, _ = large
    unknown = as_vector_ids([f"newer-{i}" for i in range(50_000)])
    similarity, found = index.search(
        matrix[:20], 5, index.select(np.concatenate([unknown, ids[400:360:-1], ids[380:390]]))
    )
    assert np.isin(found, ids[360:401]).all()
    assert shares_found(similarity, matrix[:20], matrix[361:401]) == 1.0
    assert (index.search(matrix[:2], 5, index.select(unknown))[1] == -1).all()
    assert (index.search(matrix[:2], 5, index.select(np.empty(0, np.int64)))[1] == -1).all()


def test_inverted_file_finds_answers_on_the_far_side() -> None:
    """A filter that leaves only what is opposite to the query, in lists that it would not visit, still has k answers."""
    random = np.random.default_rng(0)
    side = np.repeat([[1.0], [-1.0]], [1_500, 2_500], axis=0) * np.eye(16)[:1]
    matrix = unit(side + 0.1 * random.normal(size=(4_000, 16)))
    index = build_index(stored(names(4_000), matrix), exact_rows=0, min_recall=0.1)
    narrow = index.with_parameters({"margin": 0.5})
    allowed = as_vector_ids(names(4_000))[1_500:]
    assert narrow.n_codes(matrix[:50], 10) <= 1_500
    _, found = narrow.search(matrix[:50], 10, narrow.select(allowed))
    assert np.isin(found, allowed).all()
    similarity, _ = index.search(matrix[:50], 10, index.select(allowed))
    assert shares_found(similarity, matrix[:50], matrix[1_500:]) >= 0.95


def test_build_index_visits_more_lists_until_recall_is_reached() -> None:
    """Data without groups, where lists say little, take more lists than the first try."""
    matrix = unit(np.random.default_rng(0).normal(size=(6_000, 48)))
    easy = build_index(stored(names(6_000), matrix), exact_rows=0, min_recall=0.2)
    hard = build_index(stored(names(6_000), matrix), exact_rows=0, min_recall=0.97)
    assert hard.parameters["margin"] > easy.parameters["margin"]
    assert hard.recall >= 0.97 > easy.recall


def test_build_index_searches_little_more_widely_than_it_must() -> None:
    """With half of the codes the bar would not be reached."""
    matrix = unit(np.random.default_rng(0).normal(size=(6_000, 48)))
    index = build_index(stored(names(6_000), matrix), exact_rows=0, min_recall=0.97)
    test, narrower = _RecallTest(index.rows), index
    for _ in range(100):
        narrower = narrower.with_parameters({"margin": narrower.parameters["margin"] / 1.1})
        if test.n_codes(narrower) <= test.n_codes(index) / 2.2:
            break
    assert test.measured(narrower).recall < 0.97 <= index.recall


def test_an_index_has_a_reserve_for_other_queries() -> None:
    """Where the bar is low, the margin is wider than it must be, and looks at no more than twice as much."""
    matrix, _ = grouped(20_000, 64, 100, spread=0.6)
    index = build_index(stored(names(20_000), matrix), exact_rows=0, min_recall=0.1)
    test = _RecallTest(index.rows)
    first = index.with_parameters({"margin": 0.5})
    assert index.parameters["margin"] > 0.5
    assert test.n_codes(first) < test.n_codes(index) <= 2 * test.n_codes(first)


def test_more_than_a_few_answers_are_not_always_asked_for_twice(
    large: tuple[VectorIndex, Floats, Ids, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the last candidate may be an answer is found out for a hundred answers as for ten."""
    index, matrix, _, _ = large
    asked: list[int] = []
    ask = VectorIndex._ask_lists

    def counted(self: VectorIndex, query: Floats, n: int, *rest: Any) -> Any:
        asked.append(n)
        return ask(self, query, n, *rest)

    monkeypatch.setattr(VectorIndex, "_ask_lists", counted)
    for k in (10, 100):
        asked.clear()
        index.search(matrix[:100], k)
        assert 100 <= len(asked) < 200


def test_a_query_that_is_unlike_all_vectors_is_answered_as_well() -> None:
    """As a text is unlike all pictures: what differs between them is small, and so is the margin; not all is looked at."""
    matrix, _ = grouped(20_000, 64, 300, spread=0.6)
    matrix[:, -1] = 0  # no vector lies in the direction that the queries have in common
    matrix = unit(matrix)
    index = build_index(stored(names(20_000), matrix), exact_rows=0, min_recall=0.95)
    alike, _ = grouped(200, 64, 300, spread=0.6, seed=77)
    alike[:, -1] = 0
    unlike = unit(0.3 * unit(alike) + 0.95 * np.eye(64)[-1])
    similarity, _ = index.search(unlike, 10)
    assert shares_found(similarity, unlike, matrix) >= 0.95
    assert index.n_codes(unlike, 10) == pytest.approx(index.n_codes(unit(alike), 10), rel=0.2)


def test_asking_again_finds_what_few_candidates_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short codes tell little: with as many candidates as at first, the bar is out of reach."""
    matrix = unit(np.random.default_rng(0).normal(size=(6_000, 48)))
    assert build_index(stored(names(6_000), matrix), exact_rows=0, min_recall=0.99).recall >= 0.99
    monkeypatch.setattr("mm_assets.indexing.searching._MANY_CANDIDATES", 200)
    with pytest.raises(ConfigError, match=r"is 0\.\d+ at best"):
        build_index(stored(names(6_000), matrix), exact_rows=0, min_recall=0.99)


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_an_index_made_before_margins_is_searched(exact_rows: int, tmp_path: Path) -> None:
    """Until the next refresh makes it anew."""
    matrix, _ = grouped(3_000, 32, 20)
    index = build_index(stored(names(3_000), matrix), exact_rows=exact_rows, min_recall=0.9)
    index.save(tmp_path)
    earlier = {name: value for name, value in index.parameters.items() if name != "margin"} | {"n_probes": 8}
    opened = VectorIndex.open(tmp_path, index.rows.parts, earlier)
    assert shares_found(opened.search(matrix[:50], 10)[0], matrix[:50], matrix) >= 0.9
    assert opened.parameters["margin"] > 0


def test_a_filtered_search_starts_from_lists_that_hold_enough() -> None:
    """A stray vector near the query, in a list that the filter leaves all but empty, does not hide the others' lists."""
    matrix, groups = grouped(20_000, 64, 100, spread=0.6)
    index = build_index(stored(names(20_000), matrix), exact_rows=0, min_recall=0.99)
    query = matrix[groups == 0][:1]
    is_allowed = groups != 0
    is_allowed[np.flatnonzero(groups == 0)[:3]] = True
    similarity, _ = index.search(query, 10, index.select(as_vector_ids(names(20_000))[is_allowed]))
    assert shares_found(similarity, query, matrix[is_allowed]) == 1.0


def test_build_index_refuses_to_return_an_index_below_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors nearer to each other than their codes can tell: the error names the settings that help."""
    monkeypatch.setattr("mm_assets.indexing.searching._MANY_CANDIDATES", 200)
    random = np.random.default_rng(0)
    matrix = unit(np.eye(8)[:1] + 0.01 * random.normal(size=(3_000, 8)))
    with pytest.raises(ConfigError, match=r"refresh\.exact_index_rows to 3000 .*lower refresh\.min_recall"):
        build_index(stored(names(3_000), matrix), exact_rows=0, min_recall=1.0)


def renamed(index: VectorIndex, item_ids: list[str], matrix: Floats, **limits: Any) -> VectorIndex:
    """Store an index, open it to be changed, and change it into one of these rows."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder))
        opened = VectorIndex.open(Path(folder), index.rows.parts, index.parameters, to_change=True)
    return update_index(opened, stored(item_ids, matrix, 3), **{"exact_rows": 0, "min_recall": 0.5} | limits)


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_update_finds_what_came_and_not_what_left(exact_rows: int) -> None:
    """An item with another vector is found where it is now; whoever stayed is found as before."""
    matrix, _ = grouped(1_000, 32, 20)
    item_ids, ids = names(1_000), as_vector_ids(names(1_000))
    index = build_index(stored(item_ids[:900], matrix[:900]), exact_rows=exact_rows, min_recall=0.5)
    moved = matrix.copy()
    moved[200:220] = -moved[200:220]

    changed = renamed(index, item_ids[100:], moved[100:], exact_rows=exact_rows)

    assert (changed.kind, changed.n_rows) == (index.kind, 900)
    assert (changed.search(moved[100:], 1)[1][:, 0] == ids[100:]).all()
    assert not np.isin(changed.search(matrix[:100], 20)[1], ids[:100]).any()
    within = changed.select(ids[950:])
    assert (changed.search(moved[950:], 1, within)[1][:, 0] == ids[950:]).all()


def test_update_keeps_the_lists_until_a_quarter_of_the_rows_changed() -> None:
    """What came and left is counted over all changes; then the lists are made anew."""
    matrix, _ = grouped(2_000, 32, 20)
    item_ids = names(2_000)
    index = build_index(stored(item_ids[:1_000], matrix[:1_000]), exact_rows=0, min_recall=0.5)
    once = renamed(index, item_ids[:1_200], matrix[:1_200])
    assert (once.parameters["n_trained"], once.parameters["n_changed"]) == (1_000, 200)
    assert (once.faiss_index.quantizer.reconstruct_n(0, 5) == index.faiss_index.quantizer.reconstruct_n(0, 5)).all()

    twice = renamed(once, item_ids[:1_300], matrix[:1_300])

    assert (twice.parameters["n_trained"], twice.parameters["n_changed"]) == (1_300, 0)


def test_update_measures_recall_anew_and_makes_new_lists_where_it_is_not_reached() -> None:
    """An index that was good enough for a lower bar is widened, not returned below the new one."""
    matrix = unit(np.random.default_rng(0).normal(size=(6_000, 48)))
    item_ids = names(6_000)
    index = build_index(stored(item_ids, matrix), exact_rows=0, min_recall=0.1)
    assert index.recall < 0.97

    changed = renamed(index, item_ids[:5_900], matrix[:5_900], min_recall=0.97)

    assert changed.recall >= 0.97
    assert changed.parameters["n_trained"] == 6_000


def test_update_becomes_exact_below_the_limit() -> None:
    """What shrank below it is compared as a whole again, and grows beyond it into an inverted file."""
    matrix, _ = grouped(500, 16, 10)
    index = build_index(stored(names(500), matrix), exact_rows=450, min_recall=0.5)
    small = renamed(index, names(450), matrix[:450], exact_rows=450)
    assert (index.kind, small.kind) == ("ivf", "exact")
    assert renamed(small, names(500), matrix, exact_rows=450).kind == "ivf"


@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 40), m=st.integers(1, 40), k=st.integers(1, 60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_grown_index_answers_as_one_of_all(n: int, m: int, k: int, share: float, seed: int) -> None:
    """What came since is found and filtered like the rest; an item that is in both is there once, as indexed."""
    matrix, _ = grouped(n + m, 12, 3, seed=seed)
    random = np.random.default_rng(seed)
    twice = min(n, 3)  # items that the last refresh took in, and whose arrivals are still there
    arrived = part_rows(names(n + m)[n - twice :], matrix[n - twice :])
    halves = [Part.in_memory("a", arrived.slice(0, m // 2 + twice), "item_id")]
    halves += [Part.in_memory("b", arrived.slice(m // 2), "item_id")]
    grown = GrownIndex(
        build_index(stored(names(n), matrix[:n]) if n else Rows.of_parts([], 12), exact_rows=n, min_recall=1.0), halves
    )
    whole = build_index(stored(names(n + m), matrix), exact_rows=n + m, min_recall=1.0)
    allowed = as_vector_ids(names(n + m))[random.random(n + m) < share]
    queries = unit(random.normal(size=(3, 12)))
    for within, of_whole in ((None, None), (grown.select(allowed), whole.select(allowed))):
        similarity, ids = grown.search(queries, k, within)
        expected, expected_ids = whole.search(queries, k, of_whole)
        np.testing.assert_allclose(similarity, expected, atol=1e-5)
        assert [set(row) for row in ids] == [set(row) for row in expected_ids]
    assert len(grown.rows) == n + m
    np.testing.assert_array_equal(grown.rows.gather(whole.rows.ids), whole.rows.gather(whole.rows.ids))


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_faiss_alone_opens_the_file(exact_rows: int, tmp_path: Path) -> None:
    """``rows.arrow`` tells the ids of its numbers; RaBitQ codes alone find near what the vectors decide."""
    import faiss

    matrix, _ = grouped(800, 64, 10)
    index = build_index(stored(names(800), matrix, 4), exact_rows=exact_rows, min_recall=0.9)
    index.save(tmp_path)
    alone = faiss.read_index(str(tmp_path / INDEX_FILE))
    rows = read_rows(tmp_path / ROWS_FILE)
    ids = dict(zip(rows["number"].to_pylist(), rows["vector_id"].to_pylist(), strict=True))
    found = [[ids[number] for number in numbers] for numbers in alone.search(matrix[:50], 10)[1].tolist()]
    assert (np.array(found) == as_vector_ids(names(50))[:, None]).any(axis=1).all()


@pytest.mark.parametrize("name", [INDEX_FILE, ROWS_FILE])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_open_refuses_a_cut_file(name: str, share: float, exact_rows: int, tmp_path: Path) -> None:
    """Half an upload is an error and never a smaller index."""
    matrix, _ = grouped(100, 16, 4)
    index = build_index(stored(names(100), matrix), exact_rows=exact_rows, min_recall=0.5)
    index.save(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(SchemaError, match="index"):
        VectorIndex.open(tmp_path, index.rows.parts, index.parameters)


def test_open_refuses_the_parameters_of_another_index(tmp_path: Path) -> None:
    """An index of another dimension than its manifest says is refused at loading, not at the first query."""
    matrix, _ = grouped(10, 16, 4)
    index = build_index(stored(names(10), matrix), exact_rows=100, min_recall=0.9)
    index.save(tmp_path)
    with pytest.raises(SchemaError, match="dimension 8"):
        VectorIndex.open(tmp_path, index.rows.parts, {**index.parameters, "dim": 8})


def test_the_same_vectors_give_the_same_bytes(tmp_path: Path) -> None:
    """In whatever parts and order they come."""
    matrix, _ = grouped(3_000, 16, 10)
    order = np.random.default_rng(1).permutation(3_000)
    parameters: list[dict[str, Any]] = []
    for number, (rows, n_parts) in enumerate(((np.arange(3_000), 1), (order, 7))):
        (tmp_path / str(number)).mkdir()
        vectors = stored([f"item-{row}" for row in rows], matrix[rows], n_parts)
        index = build_index(vectors, exact_rows=0, min_recall=0.5)
        index.save(tmp_path / str(number))
        parameters.append(index.parameters)
    assert parameters[0] == parameters[1]
    assert (tmp_path / "0" / INDEX_FILE).read_bytes() == (tmp_path / "1" / INDEX_FILE).read_bytes()


def test_vectors_come_back_bit_for_bit_from_any_part(tmp_path: Path) -> None:
    """``gather`` keeps the order asked for, for few ids and for many; names stay with their vectors."""
    matrix, _ = grouped(1_000, 16, 10)
    vectors, ids = stored(names(1_000), matrix, 9), as_vector_ids(names(1_000))
    for rows in (np.array([5, 999, 0]), np.random.default_rng(0).permutation(1_000)):
        np.testing.assert_array_equal(vectors.gather(ids[rows]), matrix[rows])
    asked = ids[[7, 999, 0, 500]]
    named = ["item-7", "item-999", "item-0", "item-500"]
    assert vectors.values(asked, ["item_id", "absent"]) == {"item_id": named, "absent": [None] * 4}


def test_a_part_refuses_what_is_no_part(tmp_path: Path) -> None:
    """A cut file, another table, vectors off unit, an item twice within a part or in two."""
    file = tmp_path / "part.arrow"
    matrix, _ = grouped(10, 8, 2)
    write_part(file, part_rows(names(10), matrix), "item_id")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(SchemaError, match="Arrow"):
        read_part(file)
    with pytest.raises(SchemaError, match="length 1"):
        write_part(file, part_rows(names(10), 2 * matrix), "item_id")
    with pytest.raises(SchemaError, match="unique"):
        write_part(file, part_rows(["a"] * 10, matrix), "item_id")
    with pytest.raises(SchemaError, match="in two"):
        stored([*names(5), *names(5)], matrix, 2)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(), kind=st.sampled_from([pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()])
)
def test_a_row_reads_what_arrow_reads(data: st.DataObject, kind: pa.DataType) -> None:
    """Of every type, with and without nulls; also of a file, and of a column that is cut out of another."""
    values = {
        pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        pa.bool_(): st.booleans(),
        pa.float32(): st.floats(width=32, allow_nan=False),
        pa.float64(): st.floats(allow_nan=False),
    }.get(kind, st.integers(-(2**31), 2**31 - 1))
    column = data.draw(st.lists(st.none() | values, min_size=2, max_size=40))
    whole = pa.table({"item_id": names(len(column)), "value": pa.array(column, kind)})
    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder) / "part.arrow", whole, "item_id")
        parts = [Part("written", Path(folder) / "part.arrow"), Part.in_memory("cut", whole.slice(1), "item_id")]
        for part, expected in zip(parts, (column, column[1:]), strict=True):
            rows = Rows.of_parts([part])
            ids = as_vector_ids(part.rows["item_id"].to_pylist())
            assert [row["value"] for row in rows.at(ids)] == expected


def test_objects_have_one_number_in_all_parts() -> None:
    """Also in a part that was written before parts had it."""
    rows = pa.table({"item_id": names(5), "object_id": pa.chunked_array([["x", "y"], ["x", "z", "y"]])})
    parts = [Part.in_memory("one", rows.slice(0, 3), "item_id"), Part.in_memory("two", rows.slice(3), "item_id")]
    parts[1].__dict__["rows"] = parts[1].rows.drop_columns("object_number")
    numbers = Rows.of_parts(parts).object_numbers(as_vector_ids(names(5)))
    assert numbers.tolist() == [vector_id(name) for name in ("x", "y", "x", "z", "y")]


def test_a_row_reads_columns_without_values() -> None:
    """A column of nothing but nulls, one without a type, and none at all."""
    rows = pa.table({"item_id": ["a"], "typed": pa.nulls(1, pa.int32()), "untyped": pa.nulls(1), "empty": [""]})
    [row] = Rows.of_parts([Part.in_memory("one", rows, "item_id")]).at(as_vector_ids(["a"]))
    assert [row[name] for name in ("typed", "untyped", "absent", "empty")] == [None, None, None, ""]
