"""The published tables in DuckDB, and conditions on them.

Put here: opening tables, and SQL condition → segments. Keep out: what is done with the segments.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mm_assets.errors import ConfigError
from mm_assets.lake import Lake
from mm_assets.mirror import local_copy

if TYPE_CHECKING:
    import duckdb

# What `moments` has of an object, beside all columns of `segments`.
OBJECT_COLUMNS = (
    "media_kind",
    "container_kind",
    "size_bytes",
    "modified_at",
    "duration_s",
    "n_pages",
    "has_audio",
)
_MEMORY = "1GB"
_SECONDS = 30.0
_LONGEST = 10_000


class NothingPublishedError(ConfigError):
    """What is asked for is there after the first ingest."""


def open_tables(lake: Lake, cache: Path) -> "duckdb.DuckDBPyConnection":
    """Open DuckDB with one view for each published table, ``moments`` for conditions, and ``dead_letters``.

    Raises
    ------
    NothingPublishedError
        Nothing is published yet.
    """
    import duckdb

    folder = local_copy(lake, "tables/", cache)
    tables = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not tables:
        msg = f"no tables in {lake.uri} yet; run `mm ingest`"
        raise NothingPublishedError(msg)
    connection = duckdb.connect()
    connection.execute("SET autoinstall_known_extensions = false; SET TimeZone = 'UTC'")
    for table in tables:
        files = str(folder / table / "**" / "*.parquet").replace("'", "''")
        source = f"read_parquet('{files}', hive_partitioning = true)"
        connection.execute(f'CREATE VIEW "{table}" AS SELECT * FROM {source}')  # noqa: S608  names of our own folders
    if {"segments", "raw_objects"} <= set(tables):
        connection.execute(
            f"CREATE VIEW moments AS SELECT segments.*, {', '.join(OBJECT_COLUMNS)} "  # noqa: S608  constants
            "FROM segments JOIN raw_objects USING (object_id)"
        )
    if "step_states" in tables:
        connection.execute("CREATE VIEW dead_letters AS SELECT * FROM step_states WHERE state = 'dead'")
    return connection


def segments_where(lake: Lake, cache: Path, where: str) -> pa.Array:
    """Return the ids of the segments that pass a condition on the columns of ``moments``.

    The condition reads the published tables and nothing else: no other file, nothing is written, within 1 GB of memory
    and 30 s.

    Raises
    ------
    ConfigError
        It is no condition, names an unknown column, does more than select, or takes too long.
    """
    import duckdb

    folder = local_copy(lake, "tables/", cache)
    with open_tables(lake, cache) as connection:
        query = f"SELECT segment_id FROM moments WHERE (\n{where}\n)"  # noqa: S608  confined below
        _require_one_select(connection, query, where)
        place = str(folder).replace("'", "''")
        connection.execute(
            f"SET allowed_directories = ['{place}']; SET enable_external_access = false; SET memory_limit = '{_MEMORY}'; "
            "SET lock_configuration = true"
        )
        try:
            with _in_time(connection, f"the condition {where!r}"):
                _require_truths(connection, where)
                found: pa.Table = connection.sql(query).to_arrow_table()
                return found["segment_id"].combine_chunks()
        except duckdb.Error as error:
            raise ConfigError(_explain(connection, where, error)) from error


def _require_one_select(connection: "duckdb.DuckDBPyConnection", query: str, where: str) -> None:
    import duckdb

    if len(where) > _LONGEST:
        msg = f"the condition has {len(where)} characters, {_LONGEST} at most"
        raise ConfigError(msg)
    try:
        statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise ConfigError(_explain(connection, where, error)) from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        msg = f"{where!r} is more than a condition; write what could stand after WHERE, e.g. media_kind = 'video'"
        raise ConfigError(msg)


def _require_truths(connection: "duckdb.DuckDBPyConnection", where: str) -> None:
    """Raise ConfigError where it is a number or a text, which DuckDB would take for yes or no."""
    kind = connection.sql(f"SELECT (\n{where}\n) FROM moments").types[0]  # noqa: S608  confined by now
    if str(kind) not in {"BOOLEAN", "NULL"}:
        msg = f"{where!r} is no condition but {kind}; compare it with something, e.g. duration_s > 5"
        raise ConfigError(msg)


@contextmanager
def limited(connection: "duckdb.DuckDBPyConnection", what: str) -> Iterator[None]:
    """Bound the memory and the time of queries; raises ConfigError where they take too long."""
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    with _in_time(connection, what):
        yield


@contextmanager
def _in_time(connection: "duckdb.DuckDBPyConnection", what: str) -> Iterator[None]:
    import duckdb

    timer = threading.Timer(_SECONDS, connection.interrupt)
    timer.start()
    try:
        yield
    except duckdb.InterruptException as error:
        msg = f"{what} took longer than {_SECONDS:.0f} s; name fewer rows, or a simpler condition"
        raise ConfigError(msg) from error
    finally:
        timer.cancel()


def _explain(connection: "duckdb.DuckDBPyConnection", where: str, error: Exception) -> str:
    columns = [row[0] for row in connection.execute("DESCRIBE moments").fetchall()]
    reason = str(error).partition("\n")[0]
    unknown = [word for word in where.replace("(", " ").replace(")", " ").split() if word.isidentifier()]
    near = {close for word in unknown for close in get_close_matches(word, columns, 2, 0.75) if word not in columns}
    meant = f"; did you mean {' or '.join(sorted(near))}?" if near else ""
    return f"{where!r} is not a condition: {reason}{meant}; texts stand in 'single quotes', columns are {', '.join(columns)}"
