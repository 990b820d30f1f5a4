"""How often one caller may ask.

Put here: counting requests. Keep out: who the caller is, and bodies, which ``reading`` bounds.
"""

import math
import threading
import time
from collections import OrderedDict

from fastapi import HTTPException

_MOST_CALLERS = 10_000  # the one that asked longest ago is forgotten, which is only in its favour


class RateLimit:
    """A bucket of tokens for each caller: as many as it may ask in a minute, refilled evenly.

    Parameters
    ----------
    per_minute : 0 for no limit
    """

    def __init__(self, per_minute: int) -> None:
        self._most = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller → tokens, as of when
        self._lock = threading.Lock()

    def take(self, caller: str) -> None:
        """Count a request; raises HTTPException (429, with Retry-After) where it is one too many."""
        if not self._most:
            return
        now, per_second = time.monotonic(), self._most / 60
        with self._lock:
            tokens, at = self._left.pop(caller, (float(self._most), now))
            tokens = min(self._most, tokens + (now - at) * per_second)
            is_allowed = tokens >= 1
            self._left[caller] = (tokens - 1 if is_allowed else tokens, now)
            if len(self._left) > _MOST_CALLERS:
                self._left.popitem(last=False)
        if not is_allowed:
            wait = {"Retry-After": str(math.ceil((1 - tokens) / per_second))}
            raise HTTPException(429, f"more than {self._most} requests in a minute; ask again later", headers=wait)
