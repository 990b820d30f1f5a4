"""Many rows in one statement, at a cost that a million objects allow.

Put here: what SQLAlchemy does as well, but for each value anew. Keep out: which rows.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Table, Text, TypeDecorator, bindparam
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class _Texts(TypeDecorator[Sequence[str]]):
    """A list of texts in one parameter: JSON for SQLite, an array for PostgreSQL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        texts = list(value or ())
        return json.dumps(texts) if dialect.name == "sqlite" else texts


class among(FunctionElement[bool]):  # noqa: N801  reads like SQLAlchemy's functions
    """``column IN values`` for any number of texts, as one parameter: nothing is compiled or counted for each."""

    # Deliberately not of type Boolean: SQLAlchemy would write ``… = 1`` for SQLite, which no index serves.
    inherit_cache = True

    def __init__(self, column: ColumnElement[str], values: Sequence[str]) -> None:
        super().__init__(column, bindparam(None, values, type_=_Texts(), unique=True))


@compiles(among, "sqlite")
def _sqlite(element: among, compiler: Any, **how: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **how)} IN (SELECT value FROM json_each({compiler.process(values, **how)}))"  # noqa: S608  compiled parts


@compiles(among, "postgresql")
def _postgresql(element: among, compiler: Any, **how: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **how)} = ANY({compiler.process(values, **how)})"


def insert_rows(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows of plain values, one for each column named; other columns take the database's defaults."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_sqlite_insert(table.name, columns), list(rows))
    else:
        connection.execute(table.insert(), [dict(zip(columns, row, strict=True)) for row in rows])


@cache
def _sqlite_insert(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608  our own names
