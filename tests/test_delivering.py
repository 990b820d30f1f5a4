"""Telling of matches: once, signed, to those who take it, and with patience for those who do not."""

import hashlib
import hmac
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_driver import Driver
from places import Place
from sqlalchemy import text
from watch_driver import SECRET, Receiver, counter, make_due, process_new, record_matches, tellings

from mm_assets.cli import watching
from mm_assets.flows import delivering
from mm_assets.flows.delivering import deliver, tell, to_test_notice
from mm_assets.flows.subscribing import Wish, subscribe
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import Ledger, Match, SeenObject, Watch

MakePlace = Callable[..., Place]
WRITE = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read()); sys.exit(int(sys.argv[2]))"
HOSTILE = "$(touch pwned) ; `id` \"'\n && 𝄞.mp4"


# -- webhooks ----------------------------------------------------------------------------------------------------------


def test_a_match_is_told_once_and_signed(told: Callable[..., Any]) -> None:
    """The receiver can check sender, time and body, and tell a repetition by its key."""
    workspace, receiver = told(names=("films/é.mp4",))
    assert deliver(workspace, 5) == {"sent": 1}
    assert deliver(workspace, 5) == {}

    [(_, headers, body)] = receiver.asked
    signed = f"{headers['X-MM-Assets-Timestamp']}.".encode() + body
    expected = "v1=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-MM-Assets-Signature"] == expected
    assert abs(int(headers["X-MM-Assets-Timestamp"]) - time.time()) < 60
    notice = json.loads(body)
    assert headers["Idempotency-Key"] == notice["match_id"]
    assert headers["Content-Type"] == "application/json"
    version = ObjectVersion("source", "films/é.mp4", "e")
    assert notice["object"] == {"bucket": "source", "key": version.key, "etag": "e", "object_id": version.object_id}
    assert (notice["watch"], notice["is_test"]) == ("all", False)
    assert [notice[name] for name in ("start_s", "end_s", "page_number", "score")] == [1.0, 2.5, None, 0.5]
    assert tellings(workspace) == [("sent", 1, None)]


def test_the_receiver_of_the_documentation_knows_what_is_ours(told: Callable[..., Any]) -> None:
    """The example of docs/operations.md takes a notice, and refuses a changed one, an old one and another secret."""
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    [source] = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(source, "operations.md", "exec"), names)  # noqa: S102  the example itself is under test
    workspace, receiver = told(names=("a",))
    deliver(workspace, 5)

    [(_, headers, body)] = receiver.asked
    older = {**headers, "X-MM-Assets-Timestamp": str(int(headers["X-MM-Assets-Timestamp"]) - 301)}
    signed = f"{older['X-MM-Assets-Timestamp']}.".encode() + body
    older["X-MM-Assets-Signature"] = "v1=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert names["is_ours"](headers, body, SECRET)
    assert not names["is_ours"](headers, body + b" ", SECRET)
    assert not names["is_ours"](headers, body, "another-secret-of-these-tests")
    assert not names["is_ours"](older, body, SECRET)


def test_matches_are_told_at_the_end_of_their_batch(
    make_workspace: MakePlace, receive: Callable[..., Receiver]
) -> None:
    """Nobody has to ask for it, and a receiver that fails does not make the batch fail."""
    workspace, good, bad = make_workspace("picture0.png", "broken.png").open(), receive(), receive(500)
    subscribe(workspace, Wish("good", text="x", threshold=-1, webhook=good.url))
    subscribe(workspace, Wish("bad", text="x", threshold=-1, webhook=bad.url))
    process_new(workspace)
    assert (good.keys, bad.keys) == (["picture0.png"], ["picture0.png"])
    assert counter(workspace, "deliveries_total") == {"sent": 1, "waiting": 1}
    assert counter(workspace, "matches_waiting") == {"": 1}


def test_redirects_are_not_followed(told: Callable[..., Any]) -> None:
    """A receiver cannot send us to another place, inside our network, say."""
    workspace, receiver = told(302, names=("a",))
    deliver(workspace, 5)
    assert [path for path, *_ in receiver.asked] == ["/hook"]
    [(state, _, error)] = tellings(workspace)
    assert state == "waiting"
    assert error is not None
    assert error.startswith("HTTP 302: redirects are not followed")


@pytest.mark.parametrize(
    ("status", "state"), [(410, "given_up"), (401, "given_up"), (429, "waiting"), (503, "waiting")]
)
def test_an_answer_says_whether_another_try_may_help(status: int, state: str, told: Callable[..., Any]) -> None:
    """Gone and forbidden end it at once; too many and out of order do not."""
    workspace, receiver = told(status, names=("a",))
    deliver(workspace, 5)
    make_due(workspace)
    deliver(workspace, 5)
    n_tries = 1 if state == "given_up" else 2
    assert tellings(workspace) == [(state, n_tries, f"HTTP {status}")]
    assert len(receiver.asked) == n_tries


def test_a_receiver_that_fails_is_asked_again_later_and_given_up_in_the_end(told: Callable[..., Any]) -> None:
    """Not at once, twelve times in all, each under the same key; then the match is given up with its reason."""
    workspace, receiver = told(500, names=("a",))
    for _ in range(15):
        deliver(workspace, 5)
        assert deliver(workspace, 5) == {}
        make_due(workspace)
    assert tellings(workspace) == [("given_up", 12, "12 tries, the last: HTTP 500")]
    assert len({headers["Idempotency-Key"] for _, headers, _ in receiver.asked}) == 1
    assert len(receiver.asked) == 12


def test_waits_double_and_differ() -> None:
    """From half a minute to six hours, never less than half of it, and not all the same."""
    waits = {tries: [delivering.wait_s(tries) for _ in range(50)] for tries in (1, 2, 5, 12)}
    for tries, longest in ((1, 30), (2, 60), (5, 480), (12, 21_600)):
        assert longest / 2 <= min(waits[tries]) < max(waits[tries]) <= longest


def test_a_receiver_that_fails_does_not_hold_up_the_others(told: Callable[..., Any], receive: Any) -> None:
    """It is asked once in a call, whatever waits for it."""
    workspace, bad = told(500, names=("a", "b", "c"))
    good = receive()
    subscribe(workspace, Wish("good", text="x", threshold=-1, webhook=good.url))
    record_matches(workspace, "a", "b", watch="good")
    assert deliver(workspace, 5) == {"waiting": 1, "sent": 2}
    assert (len(bad.asked), sorted(good.keys)) == (1, ["a", "b"])


@pytest.mark.parametrize("option", ["delay_s", "drip_s"])
def test_a_receiver_that_does_not_answer_costs_its_time_and_no_more(
    option: str, told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it sends its answer byte by byte."""
    monkeypatch.setattr(delivering, "_WEBHOOK_S", 0.3)
    workspace, _ = told(names=("a",), **{option: 0.1 if option == "drip_s" else 2.0})
    started = time.monotonic()
    deliver(workspace, 5)
    assert time.monotonic() - started < 1.5
    assert [state for state, *_ in tellings(workspace)] == ["waiting"]


def test_two_that_tell_at_once_tell_nothing_twice(told: Callable[..., Any]) -> None:
    """Each match is claimed before it is sent."""
    names = tuple(f"k{n}" for n in range(12))
    workspace, receiver = told(names=names, delay_s=0.02)
    threads = [threading.Thread(target=deliver, args=(workspace, 10)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receiver.keys) == sorted(names)


_LEFT, _LIVE = ObjectVersion("b", "k", "superseded"), ObjectVersion("b", "k", "e")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open a ledger with a watch and a match, on SQLite and on PostgreSQL in turn."""
    opened = Ledger(ledger_url)
    opened.watches.add(Watch("w", "all", "text", "x", 0.5, vector=b"1234", recipe="r", command="true"), b"picture")
    for version in (_LEFT, _LIVE):
        scan = opened.objects.scan("b")
        opened.objects.record_page("b", [SeenObject(version, 1, 0.0)], at=scan, after="", shard_objects=5)
    assert len(opened.watches.record([_match_of(_LIVE)])) == 1
    yield opened
    opened.close()


def _match_of(version: ObjectVersion, watch_id: str = "w") -> Match:
    return Match(watch_id, version.object_id, "s", None, None, 3, 0.5)


def test_a_claim_lasts_as_long_as_its_lease(ledger: Ledger) -> None:
    """Who died over it is replaced after that, and what it says when it wakes up counts no more."""
    first = ledger.watches.claim_due(-1.0)
    second = ledger.watches.claim_due(60.0)
    assert ledger.watches.claim_due(60.0) is None
    assert first is not None
    assert second is not None
    assert (first.tries, second.tries) == (1, 2)
    ledger.watches.settle(first, "given_up", "late")
    ledger.watches.settle(second, "sent")
    ledger.watches.settle(replace(second), "given_up", "twice")
    assert [(known.state, known.error) for known in ledger.watches.matches()] == [("sent", None)]


def test_the_books_keep_one_match_of_what_is_there(ledger: Ledger) -> None:
    """Not a second one, none of a watch that was removed meanwhile, none of a version that left."""
    others = [_match_of(_LIVE), _match_of(_LIVE, "removed"), _match_of(_LEFT)]
    assert ledger.watches.record(others) == []
    assert ledger.watches.counts() == {"all": {"waiting": 1, "sent": 0, "given_up": 0}}
    [watch] = ledger.watches.all()
    assert (watch.vector, watch.threshold, ledger.watches.picture("w")) == (b"1234", 0.5, b"picture")
    assert not ledger.watches.add(replace(watch, watch_id="another"))
    assert ledger.watches.remove("all")
    assert not ledger.watches.remove("all")
    assert ledger.watches.matches() == []


def test_a_ledger_of_an_earlier_release_gets_the_tables(ledger_url: str) -> None:
    """Opening it is enough."""
    before = Ledger(ledger_url)
    with before._engine.begin() as connection:
        for statement in (
            "DROP TABLE matches",
            "DROP TABLE watches",
            "UPDATE facts SET value = '4' WHERE name = 'schema'",
        ):
            connection.execute(text(statement))
    before.close()
    after = Ledger(ledger_url)
    assert after.watches.add(Watch("w", "all", "said", "x", command="true"))
    assert after.watches.counts() == {"all": {"waiting": 0, "sent": 0, "given_up": 0}}
    after.close()


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_gets_the_match_on_its_input_and_no_shell(
    code: int, make_workspace: MakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is data whatever stands in it; a command that fails is run again later."""
    monkeypatch.chdir(tmp_path)
    workspace, out = make_workspace().open(), tmp_path / "out.jsonl"
    command = f"'{sys.executable}' -c \"{WRITE}\" '{out}' {code}"
    subscribe(workspace, Wish("all", text="x", threshold=-1, command=command))
    record_matches(workspace, HOSTILE)
    deliver(workspace, 20)
    assert [json.loads(line)["object"]["key"] for line in out.read_text().splitlines()] == [HOSTILE]
    assert not list(tmp_path.glob("pwned"))
    expected = ("waiting", 1, "it ended with code 3") if code else ("sent", 1, None)
    assert tellings(workspace) == [expected]


def test_a_command_that_hangs_or_is_missing_is_a_failed_try(
    make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended after its time."""
    monkeypatch.setattr(delivering, "_COMMAND_S", 0.2)
    workspace = make_workspace().open()
    for name, command in (("slow", "sleep 30"), ("missing", "/no/such/program")):
        watch = subscribe(workspace, Wish(name, text="x", threshold=-1, command=command))
        outcome = tell(watch, to_test_notice(watch))
        assert (outcome.state, outcome.error is not None) == ("waiting", True)


# -- who tells ---------------------------------------------------------------------------------------------------------


def test_who_follows_the_bucket_tells_what_waits(told: Callable[..., Any]) -> None:
    """``mm ingest --watch`` has a chore for it, and says what came of it."""
    workspace, receiver = told(names=("a", "b"))
    said: list[tuple[str, str]] = []
    runner: Any = None
    chores = watching._chores(workspace, runner, [], 60.0, lambda what, told, **_: said.append((what, told)))
    assert chores["matches"].do_if_due()
    assert not chores["matches"].do_if_due()
    assert sorted(receiver.keys) == ["a", "b"]
    assert said == [("told", "matches of watches: 2 sent (mm watch matches)")]


def test_the_sensor_of_events_tells_what_waits(
    told: Callable[..., Any], instance: dg.DagsterInstance, tmp_path: Path, media: Path
) -> None:
    """Without a run there is no batch at whose end it would be told."""
    workspace, receiver = told(names=("a",))
    Driver(Place(tmp_path, media), instance, workspace).tick("bucket_events_sensor")
    assert receiver.keys == ["a"]


def test_what_a_removed_watch_waited_for_is_not_told(told: Callable[..., Any]) -> None:
    """Removing it is the end of it."""
    workspace, receiver = told(names=("a",))
    assert workspace.ledger.watches.remove("all")
    assert deliver(workspace, 5) == {}
    assert receiver.asked == []
