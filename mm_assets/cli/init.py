"""``mm init``: a settings file to start from.

Put here: writing the file, never over another. Keep out: its text, which follows from the settings' models.
"""

import os
from pathlib import Path

import click

from mm_assets.cli.options import examples
from mm_assets.errors import ConfigError


@examples("mm init --source ~/Videos", "mm init --source s3://my-bucket/films --lake s3://my-results/mm")
@click.command()
@click.option(
    "--source", "sources", multiple=True, metavar="URI", help="A folder or s3://bucket/prefix to watch; repeatable."
)
@click.option("--lake", metavar="URI", default="lake", show_default=True, help="Folder or bucket for all results.")
@click.option("--endpoint-url", metavar="URL", help="Of the S3 service, unless it is Amazon's.")
@click.option("--region", metavar="NAME", help="Of the S3 service.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option(
    "-c", "--config", type=click.Path(path_type=Path, dir_okay=False), default="mm_assets.yaml", metavar="FILE",
    show_default=True, help="Where to write.",
)  # fmt: skip
def init(
    sources: tuple[str, ...], lake: str, *, endpoint_url: str | None, region: str | None, force: bool, config: Path
) -> None:
    """Write a settings file to start from.

    It holds every setting with its meaning and default, and is never written over another without --force.
    """
    from mm_assets.cli.settings_text import write_template

    service = {"endpoint_url": endpoint_url, "region": region}
    given = {name: value for name, value in service.items() if value}
    text = write_template(sources or ("media",), lake, given)
    _check(text, config)
    _write(config, text, force=force)
    if not sources:
        click.echo("No --source was given, so the folder `media` stands there: put your own in its place.", err=True)
    click.echo(f"Wrote {config}. Look it over, then: mm doctor")


def _check(text: str, config: Path) -> None:
    """Refuse locations that no command could read, before anything is written."""
    import yaml

    from mm_assets.settings import build_settings

    build_settings(yaml.safe_load(text), config)


def _write(file: Path, text: str, *, force: bool) -> None:
    """Write with the rights of one user only, because keys may be put into the file."""
    how = os.O_TRUNC if force else os.O_EXCL
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | how, 0o600)
    except FileExistsError as error:
        msg = f"{file} exists; edit it, or overwrite it with --force"
        raise ConfigError(msg) from error
    except OSError as error:
        msg = f"{file} cannot be written: {error.strerror}"
        raise ConfigError(msg) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        os.fchmod(descriptor, 0o600)  # a file that was there keeps its rights otherwise
        out.write(text)
