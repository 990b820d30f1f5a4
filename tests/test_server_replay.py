"""The script that plays Backblaze: what it says it sent is what the receiver holds, and afterwards the ledger is the bucket."""

import threading
from argparse import Namespace
from collections.abc import Callable, Sequence

import pytest
from places import Place
from replay_events import Outcome, Plan, list_objects, main, make_plan, send
from s3_server import Answer, fault_server
from server_driver import ALL_ON, B2_SECRET, serving

from mm_assets.errors import ServiceError
from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger.inbox import Hint


def arguments(**values: object) -> Namespace:
    """Return arguments of the script."""
    given = {"rate": 1e6, "seconds": None, "duplicate": 0.0, "lose": 0.0, "shuffle": False, "seed": 1}
    return Namespace(**(given | values))


def place_with(make_workspace: Callable[..., Place], n_files: int) -> Place:
    """Give a watched folder with so many small files."""
    place = make_workspace(**ALL_ON)
    for n in range(n_files):
        (place.source / f"a {n:03}+é.txt").write_text(str(n), encoding="utf-8")
    return place


def live(workspace: Workspace) -> dict[str, str]:
    """Return key → ETag of what the ledger holds to be there."""
    keys = [stored.key for stored in workspace.sources["source"].list_page().objects]
    return {key: known.version.etag for key, known in workspace.ledger.objects.live_at_key("source", keys).items()}


def test_lost_repeated_and_shuffled_events_end_in_the_bucket(
    make_workspace: Callable[..., Place], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed, drained, listed once: the ledger equals the folder, and the listing found what was lost."""
    place = place_with(make_workspace, 300)
    workspace = place.open()
    with serving(workspace) as client:
        given = ["--url", f"http://127.0.0.1:{client.port}", "--config", str(place.config_file), "--rate", "100000"]
        chances = ["--duplicate", ".3", "--lose", ".1", "--shuffle"]
        monkeypatch.setattr("sys.argv", ["replay_events.py", *given, *chances])
        assert main() == 0
    told = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    n_lost, n_twice = int(told["lost on purpose"]), int(told["sent twice"])
    assert n_lost > 0
    assert n_twice > 0
    assert int(told["accepted"]) == 300 - n_lost + n_twice
    assert workspace.ledger.inbox.depth() == 300 - n_lost
    assert drain_inbox(workspace).n_new == 300 - n_lost
    assert discover(workspace, "source").n_new == n_lost
    assert live(workspace) == {item.key: item.etag for item in workspace.sources["source"].list_page().objects}


def test_plan_is_what_was_asked_for(make_workspace: Callable[..., Place]) -> None:
    """Batches of one to the limit, at the rate, for the time."""
    place = place_with(make_workspace, 10)
    objects = list(list_objects(place.open().settings))
    plan = make_plan(objects, 50, arguments(rate=1_000.0, seconds=2.0, duplicate=0.5))
    sizes = [n for _, n, _ in plan.deliveries]
    assert plan.n_events == 2_000
    assert sum(sizes) == 2_000 + plan.n_repeated
    assert max(sizes) <= 50
    assert plan.deliveries[-1][0] == pytest.approx((sum(sizes) - sizes[-1]) / 1_000)
    assert make_plan(objects, 50, arguments(seed=2)).n_events == 10


def test_503_is_obeyed(make_workspace: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the ledger fails deliveries are sent again, and in the end none is missing."""
    workspace = place_with(make_workspace, 0).open()
    add, lock, failures = workspace.ledger.inbox.add, threading.Lock(), [3]

    def flaky(hints: Sequence[Hint]) -> int:
        with lock:
            failures[0] -= 1
            if failures[0] >= 0:
                msg = "down"
                raise ServiceError(msg)
        return add(hints)

    monkeypatch.setattr(workspace.ledger.inbox, "add", flaky)
    monkeypatch.setattr("mm_assets.server.app._RETRY_AFTER_S", "0")
    objects = [("source", f"key{n}") for n in range(100)]
    with serving(workspace) as client:
        plan = make_plan(objects, 20, arguments())
        outcome = send(plan, f"http://127.0.0.1:{client.port}/events/b2", B2_SECRET, 2)
    assert outcome.n_resent >= 3
    assert (outcome.n_accepted, outcome.n_refused) == (100, 0)
    assert workspace.ledger.inbox.depth() == 100


def test_wrong_secret_is_a_refusal(make_workspace: Callable[..., Place]) -> None:
    """What the receiver does not take is counted, not sent for ever."""
    with serving(place_with(make_workspace, 0).open()) as client:
        plan = Plan([(0.0, 1, b'{"events": []}')], 1, 0, 0)
        outcome: Outcome = send(plan, f"http://127.0.0.1:{client.port}/events/b2", "wrong" * 5, 1)
    assert outcome.n_refused == 1


def test_date_in_retry_after_is_read() -> None:
    """A proxy may answer with an HTTP date, long past here: the delivery is sent again, and counted."""
    date = Answer(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    with fault_server(date, Answer(200)) as server:
        outcome = send(Plan([(0.0, 3, b"{}")], 3, 0, 0), server.url, "s" * 20, 1)
    assert (outcome.n_accepted, outcome.n_refused, outcome.n_resent) == (3, 0, 1)


def test_repeatable() -> None:
    """The same seed loses and repeats the same events."""
    objects = [("b", str(n)) for n in range(200)]
    first, second = (make_plan(objects, 50, arguments(lose=0.2, duplicate=0.2)) for _ in range(2))
    assert (first.n_lost, first.n_repeated) == (second.n_lost, second.n_repeated)
