"""What every store of objects can do; a folder and a bucket pass the same contract suite.

Put here: the protocol and the values it passes. Keep out: one store's own ways.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from mm_assets.errors import ServiceError

HEAD_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a listing or HEAD says about one object.

    Attributes
    ----------
    key : raw key below the store's prefix; never normalised
    etag : without quotes or weak mark
    modified_at : timezone-aware
    version_id : '' where the store has none
    """

    key: str
    etag: str
    size_bytes: int
    modified_at: datetime
    version_id: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in the order of the keys' UTF-8 bytes.

    Attributes
    ----------
    next_after : pass as ``after`` for the next page; None at the end
    skipped : names in this stretch that the store holds but cannot express as a key; lone surrogates stand for
        bytes that are no UTF-8
    """

    objects: tuple[StoredObject, ...]
    next_after: str | None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Download:
    """What ``download`` brought.

    Attributes
    ----------
    is_complete : False when ``accept`` declined after the first bytes; the file then holds only those
    sha256 : hex digest of what was read; None when not complete
    """

    stored: StoredObject
    is_complete: bool
    sha256: str | None
    n_bytes: int


class ObjectNotFoundError(Exception):
    """There is no such object (any more); not a fault of the object, and not retried."""


class ObjectChangedError(Exception):
    """The object's ETag is no longer the one asked for; the next discovery finds the new version."""


class DailyCapError(ServiceError):
    """The account's cap for today is used up: this bucket waits, others go on; no retry helps before ``resets_at``.

    Attributes
    ----------
    resets_at : seconds since the epoch; the next 00:00 GMT
    """

    def __init__(self, message: str, resets_at: float) -> None:
        super().__init__(message)
        self.resets_at = resets_at

    def __reduce__(self) -> tuple[type["DailyCapError"], tuple[str, float]]:
        """Rebuild from both arguments, so that the error crosses process borders."""
        return type(self), (str(self), self.resets_at)


class BreakerOpenError(ServiceError):
    """A bucket failed so often in a row that it is not asked for now; said at once, without a request."""


class Store(Protocol):
    """Objects by raw key below a prefix.

    All calls raise ``ServiceError`` after their own retries where the service fails (``DailyCapError`` and
    ``BreakerOpenError`` at once), and ``ConfigError`` where rights, keys or names are wrong. Safe to use from several
    threads.
    """

    uri: str

    def check(self, *, writes: bool = False) -> None:
        """Try the store with a short budget: reachable, readable and, with ``writes``, writable; leaves no object behind.

        Called by ``mm doctor`` and at the start of a command; raises ConfigError that names what to correct.
        """
        ...

    def list_page(self, after: str = "", limit: int = 1_000, prefix: str = "") -> Page:
        """List objects whose key starts with ``prefix`` and comes after ``after``; fewer than ``limit`` is not the end.

        ``after`` need not be a key: ``"lake/" + chr(0x10FFFF)`` jumps over everything below ``lake/``.
        """
        ...

    def head(self, key: str) -> StoredObject:
        """Describe one object; raises ObjectNotFoundError."""
        ...

    def download(
        self, key: str, target: Path, *, etag: str | None = None, accept: Callable[[bytes], bool] | None = None
    ) -> Download:
        """Read one object once into a new file.

        ``accept`` sees the first 4,096 bytes (or fewer) and may decline the rest. With ``etag``, raises
        ObjectChangedError when the object is another version; raises ObjectNotFoundError when it is gone.
        """
        ...

    def read(self, key: str) -> bytes:
        """Return a small object whole; raises ObjectNotFoundError."""
        ...

    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """Return ``length`` bytes from ``start``, fewer at the end; raises ObjectNotFoundError.

        Raises ObjectChangedError when the object ends before ``start`` or, with ``etag``, is another version: ranges
        then never mix two.
        """
        ...

    def read_tail(self, key: str, length: int) -> tuple[StoredObject, bytes]:
        """Describe one object and return its last ``length`` bytes, or all of it; raises ObjectNotFoundError."""
        ...

    def put(self, key: str, data: bytes) -> str:
        """Write one object atomically; returns its ETag."""
        ...

    def upload(self, key: str, file: Path) -> str:
        """Write one object atomically from a file; returns its ETag."""
        ...

    def delete(self, key: str) -> None:
        """Remove one object; removing what is not there is no error."""
        ...

    def erase(self, key: str, *, keep_current: bool = False) -> bool:
        """Remove one object and all of its old versions; with ``keep_current`` the old versions alone.

        Returns True when no version is left, False when the service keeps or may keep one that is only hidden.
        """
        ...

    def abort_stale_uploads(self, older_than_s: float) -> int:
        """Remove unfinished uploads begun longer ago than this, which killed writers left; returns how many."""
        ...
