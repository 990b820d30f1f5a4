"""``mm export``: a published index into a store of somebody else's.

Put here: where to, which rows, progress, what an interruption leaves. Keep out: rows and stores, which are ``exporting``'s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_assets.cli.ingest import progress
from mm_assets.cli.options import config_option, examples, where_option
from mm_assets.cli.output import counted
from mm_assets.spaces import SPACES, WORDS

if TYPE_CHECKING:
    from mm_assets.exporting import Contents
    from mm_assets.settings import Settings

_PATH = click.Path(path_type=Path)
_space_option = click.option(
    "--space",
    type=click.Choice([*SPACES, WORDS.name]),
    default="visual",
    show_default=True,
    help="Which index: keyframes, faces, what is said and shown by meaning, or by words.",
)
_force_option = click.option("--force", is_flag=True, help="Replace an earlier export that is there.")


@click.group()
def export() -> None:
    """Copy a published index into a store of your own.

    A row for each item that search can find: ids, object, place and link as `mm search` gives them, and its unit vector
    (float32); for words kind and text instead. It is of the generation that is published when the command starts.
    """


@examples(
    "mm export parquet vectors.parquet",
    "mm export parquet clips.parquet --where \"media_kind = 'video'\" --force",
    "mm export parquet words.parquet --space words",
)
@export.command()
@click.argument("target", type=_PATH)
@_space_option
@where_option
@_force_option
@config_option
def parquet(target: Path, *, space: str, where: str, force: bool, config: Path | None) -> None:
    """Write one Parquet file, TARGET.

    Its metadata (key `mm_assets`) names generation, recipes and model.
    """
    from mm_assets.exporting import write_parquet

    with _told(f"{target} is as it was."), _opened(_read(config), space, where) as contents:
        write_parquet(contents, target, is_forced=force)
    _report(contents, space, str(target))


@examples("mm export lance vectors.lance", "mm export lance faces.lance --space face --force")
@export.command()
@click.argument("target", type=_PATH)
@_space_option
@where_option
@_force_option
@config_option
def lance(target: Path, *, space: str, where: str, force: bool, config: Path | None) -> None:
    """Write a Lance dataset into a folder, TARGET; needs `pylance`."""
    from mm_assets.exporting import write_lance

    with _told(f"{target} is as it was."), _opened(_read(config), space, where) as contents:
        write_lance(contents, target, is_forced=force)
    _report(contents, space, str(target))


@examples(
    "mm export qdrant http://localhost:6333/keyframes",
    "mm export qdrant http://localhost:6333/faces --space face",
    "mm export qdrant vectors --collection keyframes",
)
@export.command()
@click.argument("target")
@click.option("--collection", metavar="NAME", help="Collection, where TARGET is a folder.")
@_space_option
@where_option
@config_option
def qdrant(target: str, *, collection: str | None, space: str, where: str, config: Path | None) -> None:
    """Make a collection of Qdrant hold the index; needs `qdrant-client`.

    TARGET is a server's URL that ends in the collection, or a folder for the client's local mode. Exported again, points
    are overwritten, and those that the index or the condition no longer has are removed, known by their payload's
    `generation`. A server's key is the setting `export.qdrant_api_key`, or MM_ASSETS_EXPORT__QDRANT_API_KEY.
    """
    from mm_assets.exporting import Collection, write_qdrant

    settings = _read(config)
    place = Collection.of(target, collection, settings.export.qdrant_api_key)
    left = "The collection holds a part of the new points beside the old ones; the same command completes it."
    with _told(left), _opened(settings, space, where) as contents:
        n_removed = write_qdrant(contents, place)
    _report(contents, space, target)
    click.echo(f"{counted(n_removed, 'point')} removed that it no longer has.")


def _read(config: Path | None) -> "Settings":
    from mm_assets.cli.opening import read_settings

    return read_settings(config)


@contextmanager
def _opened(settings: "Settings", space: str, where: str) -> Iterator["Contents"]:
    """Open what is exported; while it is written, progress is shown."""
    from mm_assets.exporting import EXPORTED, open_contents
    from mm_assets.resources.readers import link_to, open_lake

    def link(alias: str, key: str) -> str:
        return link_to(settings, alias, key)

    with progress() as report:
        yield open_contents(
            open_lake(settings),
            EXPORTED[space],
            cache=settings.cache,
            link=link,
            where=where,
            report=lambda done, total: report("exporting", done, total),
        )


@contextmanager
def _told(left: str) -> Iterator[None]:
    """End an interrupted export with what is left of it."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\nInterrupted. {left}", err=True)
        raise click.exceptions.Exit(130) from None


def _report(contents: "Contents", space: str, target: str) -> None:
    click.echo(f"{target} has {counted(contents.n_rows, 'row')} of {space}, generation {contents.facts['generation']}.")
