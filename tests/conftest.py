"""Fixtures that several test modules share.

Put here: workspaces in a temporary folder, and a few media drawn once. Keep out: fakes and generators themselves.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from media_factory import Clip, noise, write_clip, write_image, write_sound
from places import Place
from postgres_server import PostgresMissingError, find_binaries, fresh_database, postgres_server
from watch_driver import SECRET, Receiver, receiving, record_matches

from mm_assets.flows.subscribing import Wish, subscribe
from mm_assets.flows.workspace import Workspace


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a person choose the ledger that all places use."""
    parser.addoption("--ledger", choices=("sqlite", "postgresql"), default="sqlite", help="database of the ledgers")


def pytest_configure() -> None:
    """Let Ctrl-C be heard, by the processes that tests start as well: a script starts what it sends to the background deaf."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run one PostgreSQL server for the session; tests of it are skipped where it is missing, unless it was asked for."""
    try:
        find_binaries()
    except PostgresMissingError as error:
        refuse = pytest.fail if request.config.getoption("--ledger") == "postgresql" else pytest.skip
        refuse(str(error))
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the URL of an empty ledger, on SQLite and on PostgreSQL in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    with fresh_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def _ledger_of_places(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put the ledgers of all places on PostgreSQL where that was asked for."""
    if request.config.getoption("--ledger") == "postgresql":
        Place.new_database = partial(fresh_database, request.getfixturevalue("postgres"))
    yield
    Place.new_database = None


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw six pictures, a clip of two scenes, a sound, a broken picture and a text."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        write_image(folder / f"picture{number}.png", pixels)
    write_clip(folder / "clip.mp4", Clip(scenes=[1.0, 1.0], width=64, height=48, audio=noise(2.0)))
    write_sound(folder / "sound.wav", noise(1.0))
    (folder / "broken.png").write_bytes((folder / "picture0.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("not media", encoding="utf-8")
    return folder


@pytest.fixture
def make_workspace(tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Place]]:
    """Give a function that lays out a place with these media; keyword arguments are further settings."""
    for name in ("MM_ASSETS_CONFIG", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    place = Place(tmp_path, media)

    def make(*names: str, **settings: Any) -> Place:
        place.write_settings(**settings)
        place.add(*names)
        return place

    yield make
    place.drop_databases()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Give a Dagster instance that forgets everything."""
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """Give a function that starts a receiver of webhooks, as ``receiving`` does."""
    with ExitStack() as running:
        yield lambda *statuses, **options: running.enter_context(receiving(*statuses, **options))


@pytest.fixture
def told(
    make_workspace: Callable[..., Place], receive: Callable[..., Receiver]
) -> Callable[..., tuple[Workspace, Receiver]]:
    """Give a function that lays out a place with a watch, and matches that wait to be told."""

    def make(*statuses: int, names: tuple[str, ...] = ("a", "b"), **options: float) -> tuple[Workspace, Receiver]:
        workspace, receiver = make_workspace().open(), receive(*statuses, **options)
        subscribe(workspace, Wish("all", text="x", threshold=-1, webhook=receiver.url, secret=SECRET))
        record_matches(workspace, *names)
        return workspace, receiver

    return make
