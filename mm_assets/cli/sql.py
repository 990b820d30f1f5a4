"""``mm sql``: DuckDB over the published tables.

Put here: one statement in, rows out. Keep out: the views, which ``retrieval.open_tables`` makes.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mm_assets.cli.options import config_option, examples
from mm_assets.cli.output import print_json, print_table
from mm_assets.errors import ConfigError

if TYPE_CHECKING:
    import duckdb

_FETCH = 10_000
_ASKING = {"SELECT", "EXPLAIN", "PRAGMA", "CALL", "MULTI", "COPY", "EXPORT"}  # PIVOT is several statements to DuckDB
_INTERRUPT_S = 0.1
_Answer = TypeVar("_Answer")


@examples(
    'mm sql "SHOW TABLES"',
    'mm sql "SELECT label, count(*) AS n FROM detected_objects GROUP BY label ORDER BY n DESC"',
    'mm sql --csv "SELECT key, start_s, text FROM transcripts" > transcripts.csv',
)
@click.command()
@click.argument("query")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@config_option
def sql(query: str, *, as_json: bool, as_csv: bool, config: Path | None) -> None:
    """Query the published tables with DuckDB.

    Each table of docs/tables.md is a view; so are `moments` (segments with their objects) and `dead_letters`. QUERY is
    one statement. Nothing in the lake can be changed by it, but it has your rights on this machine: it can read any
    file (`FROM 'other.parquet'`), and COPY … TO writes one.
    """
    if as_json and as_csv:
        msg = "--json and --csv are two forms; take one"
        raise click.UsageError(msg)
    from mm_assets.cli.opening import read_settings
    from mm_assets.resources.readers import open_lake
    from mm_assets.retrieval import open_tables

    settings = read_settings(config)
    with open_tables(open_lake(settings), settings.cache) as connection:
        columns, rows = _run(connection, query)
        if as_json:
            _check_names(columns)
            for row in rows:
                print_json(dict(zip(columns, row, strict=True)))
        elif as_csv:
            csv.writer(sys.stdout).writerows([columns])
            csv.writer(sys.stdout).writerows(rows)
        else:
            print_table(columns, rows)


def _run(connection: "duckdb.DuckDBPyConnection", query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    statements = _done(connection, lambda: connection.extract_statements(query))
    if len(statements) != 1:
        msg = f"one statement is asked for, not {len(statements)}"
        raise ConfigError(msg)
    [statement] = statements
    if statement.type.name not in _ASKING:
        msg = f"{statement.type.name} is not for here: the tables are views of files, which a query can only read"
        raise ConfigError(msg)
    answer = _done(connection, lambda: connection.execute(statement))
    columns = [column[0] for column in answer.description or []]
    return columns, _fetch(answer)


def _fetch(answer: "duckdb.DuckDBPyConnection") -> Iterator[tuple[Any, ...]]:
    while rows := _done(answer, lambda: answer.fetchmany(_FETCH)):
        yield from rows


def _done(connection: "duckdb.DuckDBPyConnection", work: Callable[[], _Answer]) -> _Answer:
    """Return what DuckDB answers; its errors become ours.

    It works in a thread beside this one, which waits: while DuckDB's own threads compute, it does not look for Ctrl-C.
    """
    import duckdb

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(work)
        try:
            return going.result()
        except duckdb.Error as error:
            raise ConfigError(str(error)) from error
        except KeyboardInterrupt:
            while not going.done():
                connection.interrupt()  # again and again: before the query begins, it has no effect
                wait([going], _INTERRUPT_S)
            raise


def _check_names(columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        msg = f"two columns are called {', '.join(twice)}, which JSON cannot hold: name them with AS, or use --csv"
        raise ConfigError(msg)
