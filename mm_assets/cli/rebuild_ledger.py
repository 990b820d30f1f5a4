"""``mm rebuild-ledger``: an empty ledger filled again from lake and sources.

Put here: showing what would be restored, the confirmation. Keep out: restoring.
"""

from pathlib import Path

import click

from mm_assets.cli.options import config_option, examples
from mm_assets.cli.output import print_pairs, printable


@examples("mm rebuild-ledger           show what would be restored", "mm rebuild-ledger --yes && mm ingest")
@click.command("rebuild-ledger")
@click.option("--yes", is_flag=True, help="Do it; without, only show.")
@config_option
def rebuild_ledger(*, yes: bool, config: Path | None) -> None:
    """Fill an empty ledger from the lake and a listing of the sources; nothing is computed anew.

    For a ledger that was lost or moved. Interrupted, the same command goes on. What events waited in the old ledger
    the listing finds; how much was counted in the past is gone.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.rebuilding import preview, rebuild

    with open_books(config) as workspace:
        found = (
            rebuild(workspace, lambda what: click.echo(f"restoring {printable(what)}", err=True))
            if yes
            else preview(workspace)
        )
    pairs: dict[str, object] = {
        "published versions": found.n_versions,
        "ends of steps": found.n_ends,
        "files of tables": found.n_files,
        "builds of indexes and models": found.n_generations,
        "erasures": found.n_erasures,
        "dead letters": found.n_dead,
    }
    if yes:
        pairs |= {"newer results": found.n_adopted, "objects listed": found.n_listed}
    print_pairs(pairs)
    for alias, alarm in found.alarms.items():
        click.echo(f"ALARM: {alias}: {printable(alarm)}", err=True)
    click.echo("Done; `mm ingest` goes on from here." if yes else "Do it with --yes; then sources are listed, too.")
