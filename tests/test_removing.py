"""Versions that leave: nothing of them stays in the lake, each removal is on a receipt, a kill anywhere is repeated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from flow_driver import column, ingest, process, refresh
from places import Place
from traces import traces

from mm_assets.errors import ConfigError
from mm_assets.flows import receipts, removing
from mm_assets.flows.discovery import discover
from mm_assets.flows.locking import BusyError, held
from mm_assets.flows.publishing import publish_steps
from mm_assets.flows.refreshing import needs_refresh
from mm_assets.flows.removing import erase, find_below, find_object, sweep
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject
from mm_assets.ledger.removals import RemovalBook
from mm_assets.spaces import SPACES

PICTURES = tuple(f"picture{n}.png" for n in range(4))
Make = Callable[..., Place]


def _object(workspace: Workspace, key: str) -> KnownObject:
    return workspace.ledger.objects.find(key)[0]


def _receipts(workspace: Workspace) -> list[dict[str, Any]]:
    tables = [receipts.read(workspace, name) for name in sorted(receipts.names(workspace))]
    return [row for table in tables for row in table.to_pylist()]


def _generations(lake: Path, name: str) -> set[str]:
    return {folder.name for folder in (lake / name).iterdir() if folder.is_dir() and folder.name != "vectors"}


def test_nothing_of_a_deleted_object_stays(make_workspace: Make, tmp_path: Path) -> None:
    """Results, dead letters, rows, vectors, clusters and judgements of a version that is gone leave at the next refresh."""
    place = make_workspace(*PICTURES, "broken.png")
    workspace = place.open()
    ingest(workspace)
    gone, broken = _object(workspace, "picture1.png"), _object(workspace, "broken.png")
    assert {name.split("/")[0] for name in traces(place.lake, gone.object_id)} >= {
        "results",
        "tables",
        "indexes",
        "clusters",
    }
    assert any(name.startswith("dead_letters/") for name in traces(place.lake, broken.object_id))
    for name in ("picture1.png", "broken.png"):
        (place.source / name).unlink()

    ingest(workspace)

    assert traces(place.lake, gone.object_id) == set()
    assert traces(place.lake, broken.object_id) == set()
    assert "picture1.png" not in column(workspace, "anomaly_scores")
    assert workspace.ledger.work.states(gone.object_id) == []
    assert workspace.ledger.removals.n_leaving() == 0
    assert not needs_refresh(workspace)


def test_the_receipt_lists_what_was_removed(make_workspace: Make) -> None:
    """Each file, and for each table the number of rows; no key of the source."""
    place = make_workspace(*PICTURES)
    workspace = place.open()
    ingest(workspace)
    gone = _object(workspace, "picture1.png")
    results = {n for n in traces(place.lake, gone.object_id) if n.startswith("results/")}
    (place.source / "picture1.png").unlink()

    ingest(workspace)

    rows = _receipts(workspace)
    assert {row["key"] for row in rows if row["what"] == "result"} == results
    of_tables = {row["key"].split("/")[1]: row["n_rows"] for row in rows if row["what"] == "table_rows"}
    assert of_tables["visual_embeddings"] == of_tables["anomaly_scores"] == of_tables["raw_objects"] == 1
    assert of_tables["indexed_vectors"] == len(SPACES)  # one vector in each
    assert of_tables["step_states"] == len(workspace.recipes)
    assert {row["what"] for row in rows} >= {"generation"}
    assert {row["outcome"] for row in rows} == {"erased"}
    assert not any("picture1" in str(row) for row in rows)
    assert list(receipts.open_receipts(workspace)) == []


def test_an_overwritten_version_leaves_as_a_deleted_one_does(make_workspace: Make) -> None:
    """Superseded versions do not pile up, and the new one stays."""
    place = make_workspace(*PICTURES)
    workspace = place.open()
    ingest(workspace)
    old = _object(workspace, "picture1.png")
    place.add_as("clip.mp4", "picture1.png")

    ingest(workspace)

    assert traces(place.lake, old.object_id) == set()
    assert "picture1.png" in column(workspace, "visual_embeddings")


def test_generations_stay_for_going_back_while_nothing_left(make_workspace: Make) -> None:
    """Old builds are removed with the first version whose vectors they hold, and not before; the taxonomy's never."""
    place = make_workspace(*PICTURES[:2])
    workspace = place.open()
    ingest(workspace)
    place.add("picture2.png")
    ingest(workspace)
    assert len(_generations(place.lake, "indexes/visual")) == 2
    (place.source / "picture2.png").unlink()

    ingest(workspace)

    current = workspace.ledger.catalog.generations()
    for name in ("indexes/visual", "indexes/face", "indexes/words", "clusters/visual", "baselines/visual"):
        assert _generations(place.lake, name) == {current[name]["generation"]}


def test_judgements_on_arrival_leave_once_they_are_published(make_workspace: Make) -> None:
    """The tables hold the same rows by then."""
    place = make_workspace(*PICTURES[:3])
    workspace = place.open()
    ingest(workspace)
    place.add("picture3.png")
    discover(workspace, "source")
    process(workspace)
    sweep(workspace)
    assert list((place.lake / "judgements").rglob("*.parquet"))

    refresh(workspace)

    assert not list(place.lake.glob("judgements/**/*.parquet"))
    assert receipts.names(workspace) == set()


def test_a_version_that_tables_still_show_waits(make_workspace: Make) -> None:
    """What left after the last publish is swept after the next, so that no table shows rows without results."""
    place = make_workspace(*PICTURES[:2])
    workspace = place.open()
    ingest(workspace)
    gone = _object(workspace, "picture1.png")
    (place.source / "picture1.png").unlink()
    discover(workspace, "source")

    assert sweep(workspace).n_waiting == 1

    assert any(name.startswith("results/") for name in traces(place.lake, gone.object_id))
    refresh(workspace)
    assert traces(place.lake, gone.object_id) == set()


def test_a_version_under_work_waits_for_its_end(make_workspace: Make) -> None:
    """A worker that still writes would leave a result behind the sweep."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    ingest(workspace)
    known = _object(workspace, "picture0.png")
    workspace.ledger.work.claim_objects([known.object_id], dict(workspace.recipes), "here/1/a", lease_s=60)
    (place.source / "picture0.png").unlink()
    discover(workspace, "source")
    workspace.ledger.objects.confirm_deletions("source")
    discover(workspace, "source")

    refresh(workspace)
    assert workspace.ledger.removals.n_leaving() == 1
    workspace.ledger.work.release("here/1/a")
    refresh(workspace)

    assert traces(place.lake, known.object_id) == set()


class _KilledError(BaseException):
    """Ends a sweep where it stands, as SIGKILL would."""


@pytest.mark.parametrize("point", ["removal", "receipt", "forget", "table"])
def test_a_killed_sweep_is_repeated_with_a_complete_receipt(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Files, receipt, ledger: a kill before any of them loses neither a removal nor its line on a receipt."""
    place = make_workspace(*PICTURES[:3])
    workspace = place.open()
    ingest(workspace)
    gone = _object(workspace, "picture1.png")
    orphan = next(path for path in place.lake.rglob(f"{gone.object_id}.parquet") if "ocr_text" in path.parts)
    results = {n for n in traces(place.lake, gone.object_id) if n.startswith("results/")}
    (place.source / "picture1.png").unlink()
    discover(workspace, "source")
    # A result whose worker died before it told the ledger.
    workspace.ledger.work.want_again("ocr_text", workspace.recipes["ocr_text"], [gone.object_id])

    _kill_at(monkeypatch, point)
    with pytest.raises(_KilledError):
        refresh(workspace)
    monkeypatch.undo()
    refresh(workspace)

    assert traces(place.lake, gone.object_id) == set()
    assert not orphan.exists()
    rows = _receipts(workspace)
    assert {row["key"] for row in rows if row["what"] == "result"} == results
    assert {row["key"].split("/")[1] for row in rows if row["what"] == "table_rows"} >= {"faces", "tags", "step_states"}
    assert workspace.ledger.removals.n_leaving() == 0


def _kill_at(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise _KilledError

    def die_for_results(workspace: Workspace, key: str, what: str) -> bool:
        if what == "result" and "segments" in key:
            raise _KilledError
        return remove(workspace, key, what)

    remove = receipts._remove
    settle = receipts.settle

    def die_after_files(workspace: Workspace, name: str) -> pa.Table | None:
        monkeypatch.setattr(receipts, "_encode", die)
        return settle(workspace, name)

    if point == "removal":
        monkeypatch.setattr(receipts, "_remove", die_for_results)
    elif point == "receipt":
        monkeypatch.setattr(receipts, "settle", die_after_files)
    elif point == "forget":
        monkeypatch.setattr(RemovalBook, "forget", die)
    else:
        monkeypatch.setattr("mm_assets.lake.Lake.write_shard", die)


def test_a_build_that_is_current_again_stays(make_workspace: Make) -> None:
    """Builds are named by what they are made of: one on a receipt that a kill left open may come back before the next."""
    place = make_workspace(*PICTURES)
    workspace = place.open()
    ingest(workspace)
    current = workspace.ledger.catalog.generations()["indexes/visual"]["generation"]
    files = sorted((place.lake / "indexes" / "visual" / current).iterdir())
    keys = [file.relative_to(place.lake).as_posix() for file in files]
    old = place.lake / "indexes" / "visual" / "old" / "manifest.json"
    old.parent.mkdir()
    old.write_text("{}")
    keys.append(old.relative_to(place.lake).as_posix())
    receipts.intend(workspace, [receipts.Removal(None, "generation", key) for key in keys])

    sweep(workspace)

    assert sorted((place.lake / "indexes" / "visual" / current).iterdir()) == files
    assert not old.exists()
    assert [row["key"] for row in _receipts(workspace)] == keys[-1:]


def test_a_version_that_returns_is_made_again(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back while its files are being removed: it keeps nothing that is not there, and its work is open again."""
    place = make_workspace(*PICTURES[:2])
    workspace = place.open()
    ingest(workspace)
    known = _object(workspace, "picture1.png")
    (place.source / "picture1.png").rename(place.folder / "aside.png")
    discover(workspace, "source")
    forget = RemovalBook.forget

    def come_back(book: RemovalBook, object_ids: list[str]) -> list[str]:
        seen = [_seen(known)]
        workspace.ledger.objects.record_hinted("source", seen, [], shard_objects=2_000)
        return forget(book, object_ids)

    monkeypatch.setattr(RemovalBook, "forget", come_back)
    refresh(workspace)
    monkeypatch.undo()

    assert workspace.ledger.objects.by_ids([known.object_id])[0].state == "live"
    assert workspace.ledger.work.states(known.object_id) == []
    assert workspace.ledger.work.n_waiting(dict(workspace.recipes)) == 1


def _seen(known: KnownObject) -> Any:
    from mm_assets.ledger import SeenObject

    return SeenObject(known.version, known.size_bytes, known.modified_at)


def test_one_process_at_a_time_publishes_and_sweeps(make_workspace: Make) -> None:
    """The second is told who is at it."""
    workspace = make_workspace("picture0.png").open()
    ingest(workspace)
    with held(workspace, "publish"):
        for act in (publish_steps, sweep):
            with pytest.raises(BusyError, match="under way"):
                act(workspace)


def test_a_step_that_nobody_asks_for_leaves_the_tables(make_workspace: Make) -> None:
    """Its table and its index would otherwise keep rows of versions that leave later; the results stay."""
    place = make_workspace(*PICTURES[:2])
    ingest(place.open())
    steps = ["visual_embeddings", "media_quality"]
    source = {"uri": str(place.source), "alias": "source", "steps": steps}
    place.write_settings(sources=[source])
    workspace = place.open()
    assert needs_refresh(workspace)

    refresh_without_faces(workspace)

    assert not list(place.lake.glob("tables/faces/**/*.parquet"))
    assert "indexes/face" not in workspace.ledger.catalog.generations()
    assert list(place.lake.glob("results/faces/**/*.parquet"))
    assert not needs_refresh(workspace)


def refresh_without_faces(workspace: Workspace) -> None:
    """Do what refresh_job does where no source asks for faces."""
    from mm_assets.flows import publishing, refreshing
    from mm_assets.spaces import SPACES

    publishing.publish_steps(workspace)
    refreshing.build_vector_index(workspace, SPACES["visual"])
    refreshing.build_text_index(workspace)
    refreshing.build_cluster_model(workspace)
    refreshing.build_anomaly_baseline(workspace)
    refreshing.freeze_taxonomy(workspace)
    publishing.publish_judgements(workspace)
    sweep(workspace)


# -- erasing -----------------------------------------------------------------------------------------------------------


def test_an_erased_version_does_not_come_back(make_workspace: Make) -> None:
    """The object is still in the source: the listing sees it and leaves it out; the record names no key."""
    place = make_workspace(*PICTURES[:3])
    workspace = place.open()
    ingest(workspace)
    versions = find_object(workspace, "source/picture1.png")
    assert erase(workspace, versions) == 1
    assert erase(workspace, versions) == 0

    refresh(workspace)
    ingest(workspace)

    [known] = versions
    assert traces(place.lake, known.object_id) == set()
    assert "picture1.png" not in column(workspace, "raw_objects")
    record = (place.lake / "erasures" / f"{known.object_id}.json").read_text()
    assert "picture1" not in record


def test_erasing_takes_results_that_the_ledger_never_knew(make_workspace: Make) -> None:
    """Of a version that a person wants gone every result in the lake goes, of whatever recipe."""
    place = make_workspace(*PICTURES[:2])
    workspace = place.open()
    ingest(workspace)
    [known] = find_object(workspace, "picture1.png")
    orphan = place.lake / "results" / "faces" / "0123456789abcdef" / known.object_id[:2] / f"{known.object_id}.parquet"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"of an older recipe")

    erase(workspace, [known])
    refresh(workspace)

    assert not orphan.exists()


def test_a_new_object_under_an_erased_key_is_processed(make_workspace: Make) -> None:
    """Erasing is of versions, not of names."""
    place = make_workspace(*PICTURES[:2])
    workspace = place.open()
    ingest(workspace)
    erase(workspace, find_object(workspace, "picture1.png"))
    place.add_as("picture5.png", "picture1.png")

    ingest(workspace)

    assert "picture1.png" in column(workspace, "raw_objects")


def test_a_prefix_is_taken_literally(make_workspace: Make) -> None:
    """``%``, ``_`` and capitals are plain characters of a key."""
    place = make_workspace()
    for name in ("a%b.png", "a_b.png", "axb.png", "A%b.png"):
        place.add_as("picture0.png", name)
    workspace = place.open()
    discover(workspace, "source")

    def keys(prefix: str) -> list[str]:
        return [known.version.key for known in find_below(workspace, f"source/{prefix}")]

    assert keys("a%") == ["a%b.png"]
    assert keys("a_") == ["a_b.png"]
    assert len(keys("")) == 4


def test_what_is_not_known_cannot_be_erased(make_workspace: Make) -> None:
    """An unknown object, an unknown source and the lake itself are refused with a word on what to write."""
    place = make_workspace("picture0.png", lake={"uri": "source/lake"})
    workspace = place.open()
    discover(workspace, "source")
    with pytest.raises(ConfigError, match="no object is known"):
        find_object(workspace, "nothing.png")
    with pytest.raises(ConfigError, match="no source is called"):
        find_below(workspace, "elsewhere/a")
    with pytest.raises(ConfigError, match="inside the lake"):
        find_below(workspace, "source/lake/tables")


def test_the_same_key_in_two_sources_must_be_named_whole(make_workspace: Make) -> None:
    """Nobody erases more than they named."""
    place = make_workspace(aliases=("source", "other"))
    place.add("picture0.png")
    place.add("picture0.png", source="other")
    workspace = place.open()
    for alias in ("source", "other"):
        discover(workspace, alias)
    with pytest.raises(ConfigError, match=r"for other/picture0\.png, [0-9a-f]{32} for source/picture0\.png"):
        find_object(workspace, "picture0.png")

    [known] = find_object(workspace, "other/picture0.png")

    assert known.version.alias == "other"
    assert removing.erase(workspace, [known]) == 1
