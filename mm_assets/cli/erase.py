"""``mm erase``: objects whose results a person wants gone.

Put here: showing what goes, the confirmation, the receipt. Keep out: the removing.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_assets.cli.options import config_option, examples
from mm_assets.cli.output import counted, print_table, printable
from mm_assets.errors import ServiceError

if TYPE_CHECKING:
    from mm_assets.flows.workspace import Workspace
    from mm_assets.ledger import KnownObject

_SHOWN = 20


@examples(
    "mm erase films/garden.mp4            show what would go",
    "mm erase films/garden.mp4 --yes",
    "mm erase --prefix my-bucket/people/ --yes",
)
@click.command()
@click.argument("objects", nargs=-1, metavar="[OBJECT]...")
@click.option(
    "--prefix",
    "prefixes",
    multiple=True,
    metavar="ALIAS/PREFIX",
    help="All keys of a source that start so; ALIAS/ for all.",
)
@click.option("--yes", is_flag=True, help="Do it; without, only show.")
@config_option
def erase(objects: tuple[str, ...], prefixes: tuple[str, ...], *, yes: bool, config: Path | None) -> None:
    """Erase all that was made of OBJECTs: results, rows of tables, vectors, tags, dead letters.

    OBJECT is an object id, a key, alias/key, or a partition key of Dagster; all known versions of the object go. The
    source itself is never touched. A listing does not bring an erased version back; what is stored under the same key
    later (another ETag) is processed like any new object, so delete the object in the source as well. Dagster's history
    of runs still names the keys.

    With --yes the versions are marked, a refresh runs, and its receipt is shown; interrupted, the same command or any
    later refresh (`mm ingest`) goes on with it.
    """
    if not objects and not prefixes:
        msg = "name OBJECTs or a --prefix"
        raise click.UsageError(msg)
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        versions = _find(workspace, objects, prefixes)
        n_leaving = workspace.ledger.removals.n_leaving()
        _print_versions(versions, n_leaving, yes=yes)
        if yes and (versions or n_leaving):
            _erase(workspace, versions, config)


def _find(workspace: "Workspace", objects: Sequence[str], prefixes: Sequence[str]) -> "list[KnownObject]":
    from mm_assets.flows.removing import find_below, find_object

    found = [known for text in objects for known in find_object(workspace, text)]
    found += [known for text in prefixes for known in find_below(workspace, text)]
    return list({known.object_id: known for known in found}.values())


def _print_versions(versions: "Sequence[KnownObject]", n_leaving: int, *, yes: bool) -> None:
    """Show what goes, and what an earlier command marked without getting to its end."""
    rows = [(v.object_id, v.version.alias, v.version.key, v.state) for v in versions[:_SHOWN]]
    print_table(("object_id", "source", "key", "state"), rows)
    more = f", the first {_SHOWN} are shown" if len(versions) > _SHOWN else ""
    if versions:
        click.echo(f"{counted(len(versions), 'version')}{more}.")
        click.echo(
            f"Their results, rows, vectors and dead letters leave the lake{'' if yes else ' with --yes'}.", err=True
        )
        if n_live := sum(version.state == "live" for version in versions):
            click.echo(
                f"{n_live} of them lie in the source: delete them there too. Stored again under the same key (in a folder "
                "also when a file is copied back or its rights change), they are new objects.",
                err=True,
            )
    elif n_leaving:
        left = f"{counted(n_leaving, 'version')} that left"
        click.echo(f"All of it is marked already. {left} still lie in the lake: the same command with --yes goes on.")
    else:
        click.echo("Nothing to erase: all of it is erased already.")


def _erase(workspace: "Workspace", versions: "Sequence[KnownObject]", config: Path | None) -> None:
    from mm_assets.cli.ingest import progress
    from mm_assets.cli.runs import refresh
    from mm_assets.flows import receipts, removing

    before = receipts.names(workspace)
    if versions:
        click.echo(f"{counted(removing.erase(workspace, versions), 'version')} marked as erased.")
    with progress() as report:
        summary = refresh(config, "mm erase", report)
    _print_receipts(workspace, versions, sorted(receipts.names(workspace) - before))
    if summary.failed_runs:
        errors = "; ".join(summary.failed_runs.values())
        msg = f"the refresh failed ({errors}); what is marked stays marked, the same command goes on with it"
        raise ServiceError(msg)
    n_waiting = workspace.ledger.removals.n_leaving()
    if n_waiting:
        click.echo(
            f"{counted(n_waiting, 'version')} still under work or shown; left to the next refresh (`mm ingest`)."
        )


def _print_receipts(workspace: "Workspace", versions: "Sequence[KnownObject]", names: Sequence[str]) -> None:
    """Print what was removed of these versions (of all where none is named), and what holds many versions."""
    from mm_assets.flows import receipts

    wanted = {known.object_id for known in versions} | {None}
    n_files: Counter[tuple[str, str]] = Counter()
    n_rows: Counter[tuple[str, str]] = Counter()
    for name in names:
        for row in receipts.read(workspace, name).to_pylist():
            if not versions or row["object_id"] in wanted:
                n_files[row["what"], row["outcome"]] += 1
                n_rows[row["what"], row["outcome"]] += row["n_rows"] or 0
    print_table(("removed", "outcome", "files", "rows"), [(*of, n, n_rows[of]) for of, n in sorted(n_files.items())])
    for name in names:
        click.echo(printable(f"receipt: {workspace.lake.uri.rstrip('/')}/receipts/{name}.parquet"))
