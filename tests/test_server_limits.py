"""The server itself: addresses, health, metrics, connections that do not end, and an end in good order."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from cli_driver import mm
from fakes import open_fake_workspace
from places import Place
from prometheus_client.parser import text_string_to_metric_families
from rig import wait_until
from server_driver import ALL_ON, API_KEY, B2_SECRET, JSON, Client, serving, upload_event

from mm_assets.cli.serve import _address
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.events.b2 import SIGNATURE_HEADER
from mm_assets.events.verification import sign
from mm_assets.flows.metrics import Sample
from mm_assets.flows.receiving import Receiver
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Ledger
from mm_assets.server import health, running
from mm_assets.server.access import check_address, is_loopback
from mm_assets.server.health import render

MakePlace = Callable[..., Place]


@pytest.fixture
def workspace(make_workspace: MakePlace) -> Workspace:
    """Give a workspace with every receiver on."""
    return make_workspace(**ALL_ON).open()


@pytest.fixture
def client(workspace: Workspace) -> Iterator[Client]:
    """Serve it."""
    with serving(workspace) as client:
        yield client


# -- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Only this machine can reach it."""
    check_address(host, has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "", "localhost.example.com"])  # noqa: S104
def test_other_address_needs_a_key(host: str) -> None:
    """A name may lead anywhere, and no address means all of them."""
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="api_keys"):
        check_address(host, has_keys=False)
    check_address(host, has_keys=True)


def test_command_refuses_an_open_address(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mm serve`` ends with code 2 before it listens."""
    config = str(make_workspace().config_file)
    monkeypatch.setattr(
        "mm_assets.resources.workspace.open_workspace", lambda settings, **_: open_fake_workspace(settings)
    )
    assert "serve.api_keys" in mm("serve", "--host", "0.0.0.0", "--config", config, code=2).stderr  # noqa: S104


def test_taken_port_is_told(make_workspace: MakePlace, tmp_path: Path) -> None:
    """The message names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"serve\.port"):
        running.listen("127.0.0.1", taken.getsockname()[1])


def test_answers_are_not_held_back() -> None:
    """Head and body are two writes: the second must not wait until the client has acknowledged the first."""
    with running.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_address_is_shown_as_in_a_url() -> None:
    """IPv6 goes in brackets."""
    assert (_address(("::1", 80)), _address(("127.0.0.1", 80))) == ("[::1]:80", "127.0.0.1:80")


# -- health and metrics ------------------------------------------------------------------------------------------


def test_health_is_that_of_the_ledger(workspace: Workspace, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open to probes; 503 while the ledger does not answer."""
    assert client.ask("GET", "/healthz").json() == {"status": "ok"}

    def fail(_: Ledger) -> str:
        msg = "down"
        raise ServiceError(msg)

    monkeypatch.setattr(Ledger, "check", fail)
    assert client.ask("GET", "/healthz").status == 503


def test_health_asks_once_at_a_time(workspace: Workspace, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that hangs costs one thread, however many ask; when it answers, so does the next probe."""
    may_go, asked = threading.Event(), list[int]()

    def hang(_: Ledger) -> None:
        asked.append(1)
        may_go.wait(20)

    monkeypatch.setattr(health, "_ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(Ledger, "check", hang)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(client.ask, "GET", "/healthz") for _ in range(20)]
        assert {answer.result().status for answer in answers} == {503}
    assert asked == [1]
    may_go.set()
    assert client.ask("GET", "/healthz").status == 200


def test_health_is_that_of_the_writer(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that can store nothing says so to those who can start another."""
    monkeypatch.setattr(Receiver, "is_alive", False)
    assert client.ask("GET", "/healthz").status == 503


def test_metrics_need_a_key_and_parse(client: Client) -> None:
    """Prometheus' own parser reads them, and they hold what was just received."""
    client.b2(upload_event("a.jpg"), upload_event("b.jpg", bucket="other"))
    assert client.ask("GET", "/metrics").status == 401
    answer = client.with_key("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert samples["mm_assets_events_received_total", ("b2",)] == 2
    assert samples["mm_assets_inbox_depth", ()] == 1


def test_samples_are_written_in_families() -> None:
    """Labels are escaped; counters keep their names."""
    labels = (("why", 'a"b\nc\\'),)
    text = render([Sample("events_total", "counter", "Help.", labels, 2), Sample("depth", "gauge", "Depth.", (), 1)])
    assert text.decode().splitlines() == [
        "# HELP mm_assets_events_total Help.",
        "# TYPE mm_assets_events_total counter",
        'mm_assets_events_total{why="a\\"b\\nc\\\\"} 2.0',
        "# HELP mm_assets_depth Depth.",
        "# TYPE mm_assets_depth gauge",
        "mm_assets_depth 1.0",
    ]


# -- bad requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /events/b2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /events/b2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
    ],
)
def test_broken_request_is_a_400(client: Client, request_bytes: bytes) -> None:
    """No HTTP, a wrong length, two lengths, endless headers: one line, and the connection ends."""
    try:
        answer = client.send(request_bytes)
    except ConnectionError:
        answer = b"HTTP/1.1 400 "  # it was closed while the rest was still being sent
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert client.ask("GET", "/healthz").status == 200


def test_mute_connection_is_closed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens connections and says nothing does not keep them."""
    monkeypatch.setattr(running, "_REQUEST_WITHIN_S", 0.1)
    with serving(workspace) as client:
        assert client.send(b"POST /events/b2 HTTP/1.1\r\n") == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHos", b"200"),
        (b"POST /events/b2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/html\r\nContent-Length: 99\r\n\r\n{", b"415"),
    ],
    ids=["half a second request", "body that nobody reads"],
)
def test_answer_is_no_licence_to_stay(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, sent: bytes, status: bytes
) -> None:
    """After an answer the next request has its time, and what is left of a body less."""
    monkeypatch.setattr(running, "_REQUEST_WITHIN_S", 0.3)
    monkeypatch.setattr(running, "_REST_WITHIN_S", 0.1)
    with serving(workspace) as client:
        started = time.monotonic()
        assert client.send(sent).startswith(b"HTTP/1.1 " + status)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(("is_read", "n_aborted"), [(True, 0), (False, 1)])
def test_answer_that_nobody_reads_is_given_up(
    monkeypatch: pytest.MonkeyPatch, *, is_read: bool, n_aborted: int
) -> None:
    """Who asks and never listens does not keep the connection; who listens is answered to the end."""
    monkeypatch.setattr(running._PatientNoMore, "_wait", lambda *_: None)
    protocol = object.__new__(running._PatientNoMore)
    protocol.cycle, protocol.flow, protocol.transport = (
        Mock(response_complete=False),
        Mock(write_paused=not is_read),
        Mock(),
    )
    protocol._close_if_idle()
    assert protocol.transport.abort.call_count == n_aborted


def test_connection_that_is_used_is_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests in their time may go on for ever, and one that is being answered is not cut off."""
    monkeypatch.setattr(running, "_REQUEST_WITHIN_S", 0.4)
    monkeypatch.setattr(Ledger, "check", lambda _: time.sleep(0.2))
    with serving(workspace) as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        connection.connect()
        used = connection.sock
        for _ in range(4):
            connection.request("GET", "/healthz")
            with connection.getresponse() as answer:
                assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
            time.sleep(0.1)
        assert connection.sock is used
        connection.close()


def test_slow_body_is_given_up(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that drips is a 408 after its time."""
    monkeypatch.setattr("mm_assets.server.receivers._READ_WITHIN_S", 0.1)
    with serving(workspace) as client:
        head = b"POST /events/b2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        assert b" 408 " in client.send(head + b"Content-Length: 9\r\n\r\n{").partition(b"\r\n")[0]


def test_body_that_breaks_off_is_no_failure_of_ours(
    workspace: Workspace, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The sender is gone; the log holds no trace of it."""
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(b"POST /events/b2 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    assert client.b2(upload_event("a.jpg")).status == 200
    assert workspace.ledger.inbox.depth() == 1
    assert "Traceback" not in caplog.text


def test_too_many_connections_are_a_503(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded, and the sender comes again."""
    monkeypatch.setattr(running, "_MAX_CONNECTIONS", 5)
    with serving(workspace) as client:
        held = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(6)]
        time.sleep(0.1)
        assert client.b2(upload_event("a.jpg")).status == 503
        for connection in held:
            connection.close()
        time.sleep(0.1)
        assert client.b2(upload_event("a.jpg")).status == 200


# -- a real process ----------------------------------------------------------------------------------------------


@contextmanager
def served(place: Place, patch: str = "") -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """Run ``mm serve`` on a free port; yields the process, the port, and what it said first."""
    command = [sys.executable, "-c", f"{patch}\nfrom mm_assets.cli import main; main()", "serve", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    config = ["--config", str(place.config_file)]
    with subprocess.Popen([*command, *config], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(6)]
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said[0])
        try:
            assert found, said
            yield process, int(found[1]), said
        finally:
            process.kill()


@pytest.fixture
def place(make_workspace: MakePlace) -> Place:
    """Give a place that the command can open: with no step that needs a model."""
    place = make_workspace(**ALL_ON)
    settings = yaml.safe_load(place.config_file.read_text(encoding="utf-8"))
    settings["sources"][0]["steps"] = ["segments"]
    place.config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return place


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_is_in_good_order(place: Place, number: signal.Signals) -> None:
    """It says what is on; on a signal it finishes what it began to accept, within ten seconds, with code 0."""
    with served(place) as (process, port, said):
        assert [line.split()[2] for line in said[1:4]] == ["on", "on", "on"]
        assert said[5] == "  POST /search          for keys that allow it\n"
        assert Client(port).ask("GET", "/healthz").status == 200  # it listens before it serves
        body = json.dumps({"events": [upload_event("a.jpg")]}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("POST", "/events/b2")
        for name, value in (JSON | {SIGNATURE_HEADER: sign(body, B2_SECRET), "Content-Length": str(len(body))}).items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(body[:5])
        time.sleep(0.2)
        started = time.monotonic()
        process.send_signal(number)
        time.sleep(0.3)
        connection.send(body[5:])
        with connection.getresponse() as answer:
            assert answer.status == 200
        connection.close()
        assert process.wait(10) == 0
        assert time.monotonic() - started < 10
    assert place.open().ledger.inbox.depth() == 1


def test_a_start_can_be_ended(place: Place) -> None:
    """SIGTERM before it listens ends with code 0, as one afterwards."""
    command = [sys.executable, "-c", "from mm_assets.cli import main; main()", "serve", "--port", "0"]
    config = ["--config", str(place.config_file)]
    with subprocess.Popen([*command, *config], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "Starting.\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


HANGING = """
import time
from mm_assets.server import running, uploads
uploads.store_upload = lambda *_: (print("hangs", flush=True), time.sleep(60))
running._END_WITHIN_S, running._END_AT_LATEST_S = 1, 2.0
"""


def test_end_waits_for_no_store(place: Place) -> None:
    """An upload into a store that does not answer holds up no end; what is left of it goes with the next upload."""
    settings = yaml.safe_load(place.config_file.read_text(encoding="utf-8"))
    settings["sources"][0]["uploads"] = True
    place.config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with served(place, HANGING) as (process, port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /objects/source/a.jpg HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
        connection.sendall(f"{head}Content-Length: 4\r\n\r\nbody".encode())
        assert process.stdout is not None
        while "hangs" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0


EARLY = """
import signal
from mm_assets.server import running
serve = running._PunctualServer.run
def serve_after_a_signal(self, **options):
    signal.raise_signal(signal.SIGTERM)
    serve(self, **options)
running._PunctualServer.run = serve_after_a_signal
running._END_AT_LATEST_S = 30.0
"""


def test_signal_before_the_server_listens_ends_it(place: Place) -> None:
    """Nobody sends it twice."""
    with served(place, EARLY) as (process, _, _):
        assert process.wait(8) == 0


def test_kill_after_the_answer_loses_nothing(place: Place) -> None:
    """What was answered with 200 is in the ledger, whatever happens next."""
    with served(place) as (process, port, _):
        client, accepted = Client(port), list[str]()

        def send(sender: int) -> None:
            for n in range(10_000):
                try:
                    if client.b2(upload_event(f"{sender}-{n}.jpg")).status == 200:
                        accepted.append(f"{sender}-{n}.jpg")
                except (OSError, http.client.HTTPException):
                    return

        threads = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(accepted) > 20, 60)
        process.kill()
        for thread in threads:
            thread.join()
    known = {hint.key for hint in place.open().ledger.inbox.waiting(100_000)}
    assert accepted
    assert set(accepted) <= known


def test_two_sources_with_one_alias_are_refused(make_workspace: MakePlace, tmp_path: Path) -> None:
    """An event would not know whose it is: said at start."""
    place = make_workspace()
    sources: list[dict[str, Any]] = [{"uri": str(tmp_path / name), "alias": "twin"} for name in ("one", "two")]
    place.config_file.write_text(yaml.safe_dump({"sources": sources}), encoding="utf-8")
    assert "twin" in mm("serve", "--config", str(place.config_file), code=2).stderr
