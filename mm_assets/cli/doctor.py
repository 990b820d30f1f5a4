"""``mm doctor``: is everything in place, and what to do where it is not.

Put here: running the probes and printing what they found. Keep out: the probes.
"""

from pathlib import Path

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import print_json, printable

_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red"}


@examples("mm doctor", "mm doctor --json | jq 'select(.status != \"ok\")'")
@click.command()
@json_option
@config_option
def doctor(*, as_json: bool, config: Path | None) -> None:
    """Try everything that an ingest needs.

    Settings, buckets and rights, clock, ledger, programs, weights, disk, sandbox, device. In the lake, an object of a few bytes is written, read back and deleted. One line for each thing: ok, warn (it
    works, but), FAIL (it will not, and what to do). Exit code 1 when anything fails.
    """
    from mm_assets.cli.probes import examine

    n_failed = 0
    for finding in examine(config):
        n_failed += finding.status == "FAIL"
        if as_json:
            print_json({"status": finding.status, "name": finding.name, "message": finding.message})
        else:
            status = click.style(f"{finding.status:<4}", fg=_COLOURS[finding.status])
            message = ("\n" + " " * 26).join(map(printable, finding.message.splitlines()))
            click.echo(f"{status}  {finding.name:<18}  {message}")
    if n_failed:
        click.echo(f"{n_failed} failed.", err=True)
        raise click.exceptions.Exit(1)
