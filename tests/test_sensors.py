"""What the sensors ask for, tick by tick, as the daemon evaluates them; runs are executed where their outcome matters."""

import errno
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg
import pytest
from dagster_driver import Driver
from places import Place

from mm_assets.buckets.base import DailyCapError
from mm_assets.buckets.local import LocalStore
from mm_assets.ledger.inbox import Hint
from mm_assets.partitions import hold_keys, retire_keys

MakePlace = Callable[..., Place]
SENSOR = "bucket_objects_sensor"
EVENTS = "bucket_events_sensor"
REFRESH = "refresh_needed_sensor"
NEVER_S = 1e10


def driver_of(place: Place, instance: dg.DagsterInstance) -> Driver:
    """Drive Dagster over a place."""
    return Driver(place, instance, place.open())


def write_notes(place: Place, n: int, source: str = "source") -> None:
    """Put small files there that are cheap to list and of no medium."""
    for number in range(n):
        (place.folder / source / f"note{number:03}.txt").write_text(f"{source} {number}", encoding="utf-8")


def asked_keys(driver: Driver, tick: Any) -> list[str]:
    """Names of the files whose processing a tick asked for."""
    config = [request.run_config["ops"]["process_batch"]["config"] for request in tick.run_requests]
    return [known.version.key for each in config for known in driver.workspace.ledger.work.objects_of(each["batch_id"])]


def add_run(
    instance: dg.DagsterInstance, job: str, status: dg.DagsterRunStatus, tags: Mapping[str, str] | None = None
) -> None:
    """Let Dagster know a run that nobody executes."""
    from dagster._core.remote_origin import (
        RegisteredCodeLocationOrigin,
        RemoteJobOrigin,
        RemoteRepositoryOrigin,
    )

    location = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("mm_assets"), "__repository__")
    origin = RemoteJobOrigin(location, job)
    instance.add_run(dg.DagsterRun(job_name=job, status=status, tags=tags, remote_job_origin=origin))


def steps_in(driver: Driver, request: dg.RunRequest) -> set[object]:
    """Return the steps that a run has to make."""
    work, batch_id = driver.workspace.ledger.work, request.tags["mm_assets/batch"]
    rows = [row for known in work.objects_of(batch_id) for row in work.states(known.object_id)]
    return {row["step"] for row in rows if row["batch_id"] == batch_id}


def work_off(driver: Driver) -> None:
    """Execute what ticks ask for until they ask for nothing."""
    while requests := driver.tick(SENSOR).run_requests:
        assert [driver.execute(request).success for request in requests] == [True] * len(requests)


# -- bucket_objects_sensor ---------------------------------------------------------------------------------------------


def test_first_tick_asks_for_all_in_batches(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Every object is in exactly one run's batch, in order, and Dagster knows its key before the run is asked for."""
    driver = driver_of(make_workspace(runs={"batch_objects": 2}), instance)
    write_notes(driver.place, 5)
    tick = driver.tick(SENSOR)
    assert asked_keys(driver, tick) == [f"note{n:03}.txt" for n in range(5)]
    assert [request.job_name for request in tick.run_requests] == ["ingest_job"] * 3
    assert len({request.run_key for request in tick.run_requests}) == 3
    assert instance.get_dynamic_partitions("objects") == [driver.key(f"note{n:03}.txt") for n in range(5)]


def test_asked_runs_do_the_work(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Executing what ticks asked for finishes the objects: at last one has nothing to do, and says what it saw."""
    driver = driver_of(make_workspace("picture0.png", "broken.png"), instance)
    [request] = driver.tick(SENSOR).run_requests
    assert driver.execute(request).success
    assert driver.statuses("visual_embeddings", ["picture0.png"]) == {"picture0.png": "MATERIALIZED"}
    [texts] = driver.tick(SENSOR).run_requests  # of what the first run read
    assert driver.execute(texts).success
    assert driver.statuses("text_embeddings", ["picture0.png"]) == {"picture0.png": "MATERIALIZED"}
    tick = driver.tick(SENSOR)
    assert tick.run_requests == []
    assert tick.skip_message == "nothing to do (source: 2 listed, 0 new, 0 gone)"


def test_repeated_tick_asks_for_nothing_twice(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """While the runs of a tick have not begun, another tick does not ask for them again."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    assert len(driver.tick(SENSOR).run_requests) == 1
    assert driver.tick(SENSOR).run_requests == []


def test_overwritten_object_is_asked_for_again(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """A key with other bytes is another object version with its own partition; the old one is superseded."""
    driver = driver_of(make_workspace("picture0.png", "picture1.png"), instance)
    work_off(driver)
    before = driver.key("picture0.png")
    driver.place.add_as("picture2.png", "picture0.png")
    tick = driver.tick(SENSOR)
    assert asked_keys(driver, tick) == ["picture0.png"]
    assert driver.execute(tick.run_requests[0]).success
    assert driver.key("picture0.png") != before
    states = {item.partition_key: item.state for item in driver.workspace.ledger.objects.find("picture0.png")}
    assert states == {before: "superseded", driver.key("picture0.png"): "live"}


def test_deleted_object_is_gone_and_asks_for_no_run(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """An object that a complete pass does not see leaves the ledger's live ones."""
    driver = driver_of(make_workspace("picture0.png", "picture1.png"), instance)
    work_off(driver)
    (driver.place.folder / "source" / "picture0.png").unlink()
    assert driver.tick(SENSOR).skip_message == "nothing to do (source: 1 listed, 0 new, 1 gone)"
    assert driver.workspace.ledger.objects.n_live("source") == 1


def test_empty_listing_removes_nothing_until_confirmed(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """A listing that has become empty raises an alarm and waits for a person; confirmed, the next pass obeys it."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    driver.tick(SENSOR)
    for file in (driver.place.folder / "source").iterdir():
        file.unlink()
    assert driver.tick(SENSOR).skip_message == "nothing to do (source: 0 listed, 0 new, 0 gone)"
    objects = driver.workspace.ledger.objects
    assert objects.n_live("source") == 3
    assert "mm deletions confirm source" in (objects.scan("source").alarm or "")
    assert objects.confirm_deletions("source")
    assert driver.tick(SENSOR).skip_message == "nothing to do (source: 0 listed, 0 new, 3 gone)"
    assert objects.n_live("source") == 0


def test_tick_asks_for_at_most_twenty_runs(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """The rest is asked for by the next ticks, each object once."""
    driver = driver_of(make_workspace(runs={"batch_objects": 1}), instance)
    write_notes(driver.place, 25)
    ticks = [driver.tick(SENSOR) for _ in range(3)]
    assert [len(tick.run_requests) for tick in ticks] == [20, 5, 0]
    assert sorted(key for tick in ticks for key in asked_keys(driver, tick)) == [f"note{n:03}.txt" for n in range(25)]


@pytest.fixture
def slow_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give one object a page, a twentieth of a second each, and a tick of one second."""
    list_page = LocalStore.list_page

    def list_slowly(self: LocalStore, **options: Any) -> Any:
        time.sleep(0.05)
        return list_page(self, **options)

    monkeypatch.setattr(LocalStore, "list_page", list_slowly)
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 1)
    monkeypatch.setattr("sensors.bucket_objects._LISTING_S", 1.0)


@pytest.mark.usefixtures("slow_listing")
def test_listing_goes_on_where_the_time_ended(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """A tick stops listing at its deadline; the next ones go on at the same page until all was asked for once."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 30)
    found = [asked_keys(driver, driver.tick(SENSOR))]
    assert 0 < len(found[0]) < 30
    while driver.workspace.ledger.objects.scan("source").finished_at is None:
        found.append(asked_keys(driver, driver.tick(SENSOR)))
    assert [key for keys in found for key in keys] == [f"note{n:03}.txt" for n in range(30)]


@pytest.mark.usefixtures("slow_listing")
def test_large_source_does_not_starve_the_next(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Sources share the time of a tick, so a source is listed though the one before it could use all of it."""
    driver = driver_of(make_workspace(aliases=("source", "other")), instance)
    write_notes(driver.place, 60)
    write_notes(driver.place, 1, "other")
    driver.tick(SENSOR)
    assert driver.workspace.ledger.objects.n_live("other") == 1


def test_source_that_fails_does_not_stop_the_others(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """One source cannot be listed: the tick succeeds, the others are processed, and nothing of it counts as gone."""
    driver = driver_of(make_workspace(aliases=("source", "other")), instance)
    write_notes(driver.place, 2)
    write_notes(driver.place, 1, "other")
    driver.tick(SENSOR)
    for file in (driver.place.folder / "source").iterdir():
        file.unlink()
    (driver.place.folder / "source").rmdir()
    (driver.place.folder / "other" / "note001.txt").write_text("new", encoding="utf-8")
    tick = driver.tick(SENSOR)
    assert asked_keys(driver, tick) == ["note001.txt"]
    assert driver.workspace.ledger.objects.n_live("source") == 2


def test_last_try_of_an_object_is_its_own_red_run(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tries in batches stay green; the third runs as the object's own partition, fails, and is a dead letter."""
    monkeypatch.setattr("mm_assets.flows.ends._BACKOFF_S", 0.0)
    driver = driver_of(make_workspace("picture0.png", "picture1.png"), instance)
    resource = driver.place.resource(failing_step="faces", fails_on="picture1")
    lanes, successes, keys = [], [], []
    while requests := driver.tick(SENSOR, resource=resource).run_requests:
        texts = [request for request in requests if steps_in(driver, request) == {"text_embeddings"}]
        [request] = [request for request in requests if request not in texts]
        assert all(driver.execute(of_others, resource).success for of_others in texts)
        lanes.append(request.tags["mm_assets/lane"])
        keys.append(request.partition_key)
        successes.append(driver.execute(request, resource).success)
    assert lanes == ["bulk", "bulk", "single"]
    assert successes == [True, True, False]
    assert keys == [None, None, driver.key("picture1.png")]
    assert driver.statuses("faces", ["picture0.png", "picture1.png"]) == {
        "picture0.png": "MATERIALIZED",
        "picture1.png": "FAILED",
    }
    assert [path.name for path in driver.place.lake.glob("dead_letters/*/*")] == ["faces.json"]


def test_batch_that_has_become_empty_is_no_run(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between planning and asking, others may take what a batch held: the tick asks for the rest and does not fail."""
    from sensors import run_requests

    plan_batches = run_requests.plan_batches

    def plan_and_lose(workspace: Any, *, limit: int) -> Any:
        planned = plan_batches(workspace, limit=limit)
        workspace.ledger.work.release_batches([planned["ingest_job"][0].batch_id])
        return planned

    driver = driver_of(make_workspace(runs={"batch_objects": 1}), instance)
    write_notes(driver.place, 2)
    monkeypatch.setattr(run_requests, "plan_batches", plan_and_lose)
    assert asked_keys(driver, driver.tick(SENSOR)) == ["note001.txt"]
    monkeypatch.undo()
    assert asked_keys(driver, driver.tick(SENSOR)) == ["note000.txt"]


@pytest.mark.parametrize("seconds", [{"bucket_objects.TICK_S": 0.0}, {"run_requests._LATE_S": -100.0}])
def test_late_tick_keeps_no_batch(
    make_workspace: MakePlace,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float],
) -> None:
    """What a tick asks for after Dagster gave it up is heard by nobody: its batches are free for the next one."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    with monkeypatch.context() as patch:
        for name, value in seconds.items():
            patch.setattr(f"sensors.{name}", value)
        assert driver.tick(SENSOR).run_requests == []
    assert driver.workspace.ledger.work.n_unstarted() == 0
    assert len(asked_keys(driver, driver.tick(SENSOR))) == 3


def test_a_request_that_became_no_run_is_made_again(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the daemon dies between a sensor's answer and the launch, the batch is free after a while; others stay."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    [unheard] = driver.tick(SENSOR).run_requests
    monkeypatch.setattr("sensors.run_requests._UNHEARD_S", 0.0)
    [request] = driver.tick(SENSOR).run_requests
    assert request.run_key != unheard.run_key
    add_run(instance, request.job_name, dg.DagsterRunStatus.NOT_STARTED, request.tags)
    assert driver.tick(SENSOR).run_requests == []


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
def test_a_run_that_ended_before_its_work_is_asked_for_again(
    make_workspace: MakePlace,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    status: dg.DagsterRunStatus,
) -> None:
    """What it did not claim waits no longer than for a run that never was; Dagster has not seen the new run key."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    [asked] = driver.tick(SENSOR).run_requests
    add_run(instance, asked.job_name, status, asked.tags)
    assert driver.tick(SENSOR).run_requests == []  # not yet
    monkeypatch.setattr("sensors.run_requests._UNHEARD_S", 0.0)
    tick = driver.tick(SENSOR)
    assert asked_keys(driver, tick) == ["note000.txt", "note001.txt", "note002.txt"]
    assert tick.run_requests[0].run_key != asked.run_key
    assert tick.run_requests[0].tags["mm_assets/batch"] == tick.run_requests[0].run_key


@pytest.mark.parametrize("status", ["NOT_STARTED", "QUEUED", "MANAGED", "STARTING", "STARTED", "CANCELING"])
def test_a_run_that_may_still_work_keeps_its_batch(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """However long a run waits in Dagster's queue, its batch is not given to another, even if an earlier run failed."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    [asked] = driver.tick(SENSOR).run_requests
    add_run(instance, asked.job_name, dg.DagsterRunStatus.FAILURE, asked.tags)
    add_run(instance, asked.job_name, dg.DagsterRunStatus(status), asked.tags)
    monkeypatch.setattr("sensors.run_requests._UNHEARD_S", 0.0)
    assert driver.tick(SENSOR).run_requests == []


def test_tick_that_fails_keeps_no_batch(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Dagster's storage fails in the middle, nothing planned waits for a request that is never made."""
    driver = driver_of(make_workspace(runs={"batch_objects": 1}), instance)
    write_notes(driver.place, 3)
    calls: list[int] = []

    def fail_later(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "no space left")
        hold_keys(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("sensors.run_requests.hold_keys", fail_later)
        with pytest.raises(OSError, match="no space left"):
            driver.tick(SENSOR)
    assert driver.workspace.ledger.work.n_unstarted() == 0
    assert len(asked_keys(driver, driver.tick(SENSOR))) == 3


def test_capped_source_waits_alone(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daily cap of one bucket is no failure of the tick, and the other bucket's objects are asked for."""
    driver = driver_of(make_workspace(aliases=("source", "other")), instance)
    write_notes(driver.place, 1)
    write_notes(driver.place, 1, "other")
    list_page, cap = LocalStore.list_page, DailyCapError("cap exceeded", time.time() + 60)

    def capped(self: LocalStore, **options: Any) -> Any:
        if self.folder.name == "source":
            raise cap
        return list_page(self, **options)

    monkeypatch.setattr(LocalStore, "list_page", capped)
    [request] = driver.tick(SENSOR).run_requests
    batch = request.run_config["ops"]["process_batch"]["config"]["batch_id"]
    assert [known.version.alias for known in driver.workspace.ledger.work.objects_of(batch)] == ["other"]
    assert driver.workspace.ledger.objects.paused().keys() == {"source"}


# -- bucket_events_sensor ----------------------------------------------------------------------------------------------


def tell(driver: Driver, *names: str) -> None:
    """Put a hint for each file into the inbox."""
    told = time.monotonic_ns()
    hints = [Hint(f"{told}-{n}", "test", "source", name) for n, name in enumerate(names)]
    driver.workspace.ledger.inbox.add(hints)


def test_event_is_asked_for_at_once(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """What an event named is in a run's batch at the same tick, without a listing; the run does the work."""
    driver = driver_of(make_workspace("picture0.png", "picture1.png"), instance)
    tell(driver, "picture0.png", "picture0.png", "nothing.png")
    tick = driver.tick(EVENTS)
    assert asked_keys(driver, tick) == ["picture0.png"]
    assert driver.workspace.ledger.objects.scan("source").n_calls == 0
    assert driver.execute(tick.run_requests[0]).success
    assert driver.statuses("segments", ["picture0.png"]) == {"picture0.png": "MATERIALIZED"}
    assert driver.tick(EVENTS).skip_message == "nothing to do (no events wait)"


def test_events_that_change_nothing_ask_for_nothing(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """A tick says what came of the events where no run follows from them."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 2)
    driver.tick(SENSOR)
    (driver.place.source / "note001.txt").write_text("changed", encoding="utf-8")
    tell(driver, "note000.txt")
    assert driver.tick(EVENTS).skip_message == "nothing to do (1 hints, 1 unchanged)"


def test_both_sensors_ask_for_an_object_once(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Whichever finds it first, an object is in one batch, and the other sensor has nothing to add."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    tell(driver, "note001.txt")
    found = [asked_keys(driver, driver.tick(sensor)) for sensor in (EVENTS, SENSOR, EVENTS, SENSOR)]
    assert found == [["note001.txt"], ["note000.txt", "note002.txt"], [], []]


@pytest.mark.fault(18)
def test_ticks_at_once_ask_for_an_object_once(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Two listing ticks and an events tick at the same time: one lists, and no object is in two batches."""
    driver = driver_of(make_workspace(runs={"batch_objects": 4}), instance)
    write_notes(driver.place, 40)
    tell(driver, *(f"note{n:03}.txt" for n in range(0, 40, 3)))
    with ThreadPoolExecutor(3) as threads:
        ticks = list(threads.map(driver.tick, (SENSOR, EVENTS, SENSOR)))
    ticks.append(driver.tick(SENSOR))
    assert sorted(key for tick in ticks for key in asked_keys(driver, tick)) == [f"note{n:03}.txt" for n in range(40)]


# -- refresh_needed_sensor ---------------------------------------------------------------------------------------------


def test_refresh_is_asked_for_when_enough_changed(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Below the number of changed objects it waits and says how many there are; at it, it asks once."""
    settings = {"refresh": {"min_changed": 2, "max_wait_s": NEVER_S}}
    driver = driver_of(make_workspace("picture0.png", **settings), instance)
    driver.ingest()
    assert driver.tick(REFRESH).skip_message.startswith("1 objects changed")
    driver.place.add("picture1.png")
    driver.ingest()
    tick = driver.tick(REFRESH)
    assert [request.tags["mm_assets/reason"] for request in tick.run_requests] == ["2 objects changed"]
    assert driver.tick(REFRESH, tick.cursor).skip_message.startswith("0 objects changed")


def test_refresh_is_asked_for_when_changes_have_waited(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """One change that has waited long enough is reason enough; once it is published there is none."""
    settings = {"refresh": {"min_changed": 1_000, "max_wait_s": 0.001}}
    driver = driver_of(make_workspace("picture0.png", **settings), instance)
    driver.ingest()
    assert len(driver.tick(REFRESH).run_requests) == 1
    assert driver.run("refresh_job").success
    assert driver.tick(REFRESH).skip_message == "everything is published"


def test_failed_refresh_is_not_asked_for_at_every_tick(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """A refresh that published nothing is asked for again only after the wait, not once a minute for ever."""
    settings = {"refresh": {"min_changed": 1, "max_wait_s": NEVER_S}}
    driver = driver_of(make_workspace("picture0.png", **settings), instance)
    driver.ingest()
    first = driver.tick(REFRESH)
    assert len(first.run_requests) == 1
    for _ in range(3):
        assert driver.tick(REFRESH, first.cursor).run_requests == []


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
)
def test_one_refresh_at_a_time(
    make_workspace: MakePlace, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    """While a refresh waits or runs no other is asked for."""
    driver = driver_of(make_workspace("picture0.png", refresh={"min_changed": 1}), instance)
    driver.ingest()
    add_run(instance, "refresh_job", status)
    assert driver.tick(REFRESH).skip_message == "a refresh is under way"


# -- the working set ---------------------------------------------------------------------------------------------------


def limit_live_keys(driver: Driver, limit: int) -> None:
    """Lower the limit below what settings allow, so that a test needs few objects."""
    runs = driver.workspace.settings.runs.model_copy(update={"max_live_partitions": limit})
    driver.workspace.settings = driver.workspace.settings.model_copy(update={"runs": runs})


def test_retire_keys_drops_the_oldest_that_are_done(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Finished keys beyond the limit leave Dagster, oldest first; dead ones stay where people look for them."""
    driver = driver_of(make_workspace("broken.png", "picture0.png", "picture1.png", "picture2.png"), instance)
    driver.ingest()
    limit_live_keys(driver, 2)
    assert retire_keys(instance, driver.workspace) == 2
    assert instance.get_dynamic_partitions("objects") == [driver.key("broken.png"), driver.key("picture2.png")]
    assert retire_keys(instance, driver.workspace) == 0


def test_retired_key_that_comes_back_has_its_history(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Adding a retired key again shows it as materialized: its events were never removed."""
    driver = driver_of(make_workspace("picture0.png"), instance)
    driver.ingest()
    limit_live_keys(driver, 0)
    retire_keys(instance, driver.workspace)
    assert instance.get_dynamic_partitions("objects") == []
    hold_keys(instance, driver.workspace, driver.workspace.ledger.objects.find("picture0.png"))
    assert driver.statuses("segments", ["picture0.png"]) == {"picture0.png": "MATERIALIZED"}


def test_unfinished_keys_are_never_retired(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Whatever the limit, objects with work left stay in Dagster."""
    driver = driver_of(make_workspace(), instance)
    write_notes(driver.place, 3)
    driver.tick(SENSOR)
    limit_live_keys(driver, 0)
    assert retire_keys(instance, driver.workspace) == 0
