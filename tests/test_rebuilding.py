"""A ledger that was lost is filled again from lake and sources: nothing is decoded, computed or published anew."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import HashExtractor
from flow_driver import column, ingest, process, refresh
from places import Place

from mm_assets.errors import ConfigError
from mm_assets.extractors.base import Extractor
from mm_assets.flows.discovery import discover
from mm_assets.flows.locking import BusyError, held
from mm_assets.flows.preparing import Preparer
from mm_assets.flows.rebuilding import preview, rebuild
from mm_assets.flows.refreshing import needs_refresh
from mm_assets.flows.removing import erase, find_object
from mm_assets.flows.verifying import find_differences
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import Lake
from mm_assets.ledger.catalog import PUBLISH_LOCK
from mm_assets.ledger.dead import DeadFilter
from mm_assets.ledger.restoring import RestoringBook
from mm_assets.spaces import ALL_SPACES

Make = Callable[..., Place]
MEDIA = ("picture0.png", "picture1.png", "picture2.png", "clip.mp4", "sound.wav", "broken.png", "notes.txt")
SMALL_SHARDS = {"shard_objects": 2, "min_cluster_size": 2}


def _files(lake: Path) -> dict[str, tuple[int, bytes]]:
    files = (file for file in lake.rglob("*") if file.is_file() and "reports" not in file.parts)
    return {file.relative_to(lake).as_posix(): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def _ends(workspace: Workspace) -> dict[tuple[str, str], tuple[Any, ...]]:
    names = ("recipe", "state", "reason", "error", "n_rows")
    known = {known.object_id: known for key in MEDIA for known in workspace.ledger.objects.find(key)}
    return {
        (known.version.key, str(row["step"])): tuple(row[name] for name in names)
        for known in known.values()
        for row in workspace.ledger.work.states(known.object_id)
    }


def _objects(workspace: Workspace) -> dict[str, tuple[Any, ...]]:
    found = (workspace.ledger.objects.find(key)[0] for key in MEDIA)
    return {known.object_id: (known.version, known.shard, known.size_bytes, known.modified_at) for known in found}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every object that is decoded and every segment that a model sees."""
    calls: list[str] = []
    decode, extract = Preparer._decode, Extractor.extract

    def count_decode(self: Preparer, *args: Any) -> Any:
        calls.append("decoded")
        return decode(self, *args)

    def count_extract(self: Extractor, *args: Any) -> Any:
        calls.append(self.step)
        return extract(self, *args)

    monkeypatch.setattr(Preparer, "_decode", count_decode)
    monkeypatch.setattr(Extractor, "extract", count_extract)
    assert issubclass(HashExtractor, Extractor)
    return calls


def test_a_rebuilt_ledger_is_the_one_that_was_lost(make_workspace: Make, computed: list[str]) -> None:
    """Versions, shards, ends, pointers and fingerprints come back; the next ingest computes and writes nothing."""
    place = make_workspace(*MEDIA, refresh=SMALL_SHARDS)
    workspace = place.open()
    ingest(workspace)
    ends, objects, catalog = _ends(workspace), _objects(workspace), workspace.ledger.catalog
    shards, published, generations = catalog.shard_files(), catalog.published(), catalog.generations()
    before = _files(place.lake)
    assert computed
    computed.clear()
    place.lose_ledger()
    workspace = place.open()

    done = rebuild(workspace)

    assert done.n_versions == len(MEDIA)
    assert _ends(workspace) == ends
    assert _objects(workspace) == objects
    assert workspace.ledger.catalog.shard_files() == shards
    assert workspace.ledger.catalog.published() == published
    assert workspace.ledger.catalog.generations() == generations
    ingest(workspace)
    assert not needs_refresh(workspace)
    assert computed == []
    assert _files(place.lake) == before
    assert list(find_differences(workspace, deep=True)) == []


def test_dead_letters_come_back_with_their_tries(make_workspace: Make) -> None:
    """What was given up stays given up, and a person can replay it."""
    place = make_workspace(*MEDIA)
    workspace = place.open()
    ingest(workspace)
    [letter] = workspace.ledger.dead.letters(DeadFilter(step="segments"))
    place.lose_ledger()
    workspace = place.open()

    rebuild(workspace)

    [restored] = workspace.ledger.dead.letters(DeadFilter(step="segments"))
    assert restored.changed_at <= letter.changed_at  # of the record, which is written first
    [known] = workspace.ledger.objects.find("broken.png")
    row = next(row for row in workspace.ledger.work.states(known.object_id) if row["step"] == "segments")
    assert (row["state"], row["reason"], row["tries"]) == ("dead", "corrupt", 1)


def test_results_newer_than_the_last_publish_are_adopted(make_workspace: Make, computed: list[str]) -> None:
    """Objects that no table knows are found by the listing, their results and dead letters in the lake."""
    place = make_workspace("picture0.png", "picture1.png")
    workspace = place.open()
    ingest(workspace)
    place.add("clip.mp4", "broken.png", "sound.wav", "notes.txt")
    discover(workspace, "source")
    process(workspace)
    results = {name: of for name, of in _files(place.lake).items() if name.startswith(("results/", "dead_letters/"))}
    computed.clear()
    place.lose_ledger()
    workspace = place.open()

    done = rebuild(workspace)
    ingest(workspace)

    assert done.n_adopted > 0
    assert computed == []
    after = _files(place.lake)
    assert {name: of for name, of in after.items() if name.startswith(("results/", "dead_letters/"))} == results
    assert set(column(workspace, "raw_objects")) == {
        "picture0.png",
        "picture1.png",
        "clip.mp4",
        "broken.png",
        "sound.wav",
        "notes.txt",
    }
    assert list(find_differences(workspace)) == []


def test_what_happened_meanwhile_is_found(make_workspace: Make) -> None:
    """Deleted, overwritten and new objects end as if the ledger had never been lost."""
    place = make_workspace("picture0.png", "picture1.png", "picture2.png", refresh=SMALL_SHARDS)
    ingest(place.open())
    place.lose_ledger()
    (place.source / "picture0.png").unlink()
    place.add_as("picture5.png", "picture1.png")
    place.add("picture4.png")
    workspace = place.open()

    rebuild(workspace)
    ingest(workspace)

    assert sorted(column(workspace, "raw_objects")) == ["picture1.png", "picture2.png", "picture4.png"]
    assert list(find_differences(workspace)) == []


def test_an_erased_version_stays_erased(make_workspace: Make) -> None:
    """Also where the ledger was lost between the record and the removal."""
    place = make_workspace("picture0.png", "picture1.png")
    workspace = place.open()
    ingest(workspace)
    [known] = find_object(workspace, "picture1.png")
    erase(workspace, [known])
    place.lose_ledger()
    workspace = place.open()

    rebuild(workspace)
    ingest(workspace)

    assert column(workspace, "raw_objects") == ["picture0.png"]
    assert not list(place.lake.glob(f"results/**/{known.object_id}.parquet"))
    assert workspace.ledger.removals.n_leaving() == 0


def test_work_that_was_not_done_is_done_with_its_true_size(make_workspace: Make) -> None:
    """What was published as pending comes back as wanted; the listing tells its size."""
    place = make_workspace("picture0.png", "picture1.png")
    workspace = place.open()
    ingest(workspace)
    place.add("clip.mp4")
    discover(workspace, "source")
    from flow_driver import plan, refresh

    plan(workspace)
    refresh(workspace)
    assert "pending" in column(workspace, "step_states", "state")
    place.lose_ledger()
    workspace = place.open()

    rebuild(workspace)

    [known] = workspace.ledger.objects.find("clip.mp4")
    assert known.size_bytes == (place.source / "clip.mp4").stat().st_size
    ingest(workspace)
    assert "clip.mp4" in column(workspace, "visual_embeddings")


def test_a_killed_rebuild_goes_on(make_workspace: Make, monkeypatch: pytest.MonkeyPatch, computed: list[str]) -> None:
    """The second call finishes what the first began."""
    place = make_workspace(*MEDIA, refresh=SMALL_SHARDS)
    workspace = place.open()
    ingest(workspace)
    ends = _ends(workspace)
    computed.clear()
    place.lose_ledger()
    workspace = place.open()
    add, n_calls = RestoringBook.add_versions, []

    def die_at_second(book: RestoringBook, *args: Any) -> int:
        n_calls.append(1)
        if len(n_calls) == 2:
            raise KeyboardInterrupt
        return add(book, *args)

    monkeypatch.setattr(RestoringBook, "add_versions", die_at_second)
    with pytest.raises(KeyboardInterrupt):
        rebuild(workspace)
    monkeypatch.setattr(RestoringBook, "add_versions", add)

    rebuild(workspace)

    assert _ends(workspace) == ends
    ingest(workspace)
    assert computed == []


def test_only_an_empty_ledger_is_filled(make_workspace: Make) -> None:
    """Nobody mixes two histories; the message says what to do. Looking before is refused alike."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    for act in (rebuild, preview):
        with pytest.raises(ConfigError, match="not empty"):
            act(workspace)


def test_the_preview_counts_and_writes_nothing(make_workspace: Make) -> None:
    """What would be restored is shown first."""
    place = make_workspace(*MEDIA)
    ingest(place.open())
    place.lose_ledger()
    workspace = place.open()

    found = preview(workspace)

    assert found.n_versions == len(MEDIA)
    assert found.n_dead == 1
    assert found.n_generations == len(ALL_SPACES) + 3  # and clusters, baseline, taxonomy
    ledger = workspace.unbound_ledger
    assert ledger.restoring.is_empty()
    assert ledger.removals.is_empty()
    assert ledger.bound_lake() is None


def test_a_rebuild_that_has_to_wait_leaves_no_trace(make_workspace: Make) -> None:
    """Only who holds the lock notes that a rebuild is under way, and notes its end."""
    workspace = make_workspace().open()
    with held(workspace, PUBLISH_LOCK), pytest.raises(BusyError):
        rebuild(workspace)

    assert not workspace.ledger.restoring.is_under_way()


# -- which lake a ledger takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["tables", "results"])
def test_a_new_ledger_takes_no_lake_in_use(make_workspace: Make, left: str) -> None:
    """Erased objects would come back, and rows of another ledger go; the message says what to do in either case."""
    place = make_workspace("picture0.png")
    ingest(place.open())
    shutil.rmtree(place.lake / {"tables": "results", "results": "tables"}[left])
    before = _files(place.lake)
    place.write_settings(state=str(place.folder / "another"))

    for _ in range(2):
        with pytest.raises(ConfigError, match=r"mm rebuild-ledger --yes.*another `lake\.uri`"):
            discover(place.open(), "source")

    assert _files(place.lake) == before


def test_a_ledger_that_is_half_rebuilt_is_not_used(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was erased may be missing in it, too; the rebuild goes on, and nothing else."""
    place = make_workspace("picture0.png")
    ingest(place.open())
    place.lose_ledger()

    def die(_: RestoringBook, __: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RestoringBook, "add_erased", die)
        with pytest.raises(KeyboardInterrupt):
            rebuild(place.open())
    with pytest.raises(ConfigError, match="mm rebuild-ledger"):
        discover(place.open(), "source")

    rebuild(place.open())

    assert not discover(place.open(), "source").alarm


def test_processes_that_begin_at_once_agree_on_the_lake(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find no name, and both write the one that the ledger chose."""
    place = make_workspace()
    first, second = place.open(), place.open()
    find_id = Lake.find_id

    def overtaken(lake: Lake) -> str | None:
        found = find_id(lake)
        monkeypatch.setattr(Lake, "find_id", find_id)
        second.bind()
        return found

    monkeypatch.setattr(Lake, "find_id", overtaken)
    first.bind()

    assert first.ledger.bound_lake() == first.lake.lake_id()
    assert place.open().ledger.bound_lake() == first.lake.lake_id()


def test_a_damaged_table_file_does_not_stop_a_rebuild(make_workspace: Make) -> None:
    """It is not taken over, and the next refresh writes it again."""
    place = make_workspace(*MEDIA)
    ingest(place.open())
    file = next((place.lake / "tables" / "ocr_text").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    place.lose_ledger()
    workspace = place.open()

    rebuild(workspace)
    ingest(workspace)

    assert list(find_differences(workspace, deep=True)) == []


def test_a_source_that_does_not_answer_does_not_stop_a_rebuild(make_workspace: Make) -> None:
    """It is told; the others are listed, and the ledger can be used."""
    place = make_workspace("picture0.png")
    place.write_settings(aliases=("source", "other"))
    workspace = place.open()
    place.add("picture1.png", source="other")
    for alias in ("source", "other"):
        discover(workspace, alias)
    process(workspace)
    refresh(workspace)
    place.lose_ledger()
    (place.folder / "other").rename(place.folder / "away")
    workspace = place.open()

    done = rebuild(workspace)

    assert list(done.alarms) == ["other"]
    (place.folder / "away").rename(place.folder / "other")
    workspace = place.open()
    assert [discover(workspace, alias).has_changes for alias in ("source", "other")] == [False, False]
