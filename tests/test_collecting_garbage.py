"""Garbage: what is found, what is kept, and when nothing at all is touched."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeFaces
from flow_driver import ingest
from places import Place

from mm_assets.buckets.local import STAGING_FOLDER
from mm_assets.errors import ConfigError
from mm_assets.flows.collecting_garbage import Rules, collect, find_garbage
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace

Make = Callable[..., Place]
_WEEK_S = 7 * 86_400
_SOURCES = ("source", "taking")
NOW = Rules(older_than_s=-1)


def _files(lake: Path) -> set[str]:
    return {file.relative_to(lake).as_posix() for file in lake.rglob("*") if file.is_file()}


def _collect(workspace: Workspace, rules: Rules) -> dict[str, str]:
    removed: dict[str, str] = {}
    collect(workspace, rules, lambda found, _: removed.update({found.key: found.kind}))
    return removed


def _list_and_collect(workspace: Workspace) -> None:
    discover(workspace, "source")
    _collect(workspace, NOW)


def _write(lake: Path, key: str) -> str:
    (lake / key).parent.mkdir(parents=True, exist_ok=True)
    (lake / key).write_bytes(b"garbage")
    return key


def test_nothing_that_is_needed_is_garbage(make_workspace: Make) -> None:
    """After an ingest, with everything asked for, not a file goes."""
    place = make_workspace("picture0.png", "clip.mp4", "broken.png")
    workspace = place.open()
    ingest(workspace)
    before = _files(place.lake)

    assert _collect(workspace, Rules(older_than_s=-1, recipes=True, generations=True)) == {}
    assert _files(place.lake) == before


def test_each_kind_is_found_and_removed(make_workspace: Make) -> None:
    """Orphaned results, letters, shards and judgements; what is not ours and what is young stays."""
    place = make_workspace("picture0.png", "broken.png")
    workspace = place.open()
    ingest(workspace)
    known = workspace.ledger.objects.find("picture0.png")[0].object_id
    garbage = {
        _write(place.lake, f"results/faces/{workspace.recipes['faces']}/00/{'0' * 32}.parquet"),
        _write(place.lake, f"dead_letters/{known}/faces.json"),
        _write(place.lake, f"dead_letters/{'1' * 32}/discovery.json"),
        _write(place.lake, "tables/faces/shard=7/part-0.parquet"),
        _write(place.lake, "judgements/tags/old/batch.parquet"),
    }
    _write(place.lake, "results/notes-of-a-person.txt")
    for key in garbage:
        os.utime(place.lake / key, (0, time.time() - 2 * _WEEK_S))
    young = _write(place.lake, f"results/faces/{workspace.recipes['faces']}/00/{'0' * 31}1.parquet")
    before = _files(place.lake)

    found = {item.key for item in find_garbage(workspace, Rules(_WEEK_S))}
    removed = _collect(workspace, Rules(_WEEK_S))

    assert found == set(removed) == garbage
    assert _files(place.lake) == before - garbage
    assert (place.lake / young).is_file()


def test_old_recipes_and_builds_go_only_when_asked(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going back costs nothing while they are there."""
    place = make_workspace("picture0.png", "picture1.png")
    ingest(place.open())
    monkeypatch.setattr(FakeFaces, "code_version", "next")
    workspace = place.open()
    ingest(workspace)
    assert _collect(workspace, NOW) == {}

    assert set(_collect(workspace, Rules(-1, recipes=True)).values()) == {"result of an old recipe"}
    assert set(_collect(workspace, Rules(-1, generations=True)).values()) == {"build that is not current"}

    assert len(list(place.lake.glob("results/faces/*"))) == 1
    assert len(list(place.lake.glob("indexes/face/*/index.faiss"))) == 1
    assert len(list(place.lake.glob("indexes/face/vectors/*"))) == 1


def test_unfinished_uploads_go_where_we_write(make_workspace: Make) -> None:
    """From the lake, and from sources that take uploads once they are a week old; never from sources only read."""
    place = make_workspace("picture0.png")
    sources = [{"uri": str(place.folder / name), "alias": name, "uploads": name == "taking"} for name in _SOURCES]
    (place.folder / "taking").mkdir()
    place.write_settings(sources=sources)
    workspace = place.open()
    for alias in _SOURCES:
        discover(workspace, alias)
    left = [_write(place.folder, f"{name}/{STAGING_FOLDER}/left") for name in ("lake", *_SOURCES)]
    for key in left:
        os.utime(place.folder / key, (0, time.time() - 2 * _WEEK_S))
    young = _write(place.folder, f"taking/{STAGING_FOLDER}/young")

    assert collect(workspace, NOW, lambda *_: None) == 2

    assert [key for key in (*left, young) if (place.folder / key).exists()] == [f"source/{STAGING_FOLDER}/left", young]


def test_an_incomplete_ledger_is_refused(make_workspace: Make) -> None:
    """Before all sources were listed, what it does not know would look like garbage."""
    place = make_workspace("picture0.png")
    ingest(place.open())
    place.write_settings(aliases=("source", "other"))
    before = _files(place.lake)

    with pytest.raises(ConfigError, match="not every source was listed"):
        _collect(place.open(), NOW)

    assert _files(place.lake) == before


def test_a_ledger_without_objects_is_refused_where_there_are_results(make_workspace: Make) -> None:
    """A listing of the wrong prefix is complete and empty."""
    place = make_workspace("picture0.png")
    ingest(place.open())
    place.lose_ledger()
    (place.source / "picture0.png").unlink()
    workspace = place.open()

    with pytest.raises(ConfigError, match="rebuild-ledger"):
        _list_and_collect(workspace)


def test_a_foreign_lake_is_refused(make_workspace: Make, tmp_path: Path) -> None:
    """The ledger remembers its lake, and opens no other."""
    place = make_workspace("picture0.png")
    ingest(place.open())

    place.write_settings(lake={"uri": str(tmp_path / "another")})

    with pytest.raises(ConfigError, match="belongs to lake"):
        _ = place.open().ledger
