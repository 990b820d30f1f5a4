"""``mm deletions``: what a person decides when too much of a source is gone at once.

Put here: the confirmation. Keep out: the brake itself, which is discovery's.
"""

from pathlib import Path

import click

from mm_assets.cli.options import config_option, examples


@click.group()
def deletions() -> None:
    """Decide on deletions that wait for a person.

    When a large share of a source is missing from one listing, nothing is removed: lost rights and a wrong prefix look
    the same as deletion. `mm status` shows the alarm.
    """


@examples("mm deletions confirm my-bucket && mm ingest")
@deletions.command()
@click.argument("source")
@config_option
def confirm(source: str, config: Path | None) -> None:
    """Confirm that the missing objects of SOURCE (its alias) were deleted on purpose."""
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        alias = workspace.settings.source(source).alias
        is_waiting = workspace.ledger.objects.confirm_deletions(alias)
    if is_waiting:
        click.echo(f"Confirmed. What is missing from the next complete listing of {alias} is removed: mm ingest")
    else:
        click.echo(f"No alarm waits for {alias}; nothing to confirm.")
