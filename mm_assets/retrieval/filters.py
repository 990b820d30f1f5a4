"""Filters that come over the network → a condition on ``moments``, without any SQL of theirs.

Put here: which columns and comparisons there are, and how a value is written as a literal. Keep out: running the
condition, which ``tables`` does.

A column is one of a list and a value is parsed as the column's type before it is written, so what a filter holds cannot
become a part of the condition. As in SQL, what is null passes only ``is_null``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from mm_assets.errors import ConfigError
from mm_assets.retrieval.tables import OBJECT_COLUMNS
from mm_assets.schemas import TABLES, Column

_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
_OF_TEXTS = ("contains", "starts_with")  # functions of DuckDB
_NULLS = {"is_null": "IS NULL", "not_null": "IS NOT NULL"}
OPERATORS = (*_COMPARISONS, "in", *_OF_TEXTS, *_NULLS)
MAX_WORD = 64  # characters of a name of a column or comparison
_MOST_VALUES = 500
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SEGMENTS = TABLES["segments"]
_FOUND_IN = {"tag": "tags", "label": "detected_objects"}  # columns of what was found in a segment: one of it must pass
COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        *(column for column in _SEGMENTS.columns if column.name not in _SEGMENTS.private),
        *(column for column in TABLES["raw_objects"].columns if column.name in OBJECT_COLUMNS),
        *(column for name, table in _FOUND_IN.items() for column in TABLES[table].columns if column.name == name),
    )
}


@dataclass(frozen=True, slots=True)
class Filter:
    """One comparison of a column of ``moments`` with a value.

    Attributes
    ----------
    op : one of ``OPERATORS``
    value : a text, number or truth as the column has it, a time as ISO 8601; a list of them for ``in``; None for
        ``is_null`` and ``not_null``
    """

    column: str
    op: str
    value: Any = None


def to_condition(filters: Sequence[Filter]) -> str:
    """Return the condition that all filters pass, '' for none.

    Raises
    ------
    ConfigError
        A column or comparison is unknown, or a value is none of the column's; says what would be.
    """
    return " AND ".join(f"({_compare(given)})" for given in filters)


def _compare(given: Filter) -> str:
    column = _find_column(given.column)
    if (found := _FOUND_IN.get(given.column)) is not None:
        return f"segment_id IN (SELECT segment_id FROM {found} WHERE {_compare_column(given, column)})"  # noqa: S608  constants and literals
    return _compare_column(given, column)


def _compare_column(given: Filter, column: Column) -> str:
    if given.op in _NULLS:
        if given.value is not None:
            raise _refusal(given, f"{given.op} takes no value")
        return f'"{column.name}" {_NULLS[given.op]}'
    if given.op == "in":
        return f'"{column.name}" IN ({", ".join(_literal(given, column, value) for value in _members(given))})'
    if given.op in _OF_TEXTS:
        if not pa.types.is_string(column.type):
            raise _refusal(given, f"{given.op} is for texts; this column is {column.type}")
        return f'{given.op}("{column.name}", {_literal(given, column, given.value)})'
    if given.op in _COMPARISONS:
        return f'"{column.name}" {given.op} {_literal(given, column, given.value)}'
    raise _refusal(given, f"unknown comparison {given.op[:MAX_WORD]!r}; there are {', '.join(OPERATORS)}")


def _find_column(name: str) -> Column:
    if name in COLUMNS:
        return COLUMNS[name]
    near = get_close_matches(name, COLUMNS, 2, 0.6) if len(name) <= MAX_WORD else []  # it takes longer for longer ones
    meant = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(COLUMNS)}"
    msg = f"unknown column {name[:MAX_WORD]!r}; {meant}"
    raise ConfigError(msg)


def _members(given: Filter) -> list[Any]:
    if not isinstance(given.value, list) or not 0 < len(given.value) <= _MOST_VALUES:
        raise _refusal(given, f"in takes a list of 1 to {_MOST_VALUES} values")
    return given.value


def _literal(given: Filter, column: Column, value: Any) -> str:
    """Write a value as a literal of the column's type."""
    if pa.types.is_string(column.type):
        return _text(given, value)
    if pa.types.is_boolean(column.type):
        return _truth(given, value)
    if pa.types.is_timestamp(column.type):
        return _moment(given, value)
    return _number(given, value)


def _text(given: Filter, value: Any) -> str:
    if not isinstance(value, str) or _UNSTORABLE.search(value):
        raise _refusal(given, "give a text without NUL and lone surrogates")
    return "'" + value.replace("'", "''") + "'"


def _truth(given: Filter, value: Any) -> str:
    if not isinstance(value, bool):
        raise _refusal(given, "give true or false")
    return "TRUE" if value else "FALSE"


def _moment(given: Filter, value: Any) -> str:
    try:
        moment = datetime.fromisoformat(value)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise _refusal(given, "give a time as ISO 8601, e.g. 2026-01-31T12:00:00Z") from None
    return f"TIMESTAMPTZ '{moment.isoformat(sep=' ')}'"


def _number(given: Filter, value: Any) -> str:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    if not is_whole and not (isinstance(value, float) and math.isfinite(value)):
        raise _refusal(given, "give a number that is finite, a whole one within 64 bits")
    return repr(value)


def _refusal(given: Filter, why: str) -> ConfigError:
    return ConfigError(f"filter on {given.column}: {why}")
