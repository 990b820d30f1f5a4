"""Hints of events: each becomes a HEAD, and nothing that is told changes what is true."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fakes import open_fake_workspace
from hypothesis import given, settings
from hypothesis import strategies as st
from places import Place
from scripted_store import ScriptedStore, live, raising, scripted

from mm_assets.buckets.base import BreakerOpenError, DailyCapError
from mm_assets.errors import ConfigError, ObjectError, Reason, ServiceError
from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import Drained, drain_inbox
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import SeenObject
from mm_assets.ledger.inbox import Hint
from mm_assets.settings import Settings

MakePlace = Callable[..., Place]


def tell(workspace: Workspace, *keys: str, alias: str = "source", prefix: str = "") -> None:
    """Put a hint for each key into the inbox; every event is another one."""
    told = time.monotonic_ns()
    workspace.ledger.inbox.add([Hint(f"{prefix}{told}-{n}", "test", alias, key) for n, key in enumerate(keys)])


def known(make_workspace: MakePlace, n: int = 100, **options: Any) -> tuple[Workspace, ScriptedStore]:
    """Give a workspace that knows so many objects, and its store."""
    workspace = make_workspace(**options).open()
    store = scripted(workspace, keys=[f"n{number:03}" for number in range(n)])
    discover(workspace, "source")
    return workspace, store


def test_a_hint_is_worth_a_head(make_workspace: MakePlace) -> None:
    """New, changed, gone and unchanged objects are told apart by what is there, and all hints are settled."""
    workspace, store = known(make_workspace)
    store.etags |= {"new": "1", "n001": "2"}
    del store.etags["n002"]
    tell(workspace, "new", "n001", "n002", "n003", "never-was")

    drained = drain_inbox(workspace)

    assert drained == Drained(n_hints=5, n_new=1, n_changed=1, n_gone=1, n_unchanged=2)
    assert live(workspace) == store.etags
    assert workspace.ledger.inbox.depth() == 0


def test_repeated_hints_cost_one_head(make_workspace: MakePlace) -> None:
    """Whatever events say of a key, and how often, it is looked at once."""
    workspace, store = known(make_workspace, 1)
    store.etags["new"] = "1"
    for _ in range(5):
        tell(workspace, "new", "n000")
    assert drain_inbox(workspace).n_hints == 2
    assert store.asked["head", "new"] == store.asked["head", "n000"] == 1
    assert workspace.ledger.inbox.depth() == 0
    assert drain_inbox(workspace) == Drained()


def test_settings_choose_among_hints(make_workspace: MakePlace, tmp_path: Path) -> None:
    """Patterns, sizes and our own files hold for events as for listings; what is not ours is settled without a row."""
    sources = [{"uri": str(tmp_path / "source"), "alias": "source", "include": ["*.png", "lake/**"], "exclude": ["x*"]}]
    place = make_workspace(sources=sources, lake={"uri": str(tmp_path / "source" / "lake")})
    workspace = place.open()
    store = scripted(workspace, keys=["a.png", "b.txt", "x.png", "lake/results/r.png"])
    tell(workspace, *store.etags)
    tell(workspace, "a.png", alias="no-longer-a-source")

    drained = drain_inbox(workspace)

    assert (drained.n_new, drained.n_unchanged) == (1, 4)
    assert live(workspace).keys() == {"a.png"}
    assert workspace.ledger.inbox.depth() == 0


def test_a_failing_head_is_put_off_and_holds_up_nobody(
    make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint is given up by no failure of the service: the others go first, and it is looked at again later."""
    monkeypatch.setattr("mm_assets.flows.hints._WAIT_S", 0.2)
    workspace, store = known(make_workspace, 1)
    store.etags |= {"good": "1", "bad": "1"}
    store.before = raising(ServiceError("503"), key="bad")
    tell(workspace, "bad", "good")

    assert drain_inbox(workspace) == Drained(n_hints=2, n_new=1, n_put_off=1)
    assert drain_inbox(workspace) == Drained()  # not yet
    assert workspace.ledger.inbox.depth() == 1
    store.before = lambda *_: None
    time.sleep(0.3)
    assert drain_inbox(workspace) == Drained(n_hints=1, n_new=1)
    assert live(workspace) == store.etags


def test_waits_grow_with_failures(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that fails again and again is asked for less and less, at least once an hour."""
    workspace, store = known(make_workspace, 1)
    store.before = raising(ConfigError("403"), operation="head")
    tell(workspace, "key")
    waits: list[float] = []
    put_off = workspace.ledger.inbox.put_off

    def note(inbox_ids: Any, wait_s: float, *, is_failure: bool) -> None:
        waits.append(wait_s)
        put_off(inbox_ids, 0.0, is_failure=is_failure)

    monkeypatch.setattr(workspace.ledger.inbox, "put_off", note)
    for _ in range(9):
        drain_inbox(workspace, limit=1)
    assert waits == [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600]


def fail_often(workspace: Workspace, n: int) -> None:
    """Count failures of the one hint that waits."""
    [hint] = workspace.ledger.inbox.waiting(1)
    for _ in range(n):
        workspace.ledger.inbox.put_off(hint.inbox_ids, -1.0)


@pytest.mark.parametrize("error", [ServiceError("503"), ConfigError("403")])
def test_no_number_of_failures_is_too_many(make_workspace: MakePlace, error: Exception) -> None:
    """A service or a setting that is wrong for months condemns no key: it is put off, and found when that is mended."""
    workspace, store = known(make_workspace, 1)
    store.etags |= {"key": "1"}
    store.before = raising(error, operation="head")
    tell(workspace, "key")
    fail_often(workspace, 1_100)
    assert drain_inbox(workspace) == Drained(n_hints=1, n_put_off=1)
    assert workspace.ledger.objects.refusals() == []
    store.before = lambda *_: None
    workspace.ledger.inbox.put_off([row.inbox_id for row in inbox_rows(workspace)], -1.0)
    assert drain_inbox(workspace) == Drained(n_hints=1, n_new=1)


@pytest.mark.parametrize("error", [OverflowError("of a date"), RuntimeError("bug")])
def test_a_key_that_is_never_described_is_settled(
    make_workspace: MakePlace, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails for half a day, and not for the service's or the settings' sake, is asked for no more."""
    workspace, store = known(make_workspace, 1)
    store.before = raising(error, operation="head")
    tell(workspace, "key")
    fail_often(workspace, 20)
    assert drain_inbox(workspace) == Drained(n_hints=1, n_refused=1)
    assert str(error) in caplog.text
    assert workspace.ledger.objects.refusals() == []
    assert workspace.ledger.inbox.depth() == 0


def test_an_unexpected_error_of_one_key_holds_up_nobody(make_workspace: MakePlace) -> None:
    """A bug that one object brings to light stops the draining of no other."""
    workspace, store = known(make_workspace, 1)
    store.etags |= {"bad": "1", "good": "1"}
    store.before = raising(RuntimeError("bug"), key="bad")
    tell(workspace, "bad", "good")
    assert drain_inbox(workspace) == Drained(n_hints=2, n_new=1, n_put_off=1)


def test_what_was_not_asked_for_has_not_failed(make_workspace: MakePlace) -> None:
    """A pause and an open breaker are no failures of a key: it does not wait longer for them, and is never given up."""
    workspace = make_workspace().open()
    store = scripted(workspace, keys=["key"])
    store.before = raising(BreakerOpenError("open"))
    tell(workspace, "key")
    drain_inbox(workspace)
    [row] = inbox_rows(workspace)
    assert row.fails == 0
    assert row.not_before > time.time()


def inbox_rows(workspace: Workspace) -> list[Any]:
    """Return all rows of the inbox."""
    from sqlalchemy import select

    from mm_assets.ledger.tables import INBOX

    with cast("Any", workspace.ledger)._engine.connect() as connection:
        return list(connection.execute(select(INBOX)))


@pytest.mark.parametrize("error", [DailyCapError("cap exceeded", 4e9), BreakerOpenError("the breaker is open")])
def test_a_source_that_may_not_be_asked_keeps_its_hints(make_workspace: MakePlace, error: Exception) -> None:
    """At a cap or an open breaker no further key is asked for, nothing is lost, and other sources are drained."""
    workspace = make_workspace(aliases=("source", "other")).open()
    store, other = scripted(workspace), scripted(workspace, "other", keys=["b"])
    store.etags |= {f"n{n:02}": "1" for n in range(60)}

    def refuse(*_: str) -> None:
        time.sleep(0.01)  # as long as an answer takes at least
        raise error

    store.before = refuse
    tell(workspace, *store.etags)
    tell(workspace, "b", alias="other")

    drained = drain_inbox(workspace)

    assert (drained.n_put_off, drained.n_new, workspace.ledger.inbox.depth()) == (60, 1, 60)
    assert live(workspace, "other") == other.etags
    assert store.n_asked("head") <= 40  # those that were under way, and not all sixty
    assert ("source" in workspace.ledger.objects.paused()) == isinstance(error, DailyCapError)
    tell(workspace, "n00")
    n_asked = store.n_asked("head")
    if isinstance(error, DailyCapError):
        assert drain_inbox(workspace).n_put_off == 1
        assert store.n_asked("head") == n_asked


def test_a_key_that_the_store_cannot_hold_is_settled(
    make_workspace: MakePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever sends events writes no row by it: what is there a listing tells."""
    place = make_workspace()
    workspace = place.open()
    scripted(workspace).before = raising(ObjectError(Reason.POLICY, "no folder can hold it"))
    tell(workspace, "a/../../b\x1b[31m")

    assert drain_inbox(workspace) == Drained(n_hints=1, n_refused=1)

    assert "'a/../../b\\x1b[31m', which cannot be looked at: policy: no folder can hold it" in caplog.text
    assert workspace.ledger.objects.refusals() == []
    assert not (place.lake / "dead_letters").exists()
    assert workspace.ledger.inbox.depth() == 0


def test_objects_that_come_and_go_do_not_count_for_the_brake(make_workspace: MakePlace) -> None:
    """Temporary files that events brought and took, before any listing saw them, hold nothing up."""
    workspace, store = known(make_workspace)
    temporary = [f"temporary{number:03}" for number in range(150)]
    store.etags |= dict.fromkeys(temporary, "1")
    tell(workspace, *temporary)
    assert drain_inbox(workspace).n_new == 150
    for key in temporary:
        del store.etags[key]
    tell(workspace, *temporary)

    assert drain_inbox(workspace).n_gone == 150

    del store.etags["n000"]
    found = discover(workspace, "source")
    assert (found.n_gone, found.alarm) == (1, None)
    assert live(workspace) == store.etags


def test_a_version_that_comes_after_its_head_stays(make_workspace: MakePlace) -> None:
    """What a listing records between the HEAD that says absent and the write is not retired by it."""
    workspace, store = known(make_workspace)
    del store.etags["n000"]
    tell(workspace, "n000")
    shard_objects = workspace.settings.refresh.shard_objects

    def record_late(_: str, key: str) -> None:
        if key != "n000" or "n000" in late:
            return
        late.append(key)
        version = ObjectVersion("source", "n000", "of-the-listing")
        workspace.ledger.objects.record_hinted("source", [SeenObject(version, 1, 1.0)], (), shard_objects=shard_objects)

    late: list[str] = []
    store.before = record_late
    drain_inbox(workspace)

    assert late == ["n000"]
    assert workspace.ledger.inbox.depth() == 0
    assert live(workspace)["n000"] == "of-the-listing"


def test_a_flood_of_deletions_is_held(make_workspace: MakePlace) -> None:
    """Events delete no more of a source at once than a listing may; the next pass raises the alarm for the rest."""
    workspace, store = known(make_workspace)
    for number in range(9):
        del store.etags[f"n{number:03}"]
    tell(workspace, *(f"n{number:03}" for number in range(9)))
    assert drain_inbox(workspace).n_gone == 9
    for number in range(9, 30):
        del store.etags[f"n{number:03}"]
    tell(workspace, *(f"n{number:03}" for number in range(9, 30)))

    drained = drain_inbox(workspace)

    assert (drained.n_gone, drained.n_braked, len(live(workspace))) == (0, 21, 91)
    found = discover(workspace, "source")
    assert found.n_gone == 0
    assert "30 of 100" in (found.alarm or "")
    assert "the first 9 were removed" in (found.alarm or "")
    assert workspace.ledger.objects.confirm_deletions("source")
    assert discover(workspace, "source").n_gone == 21
    assert live(workspace) == store.etags


def test_hints_are_settled_with_what_they_led_to(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the commit, neither the row nor the settling is there; the hint waits as before."""
    workspace, store = known(make_workspace, 1)
    store.etags["new"] = "1"
    del store.etags["n000"]
    tell(workspace, "new", "n000")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mm_assets.ledger.inbox.settle", die)
        with pytest.raises(KeyboardInterrupt):
            drain_inbox(workspace)

    assert live(workspace) == {"n000": "1"}
    assert workspace.ledger.inbox.depth() == 2
    assert drain_inbox(workspace).n_new == 1


def test_draining_ends_in_its_time(make_workspace: MakePlace) -> None:
    """What the time did not suffice for waits as before, and two calls do what one could not."""
    workspace, store = known(make_workspace, 1)
    store.etags |= {f"new{n:02}": "1" for n in range(80)}
    store.before = lambda *_: time.sleep(0.2)
    tell(workspace, *(f"new{n:02}" for n in range(80)))
    started = time.monotonic()

    first = drain_inbox(workspace, deadline_s=1.0)

    assert time.monotonic() - started < 1.9  # all of them take two seconds
    assert 0 < first.n_new < 80
    assert workspace.ledger.inbox.depth() == 80 - first.n_new
    second = drain_inbox(workspace)
    assert first.n_new + second.n_new + first.n_put_off == 80


def test_two_drainers_do_the_work_of_one(make_workspace: MakePlace) -> None:
    """While one process drains, another returns at once; each key is looked at once."""
    place = make_workspace()
    workspace, other = place.open(), place.open()
    store = scripted(workspace, keys=[f"n{n:02}" for n in range(30)])
    other.sources = workspace.sources
    began = threading.Event()
    store.before = lambda *_: (began.set(), time.sleep(0.02))[1]
    tell(workspace, *store.etags)
    thread = threading.Thread(target=drain_inbox, args=(workspace,))
    thread.start()
    began.wait(10)
    assert drain_inbox(other) == Drained()
    thread.join(30)
    assert live(workspace) == store.etags
    assert set(store.asked.values()) == {1}


def test_settled_hints_are_forgotten_after_a_week(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then a repeated event is known for what it is; afterwards it costs one HEAD."""
    workspace, _ = known(make_workspace, 1)
    event = Hint("once", "test", "source", "n000")
    workspace.ledger.inbox.add([event])
    drain_inbox(workspace)
    assert workspace.ledger.inbox.add([event]) == 0
    monkeypatch.setattr("mm_assets.flows.hints._KEEP_DONE_S", -1.0)
    tell(workspace, "n000")
    drain_inbox(workspace)
    assert workspace.ledger.inbox.add([event]) == 1


# -- whatever happens, the ledger ends like the bucket -----------------------------------------------------------------

KEYS = st.sampled_from([f"k{n}" for n in range(6)])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.sampled_from("123")),
        st.tuples(st.just("delete"), KEYS, st.none()),
        st.tuples(st.just("tell"), st.lists(KEYS, max_size=8), st.none()),
        st.tuples(st.just("drain"), st.none(), st.none()),
        st.tuples(st.just("list"), st.none(), st.none()),
    ),
    max_size=30,
)


@pytest.mark.fault(19)
@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_lost_repeated_late_and_swapped_events_change_nothing_in_the_end(steps: list[Any]) -> None:
    """After any history of changes, events and half passes, one complete pass makes ledger and bucket equal."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("mm_assets.flows.discovery._PAGE", 2)
        patch.setattr("mm_assets.flows.discovery._PAGES_AT_ONCE", 1)
        source, lake = {"uri": folder, "alias": "source"}, {"uri": f"{folder}/lake"}
        workspace = open_fake_workspace(
            Settings(sources=[source], lake=lake, state=f"{folder}/state", refresh={"gone_brake": 1.0})  # type: ignore[arg-type]
        )
        store = scripted(workspace)
        for number, (what, key, etag) in enumerate(steps):
            _happen(workspace, store, what, key, etag, number)
            live(workspace)
        _complete_pass(workspace)
        assert live(workspace) == store.etags
        workspace.close()


def _happen(workspace: Workspace, store: ScriptedStore, what: str, key: Any, etag: Any, number: int) -> None:
    if what == "put":
        store.etags[key] = etag
    elif what == "delete":
        store.etags.pop(key, None)
    elif what == "tell":
        tell(workspace, *key, prefix=f"{number}-")
    elif what == "drain":
        drain_inbox(workspace)
    else:  # a page, and then the process dies
        store.after = raising(KeyboardInterrupt(), operation="list")  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            discover(workspace, "source")
        store.after = lambda *_: None


def _complete_pass(workspace: Workspace) -> None:
    """End the pass that is under way, confirm what it held, and make a whole one."""
    for _ in range(2):
        if discover(workspace, "source").alarm:
            workspace.ledger.objects.confirm_deletions("source")
    discover(workspace, "source")
