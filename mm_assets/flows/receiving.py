"""From what a provider said to hints in the inbox: whose objects are meant, and durable before the answer.

Put here: events → sources, group commit, counting. Keep out: parsing, HTTP, and the look at the objects themselves.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, Full, Queue

from mm_assets.buckets.globs import is_selected
from mm_assets.errors import ServiceError
from mm_assets.events.base import Delivery, Event, Ignored, make_id
from mm_assets.flows.metrics import MeterKey
from mm_assets.flows.workspace import reserved_prefixes
from mm_assets.ledger import Ledger
from mm_assets.ledger.inbox import Hint
from mm_assets.ledger.meters import MeterBook
from mm_assets.settings import Settings, SourceSettings

_LOG = logging.getLogger(__name__)
_GATHER_S = 0.005  # what comes within this time shares a commit
_MAX_GROUP = 5_000  # hints in one commit
_MAX_WAITING = 500  # deliveries; more means that the ledger does not keep up
_MAX_BUCKET_KEY_BYTES = 1_024  # of every S3-compatible service; folders hold longer ones
_FLUSH_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Routed:
    """What a delivery means for the sources.

    Attributes
    ----------
    ignored : why → how many events, the parser's and those that concern no source
    """

    hints: list[Hint] = field(default_factory=list)
    ignored: Counter[Ignored] = field(default_factory=Counter)


class Router:
    """Finds the sources that an event concerns; a bucket may hold several, side by side or nested.

    A folder has no bucket that could send events: what names its alias instead of a bucket is taken for it.
    """

    def __init__(self, settings: Settings) -> None:
        self._sources: dict[str, list[tuple[SourceSettings, tuple[str, ...]]]] = {}
        for source in settings.sources:
            name = source.bucket if source.is_bucket else source.alias
            self._sources.setdefault(name, []).append((source, reserved_prefixes(source, settings)))

    def route(self, provider: str, delivery: Delivery) -> Routed:
        """Make a hint for each event and source that want each other."""
        routed = Routed(ignored=Counter(delivery.ignored))
        for event in delivery.events:
            self._route(provider, event, routed)
        return routed

    def _route(self, provider: str, event: Event, routed: Routed) -> None:
        reason = Ignored.UNKNOWN_BUCKET
        is_wanted = False
        for source, own in self._sources.get(event.bucket, ()):
            key = event.key.removeprefix(_prefix(source))
            why = _why_not(event.key, source, own)
            if why is None:
                hint_id = make_id(provider, event.event_id, source.alias)
                routed.hints.append(Hint(hint_id, provider, source.alias, key))
            is_wanted, reason = is_wanted or why is None, why or reason
        if not is_wanted:
            routed.ignored[reason] += 1


def _prefix(source: SourceSettings) -> str:
    return source.prefix if source.is_bucket else ""


def _why_not(key: str, source: SourceSettings, own: tuple[str, ...]) -> Ignored | None:
    """Return why a source does not want a key of its bucket; None where it does."""
    if source.is_bucket and len(key.encode("utf-8")) > _MAX_BUCKET_KEY_BYTES:
        return Ignored.UNUSABLE_KEY
    below = key.removeprefix(_prefix(source))
    if not key.startswith(_prefix(source)) or not below or not is_selected(below, source.include, source.exclude):
        return Ignored.NOT_SELECTED
    return Ignored.OWN_FILES if own and below.startswith(own) else None


class Tally:
    """Counts in memory, added to the ledger's meters now and then: a request costs no write of its own."""

    def __init__(self, meters: MeterBook) -> None:
        self._meters, self._lock = meters, threading.Lock()
        self._counts: dict[MeterKey, float] = {}
        self._flushed_at = time.monotonic()

    def count(self, name: str, n: float = 1, **labels: str) -> None:
        """Count n more under these labels."""
        self._add({(name, tuple(sorted(labels.items()))): n})

    def count_ignored(self, provider: str, ignored: Mapping[Ignored, int]) -> None:
        """Count events that were left out."""
        for why, n in ignored.items():
            self.count("events_ignored_total", n, provider=provider, why=str(why))

    def flush(self, *, every_s: float = 0.0) -> None:
        """Write what was counted; where the ledger does not answer it is kept for the next time."""
        if time.monotonic() - self._flushed_at < every_s:
            return
        self._flushed_at = time.monotonic()
        with self._lock:
            counts, self._counts = self._counts, {}
        try:
            self._meters.add(counts)
        except Exception as error:  # noqa: BLE001  whatever it is: counts are worth no request and no thread
            _LOG.warning("counts wait for the ledger: %s: %s", type(error).__name__, error)
            self._add(counts)

    def _add(self, counts: Mapping[MeterKey, float]) -> None:
        with self._lock:
            for key, n in counts.items():
                self._counts[key] = self._counts.get(key, 0.0) + n


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A delivery whose sender waits."""

    hints: Sequence[Hint]
    stored: "Future[None]"


class Receiver:
    """Puts deliveries into the inbox, many in one commit; a thread of its own writes.

    Commits are what a database does few of (some hundred a second, each of any size): so what arrives within 5 ms, and
    while the commit before is under way, goes together. Call ``close`` at the end.

    Attributes
    ----------
    tally : counts of this process
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.tally = Tally(ledger.meters)
        self._router, self._inbox = Router(settings), ledger.inbox
        self._queue: Queue[_Waiting | None] = Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write, name="inbox", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread that writes is there; without it nothing can be stored."""
        return self._thread.is_alive()

    def receive(self, provider: str, delivery: Delivery) -> "Future[None]":
        """Take a delivery; the future is done when it is durable, and only then may the sender be told so.

        A future cancelled before its commit begins takes its delivery with it.

        Raises
        ------
        ServiceError
            The ledger does not keep up, now or (from the future) at the commit; the sender should send again.
        """
        routed = self._router.route(provider, delivery)
        stored: Future[None] = Future()
        if routed.hints:
            self._put(_Waiting(routed.hints, stored))
        else:
            stored.set_result(None)
        self.tally.count("events_received_total", len(delivery.events), provider=provider)
        self.tally.count_ignored(provider, routed.ignored)
        return stored

    def close(self, timeout_s: float = 2.0) -> None:
        """Commit what waits and stop; waits no longer than the time given."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except Full:
            return
        self._thread.join(timeout_s)

    def _put(self, waiting: _Waiting) -> None:
        try:
            self._queue.put_nowait(waiting)
        except Full:
            msg = "too many deliveries wait for the ledger; send again later"
            raise ServiceError(msg) from None

    def _write(self) -> None:
        is_over = False
        while not is_over:
            group, is_over = self._gather()
            try:
                self._commit(group)
                self.tally.flush(every_s=0.0 if is_over else _FLUSH_EVERY_S)
            except Exception:  # noqa: BLE001  without this thread nothing would be stored any more, and nobody told
                _LOG.exception("the writer of the inbox goes on after a failure")

    def _gather(self) -> tuple[list[_Waiting], bool]:
        """Wait for a delivery, and a little for others; returns them, and whether the end was asked for."""
        group: list[_Waiting] = []
        n, ends_at = 0, time.monotonic() + _FLUSH_EVERY_S
        while n < _MAX_GROUP:
            try:
                item = self._queue.get(timeout=max(0.0, ends_at - time.monotonic()))
            except Empty:
                break
            if item is None:
                return group, True
            if item.stored.set_running_or_notify_cancel():
                group.append(item)
                n += len(item.hints)
            ends_at = min(ends_at, time.monotonic() + _GATHER_S)
        return group, False

    def _commit(self, group: Sequence[_Waiting]) -> None:
        if not group:
            return
        hints = [hint for item in group for hint in item.hints]
        try:
            n_new = self._inbox.add(hints)
        except Exception as error:  # noqa: BLE001  whatever it is: nobody may be told that it was stored
            for item in group:
                item.stored.set_exception(_not_stored(error))
            return
        try:  # counted first, so that who was told sees it in the metrics
            self.tally.count("events_duplicate_total", len(hints) - n_new)
            self.tally.count("event_commits_total")
        finally:
            for item in group:
                item.stored.set_result(None)


def _not_stored(cause: Exception) -> ServiceError:
    error = ServiceError("the ledger does not take events now; send again later")
    error.__cause__ = cause
    return error
