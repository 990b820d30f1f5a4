"""What an ingest costs: wall and CPU seconds by phase and by step, and the memory of all its processes.

Put here: measurement of our own processes, and the seconds that Dagster's events hold.
Keep out: what the ingest found.
"""

import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import psutil  # type: ignore[import-untyped]  # psutil ships no types

if TYPE_CHECKING:
    from dagster import DagsterInstance

SAMPLE_EVERY_S = 0.2
_FIRST_PHASE = "discover"
_PAGE_EVENTS = 1_000


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds: on the wall, of this process, of its children that have ended."""

    wall_s: float
    own_cpu_s: float
    child_cpu_s: float

    @classmethod
    def now(cls) -> Self:
        """Read the clocks."""
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.monotonic(), own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime)

    def __sub__(self, other: "Clocks") -> "Clocks":
        return Clocks(
            self.wall_s - other.wall_s, self.own_cpu_s - other.own_cpu_s, self.child_cpu_s - other.child_cpu_s
        )


@dataclass(slots=True)
class Meter:
    """Measures while it is entered; `note` takes the progress of an ingest and tells its phases apart.

    Attributes
    ----------
    peak_bytes : largest resident memory of this process and its descendants, sampled; pages they share count for each
    """

    phases: dict[str, Clocks] = field(default_factory=dict)
    peak_bytes: int = 0
    _phase: str = _FIRST_PHASE
    _since: Clocks = field(default_factory=Clocks.now)
    _over: threading.Event = field(default_factory=threading.Event)
    _sampler: threading.Thread = field(init=False)

    def __enter__(self) -> Self:
        """Begin to sample."""
        self._sampler = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the last phase."""
        self._over.set()
        self._sampler.join()
        self.phases[self._phase] = Clocks.now() - self._since

    def note(self, phase: str, *_: object) -> None:
        """Take notice of a phase, which ends the one before it."""
        if phase != self._phase:
            now = Clocks.now()
            self.phases[self._phase] = now - self._since
            self._phase, self._since = phase, now

    def _sample(self) -> None:
        process, is_over = psutil.Process(), False
        while not is_over:
            self.peak_bytes = max(self.peak_bytes, _resident_bytes(process))
            is_over = self._over.wait(SAMPLE_EVERY_S)


def _resident_bytes(process: psutil.Process) -> int:
    """Add up a process and its descendants, except those that still are copies of it on the way to another program."""
    command, total = process.cmdline(), process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss if child.cmdline() != command else 0
        except psutil.Error:  # it ended between listing and asking
            continue
    return int(total)


def step_seconds(instance: "DagsterInstance", steps: Sequence[str], since: float) -> dict[str, float]:
    """Add up the wall seconds that the materializations of each step tell since a time (seconds since 1970).

    Decoding runs ahead in processes of its own and is in none of them.
    """
    return {step: _seconds_of(instance, step, since) for step in steps}


def _seconds_of(instance: "DagsterInstance", step: str, since: float) -> float:
    from dagster import AssetKey, AssetRecordsFilter

    wanted = AssetRecordsFilter(AssetKey(step), after_timestamp=since)
    total_s, cursor, has_more = 0.0, None, True
    while has_more:
        page = instance.fetch_materializations(wanted, limit=_PAGE_EVENTS, cursor=cursor)
        events = [record.asset_materialization for record in page.records]
        told = [event.metadata["seconds"].value for event in events if event and "seconds" in event.metadata]
        total_s += sum(value for value in told if isinstance(value, float))
        cursor, has_more = page.cursor, page.has_more
    return total_s
