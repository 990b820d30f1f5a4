"""One object's bytes into a new file, read once and no further than wanted.

Put here: what a folder and a bucket share when they download. Keep out: where the bytes come from.
"""

import hashlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from mm_assets.buckets.base import HEAD_BYTES, Download, StoredObject
from mm_assets.errors import ServiceError

CHUNK_BYTES = 1 << 20

Read = Callable[[int], bytes]


def save_stream(
    stored: StoredObject, read: Read, target: Path, accept: Callable[[bytes], bool] | None = None
) -> Download:
    """Copy a stream into ``target`` and hash it on the way; memory stays at one chunk.

    The caller compares ``n_bytes`` with the object's size. On any error nothing is left at ``target``.

    Raises
    ------
    ServiceError
        ``target`` cannot be written (disk full, say); the object is not to blame.
    """
    try:
        with _create(target) as file:
            return _copy(stored, read, file, accept)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy(stored: StoredObject, read: Read, file: FileIO, accept: Callable[[bytes], bool] | None) -> Download:
    chunk = _read_head(read)
    _write(file, chunk)
    if accept is not None and not accept(chunk):
        return Download(stored, is_complete=False, sha256=None, n_bytes=len(chunk))
    digest, n_bytes = hashlib.sha256(chunk), len(chunk)
    while chunk := read(CHUNK_BYTES):
        _write(file, chunk)
        digest.update(chunk)
        n_bytes += len(chunk)
    return Download(stored, is_complete=True, sha256=digest.hexdigest(), n_bytes=n_bytes)


def _read_head(read: Read) -> bytes:
    """Read 4,096 bytes, or fewer at the end of the stream, whatever the size of its pieces."""
    head = b""
    while len(head) < HEAD_BYTES and (piece := read(HEAD_BYTES - len(head))):
        head += piece
    return head


def _create(target: Path) -> FileIO:
    try:
        return target.open("wb", buffering=0)
    except OSError as error:
        raise _unwritable(target, error) from error


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise _unwritable(Path(str(file.name)), error) from error


def _unwritable(target: Path, error: OSError) -> ServiceError:
    msg = f"{target} cannot be written: {error.strerror}; free some space there or choose another temporary folder"
    return ServiceError(msg)
