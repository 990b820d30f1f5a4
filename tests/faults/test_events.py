"""Events that are lost, repeated, late or hostile, and a receiver whose database is not there."""

import gzip
import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rig import Rig, alternately, everywhere, once, pairwise
from s3_server import Answer, fault_server
from server_driver import ALL_ON, B2_SECRET, JSON, TOKEN, Client, serving, upload_event
from sqlalchemy import make_url

from mm_assets.events.b2 import SIGNATURE_HEADER
from mm_assets.events.verification import sign
from mm_assets.flows.b2_rules import check_b2_rules
from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.workspace import Workspace

Event = dict[str, Any]


def _told(rig: Rig, key: str, kind: str, number: int) -> Event:
    name = {"put": "b2:ObjectCreated:Upload", "delete": "b2:HideMarkerCreated:Hide"}[kind]
    return upload_event(key, rig.source, eventType=name, eventId=f"{number}-{key}")


def _mutate(rig: Rig, draw: random.Random) -> list[Event]:
    """Write, overwrite and delete objects; returns what a perfect provider would tell."""
    told: list[Event] = []
    for number in range(24):
        key = f"k{draw.randrange(8)}.png"
        if draw.random() < 0.25:
            rig.delete(key)
            told.append(_told(rig, key, "delete", number))
        else:
            rig.put(key, rig.drawn(f"picture{draw.randrange(6)}.png") + bytes([number]))
            told.append(_told(rig, key, "put", number))
    return told


def _spoil(told: list[Event], draw: random.Random) -> list[Event]:
    """Lose a third, repeat a third, swap neighbours, let the first come last."""
    kept = [event for event in told if draw.random() > 0.3]
    spoiled = kept + [event for event in kept if draw.random() < 0.3]
    draw.shuffle(spoiled)
    return spoiled


@pytest.mark.fault(19)
@everywhere
def test_events_of_any_quality_end_in_what_the_bucket_holds(rig: Rig) -> None:
    """Lost, repeated, shuffled, swapped and late ones: each is a hint only, and the listing finds what nobody told."""
    rig.configure(**ALL_ON)
    draw = random.Random(3)
    workspace = rig.open()
    rig.add("picture0.png")
    discover(workspace, "source")
    told = _mutate(rig, draw)
    sent = _spoil(told, draw)
    late, on_time = sent[: len(sent) // 4], sent[len(sent) // 4 :]
    with serving(workspace) as client:
        for start in range(0, len(on_time), 5):
            assert client.b2(*on_time[start : start + 5]).status == 200
    drain_inbox(workspace)
    rig.settle(workspace)
    assert rig.violations() == []
    with serving(workspace) as client:  # an hour later
        assert client.b2(*late).status == 200
    drain_inbox(workspace)
    rig.settle(workspace)

    assert rig.violations() == []
    assert workspace.ledger.meters.totals()[_FOUND] > 0


_FOUND = ("reconcile_found_total", (("alias", "source"),))


@pytest.mark.fault(19)
@pairwise
def test_perfect_events_leave_nothing_for_the_listing(rig: Rig) -> None:
    """The measure of push quality is zero when every change was told."""
    rig.configure(**ALL_ON)
    workspace = rig.open()
    rig.add("picture0.png")
    discover(workspace, "source")
    told = _mutate(rig, random.Random(4))
    with serving(workspace) as client:
        assert client.b2(*told).status == 200
    drain_inbox(workspace)

    found = discover(workspace, "source")

    assert (found.n_new, found.n_changed, found.n_gone) == (0, 0, 0)
    assert _FOUND not in workspace.ledger.meters.totals()


# -- hostile deliveries ------------------------------------------------------------------------------------------------


def _signed(body: bytes, **headers: str) -> tuple[bytes, dict[str, str]]:
    return body, JSON | {SIGNATURE_HEADER: sign(body, B2_SECRET)} | headers


def _batch(*events: Event) -> bytes:
    return json.dumps({"events": events}).encode()


GOOD = _batch(upload_event("a.png", "other-bucket"))
DEEP = b'{"events":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
HOSTILE: dict[str, tuple[tuple[bytes, dict[str, str]], set[int]]] = {
    "no_signature": ((GOOD, JSON), {401}),
    "wrong_signature": ((GOOD, JSON | {SIGNATURE_HEADER: "v1=" + "0" * 64}), {401}),
    "other_secret": ((GOOD, JSON | {SIGNATURE_HEADER: sign(GOOD, "x" * 32)}), {401}),
    "other_version": ((GOOD, JSON | {SIGNATURE_HEADER: sign(GOOD, B2_SECRET).replace("v1=", "v0=")}), {401}),
    "other_body": ((GOOD + b" ", JSON | {SIGNATURE_HEADER: sign(GOOD, B2_SECRET)}), {401}),
    "ten_megabytes": (_signed(b'{"events":[' + b" " * 10_000_000 + b"]}"), {413}),
    "gzip_bomb": (_signed(gzip.compress(bytes(50_000_000)), **{"Content-Encoding": "gzip"}), {415}),
    "deep_json": (_signed(DEEP), {400}),
    "fifty_one_events": (_signed(_batch(*(upload_event(f"{n}.png") for n in range(51)))), {400, 413}),
    "unknown_type": (_signed(_batch(upload_event("a.png", eventType="b2:Invented:Now"))), {200}),
    "test_event": (_signed(_batch({"eventType": "b2:TestEvent", "bucketName": "source"})), {200}),
    "wrong_bucket": (_signed(GOOD), {200}),
    "no_json": (_signed(b"\x00\xff not json"), {400}),
    "no_events": (_signed(b"[]"), {400}),
    "events_no_list": (_signed(b'{"events": {"a": 1}}'), {400}),
    "key_no_text": (_signed(_batch(upload_event("a.png", objectName=7))), {200, 400}),
    "key_with_nul": (_signed(_batch(upload_event("a\0b.png"))), {200, 400}),
    "key_surrogate": (
        _signed(b'{"events":[{"eventType":"b2:ObjectCreated:Upload","objectName":"\\ud800"}]}'),
        {200, 400},
    ),
    "form": (_signed(GOOD, **{"Content-Type": "application/x-www-form-urlencoded"}), {415}),
}


@pytest.fixture
def receiver(rig: Rig) -> Iterator[tuple[Workspace, Client]]:
    """Serve a rig with every receiver on."""
    rig.configure(**ALL_ON)
    workspace = rig.open()
    with serving(workspace) as client:
        yield workspace, client


@pytest.mark.fault(20)
@once
@pytest.mark.parametrize(("delivery", "statuses"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_delivery_leaves_no_row_and_tells_nothing(
    rig: Rig,
    receiver: tuple[Workspace, Client],
    delivery: tuple[bytes, dict[str, str]],
    statuses: set[int],
) -> None:
    """It is refused or ignored; the caller learns nothing of the inside; the next good one is taken."""
    _, client = receiver
    body, headers = delivery

    answer = client.ask("POST", "/events/b2", body, headers)

    assert answer.status in statuses
    assert b"Traceback" not in answer.body
    assert rig.rows("SELECT * FROM inbox") == []
    assert rig.rows("SELECT * FROM objects") == []
    assert client.b2(upload_event("good.png", rig.source)).status == 200
    assert [row["key"] for row in rig.rows("SELECT key FROM inbox")] == ["good.png"]


@pytest.mark.fault(20)
@once
def test_a_delivery_replayed_a_thousand_times_is_one_row(rig: Rig, receiver: tuple[Workspace, Client]) -> None:
    """A captured delivery has a right signature for ever; it is known after the first time."""
    _, client = receiver
    for _ in range(200):
        assert client.b2(*(upload_event(f"{n}.png", rig.source) for n in range(5))).status == 200

    assert len(rig.rows("SELECT * FROM inbox")) == 5


@pytest.mark.fault(20)
@once
def test_a_flood_of_refused_bodies_leaves_memory_flat(rig: Rig, receiver: tuple[Workspace, Client]) -> None:
    """Ten megabytes a hundred times are never held."""
    import psutil

    _, client = receiver
    bodies = [HOSTILE[name][0] for name in ("ten_megabytes", "gzip_bomb", "deep_json")]
    for body, headers in bodies:
        client.ask("POST", "/events/b2", body, headers)
    before = psutil.Process().memory_info().rss
    for _ in range(15):
        for body, headers in bodies:
            client.ask("POST", "/events/b2", body, headers)

    assert psutil.Process().memory_info().rss - before < 40 << 20
    assert rig.rows("SELECT * FROM inbox") == []


# -- a receiver without a database -------------------------------------------------------------------------------------


def _break_by_lock(rig: Rig) -> Callable[[], None]:
    connection = sqlite3.connect(str(make_url(rig.ledger_url).database), isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")

    def mend() -> None:
        connection.execute("ROLLBACK")
        connection.close()

    return mend


@pytest.mark.fault(21)
@once
def test_a_database_that_does_not_answer_means_503_and_the_sender_repeats(
    rig: Rig, receiver: tuple[Workspace, Client]
) -> None:
    """Never 2xx before the commit: locked for longer than the provider waits, the answer is 'later', in time."""
    _, client = receiver
    mend = _break_by_lock(rig)
    started = time.monotonic()
    answer = client.b2(upload_event("a.png", rig.source))
    took_s = time.monotonic() - started
    mend()

    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert took_s < 3.0
    assert client.b2(upload_event("a.png", rig.source)).status == 200
    assert len(rig.rows("SELECT * FROM inbox")) == 1


@pytest.mark.fault(21)
@pytest.mark.parametrize(
    "rig", [("moto", "sqlite"), ("moto", "postgresql")], ids=["sqlite", "postgresql"], indirect=True
)
def test_a_database_that_fails_means_503_and_never_200(
    rig: Rig, receiver: tuple[Workspace, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a lost connection at the commit: nobody is told that it was stored."""
    workspace, client = receiver
    dialect = workspace.ledger._engine.dialect
    driver: Any = dialect.dbapi

    def fail(_connection: Any) -> None:
        message = "database or disk is full"
        raise driver.OperationalError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "do_commit", fail)
        assert client.b2(upload_event("a.png", rig.source)).status == 503
    assert rig.rows("SELECT * FROM inbox") == []

    assert client.b2(upload_event("a.png", rig.source)).status == 200
    rig.put("a.png", rig.drawn("picture0.png"))
    rig.settle(workspace)
    assert rig.violations() == []


@pytest.mark.fault(21)
@once
def test_a_database_that_is_slow_for_a_second_loses_nothing(rig: Rig, receiver: tuple[Workspace, Client]) -> None:
    """Within the time that a provider waits, the answer comes late and is 200."""
    _, client = receiver
    mend = _break_by_lock(rig)
    timer = threading.Timer(1.0, mend)
    timer.start()

    assert client.b2(upload_event("a.png", rig.source)).status == 200
    timer.join()
    assert len(rig.rows("SELECT * FROM inbox")) == 1


# -- keys as providers write them --------------------------------------------------------------------------------------

KEYS = (
    "a+b.png",
    "a b.png",
    "100%25.png",
    "a%2Fb.png",
    "caf\u00e9.png",
    "cafe\u0301.png",
    "a&b=c.png",
    "\U0001f3ac.png",
)


def _form(key: str) -> str:
    from urllib.parse import quote_plus

    return quote_plus(key, safe="/")


def _s3_record(source: str, encode: Callable[[str], str]) -> Callable[[str, str], tuple[str, Any]]:
    def make(bucket: str, key: str) -> tuple[str, Any]:
        stored = {"bucket": {"name": bucket}, "object": {"key": encode(key)}}
        record = {"eventSource": source, "eventName": "ObjectCreated:Put", "s3": stored}
        return "/events/s3", {"Records": [record]}

    return make


def _bridge(bucket: str, key: str) -> tuple[str, Any]:
    detail = {"bucket": {"name": bucket}, "object": {"key": key}}
    return "/events/s3", {"source": "aws.s3", "detail-type": "Object Created", "id": key, "detail": detail}


def _tigris(bucket: str, key: str) -> tuple[str, Any]:
    return "/events/tigris", {"events": [{"eventName": "OBJECT_CREATED_PUT", "bucket": bucket, "object": {"key": key}}]}


def _b2(bucket: str, key: str) -> tuple[str, Any]:
    return "/events/b2", {"events": [upload_event(key, bucket)]}


PROVIDERS = {
    "b2_raw": _b2,
    "tigris_raw": _tigris,
    "amazon_form": _s3_record("aws:s3", _form),
    "minio_form": _s3_record("minio:s3", lambda key: _form(key).replace("/", "%2F")),
    "ceph_raw": _s3_record("ceph:s3", str),
    "eventbridge_raw": _bridge,
}


@pytest.mark.fault(22)
@alternately("make", {name: (make,) for name, make in PROVIDERS.items()})
def test_an_encoded_key_names_the_right_object(rig: Rig, make: Callable[[str, str], tuple[str, Any]]) -> None:
    """Each provider encodes keys in its own way, and a wrong guess would name another object."""
    rig.configure(**ALL_ON)
    workspace = rig.open()
    for key in KEYS:
        rig.put(key, rig.drawn("picture0.png"))
    with serving(workspace) as client:
        for key in KEYS:
            path, document = make(rig.source, key)
            body = json.dumps(document).encode()
            access = {SIGNATURE_HEADER: sign(body, B2_SECRET), "Authorization": f"Bearer {TOKEN}"}
            assert client.ask("POST", path, body, JSON | access).status == 200
    drain_inbox(workspace)

    assert sorted(row["key"] for row in rig.rows("SELECT key FROM objects WHERE state = 'live'")) == sorted(KEYS)
    assert discover(workspace, "source").n_new == 0


# -- a rule that was suspended -----------------------------------------------------------------------------------------


def _native_api(*, is_suspended: bool) -> list[Answer]:
    rule = {"name": "to-us", "isSuspended": is_suspended, "suspensionReason": "the receiver answered 500 for an hour"}
    return [
        Answer(body=json.dumps(document).encode())
        for document in (
            {"accountId": "a", "authorizationToken": "t", "apiInfo": {"storageApi": {"apiUrl": "URL"}}},
            {"buckets": [{"bucketId": "b"}]},
            {"eventNotificationRules": [rule]},
        )
    ]


@pytest.mark.fault(33)
@once
def test_a_suspended_rule_is_an_alarm_and_the_listing_finds_everything(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """simulated: Backblaze's native API. No event comes any more; that is said, and nothing is missed."""
    monkeypatch.setattr("mm_assets.flows.b2_rules._is_on_b2", lambda _: True)
    for is_suspended in (True, False):
        with fault_server(*_native_api(is_suspended=is_suspended)) as api:
            api.answers[0].body = api.answers[0].body.replace(b"URL", api.url.encode())
            api.answers.append(Answer(500))
            rig.configure(events={"b2_secrets": [B2_SECRET], "b2_api_url": api.url})
            workspace = rig.open()
            [alarm] = check_b2_rules(workspace).values()
        assert (alarm is not None) is is_suspended
        [row] = rig.rows("SELECT events_alarm FROM scans")
        assert row["events_alarm"] == alarm
        if alarm is not None:
            assert "to-us: the receiver answered 500 for an hour" in alarm
    rig.add("picture0.png", "picture1.png")

    rig.settle(workspace)

    assert rig.violations() == []
    assert len(rig.evidence().live) == 2
