"""Whose object an event means, and that nobody is told of a commit that did not happen."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from mm_assets.errors import ServiceError
from mm_assets.events.base import Delivery, Event, Ignored, make_event
from mm_assets.flows.receiving import Receiver, Router
from mm_assets.ledger import Ledger
from mm_assets.ledger.inbox import Hint
from mm_assets.settings import LakeSettings, Settings, SourceSettings


def settings(tmp_path: Path, *sources: dict[str, Any], lake: str = "s3://lake") -> Settings:
    """Return settings with these sources."""
    return Settings(
        sources=tuple(SourceSettings(**source) for source in sources),
        lake=LakeSettings(uri=lake),
        state=tmp_path / "state",
    )


def event(key: str, bucket: str = "media") -> Event:
    """Return an event."""
    return make_event("created", bucket, key, "1")


def route(of: Settings, *events: Event) -> tuple[list[tuple[str, str]], dict[Ignored, int]]:
    """Return (alias, key) of the hints, and what was ignored."""
    routed = Router(of).route("b2", Delivery(events))
    return [(hint.alias, hint.key) for hint in routed.hints], dict(routed.ignored)


def test_key_is_given_below_the_prefix(tmp_path: Path) -> None:
    """The ledger's keys are those of the source, not of the bucket."""
    watched = settings(tmp_path, {"uri": "s3://media/raw", "alias": "raw"})
    assert route(watched, event("raw/a.jpg"), event("raw/b//c")) == ([("raw", "a.jpg"), ("raw", "b//c")], {})


def test_every_source_of_a_bucket_is_told(tmp_path: Path) -> None:
    """One bucket may be watched twice, side by side or nested; each gets a hint with an id of its own."""
    watched = settings(tmp_path, {"uri": "s3://media", "alias": "all"}, {"uri": "s3://media/raw", "alias": "raw"})
    assert route(watched, event("raw/a.jpg"))[0] == [("all", "raw/a.jpg"), ("raw", "a.jpg")]
    routed = Router(watched).route("b2", Delivery((event("raw/a.jpg"),)))
    assert len({hint.event_id for hint in routed.hints}) == 2


@pytest.mark.parametrize(
    ("key", "bucket", "why"),
    [
        ("a.jpg", "other", Ignored.UNKNOWN_BUCKET),
        ("a.jpg", "", Ignored.UNKNOWN_BUCKET),
        ("other/a.jpg", "media", Ignored.NOT_SELECTED),
        ("raw/", "media", Ignored.NOT_SELECTED),
        ("raw/a.txt", "media", Ignored.NOT_SELECTED),
        ("raw/private/a.jpg", "media", Ignored.NOT_SELECTED),
        ("raw/lake/results/a.jpg", "media", Ignored.OWN_FILES),
        ("raw/" + "é" * 510 + ".jpg", "media", Ignored.UNUSABLE_KEY),  # 1,028 bytes; no bucket holds it
    ],
)
def test_what_concerns_nobody_is_counted(tmp_path: Path, key: str, bucket: str, why: Ignored) -> None:
    """Unknown buckets, patterns, and our own lake: no hint."""
    source = {"uri": "s3://media/raw", "include": ["**/*.jpg"], "exclude": ["private/**"]}
    assert route(settings(tmp_path, source, lake="s3://media/raw/lake"), event(key, bucket)) == ([], {why: 1})


def test_folder_goes_by_its_alias(tmp_path: Path) -> None:
    """A folder has no bucket that could send events; programs beside it name its alias."""
    watched = settings(tmp_path, {"uri": str(tmp_path / "media"), "alias": "media"}, lake=str(tmp_path / "lake"))
    assert route(watched, event("a.jpg"))[0] == [("media", "a.jpg")]


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Give an empty ledger."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def receiver(tmp_path: Path, ledger: Ledger) -> Iterator[Receiver]:
    """Give a receiver for one bucket."""
    opened = Receiver(settings(tmp_path, {"uri": "s3://media"}), ledger)
    yield opened
    opened.close()


def delivery(*keys: str) -> Delivery:
    """Return a delivery of events of the watched bucket."""
    return Delivery(tuple(event(key) for key in keys))


def test_future_is_done_after_the_commit(receiver: Receiver, ledger: Ledger) -> None:
    """Whoever waited for it may be told that the event is safe."""
    receiver.receive("b2", delivery("a", "b")).result(10)
    assert ledger.inbox.depth() == 2


def test_delivery_for_nobody_needs_no_commit(receiver: Receiver, ledger: Ledger) -> None:
    """It is answered at once, also while the ledger is slow."""
    assert receiver.receive("b2", Delivery((event("a", "other"),))).done()
    assert ledger.inbox.depth() == 0


def test_what_arrives_during_a_commit_goes_together(
    receiver: Receiver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow commit makes the next one larger, not the queue longer."""
    sizes: list[int] = []
    may_go = threading.Event()
    add = ledger.inbox.add

    def slow(hints: Sequence[Hint]) -> int:
        may_go.wait(10)
        sizes.append(len(hints))
        return add(hints)

    monkeypatch.setattr(ledger.inbox, "add", slow)
    first = receiver.receive("b2", delivery("first"))
    while not first.running():
        threading.Event().wait(0.001)
    threading.Event().wait(0.02)
    rest = [receiver.receive("b2", delivery(f"key{n}")) for n in range(100)]
    may_go.set()
    for stored in rest:
        stored.result(10)
    assert sizes == [1, 100]


def test_failed_commit_fails_all_of_its_group(
    receiver: Receiver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the failure, nobody hears of a success; the next delivery is tried anew."""
    with monkeypatch.context() as broken:
        broken.setattr(ledger.inbox, "add", lambda _: 1 / 0)
        stored = receiver.receive("b2", delivery("a"))
        with pytest.raises(ServiceError, match="send again"):
            stored.result(10)
    receiver.receive("b2", delivery("a")).result(10)
    assert ledger.inbox.depth() == 1


@pytest.mark.parametrize("broken", ["add", "count"])
def test_writer_survives_whatever_fails(
    receiver: Receiver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """An error of no kind that we know, in counting or in what follows a commit, never ends the thread; no count is lost."""
    monkeypatch.setattr("mm_assets.flows.receiving._FLUSH_EVERY_S", 0.0)
    with monkeypatch.context() as failing:
        if broken == "add":
            failing.setattr(ledger.meters, "add", lambda _: 1 / 0)
        else:
            count = receiver.tally.count
            failing.setattr(
                receiver.tally,
                "count",
                lambda name, *n, **labels: ("commits" in name and 1 / 0) or count(name, *n, **labels),
            )
        receiver.receive("b2", delivery("a")).result(10)
        receiver.receive("b2", delivery("b")).result(10)
    receiver.receive("b2", delivery("c")).result(10)
    assert receiver.is_alive
    receiver.close()
    assert ledger.inbox.depth() == 3
    assert ledger.meters.totals()["events_received_total", (("provider", "b2"),)] == 3


def test_full_queue_refuses(receiver: Receiver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded while the ledger stands still; who no longer waits takes his delivery with him."""
    may_go = threading.Event()
    add = ledger.inbox.add
    monkeypatch.setattr(ledger.inbox, "add", lambda hints: may_go.wait(10) and add(hints))
    waiting: list[Future[None]] = []
    with pytest.raises(ServiceError, match="too many"):
        waiting.extend(receiver.receive("b2", delivery(f"key{n}")) for n in range(10_000))
    queued = [receiver._queue.queue[0], receiver._queue.queue[-1]]
    assert queued[-1].stored.cancel()
    may_go.set()
    queued[0].stored.result(10)
    receiver.close()
    known = {hint.key for hint in ledger.inbox.waiting(10_000)}
    assert queued[0].hints[0].key in known
    assert queued[-1].hints[0].key not in known


def test_close_commits_what_was_taken(tmp_path: Path, ledger: Ledger) -> None:
    """The end loses nothing, the counts included."""
    receiver = Receiver(settings(tmp_path, {"uri": "s3://media"}), ledger)
    stored = [receiver.receive("b2", delivery(f"key{n}", "always")) for n in range(50)]
    receiver.close()
    assert all(one.done() for one in stored)
    assert ledger.inbox.depth() == 51
    totals = ledger.meters.totals()
    assert totals["events_received_total", (("provider", "b2"),)] == 100
    assert totals["events_duplicate_total", ()] == 49
