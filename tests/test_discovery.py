"""Discovery: what is new, changed and gone, and the brake."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from flow_driver import column, ingest, process, refresh

from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace

PICTURES = tuple(f"picture{n}.png" for n in range(6))


def _live(workspace: Workspace) -> set[str]:
    return {row.version.key for row in workspace.ledger.objects.by_ids(_ids(workspace))}


def _ids(workspace: Workspace) -> list[str]:
    return [row[1] for row in workspace.ledger.work.published_rows(workspace.recipes)]


def test_a_lake_inside_its_source_is_never_ingested(make_workspace: Callable[..., Any], tmp_path: Any) -> None:
    """Results below a watched folder are found by no listing, however often it runs."""
    place = make_workspace(
        "picture0.png",
        lake={"uri": str(tmp_path / "source" / "out" / "lake")},
        state=str(tmp_path / "source" / ".state"),
    )
    workspace = place.open()

    assert ingest(workspace).n_new == 1
    assert ingest(workspace).n_new == 0
    assert (tmp_path / "source" / "out" / "lake" / "lake.json").is_file()
    assert _live(workspace) == {"picture0.png"}


def test_an_overwritten_object_replaces_its_rows(make_workspace: Callable[..., Any]) -> None:
    """The new version is published, the old one is nowhere."""
    place = make_workspace(*PICTURES[:2])
    workspace = place.open()
    ingest(workspace)
    old = column(workspace, "visual_embeddings", "etag")
    (place.source / "picture0.png").write_bytes((place.media / "picture5.png").read_bytes())

    assert ingest(workspace).n_changed == 1

    for table in (
        "raw_objects",
        "segments",
        "visual_embeddings",
        "indexed_vectors",
        "tags",
        "anomaly_scores",
        "step_states",
    ):
        assert len(set(column(workspace, table, "object_id"))) == 2, table
    assert len(set(column(workspace, "visual_embeddings", "etag")) - set(old)) == 1


def test_a_deleted_object_leaves_every_table_and_the_index(make_workspace: Callable[..., Any]) -> None:
    """Gone from the source means gone from the answers at the next refresh."""
    place = make_workspace(*PICTURES)
    workspace = place.open()
    ingest(workspace)
    (place.source / "picture3.png").unlink()

    assert ingest(workspace).n_gone == 1

    for table in ("raw_objects", "segments", "visual_embeddings", "indexed_vectors", "tags", "cluster_assignments"):
        assert "picture3.png" not in column(workspace, table), table
    manifest = workspace.ledger.catalog.generation("indexes/visual")
    assert manifest is not None
    assert manifest["n_rows"] == 5


def test_an_empty_listing_removes_nothing(make_workspace: Callable[..., Any]) -> None:
    """Lost rights look like an empty bucket: everything stays until a person confirms."""
    place = make_workspace(*PICTURES)
    workspace = place.open()
    ingest(workspace)
    for name in PICTURES:
        (place.source / name).unlink()

    found = ingest(workspace)

    assert found.n_gone == 0
    assert found.alarm is not None
    assert "mm deletions confirm source" in found.alarm
    assert sorted(set(column(workspace, "raw_objects"))) == sorted(PICTURES)


def test_confirmed_deletions_are_carried_out(make_workspace: Callable[..., Any]) -> None:
    """After the confirmation the next complete pass retires what is missing, and only that pass."""
    place = make_workspace(*PICTURES)
    workspace = place.open()
    ingest(workspace)
    for name in PICTURES:
        (place.source / name).unlink()
    discover(workspace, "source")

    assert workspace.ledger.objects.confirm_deletions("source")
    assert ingest(workspace).n_gone == 6
    assert not workspace.ledger.objects.confirm_deletions("source")
    assert column(workspace, "raw_objects") == []


def test_a_large_share_gone_at_once_stops(make_workspace: Callable[..., Any]) -> None:
    """More than the allowed share of a source is an alarm, not a deletion."""
    place = make_workspace()
    for number in range(40):
        (place.source / f"n{number:02d}.txt").write_text(str(number), encoding="utf-8")
    workspace = place.open()
    discover(workspace, "source")
    for number in range(12):
        (place.source / f"n{number:02d}.txt").unlink()

    found = discover(workspace, "source")

    assert (found.n_gone, workspace.ledger.objects.n_live("source")) == (0, 40)
    assert "12 of 40" in (found.alarm or "")


def test_patterns_choose_the_objects(make_workspace: Callable[..., Any], tmp_path: Any) -> None:
    """Include, exclude, size and folder markers; a pattern that is narrowed later lets objects go."""
    source = {"uri": str(tmp_path / "source"), "alias": "source", "include": ["**.png"], "exclude": ["picture1*"]}
    place = make_workspace(*PICTURES[:3], "notes.txt", sources=[source])
    workspace = place.open()
    discover(workspace, "source")
    assert workspace.ledger.objects.n_live("source") == 2

    narrower = make_workspace(sources=[source | {"exclude": ["picture[12]*"]}])
    found = discover(narrower.open(), "source")

    assert found.n_gone == 1


def test_a_deadline_splits_a_pass_without_loss(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call goes on where the last one stopped; a pass that did not end says nothing about what is gone."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 2)
    place = make_workspace(*PICTURES)
    workspace = place.open()
    clock = iter(range(1_000))
    monkeypatch.setattr("mm_assets.flows.discovery.time.monotonic", lambda: next(clock))

    found = [discover(workspace, "source", deadline_s=2) for _ in range(3)]

    assert [f.is_complete for f in found] == [False, False, True]
    assert sum(f.n_new for f in found) == 6
    assert workspace.ledger.objects.n_live("source") == 6


@pytest.mark.parametrize(
    "key", ["with  spaces.png", "ünï.png", "u\u0308.png", "🎬.png", "a/b/c.png", "new\nline.png", "%41.png"]
)
def test_hostile_keys_reach_the_tables_as_they_are(make_workspace: Callable[..., Any], key: str) -> None:
    """A key is data: it is never normalised, decoded or made into a path of ours."""
    place = make_workspace()
    target = place.source / key
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((place.media / "picture0.png").read_bytes())
    workspace = place.open()

    ingest(workspace)

    assert column(workspace, "visual_embeddings") == [key]


def test_a_copy_of_an_object_is_an_object_of_its_own(make_workspace: Callable[..., Any]) -> None:
    """The same bytes under two keys are two objects with one checksum."""
    place = make_workspace("picture0.png")
    (place.source / "copy.png").write_bytes((place.media / "picture0.png").read_bytes())
    workspace = place.open()
    ingest(workspace)

    assert len(set(column(workspace, "raw_objects", "sha256"))) == 1
    assert len(set(column(workspace, "raw_objects", "object_id"))) == 2


def test_touching_a_file_without_changing_it_is_a_new_version_of_a_folder(make_workspace: Callable[..., Any]) -> None:
    """A folder has no ETags: its modification time is part of them, so a rewritten file is looked at again."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    ingest(workspace)
    os.utime(place.source / "picture0.png", (1, 1))

    assert discover(workspace, "source").n_changed == 1
    process(workspace)
    refresh(workspace)
    assert column(workspace, "raw_objects") == ["picture0.png"]
