"""How much is asked of an endpoint, and whether a bucket is asked at all.

Three things that all stores of a process share: a token bucket for each endpoint, whose rate follows what the service
bears; a circuit breaker for each bucket, so that workers do not queue up behind one that is down; counts of requests
and waits. Throttling and outages cost time and nothing else.

Put here: admission and counting. Keep out: trying again (``retry``), and what a failure means (``faults``).
"""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mm_assets.buckets.base import BreakerOpenError
from mm_assets.buckets.retry import TransientError

MAX_RATE = 1_000.0  # requests/s; about what one process can send at all
MIN_RATE = 1.0
OPEN_AFTER = 20  # failures in a row ...
OPEN_AFTER_S = 10.0  # ... over this time at least: sixteen threads fail twenty times within a blip
PROBE_EVERY_S = 30.0
_GROWTH = 1.05  # per second
_ONE_SIGNAL_S = 1.0
_LONG_S = 600.0  # by then every rate has grown to its maximum; keeps the power below what a float holds
_THROTTLED = {"429", "503"}

Meter = tuple[str, tuple[tuple[str, str], ...]]


class Traffic:
    """The traffic of one process; safe to use from several threads.

    Parameters
    ----------
    clock, sleep : replaced by tests
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self.lock = threading.Lock()
        self._paces: dict[str, _Pace] = {}
        self._breakers: dict[tuple[str, str], _Breaker] = {}
        self._meters: dict[Meter, float] = defaultdict(float)

    def lane(self, name: str, endpoint: str, bucket: str) -> "Lane":
        """Return the way of one store to its bucket; ``name`` (a source's alias, say) labels its counts."""
        with self.lock:
            pace = self._paces.setdefault(endpoint, _Pace(self.clock()))
            breaker = self._breakers.setdefault((endpoint, bucket), _Breaker(f"{bucket} at {endpoint}"))
        return Lane(self, name, pace, breaker)

    def drain(self) -> dict[Meter, float]:
        """Return what was counted since the last call, in the form that the ledger's meters take.

        ``store_requests_total`` by alias, operation and code; ``store_wait_seconds_total``, ``store_throttled_total``
        and ``breaker_opened_total`` by alias.
        """
        with self.lock:
            counted, self._meters = self._meters, defaultdict(float)
        return dict(counted)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._meters[name, tuple(labels.items())] += amount


class Lane:
    """The way of one store to its bucket."""

    def __init__(self, traffic: Traffic, name: str, pace: "_Pace", breaker: "_Breaker") -> None:
        self._traffic, self._name, self._pace, self._breaker = traffic, name, pace, breaker

    @contextmanager
    def request(self, operation: str, *, is_urgent: bool = False) -> Iterator[None]:
        """Wait until one request may be sent, and learn from how it ends.

        Parameters
        ----------
        is_urgent : sent although the breaker is open: cleaning up has no later time

        Raises
        ------
        BreakerOpenError
            The bucket failed many times in a row; at once, before anything is sent.
        """
        self._enter(is_urgent=is_urgent)
        try:
            yield
        except Exception as error:
            self._note(operation, _code_of(error), is_failure=isinstance(error, TransientError))
            raise
        self._note(operation, "200", is_failure=False)

    def waited(self, seconds: float) -> None:
        """Count a wait."""
        with self._traffic.lock:
            self._traffic.count("store_wait_seconds_total", seconds, alias=self._name)

    def _enter(self, *, is_urgent: bool) -> None:
        with self._traffic.lock:
            now = self._traffic.clock()
            if not is_urgent:
                self._breaker.admit(now)
            wait_s = self._pace.take(now)
        if wait_s:
            self.waited(wait_s)
            self._traffic.sleep(wait_s)

    def _note(self, operation: str, code: str, *, is_failure: bool) -> None:
        traffic = self._traffic
        with traffic.lock:
            now = traffic.clock()
            traffic.count("store_requests_total", alias=self._name, operation=operation, code=code)
            if is_failure and code in _THROTTLED:
                traffic.count("store_throttled_total", alias=self._name)
                self._pace.slow_down(now)
            if self._breaker.learn(now, is_failure=is_failure):
                traffic.count("breaker_opened_total", alias=self._name)


class _Pace:
    """A token bucket of one second's requests: half the rate when the service throttles, 5 % more each second.

    Halved is what was really sent, not what would have been allowed: otherwise the first halvings would do nothing.
    """

    def __init__(self, now: float) -> None:
        self._rate = self._tokens = MAX_RATE
        self._recent = 0.0  # requests, each fading within a second: at a steady pace this is the pace
        self._at, self._slowed_at = now, -math.inf

    def take(self, now: float) -> float:
        """Take a token, perhaps ahead of time; returns the seconds until it is due."""
        self._advance(now)
        self._recent += 1
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def slow_down(self, now: float) -> None:
        """Halve the rate; the answers to one burst are one signal."""
        self._advance(now)
        if now - self._slowed_at >= _ONE_SIGNAL_S:
            self._slowed_at = now
            self._rate = max(MIN_RATE, min(self._rate, self._recent) / 2)

    def _advance(self, now: float) -> None:
        passed = min(max(0.0, now - self._at), _LONG_S)
        self._at = now
        self._recent *= math.exp(-passed)
        self._rate = min(MAX_RATE, self._rate * _GROWTH**passed)
        self._tokens = min(self._rate, self._tokens + self._rate * passed)


class _Breaker:
    """Opens after failures in a row that last; then one request each half minute finds out whether it answers again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._n_failed = 0
        self._failing_since = self._probe_at = 0.0
        self._is_open = False

    def admit(self, now: float) -> None:
        """Let a request through or raise BreakerOpenError."""
        if not self._is_open:
            return
        if now < self._probe_at:
            msg = (
                f"{self._what} failed {self._n_failed} times in a row and is not asked for "
                f"{self._probe_at - now:.0f} s; a later run tries again"
            )
            raise BreakerOpenError(msg)
        self._probe_at = now + PROBE_EVERY_S

    def learn(self, now: float, *, is_failure: bool) -> bool:
        """Note how a request ended; returns whether the breaker opened by it."""
        if not is_failure:
            self._n_failed, self._is_open = 0, False
            return False
        self._failing_since = self._failing_since if self._n_failed else now
        self._n_failed += 1
        lasts = self._n_failed >= OPEN_AFTER and now - self._failing_since >= OPEN_AFTER_S
        opens = lasts and not self._is_open
        if opens:
            self._is_open, self._probe_at = True, now + PROBE_EVERY_S
        return opens


def _code_of(error: Exception) -> str:
    """Name an outcome: the HTTP status where there was an answer (as botocore holds it), else the kind of failure."""
    cause = error.__cause__ or error
    answer = getattr(cause, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return str(status) if status else type(cause).__name__
