"""Finding out what is in a source: new, changed and gone object versions.

Put here: the wrapping listing, its daily budget and its brake. Keep out: reading objects; events, which are ``hints``'.

A full listing in pages is the truth: a cursor on modification times would lose late multipart uploads and ties. The
cursor and the rows of some pages are one transaction, so a kill anywhere repeats at most those. One process at a time
lists a source; one that was overtaken finds the cursor moved, writes nothing and stops.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

from mm_assets.buckets.base import DailyCapError, Page
from mm_assets.errors import MmAssetsError, ServiceError
from mm_assets.flows.asking import answer
from mm_assets.flows.locking import BusyError, held
from mm_assets.flows.looking import look, pause
from mm_assets.flows.refusing import refuse, withdraw
from mm_assets.flows.selecting import Selection
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject, LostCursorError, PageDelta, Scan, SeenObject
from mm_assets.ledger.versions import chunks
from mm_assets.settings import SourceSettings

_PAGE = 1_000
# Ids are random: each transaction touches most of their index, so twenty pages share one; the ledger's part of a listing
# takes a quarter less (2026-11). What waits is older than what an event tells meanwhile, so it must not wait long: where
# an answer was slow, what came before it is asked for again, page by page.
_PAGES_AT_ONCE = 20
_STORED_EVERY_S = 1.0
_STALE_AFTER_S = 2.0
_LOOK_AT_ONCE = 512
_GRACE_S = 5.0  # a page that was asked for in time may come a little late
# Below this many missing objects the share alone says nothing: one of four deleted is not an accident.
_BRAKE_FROM_OBJECTS = 10
_DAY_S = 86_400
_B2_CALLS_PER_DAY = 2_000  # Backblaze bills listing calls beyond 2,500 a day (October 2026)


@dataclass(frozen=True, slots=True)
class Discovery:
    """What one call of ``discover`` found.

    Attributes
    ----------
    is_complete : False when the pass did not end; the next call goes on where this one stopped
    n_refused : names that nothing of ours can hold (NUL, lone surrogates, unreadable entries of a listing)
    n_unanswered : missing objects whose HEAD failed; they stay, and the next pass asks again
    alarm : why deletions wait for a person
    stopped_by : what other than time ended this call early: another lister, a cap, the budget
    paused_until : seconds since the epoch before which the source is not listed
    """

    alias: str
    n_listed: int = 0
    n_new: int = 0
    n_changed: int = 0
    n_revived: int = 0
    n_gone: int = 0
    n_refused: int = 0
    n_unanswered: int = 0
    is_complete: bool = False
    alarm: str | None = None
    stopped_by: str | None = None
    paused_until: float | None = None

    @property
    def has_changes(self) -> bool:
        """Whether anything has to be done because of it."""
        return bool(self.n_new or self.n_changed or self.n_revived or self.n_gone)


def discover(
    workspace: Workspace,
    alias: str,
    *,
    deadline_s: float | None = None,
    is_paced: bool = False,
    on_page: Callable[[int], None] = lambda _: None,
) -> Discovery:
    """List a source until the pass is complete or the time is over.

    Parameters
    ----------
    deadline_s : seconds after which no further page is asked for
    is_paced : begin a new pass only when the daily budget of calls, spread over the day, has room for it
    on_page : called with the number of objects listed so far

    Raises
    ------
    ServiceError, ConfigError
        Of the store; nothing is lost, the next call goes on at the same page.
    """
    ends_at = time.monotonic() + deadline_s if deadline_s is not None else float("inf")
    lister = _Lister(workspace, alias, ends_at, on_page)
    paused = workspace.ledger.objects.paused().get(alias)
    if paused is not None:
        lister.stop(paused[1], paused[0])
        return lister.found
    try:
        with held(workspace, f"list:{alias}"):
            lister.run(is_paced=is_paced)
    except (BusyError, LostCursorError) as overtaken:
        lister.stop(str(overtaken))
    except DailyCapError as cap:
        lister.stop(str(cap), pause(workspace, alias, cap))
    return lister.found


def brake(workspace: Workspace, scan: Scan, n_missing: int) -> str | None:
    """Say why so many objects are not removed at once without a person; None when they may be.

    What left since the last complete pass counts too, so that a flood of events is held like an empty listing.
    """
    if not n_missing or scan.deletions_confirmed:
        return None
    n_left = n_missing + scan.n_gone_by_event
    n_known = workspace.ledger.objects.n_live(scan.alias) + scan.n_gone_by_event
    is_few = n_left < _BRAKE_FROM_OBJECTS or n_left <= workspace.settings.refresh.gone_brake * n_known
    if is_few and n_left < n_known:
        return None
    removed = f"the first {scan.n_gone_by_event} were removed" if scan.n_gone_by_event else "nothing was removed"
    return (
        f"{n_left} of {n_known} objects of {scan.alias!r} are missing from the listing; {removed}. If they were "
        f"deleted on purpose: mm deletions confirm {scan.alias}. If not: check the source's rights and prefix."
    )


@cache
def _spare_what_is_loaded() -> None:
    """Take what is in memory by now out of the garbage collector's rounds, once for each process.

    Each of some dozens of rounds would look at all modules anew: a tenth of the time of a long listing.
    """
    gc.collect()
    gc.freeze()


class _Lister:
    """One call's share of a pass.

    Attributes
    ----------
    found : what came of it so far
    """

    def __init__(self, workspace: Workspace, alias: str, ends_at: float, on_page: Callable[[int], None]) -> None:
        self.found = Discovery(alias)
        self._workspace, self._alias, self._ends_at, self._on_page = workspace, alias, ends_at, on_page
        self._selection = Selection.of(workspace, alias)
        self._budget = _daily_calls(workspace.settings.source(alias))
        self._pages_at_once = _PAGES_AT_ONCE

    def stop(self, why: str, until: float | None = None) -> None:
        """Note why this call ends early."""
        self.found = replace(self.found, stopped_by=why, paused_until=until)

    def run(self, *, is_paced: bool) -> None:
        """List from the cursor on; at the end of the pass decide what is gone."""
        self._workspace.ledger.work.want(self._alias, self._workspace.recipes_of(self._alias))
        scan = self._workspace.ledger.objects.scan(self._alias)
        self.found = replace(self.found, alarm=scan.waiting_alarm)
        if is_paced and not scan.after and scan.finished_at is not None and self._wait_for_budget(scan, _day_frac()):
            return
        after: str | None = scan.after
        while after is not None:
            scan = replace(scan, after=after)
            if self._is_late() or self._wait_for_budget(scan, 1.0):
                return
            after = self._list_some(scan)
            if after is not None:
                _spare_what_is_loaded()
            # The ledger knows how many of the calls are of today, also when the day (GMT) ends meanwhile.
            scan = replace(scan, n_calls=self._workspace.ledger.objects.scan(self._alias).n_calls)
        self._finish(scan)

    def _is_late(self) -> bool:
        return time.monotonic() >= self._ends_at

    def _wait_for_budget(self, scan: Scan, share: float) -> bool:
        """Stop where this share of the day's calls is used up."""
        if self._budget is None or scan.n_calls < max(1.0, self._budget * share):
            return False
        due_at = (time.time() // _DAY_S + min(1.0, scan.n_calls / self._budget)) * _DAY_S
        self.stop(f"{scan.n_calls} of {self._budget} listing calls a day are made (max_list_calls_per_day)", due_at)
        return True

    def _list_some(self, scan: Scan) -> str | None:
        """Store what the next calls bring, also where one of them fails; returns where to go on."""
        pages: list[Page] = []
        began_at = time.monotonic()
        try:
            pages.extend(self._ask(scan, began_at))
        except MmAssetsError:
            with suppress(MmAssetsError):  # or it would hide why the call failed
                self._store(scan, pages, began_at, n_calls=len(pages) + 1)  # billed all the same
            raise
        return self._store(scan, pages, began_at, n_calls=len(pages))

    def _ask(self, scan: Scan, began_at: float) -> Iterator[Page]:
        """Yield as many pages as one transaction takes, the day allows, and there is time for."""
        store, after = self._workspace.sources[self._alias], scan.after
        n_left = self._pages_at_once if self._budget is None else self._budget - scan.n_calls
        for _ in range(min(self._pages_at_once, n_left)):
            page = answer(partial(store.list_page, after=after, limit=_PAGE), ends_at=self._ends_at + _GRACE_S)
            yield page
            if page.next_after is None or self._is_late() or time.monotonic() - began_at >= _STORED_EVERY_S:
                return
            after = self._selection.beyond_own(page.next_after)

    def _store(self, scan: Scan, pages: Sequence[Page], began_at: float, *, n_calls: int) -> str | None:
        """Make what was listed known, with the cursor; returns where it stands, None at the end of the pass."""
        objects = self._workspace.ledger.objects
        is_stale = len(pages) > 1 and time.monotonic() - began_at >= _STALE_AFTER_S
        if is_stale:
            self._pages_at_once = 1
        if is_stale or not pages:
            objects.count_calls(self._alias, n_calls)
            return scan.after
        try:
            return self._record(scan, pages, n_calls)
        except MmAssetsError:
            objects.count_calls(self._alias, n_calls)
            raise

    def _record(self, scan: Scan, pages: Sequence[Page], n_calls: int) -> str | None:
        seen: list[SeenObject] = []
        n_refused = 0
        for page in pages:
            picked = self._selection.pick(page.objects)
            refused = [*picked.refused, *((name, "no readable key: rename the object") for name in page.skipped)]
            refuse(self._workspace, self._alias, refused, scan.pass_number)
            seen += picked.seen
            n_refused += len(refused)
        last = pages[-1].next_after
        after = None if last is None else self._selection.beyond_own(last)
        shard_objects = self._workspace.settings.refresh.shard_objects
        delta = self._workspace.ledger.objects.record_page(
            self._alias, seen, at=scan, after=after, shard_objects=shard_objects, n_calls=n_calls
        )
        self._add(delta, n_listed=sum(len(page.objects) for page in pages), n_refused=n_refused)
        self._meter(scan, delta.n_new + delta.n_changed + delta.n_revived)
        self._on_page(self.found.n_listed)
        return after

    def _add(self, delta: PageDelta, **counts: int) -> None:
        """Add to what was found."""
        counts |= {"n_new": delta.n_new, "n_changed": delta.n_changed, "n_revived": delta.n_revived}
        sums: dict[str, Any] = {name: getattr(self.found, name) + n for name, n in counts.items()}
        self.found = replace(self.found, **sums)

    def _meter(self, scan: Scan, n: int) -> None:
        """Count what no event told: once a first pass was complete, a listing should find nothing."""
        if n and scan.finished_at is not None:
            self._workspace.ledger.meters.add({("reconcile_found_total", (("alias", self._alias),)): float(n)})

    def _finish(self, scan: Scan) -> None:
        """Decide what is gone: absent from a complete pass, and HEAD says so too; too much at once needs a person."""
        objects = self._workspace.ledger.objects
        now = objects.scan(self._alias)
        if (now.pass_number, now.after) != (scan.pass_number, scan.after):
            raise LostCursorError(self._alias)
        alarm = brake(self._workspace, now, objects.n_missing(self._alias))
        gone: list[str] = []
        try:
            is_decided = alarm is not None or self._decide(objects.missing(self._alias), gone)
        except ServiceError:
            objects.retire(self._alias, gone, (), at=scan)
            raise
        if is_decided:
            n_gone = objects.finish_pass(self._alias, gone, alarm, at=scan)
            if alarm is None:
                withdraw(self._workspace, self._alias, scan.pass_number, ends_at=self._ends_at)
        else:
            n_gone = objects.retire(self._alias, gone, (), at=scan)  # kept, so that the next call has less to ask
            self.found = replace(self.found, n_unanswered=0)  # it asks for these again
        self.found = replace(self.found, n_gone=n_gone, is_complete=is_decided, alarm=alarm)
        self._meter(scan, n_gone)

    def _decide(self, missing: Sequence[KnownObject], gone: list[str]) -> bool:
        """Look at what the pass missed and add to ``gone``; False when the time was over first."""
        objects, shard_objects = self._workspace.ledger.objects, self._workspace.settings.refresh.shard_objects
        for part in chunks(missing, _LOOK_AT_ONCE):
            ids = {known.version.key: known.object_id for known in part}
            looked = look(self._workspace, self._alias, list(ids), ends_at=self._ends_at)
            gone += [ids[key] for key in looked.absent]
            self._add(
                objects.record_hinted(self._alias, list(looked.there.values()), (), shard_objects=shard_objects),
                n_unanswered=len(looked.failed),
            )
            if looked.stopped_by is not None:
                raise looked.stopped_by
            if looked.answered != ids.keys():
                return False
        return True


def _daily_calls(source: SourceSettings) -> int | None:
    """Return how many listing calls a day may cost; None for no limit."""
    host = urlsplit(source.endpoint_url or "").hostname or ""
    is_b2 = f".{host}".endswith(".backblazeb2.com")
    return source.max_list_calls_per_day or (_B2_CALLS_PER_DAY if is_b2 else None)


def _day_frac() -> float:
    """Return how much of the day (GMT) is over, 0…1."""
    return time.time() % _DAY_S / _DAY_S
