"""The receivers over HTTP: what is accepted is durable, what is bad leaves no row, and nobody sees a stack trace."""

import base64
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from places import Place
from server_driver import ALL_ON, B2_SECRET, JSON, TOKEN, Answer, Client, serving, upload_event

from mm_assets.errors import ServiceError
from mm_assets.events.b2 import SIGNATURE_HEADER
from mm_assets.events.verification import sign
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger.inbox import WaitingHint
from mm_assets.server import receivers

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def workspace(make_workspace: Callable[..., Place]) -> Workspace:
    """Give a workspace with every receiver on."""
    return make_workspace(**ALL_ON).open()


@pytest.fixture
def client(workspace: Workspace) -> Iterator[Client]:
    """Serve it."""
    with serving(workspace) as client:
        yield client


def waiting(workspace: Workspace) -> list[WaitingHint]:
    """Return what waits in the inbox."""
    return workspace.ledger.inbox.waiting(1_000)


def meters(workspace: Workspace, client: Client, name: str) -> dict[str, float]:
    """Return label values → count of one counter; asking for metrics writes what the server has counted."""
    client.with_key("GET", "/metrics")
    totals = workspace.ledger.meters.totals()
    return {".".join(value for _, value in labels): n for (found, labels), n in totals.items() if found == name}


def send_b2(client: Client, body: bytes, **headers: str) -> Answer:
    """Send a body with its right signature."""
    return client.ask("POST", "/events/b2", body, JSON | {SIGNATURE_HEADER: sign(body, B2_SECRET)} | headers)


# -- what is good ------------------------------------------------------------------------------------------------


def test_signed_delivery_is_in_the_inbox_before_the_answer(workspace: Workspace, client: Client) -> None:
    """200 means that the events are durable."""
    answer = client.b2(upload_event("a.jpg"), upload_event("b c+d.jpg"))
    assert (answer.status, answer.json()) == (200, {"accepted": 2, "ignored": 0})
    assert [(hint.alias, hint.key) for hint in waiting(workspace)] == [("source", "a.jpg"), ("source", "b c+d.jpg")]


def test_tigris_and_s3_are_received(workspace: Workspace, client: Client) -> None:
    """Each has its path, its token and its form; SNS calls JSON plain text."""
    told = {"eventName": "OBJECT_CREATED_PUT", "bucket": "source", "object": {"key": "t.jpg"}}
    assert client.ask("POST", "/events/tigris", json.dumps({"events": [told]}), JSON | BEARER).status == 200
    stored = {"bucket": {"name": "source"}, "object": {"key": "s+3.jpg"}}
    record = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": stored}
    inner = json.dumps({"Records": [record]})
    envelope = json.dumps({"Type": "Notification", "TopicArn": "arn", "Message": inner})
    basic = {"Authorization": "Basic " + base64.b64encode(TOKEN.encode()).decode()}
    assert (
        client.ask("POST", "/events/s3", envelope, {"Content-Type": "text/plain; charset=UTF-8"} | basic).status == 200
    )
    assert sorted(hint.key for hint in waiting(workspace)) == ["s 3.jpg", "t.jpg"]


def test_replayed_delivery_changes_nothing(workspace: Workspace, client: Client) -> None:
    """An old signed delivery is accepted again and known."""
    for _ in range(3):
        assert client.b2(upload_event("a.jpg")).status == 200
    assert workspace.ledger.inbox.depth() == 1
    assert meters(workspace, client, "events_duplicate_total") == {"": 2.0}


def test_test_event_is_acknowledged_and_no_data(workspace: Workspace, client: Client) -> None:
    """Also with a wrong signature: B2's documents disagree on what signs it."""
    body = json.dumps({"events": [{"eventType": "b2:TestEvent", "bucketName": "source"}]}).encode()
    for signature in (sign(body, B2_SECRET), "v1=bad"):
        assert client.ask("POST", "/events/b2", body, JSON | {SIGNATURE_HEADER: signature}).status == 200
    assert waiting(workspace) == []
    assert meters(workspace, client, "events_ignored_total") == {"b2.test": 2.0}


# -- what is bad -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [{}, {SIGNATURE_HEADER: ""}, {SIGNATURE_HEADER: "v1=" + "0" * 64}])
def test_unsigned_delivery_is_refused(workspace: Workspace, client: Client, header: dict[str, str]) -> None:
    """No signature or a wrong one: 401, counted, no row."""
    body = json.dumps({"events": [upload_event("a.jpg")]})
    assert client.ask("POST", "/events/b2", body, JSON | header).status == 401
    assert waiting(workspace) == []
    assert meters(workspace, client, "events_refused_total") == {"b2.unsigned": 1.0}


@pytest.mark.parametrize("path", ["/events/tigris", "/events/s3"])
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}])
def test_wrong_token_is_refused(client: Client, path: str, header: dict[str, str]) -> None:
    """401 asks for Basic, which is how SNS comes to send its subscription's password."""
    answer = client.ask("POST", path, "{}", JSON | header)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize("path", ["/events/tigris", "/events/s3"])
def test_token_is_looked_at_before_the_body(client: Client, path: str) -> None:
    """A stranger's body is not waited for."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    assert b" 401 " in client.send(f"{head}Content-Length: 9\r\n\r\n{{".encode()).partition(b"\r\n")[0]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("path", ["/events/b2", "/events/tigris", "/events/s3"])
def test_receiver_without_a_secret_is_off(make_workspace: Callable[..., Place], path: str) -> None:
    """It says which setting is missing, whatever is sent."""
    with serving(make_workspace().open()) as client:
        answer = client.ask("POST", path, "{}", JSON | BEARER)
    assert answer.status == 403
    assert "set events." in answer.json()["detail"]


def test_large_body_is_refused_by_its_length(workspace: Workspace, client: Client) -> None:
    """Ten MiB promised: 413 before they are read."""
    answer = client.send(
        b"POST /events/b2 HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\nConnection: close\r\n\r\n"
    )
    assert b" 413 " in answer.partition(b"\r\n")[0]
    assert waiting(workspace) == []


def test_large_body_without_a_length_is_cut_off(workspace: Workspace, client: Client) -> None:
    """Chunks beyond the limit: 413, and no more than the limit is ever held."""
    pieces = (b"x" * 65_536 for _ in range(40))
    assert client.ask("POST", "/events/b2", pieces, JSON).status == 413
    assert waiting(workspace) == []
    assert meters(workspace, client, "events_refused_total") == {"b2.too_large": 1.0}


def test_compressed_body_is_never_unpacked(client: Client) -> None:
    """A bomb of 50 MB in 50 KB is refused by its header, signed rightly or not."""
    bomb = gzip.compress(b"0" * 50_000_000)
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        answer = send_b2(client, bomb, **{"Content-Encoding": encoding})
        assert (answer.status, answer.json()["detail"]) == (415, "compressed bodies are not taken")


@pytest.mark.parametrize(
    "kind", ["text/html", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"]
)
def test_wrong_content_type_is_refused(workspace: Workspace, client: Client, kind: str) -> None:
    """B2 sends JSON and says so; a form of a page in a browser does not pass."""
    body = json.dumps({"events": [upload_event("a.jpg")]}).encode()
    assert send_b2(client, body, **{"Content-Type": kind}).status == 415
    assert waiting(workspace) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 500_000, 400),
        (b'{"events":' * 100_000, 400),
        (b"\xff\x00", 400),
        (b'{"events": [{"eventType": "b2:ObjectCreated:Upload", "bucketName": "source", "objectName": 1}]}', 400),
        (json.dumps({"events": [upload_event("a.jpg")] * 51}).encode(), 413),
    ],
    ids=["deep lists", "deep objects", "no text", "key that is no text", "51 events"],
)
def test_signed_nonsense_is_refused(workspace: Workspace, client: Client, body: bytes, status: int) -> None:
    """Its sender has the secret, and still gets a 4xx with one line of text."""
    answer = send_b2(client, body)
    assert answer.status == status
    assert set(answer.json()) == {"detail"}
    assert b"Traceback" not in answer.body
    assert waiting(workspace) == []


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (upload_event("a.jpg", bucket="other"), "unknown_bucket"),
        (upload_event("a.jpg", eventType="b2:New:Thing"), "unknown_type"),
        (upload_event("a\x00b"), "unusable_key"),
        (upload_event("\ud800"), "unusable_key"),
        (upload_event("k" * 4_097), "unusable_key"),
    ],
)
def test_event_of_no_use_is_counted(workspace: Workspace, client: Client, event: Any, why: str) -> None:
    """Accepted, so that it does not come again; ignored, counted, no row."""
    assert client.b2(event).json()["ignored"] == (0 if why == "unknown_bucket" else 1)
    assert waiting(workspace) == []
    assert meters(workspace, client, "events_ignored_total") == {f"b2.{why}": 1.0}


def test_lake_is_never_a_source(make_workspace: Callable[..., Place], tmp_path: Any) -> None:
    """Events about our own files inside a watched place lead nowhere."""
    settings = ALL_ON | {"lake": {"uri": str(tmp_path / "source" / "lake")}}
    workspace = make_workspace(**settings).open()
    with serving(workspace) as client:
        assert client.b2(upload_event("lake/results/x.parquet"), upload_event("lakeside.jpg")).status == 200
    assert [hint.key for hint in waiting(workspace)] == ["lakeside.jpg"]


def test_subscription_is_not_followed(client: Client) -> None:
    """A listening socket that the confirmation's URL leads to hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/confirm"
        told = {"Type": "SubscriptionConfirmation", "TopicArn": "arn", "Message": "", "SubscribeURL": url}
        answer = client.ask("POST", "/events/s3", json.dumps(told), {"Content-Type": "text/plain"} | BEARER)
        assert answer.json() == {"accepted": 0, "ignored": 1}
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_only_post_is_taken(client: Client, method: str) -> None:
    """Other methods are a 405, other paths a 404."""
    assert client.ask(method, "/events/b2").status == 405
    assert client.ask(method, "/events/other").status == 404


# -- the ledger is down, full or slow -----------------------------------------------------------------------------


def test_ledger_that_fails_is_a_503(workspace: Workspace, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never 200: the sender sends again, and then nothing is missing."""

    def fail(_: object) -> int:
        msg = "disk full at /secret/path"
        raise ServiceError(msg)

    with monkeypatch.context() as broken:
        broken.setattr(workspace.ledger.inbox, "add", fail)
        answer = client.b2(upload_event("a.jpg"))
        assert (answer.status, int(answer.headers["retry-after"])) == (503, 5)
        assert b"secret" not in answer.body
    assert client.b2(upload_event("a.jpg")).status == 200
    assert len(waiting(workspace)) == 1


def test_ledger_that_is_slow_is_a_503(workspace: Workspace, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """B2 waits three seconds, so the answer comes before; what was stored all the same is known when it is sent again."""
    monkeypatch.setattr(receivers, "_ANSWER_WITHIN_S", 0.1)
    add, is_slow = workspace.ledger.inbox.add, threading.Event()
    monkeypatch.setattr(workspace.ledger.inbox, "add", lambda hints: [is_slow.wait(0.5), add(hints)][1])
    started = time.monotonic()
    assert client.b2(upload_event("a.jpg")).status == 503
    assert time.monotonic() - started < 0.4
    is_slow.set()
    monkeypatch.setattr(receivers, "_ANSWER_WITHIN_S", 2.5)
    assert client.b2(upload_event("a.jpg")).status == 200
    assert len(waiting(workspace)) == 1


def test_unexpected_failure_tells_nothing(
    workspace: Workspace, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours is a 500 with one line; the trace is in the log alone."""
    monkeypatch.setattr(receivers, "is_authorized", lambda *_: 1 / 0)
    answer = client.ask("POST", "/events/s3", "{}", JSON | BEARER)
    assert (answer.status, answer.json()) == (500, {"detail": "internal error; see the server's log"})
    assert client.b2(upload_event("a.jpg")).status == 200
