"""Printing: tables on a terminal, tab-separated lines in a pipe, JSON on request.

Put here: forms of output. Keep out: what is printed. Keys and texts come from strangers: control characters are shown
escaped, so that a key cannot drive the terminal or break a line.
"""

import base64
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import click

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(value: object) -> str:
    """Return a value as one line without control characters; None is empty."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), str(value))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows: aligned on a terminal, else tab-separated below a line of names."""
    if not sys.stdout.isatty():
        click.echo("\t".join(columns))
        for row in rows:
            click.echo("\t".join(printable(value) for value in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(value), overflow="fold") for value in row))
    Console().print(table)


def print_json(value: object) -> None:
    """Print one JSON document on one line, so that many of them are JSON Lines."""
    click.echo(json.dumps(value, ensure_ascii=False, default=_plain))


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Print names and values, one a line; empty ones are left out."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        if value not in (None, ""):
            click.echo(f"{name:<{width}}  {printable(value)}")


def counted(n: int, noun: str) -> str:
    """Write a number with its noun, which takes an s but for one."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def clock(seconds: float | None) -> str:
    """Write seconds as 00:12.3, or 1:02:03.4 from an hour on."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes:02}:{rest:04.1f}"


def place(start_s: float | None, end_s: float | None, page_number: int | None) -> str:
    """Write where in an object something is: a stretch of time, a page, or nothing for a still image."""
    if page_number is not None:
        return f"page {page_number}"
    return f"{clock(start_s)}-{clock(end_s)}" if start_s is not None else ""


def _plain(value: object) -> Any:
    """Write what JSON has no form for."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)
