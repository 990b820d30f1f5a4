"""``mm demo``: the whole product on media that come along, in minutes and without any account.

Put here: the tour. Keep out: anything that a user's own bucket would be treated differently by: the demo writes a
settings file and runs the same code as ``mm ingest`` and ``mm search``.
"""

import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from mm_assets.cli.options import examples
from mm_assets.cli.output import place, print_table, printable
from mm_assets.errors import ConfigError

if TYPE_CHECKING:
    from mm_assets.settings import Settings

_QUESTIONS = (
    "a large white heart on a red background",
    "a white circle right of a black square",
    "a yellow star on a white background",
    "something on a blue background",
    "a person with a tree",
)
_ANSWERS = 3
_MARK = "# Written by `mm demo`."
_MARK_OF_BUCKETS = "# Written by `mm demo --store s3`, whose buckets ended with it."  # nothing can go on with it
_ANOMALIES = """
    SELECT bucket || '/' || key, start_s, end_s, page_number, round(anomaly_score, 3)
    FROM anomaly_scores WHERE is_anomaly ORDER BY anomaly_score DESC, distance DESC LIMIT 8"""
_FAULTS = """
    SELECT bucket || '/' || key, start_s, end_s, page_number, concat_ws(', ', CASE WHEN is_blurred THEN 'blurred' END,
        CASE WHEN is_dark THEN 'dark' END, CASE WHEN is_blank THEN 'blank' END, CASE WHEN is_silent THEN 'silent' END,
        CASE WHEN is_frozen THEN 'frozen' END) AS faults
    FROM media_quality WHERE faults != '' ORDER BY key, start_s"""
_DEAD = "SELECT bucket || '/' || key, step, reason, error FROM dead_letters ORDER BY key, step"


Captions: TypeAlias = dict[str, list[tuple[float, float, str]]]


@examples("mm demo", "mm demo --store s3 --out demo-s3")
@click.command()
@click.option(
    "--store",
    type=click.Choice(["folder", "s3"]),
    default="folder",
    show_default=True,
    help="Where the media lie: in a folder, or in buckets of an S3 server that runs as long as the demo.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Default: demo/out.")
def demo(*, store: str, out: Path | None) -> None:
    """See it work on media that come along.

    Ingest, five searches, anomalies, what failed and why. Runs the demo model pack, which knows these media and nothing else. With a folder, a second run finds that nothing
    is left to do.
    """
    media = _find_media()
    home = (out or media.parent / "out").absolute()
    with _bucket_demo(media, home) if store == "s3" else _folder_demo(media, home) as config:
        _tour(config, is_kept=store == "folder")


def _find_media() -> Path:
    media = Path(__file__).parents[2] / "demo" / "media"
    if not media.is_dir():
        msg = (
            f"the demo media are not here ({media}): they come with a checkout of the repository, not with the package"
        )
        raise ConfigError(msg)
    return media


@contextmanager
def _folder_demo(media: Path, home: Path) -> Iterator[Path]:
    """Copy the media once; a later demo in the same folder goes on with what is there."""
    config = home / "mm_assets.yaml"
    if home.exists() and any(home.iterdir()) and not _is_ours(config):
        msg = f"{home} is not empty and not of an earlier demo in a folder; name another one with --out"
        raise ConfigError(msg)
    if not (home / "media").is_dir():
        part = home / "media.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(media, part)
        part.rename(home / "media")
    if not config.is_file():
        config.write_text(f"{_MARK}\nsources:\n  - uri: media\nlake:\n  uri: lake\n", encoding="utf-8")
    yield config


def _is_ours(config: Path) -> bool:
    """Whether a demo wrote these settings; what somebody added to them since stays."""
    return config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith(_MARK)


@contextmanager
def _bucket_demo(media: Path, home: Path) -> Iterator[Path]:
    """Run an S3 server with the media in a bucket; its memory, and so the lake, ends with the demo."""
    from mm_assets.cli.demo_server import FAKE_KEY, fill_bucket, s3_server

    if home.exists() and any(home.iterdir()):
        msg = f"{home} is not empty; the buckets of this demo live as long as it does, so name a new folder with --out"
        raise ConfigError(msg)
    home.mkdir(parents=True, exist_ok=True)
    with s3_server() as url:
        fill_bucket(url, media)
        place = f"endpoint_url: {url}\n    region: us-east-1\n    access_key_id: {FAKE_KEY}\n    secret_access_key: {FAKE_KEY}"
        text = f"{_MARK_OF_BUCKETS}\nsources:\n  - uri: s3://demo-media\n    {place}\n"
        text += f"lake:\n    uri: s3://demo-lake/results\n    {place}\n"
        config = home / "mm_assets.yaml"
        config.write_text(text, encoding="utf-8")
        yield config


def _tour(config: Path, *, is_kept: bool) -> None:
    from mm_assets.cli.ingest import print_summary, run_ingest
    from mm_assets.settings import load_settings

    click.echo(f"Settings: {config}\n")
    summary = run_ingest(config)
    print_summary(summary)
    if summary.failed_runs:
        raise click.exceptions.Exit(1)
    settings = load_settings(config)
    _ask(settings, read_captions(_find_media().parent / "truth.json"))
    folder = _look(settings)
    _say_next(config, folder, is_kept=is_kept)


def read_captions(file: Path) -> Captions:
    """Read what was drawn into the media: key → (start, end, caption) of each scene; a still is there at any time."""
    objects = json.loads(file.read_text(encoding="utf-8"))["objects"] if file.is_file() else []
    return {
        item["key"]: [(s.get("start_s") or 0.0, s.get("end_s") or math.inf, s["caption"]) for s in item["scenes"]]
        for item in objects
    }


def caption_of(captions: Captions, moment: Mapping[str, Any]) -> str:
    """Return what was drawn into the middle of a moment; '' where nothing was noted."""
    at = ((moment["start_s"] or 0.0) + (moment["end_s"] or 0.0)) / 2
    return next((text for start, end, text in captions.get(moment["key"], ()) if start <= at <= end), "")


def _ask(settings: "Settings", captions: Captions) -> None:
    """Ask five questions; beside each answer stands what was really drawn there."""
    from mm_assets.resources.readers import open_retriever

    started = time.monotonic()
    retriever = open_retriever(settings)
    retriever.search(text=_QUESTIONS[0], k=1)
    click.echo(f"\nModel and index are loaded after {time.monotonic() - started:.1f} s.")
    for question in _QUESTIONS:
        started = time.monotonic()
        moments = retriever.search(text=question, k=_ANSWERS)
        click.echo(f"\nmm search {question!r}  ({(time.monotonic() - started) * 1000:.0f} ms)")
        rows = [
            (
                f"{row['bucket']}/{row['key']}",
                place(row["start_s"], row["end_s"], row["page_number"]),
                row["why"],
                caption_of(captions, row),
            )
            for row in moments.iter_rows(named=True)
        ]
        print_table(("object", "where", "why", "what was drawn there"), rows)


def _look(settings: "Settings") -> Path:
    """Print anomalies and dead letters; returns the folder that holds the tables as files."""
    from mm_assets.mirror import local_copy
    from mm_assets.resources.readers import open_lake
    from mm_assets.retrieval import open_tables

    lake, cache = open_lake(settings), settings.cache
    with open_tables(lake, cache) as connection:
        strange, faults, dead = (connection.execute(query).fetchall() for query in (_ANOMALIES, _FAULTS, _DEAD))
    click.echo("\nUnlike the rest of the collection:")
    print_table(("object", "where", "anomaly_score"), [(row[0], place(*row[1:4]), row[4]) for row in strange])
    click.echo("\nFaults of the media themselves:")
    print_table(("object", "where", "faults"), [(row[0], place(*row[1:4]), row[4]) for row in faults])
    click.echo("\nGiven up, and why (the rest went on):")
    print_table(("object", "step", "reason", "error"), dead)
    return local_copy(lake, "tables/", cache)


def _program() -> str:
    """Return what a person types for ``mm`` here."""
    found, known = Path(sys.executable).with_name("mm"), shutil.which("mm")
    if not found.is_file() or (known and found.samefile(known)):
        return "mm"
    return shlex.quote(f"./{found.relative_to(Path.cwd())}" if found.is_relative_to(Path.cwd()) else str(found))


def _say_next(config: Path, folder: Path, *, is_kept: bool) -> None:
    click.echo(f"\nParquet: {printable(folder)}")
    if not is_kept:
        click.echo("The S3 server is stopped and its buckets are gone; these are the copies that the searches read.")
        click.echo("What this showed works on any S3-compatible bucket: mm init --source s3://… --lake s3://…")
        return
    click.echo("Try next:")
    mm = _program()
    for command in (
        f'{mm} search -c {config} "a purple heart"',
        f"{mm} evaluate -c {config} {_find_media().parent / 'golden.yaml'}    (is what is asked for found?)",
        f'{mm} sql -c {config} "FROM transcripts LIMIT 10"',
        f"{mm} show -c {config} films/2026/spring/garden.mp4",
        f"MM_ASSETS_CONFIG={config} make dev    (Dagster's UI)",
        f"{mm} ingest -c {config}    (nothing is done twice)",
    ):
        click.echo(f"  {command}")
