"""The body of an answer, as it comes from the network.

Put here: what is wrong with a body that a request alone does not show: too slow, too short, too long. Keep out: where
the bytes go.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Protocol

from mm_assets.buckets.retry import TransientError

_PIECE_BYTES = 1 << 20


class RawBody(Protocol):
    """What urllib3 gives."""

    def read1(self, amt: int | None = None) -> bytes:
        """Return what has arrived, at most ``amt`` bytes; b'' at the end."""
        ...


class StalledError(TransientError):
    """Bytes come so slowly that another connection is better; a read timeout never fires while single bytes trickle."""


class TruncatedError(TransientError):
    """A body does not have the length that was promised."""


class Body:
    """A body of known length, read once.

    Parameters
    ----------
    n_bytes : its length, as promised
    stall_bytes, stall_s : fewer bytes than this in so many seconds of waiting are a stall
    verify : called with the MD5 (hex) when the body has been read to its end; may raise. None: no digest is computed
    """

    def __init__(
        self,
        raw: RawBody,
        n_bytes: int,
        *,
        stall_bytes: int,
        stall_s: float,
        verify: Callable[[str], None] | None = None,
    ) -> None:
        self._raw, self._n_left, self._verify = raw, n_bytes, verify
        self._stall_bytes, self._stall_s = stall_bytes, stall_s
        self._n_came, self._waited_s = 0, 0.0
        self._md5 = hashlib.md5(usedforsecurity=False) if verify else None
        self._is_ended = False

    def read(self, n_bytes: int | None = None) -> bytes:
        """Return so many bytes (None: all), fewer only at the end.

        Raises
        ------
        StalledError, TruncatedError
            The connection is no good; ``verify`` may raise its own.
        """
        n_wanted = self._n_left if n_bytes is None else min(n_bytes, self._n_left)
        pieces = []
        while n_wanted:
            piece = self._receive(min(n_wanted, _PIECE_BYTES))
            pieces.append(piece)
            n_wanted -= len(piece)
        if not self._n_left and not self._is_ended:
            self._end()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _receive(self, n_bytes: int) -> bytes:
        started = time.monotonic()
        piece = self._raw.read1(n_bytes)
        if not piece:
            msg = f"the body ended {self._n_left} bytes too early"
            raise TruncatedError(msg)
        self._n_left -= len(piece)
        if self._md5:
            self._md5.update(piece)
        self._watch(len(piece), time.monotonic() - started)
        return piece

    def _watch(self, n_bytes: int, waited_s: float) -> None:
        """Count only the time spent on waiting: a slow reader is no slow service."""
        self._n_came, self._waited_s = self._n_came + n_bytes, self._waited_s + waited_s
        if self._waited_s < self._stall_s:
            return
        if self._n_came < self._stall_bytes and self._n_left:
            msg = f"only {self._n_came} bytes came in {self._waited_s:.0f} s"
            raise StalledError(msg)
        self._n_came, self._waited_s = 0, 0.0

    def _end(self) -> None:
        self._is_ended = True
        if self._raw.read1(1):  # asking once more also hands the connection back
            msg = "the body is longer than promised"
            raise TruncatedError(msg)
        if self._verify and self._md5:
            self._verify(self._md5.hexdigest())
