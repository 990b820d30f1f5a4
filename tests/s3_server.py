"""Servers for tests: moto's as a real process, and one that fails as it is told.

Put here: starting and stopping servers on a free loopback port, and answers for the scripted one. Keep out: tests.
"""

import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mm_assets.resources.s3 import BucketS3Resource

KEY_ID, SECRET = "test-key", "test-secret"
_STARTED = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
# moto looks through the folder of its modules at every request; they do not change.
_RUN_MOTO = """
import sys
from moto import backends
modules = frozenset(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: modules
from moto.server import main
main(sys.argv[1:])
"""


def make_client(endpoint_url: str) -> Any:
    """Return a client as the product makes it."""
    return BucketS3Resource(
        endpoint_url=endpoint_url, region_name="us-east-1", aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET
    ).get_client()


@contextmanager
def moto_server() -> Iterator[str]:
    """Run moto's server in a process of its own; yields its URL. Port 0 lets the kernel choose a free one."""
    command = [sys.executable, "-u", "-W", "ignore", "-c", _RUN_MOTO, "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        log: deque[str] = deque(maxlen=50)
        url = next((found[1] for line in process.stderr if (found := _STARTED.search(_keep(log, line)))), None)
        # The pipe must be emptied, or the server blocks on its own log.
        reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            assert url, "moto did not start:\n" + "".join(log)
            yield url
        finally:
            process.terminate()
            reader.join(10)


def _keep(log: deque[str], line: str) -> str:
    log.append(line)
    return line


@dataclass
class Answer:
    """One scripted answer.

    Attributes
    ----------
    cut : so many bytes of the body are held back although their length was promised
    drip_s : the body comes byte by byte, so many seconds apart
    is_reset : the connection is reset instead of any answer
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    drip_s: float = 0.0
    is_reset: bool = False


def page(*entries: bytes, truncated: bool = False, head: bytes = b"<EncodingType>url</EncodingType>") -> Answer:
    """Return a page of a listing with raw ``<Key>`` texts."""
    rows = b"".join(
        b"<Contents><Key>%s</Key><LastModified>2026-11-21T05:00:00.000Z</LastModified><ETag>e</ETag><Size>1</Size></Contents>"
        % key
        for key in entries
    )
    more = b"<IsTruncated>%s</IsTruncated>" % (b"true" if truncated else b"false")
    return Answer(body=b"<?xml version='1.0'?><ListBucketResult>" + head + more + rows + b"</ListBucketResult>")


@dataclass
class FaultServer:
    """Gives the scripted answers in turn, the last one for ever; keeps what it was asked and how much it sent.

    Attributes
    ----------
    ports : the clients' ports, one for each connection
    """

    answers: list[Answer]
    url: str = ""
    requests: list[str] = field(default_factory=list)
    n_sent: int = 0
    ports: set[int] = field(default_factory=set)

    def next_answer(self, request: str) -> Answer:
        """Note a request and take the answer for it."""
        self.requests.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Handler(BaseHTTPRequestHandler):
    """Answers as scripted, once ``state`` is bound."""

    protocol_version = "HTTP/1.1"
    state: FaultServer

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.state.ports.add(self.client_address[1])
        answer = self.state.next_answer(f"{self.command} {self.path}")
        if answer.is_reset:
            self._reset()
            return
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(answer)
        self.close_connection = bool(answer.cut)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = answer  # noqa: N815  http.server's names

    def _send(self, answer: Answer) -> None:
        body = answer.body[: len(answer.body) - answer.cut]
        step = 1 if answer.drip_s else 65_536
        try:
            for start in range(0, len(body), step):
                self.state.n_sent += self.wfile.write(body[start : start + step])
                time.sleep(answer.drip_s)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Be silent."""


@contextmanager
def fault_server(*answers: Answer) -> Iterator[FaultServer]:
    """Run a server that gives ``answers`` in turn."""
    state = FaultServer(list(answers))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
