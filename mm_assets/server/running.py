"""A socket, a server, and an end in good order.

Put here: uvicorn's limits. Keep out: the application.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from mm_assets.errors import ConfigError

_FIRST_REQUEST_WITHIN_S = 15.0
_MAX_HEADER_BYTES = 32_768
_MAX_CONNECTIONS = 512
_END_WITHIN_S = 6  # for requests under way; the whole end takes less than ten seconds


class _PatientNoMore(H11Protocol):
    """Closes connections that do not come to their first request; uvicorn waits for it without end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self.loop.call_later(_FIRST_REQUEST_WITHIN_S, self._close_if_mute)

    def _close_if_mute(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 takes a free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1_024)
    except OSError as error:
        msg = f"cannot listen on {host} port {port}: {error.strerror or error}; choose another serve.host or serve.port"
        raise ConfigError(msg) from error


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
    return uvicorn.Server(config)


def run(app: FastAPI, listening: socket.socket, on_end: Callable[[], Any] = lambda: None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are finished and what was accepted is committed."""
    with _ended_by_sigterm(), suppress(KeyboardInterrupt):
        build_server(app).run(sockets=[listening])
    on_end()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process with code 0: uvicorn sends itself the signal again when it is done."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
