"""Request bodies: never more than is allowed, never waited for without end, never unpacked.

Put here: limits on what comes in. Keep out: what it means.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from mm_assets.events.base import DeliveryRefusedError

_EVENTS_WITHIN_S = 10.0
_STALLED_AFTER_S = 30.0


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return a small body, whole.

    Raises
    ------
    DeliveryRefusedError
        413 beyond ``max_bytes``, whatever Content-Length promises; 415 where it is compressed; 408 after ten seconds.
    """
    try:
        async with asyncio.timeout(_EVENTS_WITHIN_S):
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
    stream = aiter(request.stream())
    while piece := await _next(stream):
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise _too_large(max_bytes)
        yield piece


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    """Return the next piece, b"" at the end."""
    try:
        async with asyncio.timeout(_STALLED_AFTER_S):
            return await anext(stream, b"")
    except TimeoutError:
        raise _too_slow() from None


def _too_large(max_bytes: int) -> DeliveryRefusedError:
    return DeliveryRefusedError(413, "too_large", f"a body may have {max_bytes} bytes")


def _too_slow() -> DeliveryRefusedError:
    return DeliveryRefusedError(408, "slow", "the body did not come in time")
