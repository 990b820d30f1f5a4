"""Filters of the network: what becomes a condition, how values are quoted, what is refused."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from flow_driver import ingest
from hypothesis import given
from hypothesis import strategies as st
from places import Place

from mm_assets.errors import ConfigError
from mm_assets.retrieval import open_tables
from mm_assets.retrieval.filters import COLUMNS, Filter, to_condition

KEYS = ["it's.jpg", "100%_done", 'say "no".mp4', "\\back", "日本 😀", "x'); DROP TABLE moments; --", "plain"]
MOMENTS = pa.table(
    {
        "key": [*KEYS, None],
        "page_number": pa.array([1, 2, 3, None, 5, 6, 7, 8], pa.int32()),
        "size_bytes": pa.array([0, 2**62, -1, 10, 20, 30, 40, 50], pa.int64()),
        "duration_s": [0.5, 1e-9, 1e18, None, 2.0, 3.0, 4.0, 5.0],
        "has_audio": [True, False, None, True, False, True, False, True],
        "modified_at": pa.array([datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 9)], pa.timestamp("us", "UTC")),
    }
)


def connect() -> Any:
    """Open DuckDB."""
    import duckdb

    return duckdb.connect()


def passing(*filters: Filter) -> list[int]:
    """Return the rows that DuckDB lets pass."""
    with connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")  # a literal says its own zone
        connection.register("moments", MOMENTS.append_column("row", pa.array(range(MOMENTS.num_rows))))
        where = to_condition(filters)
        query = f"SELECT row FROM moments WHERE {where} ORDER BY row"  # noqa: S608  what is under test
        return [row for (row,) in connection.execute(query).fetchall()]


@pytest.mark.parametrize("key", KEYS)
def test_a_text_is_compared_as_it_is(key: str) -> None:
    """Quotes, wildcards, backslashes and SQL in a value are letters of it."""
    assert passing(Filter("key", "=", key)) == [KEYS.index(key)]
    assert passing(Filter("key", "in", [key])) == [KEYS.index(key)]
    assert passing(Filter("key", "contains", key)) == [KEYS.index(key)]
    assert passing(Filter("key", "starts_with", key[:3])) == [KEYS.index(key)]


@given(st.text())
def test_no_text_leaves_its_quotes(text: str) -> None:
    """Whatever is asked for, the literal is that text, or it is refused."""
    try:
        condition = to_condition([Filter("key", "=", text)])
    except ConfigError:
        assert "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text)
        return
    literal = condition.removeprefix('("key" = ').removesuffix(")")
    with connect() as connection:
        assert connection.execute(f"SELECT {literal}").fetchall() == [(text,)]


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        (("size_bytes", ">=", 2**62), [1]),
        (("size_bytes", "<", -0.5), [2]),
        (("duration_s", ">", 1e17), [2]),
        (("duration_s", "<=", 1e-9), [1]),
        (("page_number", "!=", 1), [1, 2, 4, 5, 6, 7]),
        (("page_number", "is_null", None), [3]),
        (("key", "not_null", None), [0, 1, 2, 3, 4, 5, 6]),
        (("has_audio", "=", True), [0, 3, 5, 7]),
        (("has_audio", "in", [False]), [1, 4, 6]),
        (("modified_at", ">", "2026-01-07T00:00:00Z"), [7]),
        (("modified_at", "=", "2026-01-02T01:00:00+01:00"), [1]),
        (("modified_at", "<", "2026-01-02"), [0]),
    ],
)
def test_values_are_literals_of_the_column(asked: tuple[str, str, Any], rows: list[int]) -> None:
    """Numbers, truths, times; null passes no comparison."""
    assert passing(Filter(*asked)) == rows


def test_all_filters_must_pass() -> None:
    """They are combined by AND; none at all is no condition."""
    assert passing(Filter("has_audio", "=", True), Filter("page_number", ">", 1)) == [5, 7]
    assert to_condition([]) == ""


@pytest.mark.parametrize(
    ("column", "op", "value", "told"),
    [
        ("durations", "=", 1, "did you mean duration_s"),
        ("qqqq", "=", 1, "there are object_id"),
        ("key\" = '' OR \"key", "=", "x", "unknown column"),
        ("keyframe_jpeg", "is_null", None, "unknown column"),
        ("key", "LIKE", "x", "unknown comparison 'LIKE'"),
        ("key", "=", "a\x00b", "without NUL"),
        ("key", "=", "\ud800", "lone surrogates"),
        ("key", "=", 1, "give a text"),
        ("key", "=", None, "give a text"),
        ("key", "=", ["x"], "give a text"),
        ("key", "in", [], "1 to 500 values"),
        ("key", "in", "abc", "a list of 1 to 500"),
        ("key", "in", ["x"] * 501, "1 to 500 values"),
        ("key", "in", ["x", 1], "give a text"),
        ("key", "is_null", "x", "takes no value"),
        ("duration_s", "contains", "1", "contains is for texts; this column is double"),
        ("duration_s", ">", "1", "give a number"),
        ("duration_s", ">", True, "give a number"),
        ("duration_s", ">", math.nan, "finite"),
        ("duration_s", ">", math.inf, "finite"),
        ("size_bytes", ">", 10**400, "within 64 bits"),
        ("size_bytes", ">", 2**63, "within 64 bits"),
        ("size_bytes", ">", {"a": 1}, "give a number"),
        ("has_audio", "=", 1, "true or false"),
        ("has_audio", "=", "true", "true or false"),
        ("modified_at", ">", 5, "ISO 8601"),
        ("modified_at", ">", "yesterday", "ISO 8601"),
        ("modified_at", ">", "0001-01-01T00:00:00+23:00", "ISO 8601"),
    ],
)
def test_what_is_no_filter_is_refused(column: str, op: str, value: Any, told: str) -> None:
    """It says what would be one."""
    with pytest.raises(ConfigError, match=told):
        to_condition([Filter(column, op, value)])


def test_columns_are_those_of_moments(make_workspace: Callable[..., Place], tmp_path: Path) -> None:
    """The list is what the view has, but for the number of the shard, and what is found in a segment."""
    workspace = make_workspace("picture0.png").open()
    ingest(workspace)
    with open_tables(workspace.lake, tmp_path / "cache") as connection:
        columns = {row[0] for row in connection.execute("DESCRIBE moments").fetchall()}
    assert columns - {"shard"} == set(COLUMNS) - {"tag", "label"}
