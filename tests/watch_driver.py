"""Plays the receiver of a watch's matches, and asks the books what was matched and told.

Put here: a web server that answers by script, matches without media, short questions to the ledger. Keep out: assertions.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flow_driver import process
from sqlalchemy import text

from mm_assets.flows import metrics
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import Match, SeenObject

COMMAND = "true"  # a program that takes every match
SECRET = "a-secret-of-these-tests"  # noqa: S105  of these tests


@dataclass
class Receiver:
    """A web server that answers each request with the next of its statuses, the last one again and again."""

    statuses: list[int]
    asked: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)
    delay_s: float = 0.0
    drip_s: float = 0.0
    url: str = ""

    @property
    def keys(self) -> list[str]:
        """Keys of the objects that it was told of."""
        return [json.loads(body)["object"]["key"] for _, _, body in self.asked]


@contextmanager
def receiving(*statuses: int, delay_s: float = 0.0, drip_s: float = 0.0) -> Iterator[Receiver]:
    """Run a receiver on a free port, which waits before it answers, or sends its answer byte by byte."""
    receiver = Receiver(list(statuses or (200,)), delay_s=delay_s, drip_s=drip_s)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(receiver))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


def _handler_of(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.asked.append((self.path, dict(self.headers), body))
            time.sleep(receiver.delay_s)
            status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", receiver.url.replace("/hook", "/elsewhere"))
            with suppress(ConnectionError):
                self._drip()
                self.end_headers()

        def _drip(self) -> None:
            for _ in range(10 if receiver.drip_s else 0):
                self.flush_headers()
                self.send_header("X-Drip", "a")
                time.sleep(receiver.drip_s)

        do_GET = do_POST  # noqa: N815  http.server's name

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def process_new(workspace: Workspace) -> Workspace:
    """List, and process all that is wanted."""
    discover(workspace, "source")
    process(workspace)
    return workspace


def record_matches(workspace: Workspace, *names: str, watch: str = "all") -> None:
    """Let objects be known, and match a watch."""
    seen = [SeenObject(ObjectVersion("source", name, "e"), 1, 0.0) for name in names]
    scan = workspace.ledger.objects.scan("source")
    workspace.ledger.objects.record_page("source", seen, at=scan, after="", shard_objects=5)
    found = workspace.ledger.watches.find(watch)
    assert found is not None
    ids = [item.version.object_id for item in seen]
    matches = [Match(found.watch_id, object_id, f"{object_id}-i000000", 1.0, 2.5, None, 0.5) for object_id in ids]
    workspace.ledger.watches.record(matches)


def matched(workspace: Workspace, name: str | None = None) -> list[str]:
    """Return the keys of what matched one watch, or any."""
    return sorted(known.key for known in workspace.ledger.watches.matches(name))


def tellings(workspace: Workspace) -> list[tuple[str, int, str | None]]:
    """Return state, tries and error of all matches."""
    return sorted((known.state, known.tries, known.error) for known in workspace.ledger.watches.matches())


def counter(workspace: Workspace, name: str) -> dict[str, float]:
    """Return labels → value of a metric."""
    return {
        "/".join(value for _, value in sample.labels): sample.value
        for sample in metrics.collect(workspace)
        if sample.name == name
    }


def make_due(workspace: Workspace) -> None:
    """Let time pass until every waiting match is due."""
    with workspace.ledger._engine.begin() as connection:
        connection.execute(text("UPDATE matches SET not_before = 0"))
