"""``mm verify``: whether ledger, lake, tables, indexes and sources say the same.

Put here: showing differences, the confirmation of repairs. Keep out: comparing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mm_assets.flows.verifying import Difference

_SHOWN = 50


@examples(
    "mm verify",
    "mm verify --deep",
    "mm verify --json | jq -r .where",
    "mm verify --yes; mm ingest    have repaired what is damaged",
)
@click.command()
@click.option("--deep", is_flag=True, help="Read every result whole, not only its footer.")
@click.option("--yes", is_flag=True, help="Want again what is damaged; the next `mm ingest` makes it.")
@json_option
@config_option
@click.pass_context
def verify(context: click.Context, *, deep: bool, yes: bool, as_json: bool, config: Path | None) -> None:
    """Compare ledger, lake, tables, indexes and sources; prints "equal", or the differences and exits with 1.

    Lists the lake and the sources and reads the footer of every result. What is under way meanwhile shows as a
    difference: run it when nothing else runs. With --json: one difference a line as it is found, the summary on stderr.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.verifying import find_differences, repair

    shown: list[tuple[str, str, str]] = []
    kinds: Counter[str] = Counter()
    with open_books(config) as workspace:
        differences = _counted(find_differences(workspace, deep=deep), shown, kinds, as_json=as_json)
        repairable = repair(workspace, differences) if yes else Counter(d.kind for d in differences if d.is_repairable)
    if not kinds:
        click.echo("equal", err=as_json)
        return
    if not as_json:
        print_table(("difference", "where", "found"), shown)
    _print_summary([(kind, n, repairable[kind]) for kind, n in sorted(kinds.items())], yes=yes, as_json=as_json)
    context.exit(1)


def _counted(
    differences: "Iterable[Difference]", shown: list[tuple[str, str, str]], kinds: Counter[str], *, as_json: bool
) -> "Iterator[Difference]":
    """Note differences as they pass: all by kind, the first of them whole; as JSON they are printed at once."""
    for found in differences:
        kinds[found.kind] += 1
        if as_json:
            print_json(to_dict(found))
        elif len(shown) < _SHOWN:
            shown.append((found.kind, found.where, found.found))
        yield found


def _print_summary(rows: Sequence[tuple[str, int, int]], *, yes: bool, as_json: bool) -> None:
    """Say how many there are of each kind and what comes next; beside JSON on stderr."""
    done = "wanted again" if yes else "repairable"
    if as_json:
        for kind, n, n_repairable in rows:
            click.echo(f"{kind}: {n}, {done}: {n_repairable}", err=True)
    else:
        print_table(("difference", "n", done), rows)
    if yes:
        advice = "What is wanted again is made by the next `mm ingest`."
    elif any(n for _, _, n in rows):
        advice = "Have it repaired: mm verify --yes; mm ingest"
    else:
        advice = "Nothing is damaged: what is left is done by the command that it names, else by `mm ingest`."
    click.echo(advice, err=as_json)


def to_dict(found: "Difference") -> dict[str, object]:
    """Return a difference as plain values."""
    return {"kind": found.kind, "where": found.where, "found": found.found, "is_repairable": found.is_repairable}
