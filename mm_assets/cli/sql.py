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
_INTERRUPT_S = 0.1
_Answer = TypeVar("_Answer")


@examples(
    'mm sql "SHOW TABLES"',
    'mm sql "SELECT label, count(*) AS n FROM detected_objects GROUP BY label ORDER BY n DESC"',
    'mm sql --csv "SELECT key, start_s, text FROM transcripts" > transcripts.csv',
)
@click.command()
@click.argument("query")
@click.option("--json", "form", flag_value="json", help="Print one JSON object a line.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@config_option
def sql(query: str, form: str | None, config: Path | None) -> None:
    """Query the published tables with DuckDB.

    Each table of docs/tables.md is a view; so are `moments` (segments with their objects) and `dead_letters`.
    """
    from mm_assets.resources.readers import open_lake
    from mm_assets.retrieval import open_tables
    from mm_assets.settings import load_settings

    settings = load_settings(config)
    with open_tables(open_lake(settings), settings.cache) as connection:
        columns, rows = _run(connection, query)
        if form == "json":
            _check_names(columns)
            for row in rows:
                print_json(dict(zip(columns, row, strict=True)))
        elif form == "csv":
            csv.writer(sys.stdout).writerows([columns])
            csv.writer(sys.stdout).writerows(rows)
        else:
            print_table(columns, rows)


def _run(connection: "duckdb.DuckDBPyConnection", query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    answer = _done(connection, lambda: connection.execute(query))
    if answer is None:
        msg = "there is no statement in it"
        raise ConfigError(msg)
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
