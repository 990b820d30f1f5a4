"""A socket, a server, and an end in good order.

Put here: uvicorn's limits. Keep out: the application.
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from mm_assets.errors import ConfigError

_REQUEST_WITHIN_S = 15.0
_REST_WITHIN_S = 2.0  # of a body that nobody reads: closed at once, its sender would not see the answer
_MAX_HEADER_BYTES = 32_768
_MAX_CONNECTIONS = 512
_END_WITHIN_S = 6  # for requests under way
_END_AT_LATEST_S = 9.0  # by then what was accepted is committed, which takes two seconds more at most


class _PatientNoMore(H11Protocol):
    """Closes connections on which no answer is under way or none is read; uvicorn waits for both without end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_REQUEST_WITHIN_S, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        has_rest = self.conn.their_state is h11.SEND_BODY
        self._wait(_REST_WITHIN_S if has_rest else _REQUEST_WITHIN_S)
        super().on_response_complete()

    def _wait(self, seconds: float) -> None:
        self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # at first
        if is_answering and not self.flow.write_paused:
            self._wait(_REQUEST_WITHIN_S)
        else:
            self.transport.abort()  # to close would wait until what was written is read


class _PunctualServer(uvicorn.Server):
    """Ends in time after a signal, also while a thread waits for a store or a ledger that does not answer."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # Python waits for its threads, and nothing ends one from outside.
        last = threading.Timer(_END_AT_LATEST_S, os._exit, [0])
        last.daemon = True
        last.start()


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 takes a free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1_024)
    except OSError as error:
        msg = f"cannot listen on {host} port {port}: {error.strerror or error}; choose another serve.host or serve.port"
        raise ConfigError(msg) from error
    # Connections inherit it. asyncio sets it only on sockets that were made with their protocol's number, and without it
    # the body of an answer, written after its head, waits 40 ms for the client to acknowledge that.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def build_server(app: FastAPI) -> uvicorn.Server:
    """Build the server: bounded headers, connections and time at the end; quiet but for warnings."""
    config = uvicorn.Config(
        app,
        http=_PatientNoMore,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_END_WITHIN_S,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    return _PunctualServer(config)


def run(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are finished and what was accepted is committed."""
    server = build_server(app)
    with _ended_by_sigterm(server), suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


@contextmanager
def _ended_by_sigterm(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM end the process with code 0, also before uvicorn listens to it, and when it sends it to itself again."""
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
