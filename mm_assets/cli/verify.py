"""``mm verify``: whether ledger, lake, tables, indexes and sources say the same.

Put here: showing differences, the confirmation of repairs. Keep out: comparing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_assets.cli.options import config_option, examples
from mm_assets.cli.output import print_table

if TYPE_CHECKING:
    from mm_assets.flows.verifying import Difference

_SHOWN = 50


@examples("mm verify", "mm verify --deep", "mm verify --yes && mm ingest    have repaired what is damaged")
@click.command()
@click.option("--deep", is_flag=True, help="Read every result whole, not only its footer.")
@click.option("--yes", is_flag=True, help="Want again what is damaged; the next `mm ingest` makes it.")
@config_option
@click.pass_context
def verify(context: click.Context, *, deep: bool, yes: bool, config: Path | None) -> None:
    """Compare ledger, lake, tables, indexes and sources; prints "equal", or the differences and exits with 1.

    Lists the lake and the sources and reads the footer of every result. What is under way meanwhile shows as a
    difference: run it when nothing else runs.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.verifying import find_differences, repair

    shown: list[tuple[str, str, str]] = []
    kinds: Counter[str] = Counter()
    with open_books(config) as workspace:
        differences = _counted(find_differences(workspace, deep=deep), shown, kinds)
        wanted = repair(workspace, differences) if yes else Counter(dict.fromkeys(_exhaust(differences), 0))
    if not kinds:
        click.echo("equal")
        return
    print_table(("difference", "where", "found"), shown)
    print_table(("difference", "n", "wanted again"), [(kind, n, wanted[kind]) for kind, n in sorted(kinds.items())])
    click.echo(
        "What is wanted again is made by the next `mm ingest`."
        if yes
        else "Have it repaired: mm verify --yes && mm ingest"
    )
    context.exit(1)


def _counted(
    differences: "Iterable[Difference]", shown: list[tuple[str, str, str]], kinds: Counter[str]
) -> "Iterator[Difference]":
    """Note differences as they pass: all by kind, the first of them whole."""
    for found in differences:
        kinds[found.kind] += 1
        if len(shown) < _SHOWN:
            shown.append((found.kind, found.where, found.found))
        yield found


def _exhaust(differences: "Iterable[Difference]") -> set[str]:
    return {found.kind for found in differences}
