"""Schemas: every table keeps the naming grammar and its promises."""

import re

import pyarrow as pa
import pytest

from mm_assets.errors import SchemaError
from mm_assets.schemas import JUDGEMENT_TABLES, STEP_TABLES, TABLES, Table, check_schema

_QUANTITY = re.compile(r".*_(s|px|bytes|frac|dbfs|id|at)$|^(n|is|has|box)_.*|^sha256$")


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_columns_follow_the_grammar(table: Table) -> None:
    """Numbers carry their unit, truths begin with is_ or has_, times end in _at."""
    plain = {
        "confidence",
        "similarity",
        "distance",
        "anomaly_score",
        "sharpness",
        "ordinal",
        "scene_number",
        "page_number",
    }
    for column in table.columns:
        if pa.types.is_boolean(column.type):
            assert column.name.startswith(("is_", "has_")), column.name
        elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            assert _QUANTITY.match(column.name) or column.name in plain, column.name


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_table_says_who_where_and_from_what(table: Table) -> None:
    """Identity comes first, provenance last, keys exist and hold no null."""
    names = [column.name for column in table.columns]

    assert names[:4] == ["object_id", "bucket", "key", "etag"]
    assert names[-1] in {"recipe", "generation"}
    assert set(table.key) <= set(names)
    assert not any(column.nullable for column in table.columns if column.name in table.key)
    assert all(column.description for column in table.columns)


def test_steps_and_judgements_have_tables() -> None:
    """Nothing is declared twice or forgotten."""
    assert set(TABLES) == {*STEP_TABLES, *JUDGEMENT_TABLES, "step_states"}


def test_published_segments_hold_no_images() -> None:
    """The large columns stay in the results."""
    assert not {"keyframe_jpeg", "thumbnail_jpeg", "audio_flac"} & set(TABLES["segments"].published_schema().names)


def test_a_vector_has_the_dimension_of_its_model() -> None:
    """The column is a fixed-size list, and a table with vectors has no schema without a dimension."""
    assert TABLES["faces"].arrow_schema(512).field("vector").type == pa.list_(pa.float32(), 512)
    with pytest.raises(SchemaError):
        TABLES["faces"].arrow_schema()


def test_check_schema_names_the_difference() -> None:
    """Another type is refused with both schemas in the message."""
    expected = pa.schema([("a", pa.int64())])

    check_schema("t", expected, expected)
    with pytest.raises(SchemaError, match="int32"):
        check_schema("t", expected, pa.schema([("a", pa.int32())]))
