"""``mm models``: which weights there are, fetching them, checking them.

Put here: cards as text, and what their licences ask for. Keep out: the fetching, which is ``extractors.pull``'s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from mm_assets.extractors.packs import PackFile
    from mm_assets.extractors.pull import Progress


@click.group()
def models() -> None:
    """List, fetch and check model packs. Nothing is ever fetched during a run."""


@examples("mm models list")
@models.command("list")
@json_option
@config_option
def list_cards(*, as_json: bool, config: Path | None) -> None:
    """Show the cards of all packs: model, licence, figures, and whether the weights are here."""
    from mm_assets.extractors.packs import find_pack, list_packs, read_pack, weights_folder
    from mm_assets.settings import load_settings

    settings = load_settings(config)
    for name in list_packs():
        home = find_pack(name)
        pack = read_pack(home)
        weights = weights_folder(home, pack, settings.models_folder)
        if as_json:
            print_json(pack.model_dump() | {"weights_folder": weights, "missing": _missing(pack, weights)})
        else:
            _print_pack(pack, weights)


def _missing(pack: "PackFile", weights: Path) -> list[str]:
    return sorted(name for name in pack.files if not (weights / name).is_file())


def _print_pack(pack: "PackFile", weights: Path) -> None:
    missing = _missing(pack, weights)
    state = f"{len(missing)} files missing: mm models pull {pack.name}" if missing else f"in {weights}"
    click.echo(f"{pack.name}: {pack.description}\n  weights: {state}")
    rows = [
        (step, model.name, model.revision, model.library, model.licence, _figures(model.figures))
        for step, model in pack.models.items()
    ]
    print_table(("step", "model", "revision", "library", "licence", "figures"), rows)
    for note in licence_notes(pack):
        click.echo(f"  ! {note}")
    click.echo()


def _figures(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {printable(value)}" for name, value in figures.items())


def licence_notes(pack: "PackFile") -> list[str]:
    """Say what the licences of a pack ask for."""
    notes = []
    for step, model in pack.models.items():
        if not model.is_commercial:
            notes.append(f"{step}: {model.name} may not be used commercially ({model.licence})")
        if model.licence.startswith("AGPL"):
            notes.append(
                f"{step}: {model.name} is {model.licence}; a network service that uses it owes its users the service's "
                "source, or drop the step from `steps`"
            )
    return notes


@examples("mm models pull standard")
@models.command()
@click.argument("pack")
@config_option
def pull(pack: str, config: Path | None) -> None:
    """Fetch the weights of PACK once, and check them by SHA-256.

    Files that are there and right are kept. Where a maker publishes no digest, what was fetched is recorded, and every
    later load is checked against that.
    """
    from mm_assets.extractors.packs import find_pack, read_pack
    from mm_assets.extractors.pull import pull_pack
    from mm_assets.settings import load_settings

    settings = load_settings(config)
    for note in licence_notes(read_pack(find_pack(pack))):
        click.echo(f"! {note}", err=True)
    with _progress() as report:
        fetched = pull_pack(pack, settings.models_folder, report)
    for path in fetched:
        click.echo(str(path))
    if not fetched:
        click.echo(f"All weights of {pack} are here.")


@contextmanager
def _progress() -> Iterator["Progress"]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)

        yield report


@examples("mm models verify demo")
@models.command()
@click.argument("pack", required=False)
@config_option
def verify(pack: str | None, config: Path | None) -> None:
    """Check the weights of PACK (default: the one of the settings) against their SHA-256."""
    from mm_assets.extractors.packs import load_pack
    from mm_assets.extractors.weights import verify_files
    from mm_assets.settings import load_settings

    settings = load_settings(config)
    choice = settings.models.model_copy(update={"pack": pack} if pack else {})
    for step, card in load_pack(choice, settings.models_folder).cards.items():
        verify_files(card.folder, card.files)
        click.echo(f"ok  {step}  {card.name} {card.revision}  {len(card.files)} files")
