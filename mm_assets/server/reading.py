"""Request bodies: never more than is allowed, never waited for without end, never unpacked.

Put here: limits on what comes in. Keep out: what it means.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData
from starlette.types import Message

from mm_assets.errors import ServiceError
from mm_assets.events.base import DeliveryRefusedError

_STALLED_AFTER_S = 30.0
_PARSED_BYTES = 65_536  # of a form at once; between them others have their turn
_MIN_BYTES_PER_S = 4_096  # on average; a link that is slower than an old modem only holds a place


async def read_body(request: Request, max_bytes: int, within_s: float) -> bytes:
    """Return a small body, whole.

    Raises
    ------
    DeliveryRefusedError
        413 beyond ``max_bytes``, whatever Content-Length promises; 415 where it is compressed; 408 where it takes longer.
    """
    try:
        async with asyncio.timeout(within_s):
            return b"".join([piece async for piece in read_pieces(request, max_bytes)])
    except TimeoutError:
        raise _too_slow() from None


async def read_pieces(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield a body as it comes; raises DeliveryRefusedError (408, 413, 415)."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise DeliveryRefusedError(415, "encoding", "compressed bodies are not taken")
    n_bytes = 0
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)
    stream, patience_s = aiter(request.stream()), _STALLED_AFTER_S
    while (waited := await _next(stream, patience_s)).piece:
        piece = waited.piece
        patience_s = min(_STALLED_AFTER_S, patience_s - waited.seconds + len(piece) / _MIN_BYTES_PER_S)
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise _too_large(max_bytes)
        yield piece


@asynccontextmanager
async def open_form(
    request: Request, max_bytes: int, within_s: float, *, max_files: int, max_fields: int, max_part_size: int
) -> AsyncIterator[FormData]:
    """Give the fields of a form whose body came whole, until the block ends.

    Starlette's own reading waits for ever and keeps whatever comes in files; so it gets a body that is here.

    Raises
    ------
    DeliveryRefusedError
        As of ``read_body``.
    HTTPException
        400 where it is no form, or has more fields or longer ones.
    """
    body = memoryview(await read_body(request, max_bytes, within_s))
    at = 0

    async def receive() -> Message:
        nonlocal at
        await asyncio.sleep(0)
        piece, at = bytes(body[at : at + _PARSED_BYTES]), at + _PARSED_BYTES
        return {"type": "http.request", "body": piece, "more_body": at < len(body)}

    whole = Request(request.scope, receive)
    async with whole.form(max_files=max_files, max_fields=max_fields, max_part_size=max_part_size) as form:
        yield form


@dataclass(frozen=True, slots=True)
class _Waited:
    """A piece, b"" at the end, and how long it took."""

    piece: bytes
    seconds: float


async def _next(stream: AsyncIterator[bytes], patience_s: float) -> _Waited:
    started = time.monotonic()
    try:
        async with asyncio.timeout(patience_s):
            piece = await anext(stream, b"")
    except TimeoutError:
        raise _too_slow() from None
    return _Waited(piece, time.monotonic() - started)


class Room:
    """How many bodies, and bytes of them, may lie here at once; one alone may always."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._n = self._n_bytes = 0

    @contextmanager
    def taken(self, n_bytes: int) -> Iterator[None]:
        """Hold room for a body until the block ends; raises ServiceError."""
        if self._n and (self._n >= self._most or self._n_bytes + n_bytes > self._most_bytes):
            msg = f"{self._n} bodies of {self._n_bytes} bytes are under way; send again later"
            raise ServiceError(msg)
        self._n, self._n_bytes = self._n + 1, self._n_bytes + n_bytes
        try:
            yield
        finally:
            self._n, self._n_bytes = self._n - 1, self._n_bytes - n_bytes


def promised_bytes(request: Request, otherwise: int) -> int:
    """Return how long a body will be; ``otherwise`` where nothing is promised."""
    if "transfer-encoding" in request.headers:  # it overrides any length
        return otherwise
    return int(request.headers.get("content-length", otherwise))


def _too_large(max_bytes: int) -> DeliveryRefusedError:
    return DeliveryRefusedError(413, "too_large", f"a body may have {max_bytes} bytes")


def _too_slow() -> DeliveryRefusedError:
    return DeliveryRefusedError(408, "slow", "the body did not come in time")
