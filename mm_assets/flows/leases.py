"""The claims of one worker, from the first to the last: renewed, finished, given back, and counted when lost.

Put here: what a worker holds. Keep out: how the ledger keeps it, and the work.
"""

import threading
from collections.abc import Sequence

from mm_assets.errors import ServiceError
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Claim, Finished


class LeaseLostError(ServiceError):
    """All claims of this worker were taken over: it stood still for longer than a lease."""


class Lease:
    """What one worker holds; used by the worker, by its heartbeat and by who gives back when it must stop."""

    def __init__(self, workspace: Workspace, owner: str, claims: Sequence[Claim]) -> None:
        self._ledger = workspace.ledger
        self._owner = owner
        self._lease_s = workspace.settings.runs.lease_s
        self._recipes, self._reads = workspace.recipes, workspace.reads()
        self._n_held = sum(len(claim.steps) for claim in claims)
        self._is_lost = False
        self._lock = threading.Lock()

    def renew(self) -> None:
        """Lengthen the lease of what is still ours."""
        with self._lock:
            n_lost = self._recount(self._ledger.work.renew(self._owner, self._lease_s))
            self._is_lost = self._is_lost or (n_lost > 0 and self._n_held == 0)

    def finish(self, ends: Sequence[Finished]) -> list[bool]:
        """Write ends; returns which were accepted: others had been taken over by somebody else."""
        with self._lock:
            accepted = self._ledger.work.finish(ends, self._recipes, self._reads)
            self._n_held -= sum(accepted)
        return accepted

    def give_back(self) -> None:
        """Release what is neither finished nor lost; can be repeated."""
        with self._lock:
            self._recount(self._ledger.work.release(self._owner))
            self._n_held = 0

    def check(self) -> None:
        """Raise LeaseLostError when nothing is left to work on."""
        if self._is_lost:
            msg = f"all claims of {self._owner} were taken over, since they were not renewed for {self._lease_s:.0f} s"
            raise LeaseLostError(msg)

    def _recount(self, n_found: int) -> int:
        """Take over what the ledger found of ours; returns how much was lost."""
        n_lost = max(0, self._n_held - n_found)
        self._n_held = n_found
        if n_lost:
            self._ledger.meters.add({("lease_lost_total", ()): n_lost})
        return n_lost
