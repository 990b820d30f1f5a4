"""``mm serve``'s server in a thread of the test, on a free loopback port, and plain requests to it.

Put here: starting, asking, stopping. Keep out: assertions.
"""

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mm_assets.events.b2 import SIGNATURE_HEADER
from mm_assets.events.verification import sign
from mm_assets.flows.workspace import Workspace
from mm_assets.server.app import build_app
from mm_assets.server.running import build_server, listen

API_KEY = "an-api-key-of-the-tests"
B2_SECRET = "3XDfkdQte2OgA78qCtSD17LAzpj6ay9H"  # noqa: S105  of these tests
TOKEN = "a-token-of-the-tests"  # noqa: S105  of these tests
ALL_ON = {
    "events": {"b2_secrets": [B2_SECRET], "tigris_tokens": [TOKEN], "s3_tokens": [TOKEN]},
    "serve": {"api_keys": [API_KEY]},
}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Plain requests, each on a connection of its own; nothing is normalised on the way."""

    port: int

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request; a body that can be iterated goes in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            with connection.getresponse() as answer:
                headers = {name.lower(): value for name, value in answer.getheaders()}
                return Answer(answer.status, answer.read(), headers)
        finally:
            connection.close()

    def b2(self, *events: Mapping[str, Any]) -> Answer:
        """Send a signed delivery of B2."""
        body = json.dumps({"events": events}).encode()
        return self.ask("POST", "/events/b2", body, JSON | {SIGNATURE_HEADER: sign(body, B2_SECRET)})

    def with_key(self, method: str, path: str, body: Any = None) -> Answer:
        """Send a request with the API key."""
        return self.ask(method, path, body, {"Authorization": f"Bearer {API_KEY}"})

    def send(self, data: bytes) -> bytes:
        """Send bytes and return all that comes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65_536), b""))


@contextmanager
def serving(workspace: Workspace) -> Iterator[Client]:
    """Serve a workspace until the block ends."""
    server = build_server(build_app(workspace))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def upload_event(key: str, bucket: str = "source", **values: Any) -> dict[str, Any]:
    """Return an event of B2 for a key of a watched folder, which goes by its alias."""
    told = {"eventType": "b2:ObjectCreated:Upload", "bucketName": bucket, "objectName": key, "eventId": key}
    return told | values
