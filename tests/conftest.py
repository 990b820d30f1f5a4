"""Fixtures that several test modules share.

Put here: workspaces in a temporary folder, and a few media drawn once. Keep out: fakes and generators themselves.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from media_factory import Clip, noise, write_clip, write_image, write_sound
from places import Place


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
    place.close()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Give a Dagster instance that forgets everything."""
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral
