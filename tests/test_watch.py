"""``mm ingest --watch``, SIGTERM, and several processes on one ledger; as real processes where that is the point."""

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from cli_driver import mm
from dagster_driver import Driver
from fakes import FakeWorkspaceResource, open_fake_workspace
from places import Place
from scripted_store import raising, scripted

from mm_assets.buckets.base import DailyCapError
from mm_assets.cli import watching
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.flows.hints import Drained
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger.inbox import Hint

MakePlace = Callable[..., Place]
# The command on fake models: a process imports it from here.
FAKE_MM = """
import sys, time
import fakes
from mm_assets.cli import main, runs, watching
runs.open_workspace = watching.open_workspace = lambda settings, **_: fakes.open_fake_workspace(settings)
runs.WorkspaceResource = fakes.FakeWorkspaceResource
"""
# The signal comes when the last step of a run is over, where Dagster's own handler takes it and forgets it.
SIGNAL_AT_THE_END = """
import os, signal, dagster
handle_new_event = dagster.DagsterInstance.handle_new_event
def handle_and_signal(self, event, *arguments, **options):
    handle_new_event(self, event, *arguments, **options)
    if event.is_dagster_event and event.dagster_event.event_type_value == "PIPELINE_SUCCESS":
        print("the run is over", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
dagster.DagsterInstance.handle_new_event = handle_and_signal
"""
SLOW_MODEL = "fakes.FakeReader._values = lambda *_: time.sleep(120)\n"
PATIENCE_S = 90.0


class Process:
    """A command in a process of its own, whose lines are read as they come."""

    def __init__(self, place: Place, *arguments: str, patch: str = "") -> None:
        code = f"{FAKE_MM}{patch}main()"
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *arguments, "-c", str(place.config_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._queue.put(line.rstrip())

    def wait_for(self, text: str) -> str:
        """Read on until a line holds this text."""
        ends_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at:
            try:
                self.lines.append(self._queue.get(timeout=1.0))
            except queue.Empty:
                assert self.popen.poll() is None, self.lines
                continue
            if text in self.lines[-1]:
                return self.lines[-1]
        pytest.fail(f"{text!r} never came: {self.lines}")

    def rest(self) -> list[str]:
        """Return what it still wrote, once it has ended."""
        self._reader.join(PATIENCE_S)
        return [self._queue.get() for _ in range(self._queue.qsize())]

    def end(self, number: int) -> tuple[int, float]:
        """Send a signal; returns the exit code and the seconds until then."""
        started = time.monotonic()
        self.popen.send_signal(number)
        return self.popen.wait(PATIENCE_S), time.monotonic() - started


@contextmanager
def command(place: Place, *arguments: str, patch: str = "") -> Iterator[Process]:
    """Run a command until the block ends."""
    process = Process(place, *arguments, patch=patch)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()
        assert process.popen.stdout is not None
        process.popen.stdout.close()


def work_of(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """Return the rows of work of the live version of a file."""
    [known] = [item for item in workspace.ledger.objects.find(name) if item.state == "live"]
    return workspace.ledger.work.states(known.object_id)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_watch_follows_listings_and_events_until_sigterm(make_workspace: MakePlace) -> None:
    """What comes is processed, or given up, and told in one line each; SIGTERM is a good end."""
    place = make_workspace("picture0.png", refresh={"min_changed": 1})
    with command(place, "ingest", "--watch", "--interval", "2") as process:
        assert "source: 1 new" in process.wait_for("new")
        process.wait_for("1 objects processed")
        process.wait_for("tables and indexes are up to date")
        place.add("picture1.png", "broken.png")
        assert "2 new" in process.wait_for("source: ")
        process.wait_for("2 objects processed")
        assert "1 corrupt" in process.wait_for("steps given up")
        (place.source / "picture0.png").unlink()
        assert "1 gone" in process.wait_for("source: ")
        code, seconds = process.end(signal.SIGTERM)
    assert code == 0
    assert seconds < 10
    workspace = place.open()
    assert {row["state"] for row in work_of(workspace, "picture1.png")} <= {"done", "skipped"}
    assert workspace.ledger.locks.holder("list:source") is None


@pytest.mark.slow
def test_watch_takes_events_without_a_listing(make_workspace: MakePlace) -> None:
    """An event is acted on within seconds, long before the next listing; JSON lines tell programs the same."""
    place = make_workspace("picture0.png")
    with command(place, "ingest", "--watch", "--no-refresh", "--json", "--interval", "3600") as process:
        process.wait_for('"processed"')
        place.add("picture1.png")
        place.open().ledger.inbox.add([Hint("e1", "test", "source", "picture1.png")])
        found = json.loads(process.wait_for('"found"'))
        assert (found["text"], found["n_new"], found["n_hints"]) == ("events: 1 new", 1, 1)
        assert json.loads(process.wait_for('"processed"'))["n_objects"] == 1
        assert process.end(signal.SIGINT)[0] == 0


@pytest.mark.slow
@pytest.mark.fault(4)
@pytest.mark.parametrize(("options", "code"), [((), 130), (("--watch",), 0)])
def test_sigterm_in_a_run_gives_back_in_time(make_workspace: MakePlace, options: tuple[str, ...], code: int) -> None:
    """In the middle of a model the command ends within ten seconds, and what it held is free for the next."""
    place = make_workspace("picture0.png", "picture1.png")
    with command(place, "ingest", *options, patch=SLOW_MODEL) as process:
        workspace = place.open()
        ends_at = time.monotonic() + PATIENCE_S
        while not workspace.ledger.objects.find("picture0.png") or "claimed" not in {
            row["state"] for row in work_of(workspace, "picture0.png")
        }:
            assert time.monotonic() < ends_at
            time.sleep(0.1)
        time.sleep(3.0)  # decoding is over by then, and the model at work
        ended, seconds = process.end(signal.SIGTERM)
    assert (ended, seconds < 10) == (code, True)
    rows = [row for name in ("picture0.png", "picture1.png") for row in work_of(workspace, name)]
    assert {row["state"] for row in rows} <= {"wanted", "done"}
    assert {(row["claims"], row["batch_id"]) for row in rows if row["state"] == "wanted"} == {(0, None)}


@pytest.mark.slow
@pytest.mark.fault(4)
@pytest.mark.parametrize(("options", "code"), [((), 130), (("--watch",), 0)])
def test_sigterm_between_two_steps_of_dagster_is_not_forgotten(
    make_workspace: MakePlace, options: tuple[str, ...], code: int
) -> None:
    """A signal that comes while a run ends, and is dropped by Dagster, ends the command after the first run."""
    place = make_workspace("picture0.png", "picture1.png", runs={"batch_objects": 1})
    with command(place, "ingest", *options, patch=SIGNAL_AT_THE_END) as process:
        process.wait_for("the run is over")
        assert process.popen.wait(PATIENCE_S) == code
        assert "the run is over" not in process.rest()


@pytest.mark.slow
@pytest.mark.fault(31)
def test_two_ingests_at_once_do_the_work_of_one(make_workspace: MakePlace) -> None:
    """Two commands on one ledger both succeed, and every step of every object is begun once."""
    names = [f"picture{n}.png" for n in range(4)]
    place = make_workspace(*names, runs={"batch_objects": 1, "decode_workers": 1})
    arguments = ("ingest", "--json", "--no-refresh")
    with command(place, *arguments) as one, command(place, *arguments) as other:
        summaries = [json.loads(process.wait_for('"discoveries"')) for process in (one, other)]
        assert [process.popen.wait(PATIENCE_S) for process in (one, other)] == [0, 0]
    assert [summary["failed_runs"] for summary in summaries] == [{}, {}]
    assert sum(summary["n_processed"] for summary in summaries) >= 4  # of two waves, each command may run one
    workspace = place.open()
    assert sum(found["n_new"] for summary in summaries for found in summary["discoveries"]) == 4
    rows = [row for name in names for row in work_of(workspace, name)]
    assert {(row["state"], row["token"]) for row in rows} <= {("done", 1), ("skipped", 1)}


@pytest.mark.fault(31)
def test_ingest_beside_the_daemon_leaves_its_batches(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sensor planned is run by its run; the command takes the rest, and nothing is begun twice."""
    monkeypatch.setattr("mm_assets.cli.runs.open_workspace", lambda settings, **_: open_fake_workspace(settings))
    monkeypatch.setattr("mm_assets.cli.runs.WorkspaceResource", FakeWorkspaceResource)
    place = make_workspace("picture0.png")
    driver = Driver(place, instance, place.open())
    [request] = driver.tick("bucket_objects_sensor").run_requests
    place.add("picture1.png")
    summary = json.loads(mm("ingest", "--json", "--no-refresh", "-c", str(place.config_file)).stdout)
    assert (summary["n_processed"], summary["n_waiting"]) == (1, 1)
    assert driver.execute(request).success
    [reader] = driver.tick("bucket_objects_sensor").run_requests  # what reads the results of others
    assert driver.execute(reader).success
    rows = [row for name in ("picture0.png", "picture1.png") for row in work_of(driver.workspace, name)]
    assert {(row["state"], row["token"]) for row in rows} <= {("done", 1), ("skipped", 1)}


def test_watch_refuses_unknown_sources_at_once(make_workspace: MakePlace) -> None:
    """A slip of the pen ends the command before it watches anything."""
    place = make_workspace()
    assert "known: source" in mm("ingest", "--watch", "sorce", "-c", str(place.config_file), code=2).stderr


# -- patience ----------------------------------------------------------------------------------------------------------


class Told:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def __call__(self, what: str, text: str, **_: Any) -> None:
        """Keep it."""
        self.said.append((what, text))


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr("mm_assets.cli.watching.time", self)

    def monotonic(self) -> float:
        """Return the time that was set."""
        return self.now


def test_failing_chore_is_told_once_and_tried_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a service or of settings never ends the watch; a new message is told, and so is the recovery."""
    clock, told, errors = Clock(monkeypatch), Told(), [ServiceError("503")] * 4 + [ConfigError("403")]
    tried: list[float] = []

    def do() -> bool:
        tried.append(clock.now)
        if errors:
            raise errors.pop(0)
        return False

    chore = watching.Chore("listing a", do, 60.0, told)
    while len(tried) < 7:
        assert not chore.do_if_due()
        clock.now += 1
    assert [what for what, _ in told.said] == ["failed", "failed", "recovered"]
    assert "503" in told.said[0][1]
    assert "403" in told.said[1][1]
    waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert waits == [60, 60, 60, 60, 80, 60]


def test_unexpected_error_of_a_chore_is_told_with_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in one chore ends neither the watch nor the chore."""
    clock, told, values = Clock(monkeypatch), Told(), iter([{}, {"name": False}])
    chore = watching.Chore("listing a", lambda: next(values)["name"], 60.0, told)
    assert not chore.do_if_due()
    clock.now += 60
    assert not chore.do_if_due()
    assert [what for what, _ in told.said] == ["failed", "recovered"]
    assert "KeyError: 'name'" in told.said[0][1]


def test_chore_that_has_more_to_do_goes_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass in several parts does not wait the interval between its parts."""
    Clock(monkeypatch)
    more = [True, True, False]
    chore = watching.Chore("listing a", lambda: more.pop(0), 60.0, Told())
    assert [chore.do_if_due() for _ in range(5)] == [True, True, False, False, False]
    assert more == []


def test_watched_listing_tells_changes_alarms_and_pauses_once(make_workspace: MakePlace) -> None:
    """Quiet where nothing changes; an alarm and a pause are said when they begin."""
    workspace = make_workspace().open()
    store, told = scripted(workspace, keys=[f"n{n}" for n in range(20)]), Told()
    listing = watching._Listing(workspace, "source", told)
    assert not any(listing.go_on() for _ in range(3))
    assert told.said == [("found", "source: 20 new")]
    kept, store.etags = store.etags, {}
    for _ in range(3):
        listing.go_on()
    assert [what for what, _ in told.said[1:]] == ["alarm"]
    store.etags = kept
    store.before = raising(DailyCapError("cap exceeded", time.time() + 60))
    for _ in range(3):
        assert not listing.go_on()
    assert told.said[2:] == [("waits", "source: cap exceeded")]


def test_watched_inbox_is_quiet_where_nothing_changed(make_workspace: MakePlace) -> None:
    """Events that name what is known already are settled without a word."""
    workspace, told = make_workspace().open(), Told()
    scripted(workspace, keys=["a"])
    workspace.ledger.inbox.add([Hint(str(n), "test", "source", "a") for n in range(2)])
    assert watching._drain(workspace, told)
    workspace.ledger.inbox.add([Hint("again", "test", "source", "a")])
    assert not watching._drain(workspace, told)
    assert told.said == [("found", "events: 1 new")]
    assert Drained(n_hints=1, n_unchanged=1).has_changes is False
