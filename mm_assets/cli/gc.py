"""``mm gc``: what lies in the lake and nobody wants.

Put here: showing it, the confirmation. Keep out: telling what is garbage.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_assets.cli.options import config_option, examples
from mm_assets.cli.output import counted, print_table

if TYPE_CHECKING:
    from mm_assets.flows.collecting_garbage import Garbage

_DAY_S = 86_400


class _Tally:
    """Counts of garbage by kind, with one example."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, int, str]] = {}
        self.n_hidden = 0

    def add(self, found: "Garbage", is_erased: bool = True) -> None:
        n, n_bytes, example = self._kinds.get(found.kind, (0, 0, found.key))
        self._kinds[found.kind] = (n + 1, n_bytes + found.n_bytes, example)
        self.n_hidden += not is_erased

    def print(self) -> int:
        """Print the counts; returns the number of files."""
        print_table(("kind", "files", "bytes", "example"), [(kind, *of) for kind, of in sorted(self._kinds.items())])
        return sum(n for n, _, _ in self._kinds.values())


@examples("mm gc                         show what would go", "mm gc --yes", "mm gc --recipes --generations --yes")
@click.command()
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=7.0,
    metavar="DAYS",
    help="Keep what is younger.",
    show_default=True,
)
@click.option("--recipes", is_flag=True, help="Also results of recipes that are neither current nor published.")
@click.option("--generations", is_flag=True, help="Also builds of indexes and models that are not current.")
@click.option("--yes", is_flag=True, help="Do it; without, only show.")
@config_option
def gc(*, days: float, recipes: bool, generations: bool, yes: bool, config: Path | None) -> None:
    """Remove what lies in the lake and nobody wants.

    That is: results of versions that are unknown or left, dead letters of nothing dead, withdrawn shards, rows of batches
    that are published by now, uploads that were never completed. Receipts stay. It refuses a lake that is not
    this ledger's, and a ledger that is incomplete.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.collecting_garbage import Rules, collect, find_garbage

    rules, tally = Rules(days * _DAY_S, recipes, generations), _Tally()
    with open_books(config) as workspace:
        if not yes:
            for found in find_garbage(workspace, rules):
                tally.add(found)
            n = tally.print()
            click.echo(
                f"{counted(n, 'file')} would go, and uploads that were never completed; do it with --yes."
                if n
                else "No garbage."
            )
            return
        n_uploads = collect(workspace, rules, tally.add)
    n = tally.print()
    click.echo(f"{counted(n, 'file')} and {counted(n_uploads, 'unfinished upload')} removed.")
    if tally.n_hidden:
        click.echo(f"Hidden, not erased: {tally.n_hidden} of them; the store keeps or may keep older versions.")
