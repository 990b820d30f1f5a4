"""``GET /media/{object_id}``: an object's bytes for a player, in the ranges that it asks for.

Put here: HTTP ranges over a store. Keep out: who may see which object.

What is stored is as hostile as strangers made it: only kinds that a browser plays or draws are named, everything else
is a download, and no script of an object runs in this site.
"""

import mimetypes
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import HTTPException
from fastapi.responses import StreamingResponse

from mm_assets.buckets.base import ObjectChangedError, ObjectNotFoundError, Store
from mm_assets.ledger import KnownObject

_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_SHOWN = re.compile(r"(video|audio)/[\w.+-]+|image/(jpeg|png|gif|webp|avif|bmp|tiff)|application/pdf")
_SAFE = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "sandbox; default-src 'none'; media-src 'self'; img-src 'self'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that are asked for: from ``start`` up to and without ``stop``, of ``size``."""

    start: int
    stop: int
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole object."""
        return self.stop - self.start == self.size


def parse_range(header: str | None, size: int) -> Span:
    """Read a Range header (RFC 9110) of one range; of several, or another unit, the whole is given, as is allowed.

    Raises
    ------
    HTTPException
        416 for a range that begins behind the end.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return Span(0, size, size)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise HTTPException(416, "the range begins behind the end", {"Content-Range": f"bytes */{size}"})
    return Span(start, stop, size)


def shown_type(key: str) -> str | None:
    """Return the media type that a key's ending means; None for what a browser may not show."""
    kind, _ = mimetypes.guess_type(key)
    return kind if kind is not None and _SHOWN.fullmatch(kind) else None


async def stream(
    store: Store, known: KnownObject, range_header: str | None, readers: CapacityLimiter
) -> StreamingResponse:
    """Answer with the bytes of an object version, read as the player takes them.

    Parameters
    ----------
    readers : threads that wait for the store

    Raises
    ------
    HTTPException
        404 when it is gone from its source, 409 when another version took its place, 416 as ``parse_range``.
    """
    span = parse_range(range_header, known.size_bytes)
    pieces = _pieces(store, known, span, readers)
    first = await _first(pieces)  # what is wrong is told with a status, which goes before the body
    kind = shown_type(known.version.key)
    headers = _SAFE | {"Content-Length": str(span.stop - span.start), "ETag": f'"{known.object_id}"'}
    if not span.is_whole:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{span.size}"
    if kind is None:
        kind, headers["Content-Disposition"] = "application/octet-stream", "attachment"
    return StreamingResponse(_chained(first, pieces), 200 if span.is_whole else 206, headers, kind)


async def _pieces(
    store: Store, known: KnownObject, span: Span, readers: CapacityLimiter
) -> AsyncGenerator[bytes, None]:
    version, at = known.version, span.start

    def read() -> bytes:
        return store.read_range(version.key, at, min(_PIECE_BYTES, span.stop - at), etag=version.etag)

    while at < span.stop:
        piece = await run_sync(read, limiter=readers)
        if not piece:
            return
        yield piece
        at += len(piece)


async def _first(pieces: AsyncGenerator[bytes, None]) -> bytes:
    try:
        return await anext(pieces, b"")
    except ObjectNotFoundError:
        raise HTTPException(404, "the object is no longer in its source") from None
    except ObjectChangedError:
        raise HTTPException(409, "another version of the object took its place in the source") from None


async def _chained(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece
