"""Events as hints: each becomes a HEAD, and what that says is written.

Put here: emptying the inbox. Keep out: receiving events, which kinds there are: nothing is believed but the HEAD, so a
late, repeated or swapped event does no harm, and a lost one is found by the listing.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mm_assets.buckets.base import DailyCapError
from mm_assets.errors import ConfigError, ObjectError, ServiceError
from mm_assets.flows.discovery import brake
from mm_assets.flows.locking import BusyError, held
from mm_assets.flows.looking import look, pause
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject, SeenObject
from mm_assets.ledger.inbox import WaitingHint

_CHUNK = 500  # keys looked at together, and settled in one transaction for each source and outcome
_KEEP_DONE_S = 7 * 86_400.0  # an event that is told again within a week is known
_WAIT_S, _MAX_WAIT_S = 30.0, 3_600.0
_MAX_FAILS = 20  # over half a day: an error that nobody foresaw does not pass by itself any more
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drained:
    """What the hints came to; each key counts once in ``n_hints`` and once in one of the others.

    Attributes
    ----------
    n_unchanged : keys that are as the ledger knew them, or not ours
    n_put_off : keys whose HEAD failed, or whose source is paused; looked at again later
    n_refused : keys that the store cannot hold, or that nobody could look at for half a day
    n_braked : objects that are absent but stay until a person confirms so many deletions
    """

    n_hints: int = 0
    n_new: int = 0
    n_changed: int = 0
    n_revived: int = 0
    n_gone: int = 0
    n_unchanged: int = 0
    n_put_off: int = 0
    n_refused: int = 0
    n_braked: int = 0

    @property
    def has_changes(self) -> bool:
        """Whether anything has to be done because of it."""
        return bool(self.n_new or self.n_changed or self.n_revived or self.n_gone)


def drain_inbox(workspace: Workspace, deadline_s: float | None = None, limit: int = 10_000) -> Drained:
    """Look at the keys that events named, oldest first, until none waits or the time or the limit is reached.

    One process at a time does; another one leaves it to that and returns at once.
    """
    ends_at = time.monotonic() + deadline_s if deadline_s is not None else float("inf")
    drainer = _Drainer(workspace, ends_at)
    if not workspace.ledger.inbox.waiting(1):  # as most of the time: then not even a lock is written
        return drainer.drained
    try:
        with held(workspace, "drain"):
            drainer.run(limit)
            workspace.ledger.inbox.purge(time.time() - _KEEP_DONE_S)
    except BusyError:
        _LOG.debug("another process drains the inbox")
    return drainer.drained


class _Drainer:
    """One call's share of the inbox.

    Attributes
    ----------
    drained : what came of it so far
    """

    def __init__(self, workspace: Workspace, ends_at: float) -> None:
        self.drained = Drained()
        self._workspace, self._ends_at = workspace, ends_at
        self._aliases = {source.alias for source in workspace.settings.sources}

    def run(self, limit: int) -> None:
        """Take the oldest, chunk by chunk."""
        while time.monotonic() < self._ends_at and (left := limit - self.drained.n_hints) > 0:
            hints = self._workspace.ledger.inbox.waiting(min(_CHUNK, left))
            if not hints:
                return
            for alias, group in groupby(sorted(hints, key=_alias_of), key=_alias_of):
                self._take(alias, list(group))

    def _take(self, alias: str, hints: Sequence[WaitingHint]) -> None:
        paused = self._workspace.ledger.objects.paused().get(alias)
        if alias not in self._aliases:  # the source has left the settings
            self._settle(alias, hints)
            self._count(n_unchanged=len(hints))
        elif paused is not None:
            self._leave(hints, paused[0] - time.time())
        else:
            self._look(alias, {hint.key: hint for hint in hints})

    def _look(self, alias: str, hints: Mapping[str, WaitingHint]) -> None:
        live = self._workspace.ledger.objects.live_at_key(
            alias, hints
        )  # before: what comes later is not what is absent
        looked = look(self._workspace, alias, list(hints), ends_at=self._ends_at)
        self._record(alias, list(looked.there.values()), [hints[key] for key in looked.there])
        self._retire(alias, {key: hints[key] for key in looked.absent}, live)
        for key, error in looked.failed.items():
            self._bear(alias, hints[key], error)
        unasked = [hints[key] for key in hints.keys() - looked.answered]
        if isinstance(looked.stopped_by, DailyCapError):
            self._leave(unasked, pause(self._workspace, alias, looked.stopped_by) - time.time())
        elif looked.stopped_by is not None:
            self._leave(unasked, _WAIT_S)

    def _record(self, alias: str, seen: Sequence[SeenObject], hints: Sequence[WaitingHint]) -> None:
        if not seen:
            return
        delta = self._workspace.ledger.objects.record_hinted(
            alias, seen, _ids(hints), shard_objects=self._workspace.settings.refresh.shard_objects
        )
        n_as_known = len(seen) - delta.n_new - delta.n_changed - delta.n_revived
        self._count(n_new=delta.n_new, n_changed=delta.n_changed, n_revived=delta.n_revived, n_unchanged=n_as_known)

    def _retire(self, alias: str, hints: Mapping[str, WaitingHint], live: Mapping[str, KnownObject]) -> None:
        """Retire what was live; where that is too much at once, the next listing raises the alarm for a person."""
        objects = self._workspace.ledger.objects
        absent = [live[key].object_id for key in hints if key in live]
        is_braked = brake(self._workspace, objects.scan(alias), objects.n_listed(alias, absent)) is not None
        gone = [] if is_braked else absent
        self._settle(alias, list(hints.values()), gone)
        self._count(n_gone=len(gone), n_braked=len(absent) - len(gone), n_unchanged=len(hints) - len(absent))

    def _bear(self, alias: str, hint: WaitingHint, error: Exception) -> None:
        """Put off what failed, longer each time; settle a key that the store cannot hold or never describes.

        Nothing is written of such a key: whoever sends events would write it, and what is there a listing tells.
        A service that is down and wrong settings (a missing folder, rights withdrawn) are never the key's own fault.
        """
        is_hopeless = hint.fails >= _MAX_FAILS and not isinstance(error, ServiceError | ConfigError)
        if isinstance(error, ObjectError) or is_hopeless:
            _LOG.warning("%s: an event named %.200r, which cannot be looked at: %s", alias, hint.key, error)
            self._settle(alias, [hint])
            self._count(n_refused=1)
        else:
            _LOG.warning(
                "%s: an object that an event named cannot be described: %s: %s", alias, type(error).__name__, error
            )
            # Beyond 2**10 the limit holds anyway, and the power would outgrow a float.
            self._put_off([hint], min(_MAX_WAIT_S, _WAIT_S * 2.0 ** min(hint.fails, 10)))

    def _settle(self, alias: str, hints: Sequence[WaitingHint], gone: Sequence[str] = ()) -> None:
        if hints:
            self._workspace.ledger.objects.retire(alias, gone, _ids(hints))

    def _leave(self, hints: Sequence[WaitingHint], wait_s: float) -> None:
        """Put off what was not asked for, which is no failure of theirs."""
        self._put_off(hints, wait_s, is_failure=False)

    def _put_off(self, hints: Sequence[WaitingHint], wait_s: float, *, is_failure: bool = True) -> None:
        if hints:
            self._workspace.ledger.inbox.put_off(_ids(hints), wait_s, is_failure=is_failure)
        self._count(n_put_off=len(hints))

    def _count(self, **outcomes: int) -> None:
        sums = {name: getattr(self.drained, name) + n for name, n in outcomes.items()}
        self.drained = replace(self.drained, n_hints=self.drained.n_hints + sum(outcomes.values()), **sums)


def _alias_of(hint: WaitingHint) -> str:
    return hint.alias


def _ids(hints: Iterable[WaitingHint]) -> list[int]:
    return [inbox_id for hint in hints for inbox_id in hint.inbox_ids]
