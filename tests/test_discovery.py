"""Discovery: what is new, changed and gone, the brake, the budget, and who may list."""

import itertools
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flow_driver import column, ingest, process, refresh
from scripted_store import live, raising, scripted

from mm_assets.buckets.base import BreakerOpenError, DailyCapError, Page, StoredObject
from mm_assets.buckets.retry import TransientError
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.flows import discovery, refusing
from mm_assets.flows.discovery import _daily_calls, discover
from mm_assets.flows.planning import plan_batches
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import ObjectVersion
from mm_assets.lake import Lake
from mm_assets.ledger import SeenObject
from mm_assets.settings import SourceSettings

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
    workspace = make_workspace().open()
    scripted(workspace, keys=PICTURES)
    is_late = itertools.cycle([False, True, True])
    monkeypatch.setattr("mm_assets.flows.discovery._Lister._is_late", lambda _: next(is_late))

    found = [discover(workspace, "source", deadline_s=60) for _ in range(3)]

    assert [f.is_complete for f in found] == [False, False, True]
    assert [f.n_new for f in found] == [2, 2, 2]
    assert live(workspace).keys() == set(PICTURES)


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


# -- what a pass costs -------------------------------------------------------------------------------------------------


def test_our_own_files_are_jumped_over(
    make_workspace: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lake of any size inside the source costs one page of its listing."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 10)
    place = make_workspace(lake={"uri": str(tmp_path / "source" / "lake")})
    workspace = place.open()
    store = scripted(workspace, keys=["a", *(f"lake/results/{n:04}" for n in range(500)), "lake.txt", "lake0", "z"])

    assert discover(workspace, "source").n_new == 4
    assert live(workspace).keys() == {"a", "lake.txt", "lake0", "z"}
    assert store.n_asked("list") <= 3


def test_pages_are_stored_together(make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast store's pages share a transaction; a slow one's are stored as they come."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 1)
    monkeypatch.setattr("mm_assets.flows.discovery._PAGES_AT_ONCE", 2)
    workspace = make_workspace().open()
    store, told = scripted(workspace, keys=PICTURES), list[int]()

    discover(workspace, "source", on_page=told.append)
    n_together = len(told)
    monkeypatch.setattr("mm_assets.flows.discovery._STORED_EVERY_S", 0.0)
    discover(workspace, "source", on_page=told.append)

    assert n_together == -(-len(PICTURES) // 2)
    assert len(told) - n_together == len(PICTURES)
    assert store.n_asked("list") == 2 * len(PICTURES)


def test_pages_before_a_failure_are_kept(make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store said before it failed is not asked for again, and the call that failed is counted."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 1)
    workspace = make_workspace().open()
    store = scripted(workspace, keys=PICTURES)

    def fail_late(operation: str, after: str) -> None:
        if after == PICTURES[1]:
            raising(TransientError("busy"))(operation, after)

    store.before = fail_late
    with pytest.raises(TransientError):
        discover(workspace, "source")

    assert live(workspace).keys() == set(PICTURES[:2])
    assert workspace.ledger.objects.scan("source").n_calls == 3
    store.before = lambda *_: None
    found = discover(workspace, "source")
    assert (found.n_listed, found.is_complete) == (len(PICTURES) - 2, True)


def test_pages_that_waited_long_are_asked_for_again(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a call is slow, what came before it does not overwrite what an event told meanwhile."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 1)
    monkeypatch.setattr("mm_assets.flows.discovery._STALE_AFTER_S", 0.5)
    workspace = make_workspace().open()
    store = scripted(workspace, keys=PICTURES)

    def replace_meanwhile(_operation: str, after: str) -> None:
        if after == PICTURES[2] and store.etags[PICTURES[0]] == "1":
            store.etags |= {PICTURES[0]: "2"}
            seen = SeenObject(ObjectVersion("source", PICTURES[0], "2"), 1, 0.0)
            workspace.ledger.objects.record_hinted("source", [seen], (), shard_objects=10)
            time.sleep(0.6)

    store.before = replace_meanwhile

    assert discover(workspace, "source").is_complete
    assert live(workspace) == store.etags
    assert store.n_asked("list") == 2 * len(PICTURES)
    assert workspace.ledger.objects.scan("source").n_calls == store.n_asked("list")


def test_calls_are_counted_where_their_pages_cannot_be_stored(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are billed all the same."""
    workspace = make_workspace().open()
    scripted(workspace, keys=PICTURES)

    def fail(*_: object) -> None:
        msg = "the lake is down"
        raise TransientError(msg)

    monkeypatch.setattr("mm_assets.flows.discovery.refuse", fail)

    with pytest.raises(TransientError):
        discover(workspace, "source")

    assert workspace.ledger.objects.scan("source").n_calls == 1


def test_the_days_calls_are_counted_and_then_used_up(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its budget a source is not listed, is not paused for it, and goes on tomorrow at the same page."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 2)
    sources = [{"uri": "source", "alias": "source", "max_list_calls_per_day": 2}]
    workspace = make_workspace(sources=sources).open()
    store = scripted(workspace, keys=PICTURES)

    found = [discover(workspace, "source") for _ in range(2)]

    assert [f.n_listed for f in found] == [4, 0]
    assert [f.is_complete for f in found] == [False, False]
    assert all("max_list_calls_per_day" in (f.stopped_by or "") for f in found)
    assert all(0 < (f.paused_until or 0) - time.time() <= 86_400 for f in found)
    assert store.n_asked("list") == 2
    assert workspace.ledger.objects.paused() == {}
    assert sum(batch.n_objects for batch in plan_batches(workspace)["ingest_job"]) == 4
    monkeypatch.setattr("mm_assets.ledger.scans.gmt_day", lambda: "tomorrow")
    assert discover(workspace, "source").is_complete
    assert live(workspace).keys() == set(PICTURES)


def test_the_budget_begins_anew_at_midnight(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that goes on past 00:00 GMT does not carry the calls of yesterday over."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 2)
    monkeypatch.setattr("mm_assets.flows.discovery._PAGES_AT_ONCE", 1)
    sources = [{"uri": "source", "alias": "source", "max_list_calls_per_day": 2}]
    workspace = make_workspace(sources=sources).open()
    store = scripted(workspace, keys=PICTURES)

    def pass_midnight(_operation: str, after: str) -> None:
        if after == "picture1.png":
            monkeypatch.setattr("mm_assets.ledger.scans.gmt_day", lambda: "tomorrow")

    store.after = pass_midnight

    assert discover(workspace, "source").is_complete


def test_a_paced_pass_waits_for_its_share_of_the_day(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass is never held up; later ones spread the budget, so that an evening is seen as a morning is."""
    sources = [{"uri": "source", "alias": "source", "max_list_calls_per_day": 10}]
    workspace = make_workspace(sources=sources).open()
    scripted(workspace, keys=PICTURES)
    monkeypatch.setattr("mm_assets.flows.discovery._day_frac", lambda: 0.15)

    found = [discover(workspace, "source", is_paced=True) for _ in range(3)]

    assert [f.is_complete for f in found] == [True, True, False]
    assert "2 of 10" in (found[2].stopped_by or "")
    assert discover(workspace, "source").is_complete  # a person does not wait


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({"endpoint_url": "https://s3.us-west-004.backblazeb2.com"}, 2_000),
        ({"endpoint_url": "https://s3.us-west-004.backblazeb2.com", "max_list_calls_per_day": 9}, 9),
        ({"endpoint_url": "https://backblazeb2.com.example.org"}, None),
        ({"endpoint_url": "https://notbackblazeb2.com"}, None),
        ({}, None),
    ],
)
def test_backblaze_has_a_budget_by_default(settings: dict[str, Any], calls: int | None) -> None:
    """Where listing calls are billed, a source that never stops changing does not run up a bill."""
    assert _daily_calls(SourceSettings(uri="s3://bucket", **settings)) == calls


@pytest.mark.fault(8)
def test_a_daily_cap_pauses_that_source_alone(make_workspace: Callable[..., Any]) -> None:
    """After a 403 for a cap a source is neither listed nor planned until its reset; the others go on."""
    workspace = make_workspace(aliases=("source", "other")).open()
    store, other = scripted(workspace, keys=["a"]), scripted(workspace, "other", keys=["b"])
    for alias in ("source", "other"):
        discover(workspace, alias)
    resets_at = time.time() + 3_600
    store.before = raising(DailyCapError("cap exceeded", resets_at))

    found = discover(workspace, "source")

    assert found.stopped_by == "cap exceeded"
    assert found.paused_until is not None
    assert 0 <= found.paused_until - resets_at <= 600
    n_calls = store.n_asked("list")
    assert discover(workspace, "source").paused_until == pytest.approx(found.paused_until)
    assert store.n_asked("list") == n_calls
    other.etags["c"] = "1"
    assert discover(workspace, "other").n_new == 1
    [batch] = plan_batches(workspace)["ingest_job"]
    assert {known.version.alias for known in workspace.ledger.work.objects_of(batch.batch_id)} == {"other"}
    store.before = lambda *_: None
    workspace.ledger.objects.pause("source", time.time() - 1, "")
    assert discover(workspace, "source").is_complete


def test_a_store_that_hangs_does_not_hold_up_a_tick(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends in its time whatever the store does, says so, and the next one goes on at the same page."""
    monkeypatch.setattr("mm_assets.flows.discovery._GRACE_S", 0.1)
    workspace = make_workspace().open()
    store, released = scripted(workspace, keys=PICTURES), threading.Event()
    store.before = lambda *_: released.wait(30) and None
    started = time.monotonic()

    with pytest.raises(ServiceError, match="did not answer in the time"):
        discover(workspace, "source", deadline_s=2)  # the ledger takes its part of it before the store is asked

    assert time.monotonic() - started < 20
    released.set()
    assert discover(workspace, "source", deadline_s=30).n_new == 6


@pytest.mark.fault(16)
def test_pages_that_contradict_themselves_leave_one_version_of_a_key(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key twice on a page, again on the next one, more keys than asked for: the last word counts, the pass ends."""
    workspace = make_workspace().open()
    at = datetime.fromtimestamp(0, tz=UTC)
    pages = {
        "": Page(tuple(StoredObject(key, etag, 1, at) for key, etag in [("a", "1"), ("a", "2"), ("b", "1")]), "b"),
        "b": Page(tuple(StoredObject(f"c{n:04}", "1", 1, at) for n in range(1_001)), "c1000"),
        "c1000": Page((), "d"),
        "d": Page((StoredObject("b", "2", 1, at),), None),
    }
    store = scripted(workspace)
    monkeypatch.setattr(store, "list_page", lambda after="", **_: pages[after])

    found = discover(workspace, "source")

    assert (found.is_complete, found.n_listed) == (True, 1_005)
    assert live(workspace) == {"a": "2", "b": "2"} | {f"c{n:04}": "1" for n in range(1_001)}


# -- who lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault(18)
def test_one_process_lists_a_source(make_workspace: Callable[..., Any]) -> None:
    """While another holds the lock nothing is listed, and the answer names who goes on; other sources are free."""
    place = make_workspace(aliases=("source", "other"))
    workspace = place.open()
    store = scripted(workspace, keys=PICTURES)
    scripted(workspace, "other", keys=["b"])
    token = workspace.ledger.locks.take("list:source", "far-away/1/x", 60)
    assert token is not None

    found = discover(workspace, "source")

    assert (found.is_complete, found.n_listed, store.n_asked("list")) == (False, 0, 0)
    assert "far-away/1/x" in (found.stopped_by or "")
    assert discover(workspace, "other").n_new == 1
    workspace.ledger.locks.release("list:source", token)
    assert discover(workspace, "source").n_new == 6


@pytest.mark.parametrize("moment", ["page", "end"])
def test_an_overtaken_lister_writes_nothing(make_workspace: Callable[..., Any], moment: str) -> None:
    """A lister that slept while another moved the cursor neither adds rows, nor moves it back, nor says what is gone."""
    place = make_workspace()
    workspace, other = place.open(), place.open()
    store = scripted(workspace, keys=PICTURES)
    scripted(other, keys=PICTURES)
    discover(workspace, "source")
    workspace.sources["source"].etags["stale"] = "1"  # type: ignore[attr-defined]  only the sleeper sees it

    def overtake(operation: str, _key: str) -> None:
        if operation == ("list" if moment == "page" else "head"):
            store.after = lambda *_: None
            scan = other.ledger.objects.scan("source")
            other.ledger.objects.finish_pass("source", [], None, at=scan)

    store.after = overtake
    if moment == "end":
        del store.etags["picture0.png"]
        store.etags |= {"picture0.png": "1"}
        store.before = lambda operation, _: overtake("head", "") if operation == "head" else None
        del store.etags["picture1.png"]
    found = discover(workspace, "source")

    assert not found.is_complete
    assert "another process" in (found.stopped_by or "")
    assert workspace.ledger.objects.scan("source").pass_number == 3
    if moment == "page":
        assert live(workspace).keys() == set(PICTURES)


@pytest.mark.fault(17)
def test_an_object_put_behind_the_cursor_is_found_by_the_next_pass(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrives where the listing has already been is not lost, and neither is what changes within one second."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 2)
    monkeypatch.setattr("mm_assets.flows.discovery._PAGES_AT_ONCE", 1)
    workspace = make_workspace().open()
    store = scripted(workspace, keys=PICTURES)

    def put(_operation: str, after: str) -> None:
        if after == "picture3.png":
            store.etags |= {"aaa": "1", "picture0.png": "2"}

    store.after = put
    discover(workspace, "source")
    assert live(workspace)["picture0.png"] == "1"
    store.after = lambda *_: None
    found = discover(workspace, "source")

    assert (found.n_new, found.n_changed, found.n_gone) == (1, 1, 0)
    assert live(workspace) == store.etags


# -- what is gone ------------------------------------------------------------------------------------------------------


def _hundred(make_workspace: Callable[..., Any], n_gone: int, **settings: Any) -> tuple[Workspace, Any]:
    """Give a workspace that knows 100 objects, of which some have left the store."""
    workspace = make_workspace(**settings).open()
    store = scripted(workspace, keys=[f"n{n:03}" for n in range(100)])
    discover(workspace, "source")
    for number in range(n_gone):
        del store.etags[f"n{number:03}"]
    return workspace, store


def test_looking_at_what_is_missing_goes_on_at_the_next_tick(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decided when the time was over is kept, so that a pass that misses very many ends after some ticks."""
    monkeypatch.setattr("mm_assets.flows.discovery._LOOK_AT_ONCE", 16)
    workspace, store = _hundred(make_workspace, 60, refresh={"gone_brake": 0.9})
    store.before = lambda operation, _: time.sleep(0.05) if operation == "head" else None

    found = [discover(workspace, "source", deadline_s=0.15)]
    while not found[-1].is_complete:
        found.append(discover(workspace, "source", deadline_s=0.15))

    assert len(found) > 1
    assert [f.alarm for f in found] == [None] * len(found)
    n_late = found[-1].n_unanswered  # what was under way at the very end is asked by the next pass
    assert sum(f.n_gone for f in found) == 60 - n_late
    store.before = lambda *_: None
    assert discover(workspace, "source").n_gone == n_late
    assert live(workspace) == store.etags


def test_one_failing_head_does_not_lose_the_pass(make_workspace: Callable[..., Any]) -> None:
    """The pass ends and decides about all others; the object that cannot be described stays, and is asked for again."""
    workspace, store = _hundred(make_workspace, 5)
    store.before = raising(ServiceError("503"), operation="head", key="n002")

    found = discover(workspace, "source")

    assert (found.is_complete, found.n_gone, found.n_unanswered) == (True, 4, 1)
    assert "n002" in live(workspace)
    store.before = lambda *_: None
    assert discover(workspace, "source").n_gone == 1


def test_lost_rights_to_look_remove_nothing(make_workspace: Callable[..., Any]) -> None:
    """A key that may list and not read finds nothing gone."""
    workspace, store = _hundred(make_workspace, 5)
    store.before = raising(ConfigError("403"), operation="head")

    found = discover(workspace, "source")

    assert (found.n_gone, found.n_unanswered, len(live(workspace))) == (0, 5, 100)


@pytest.mark.parametrize("error", [DailyCapError("cap exceeded", 4e9), BreakerOpenError("the breaker is open")])
def test_a_cap_at_the_end_of_a_pass_keeps_the_pass_open(make_workspace: Callable[..., Any], error: Exception) -> None:
    """Nothing counts as gone that was not looked at, and the pass ends when the store answers again."""
    workspace, store = _hundred(make_workspace, 5)
    store.before = raising(error, operation="head")
    n_passes = workspace.ledger.objects.scan("source").pass_number

    if isinstance(error, DailyCapError):
        assert not discover(workspace, "source").is_complete
    else:
        with pytest.raises(BreakerOpenError):
            discover(workspace, "source")

    assert workspace.ledger.objects.scan("source").pass_number == n_passes
    assert len(live(workspace)) == 100
    workspace.ledger.objects.pause("source", 0.0, "")
    store.before = lambda *_: None
    assert discover(workspace, "source").n_gone == 5


def test_what_events_removed_counts_for_the_brake(make_workspace: Callable[..., Any]) -> None:
    """Half of it told by events and half of it missed by the listing is as much as all of it missed at once."""
    workspace, _ = _hundred(make_workspace, 30)
    ids = [workspace.ledger.objects.find(f"n{n:03}")[0].object_id for n in range(15)]
    workspace.ledger.objects.retire("source", ids, ())

    found = discover(workspace, "source")

    assert found.n_gone == 0
    assert "30 of 100" in (found.alarm or "")
    assert len(live(workspace)) == 85


# -- what is told ------------------------------------------------------------------------------------------------------


def test_the_listing_counts_what_no_event_told(make_workspace: Callable[..., Any]) -> None:
    """Once a first pass was complete, everything that a listing finds was missed: new, changed and gone."""
    workspace, store = _hundred(make_workspace, 0)
    found = ("reconcile_found_total", (("alias", "source"),))
    assert found not in workspace.ledger.meters.totals()
    store.etags |= {"new": "1", "n005": "2"}
    del store.etags["n006"]

    discover(workspace, "source")

    assert workspace.ledger.meters.totals()[found] == 3
    discover(workspace, "source")
    assert workspace.ledger.meters.totals()[found] == 3


def test_a_file_whose_name_is_no_text_is_refused_by_name(make_workspace: Callable[..., Any]) -> None:
    """A folder may hold names that are no UTF-8: such a file has a row with a reason, and the others are found."""
    place = make_workspace("picture0.png")
    raw = os.fsencode(place.source) + b"/b\xff.png"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    workspace = place.open()

    found = discover(workspace, "source")

    assert (found.n_listed, found.n_refused) == (1, 1)
    assert [(r.shown_key, r.reason) for r in workspace.ledger.objects.refusals()] == [("b\\udcff.png", "policy")]


def test_names_that_nothing_can_hold_are_refused_once(make_workspace: Callable[..., Any]) -> None:
    """Each has a record in the lake and a row with a reason, the pass goes on, and no later pass writes them again."""
    place = make_workspace()
    workspace = place.open()
    scripted(workspace, keys=["good", "nul\x00.png", "lone\ud800.png"])

    found = [discover(workspace, "source") for _ in range(2)]

    assert [(f.n_refused, f.is_complete) for f in found] == [(2, True), (2, True)]
    assert live(workspace).keys() == {"good"}
    refusals = workspace.ledger.objects.refusals()
    assert {r.shown_key for r in refusals} == {"nul\\x00.png", "lone\\ud800.png"}
    assert {(r.alias, r.reason) for r in refusals} == {("source", "policy")}
    records = {path.parent.name: path.stat().st_mtime_ns for path in place.lake.glob("dead_letters/*/discovery.json")}
    assert records.keys() == {r.refusal_id for r in refusals}
    discover(workspace, "source")
    assert records == {p.parent.name: p.stat().st_mtime_ns for p in place.lake.glob("dead_letters/*/discovery.json")}
    assert {(of, step) for of, step, _ in workspace.lake.dead_letters()} == {(of, "discovery") for of in records}


def test_a_refused_name_that_was_renamed_is_told_no_more(make_workspace: Callable[..., Any]) -> None:
    """A complete pass that does not meet the name takes its row and its record; one under an alarm takes nothing."""
    place = make_workspace()
    workspace = place.open()
    store = scripted(workspace, keys=["good", *(f"nul{n}\x00.png" for n in range(2))])
    discover(workspace, "source")
    assert workspace.ledger.objects.n_refusals() == 2

    del store.etags["nul0\x00.png"]
    discover(workspace, "source")

    [left] = workspace.ledger.objects.refusals()
    assert left.shown_key == "nul1\\x00.png"
    assert [path.parent.name for path in place.lake.glob("dead_letters/*/*.json")] == [left.refusal_id]
    store.etags.clear()
    assert discover(workspace, "source").alarm
    assert workspace.ledger.objects.refusals() == [left]


def test_a_confirmation_that_comes_while_a_pass_ends_counts_for_the_next(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person was told yes; the pass that had decided on its alarm before must not forget it."""
    workspace = make_workspace().open()
    store = scripted(workspace, keys=[f"k{n}" for n in range(20)])
    discover(workspace, "source")
    store.etags.clear()
    assert discover(workspace, "source").alarm
    decide = discovery.brake

    def decide_then_be_confirmed(*args: Any) -> str | None:
        alarm = decide(*args)
        assert workspace.ledger.objects.confirm_deletions("source")
        return alarm

    with monkeypatch.context() as patch:
        patch.setattr(discovery, "brake", decide_then_be_confirmed)
        assert discover(workspace, "source").n_gone == 0

    assert discover(workspace, "source").n_gone == 20


def test_an_overtaken_lister_sets_no_refused_name_back(make_workspace: Callable[..., Any]) -> None:
    """A lister that stood still for a whole pass cannot make a name look as if nobody had met it since."""
    workspace = make_workspace().open()
    scripted(workspace, keys=["good", "nul\x00.png"])
    for _ in range(2):
        discover(workspace, "source")

    refusing.refuse(workspace, "source", [("nul\x00.png", "slow")], 1)

    assert workspace.ledger.objects.forget_refusals("source", 2, 10) == []


def test_many_refused_names_are_withdrawn_within_the_time_of_a_call(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is no time for is left to the next pass; the pass itself ends, and no record outlives its row."""
    place = make_workspace()
    workspace = place.open()
    store = scripted(workspace, keys=["good", *(f"nul{n}\x00.png" for n in range(200))])
    discover(workspace, "source")
    for key in [key for key in store.etags if "\x00" in key]:
        del store.etags[key]
    erase = Lake.erase_dead_letter
    monkeypatch.setattr(Lake, "erase_dead_letter", lambda *args: (time.sleep(0.1), erase(*args)))

    started = time.monotonic()
    found = discover(workspace, "source", deadline_s=1.0)

    assert found.is_complete
    assert time.monotonic() - started < 2.5
    left = workspace.ledger.objects.n_refusals()
    assert 0 < left < 200
    monkeypatch.undo()
    discover(workspace, "source")
    assert workspace.ledger.objects.n_refusals() == 0
