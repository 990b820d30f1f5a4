"""One lister, one publisher: locks of the ledger, held as long as a block lasts.

Put here: taking, renewing and giving back. Keep out: what is done under a lock, and its fencing: whoever writes
compares the token or the cursor in its own transaction, because a lease can end while its holder sleeps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from mm_assets.errors import ServiceError
from mm_assets.flows.processing import is_dead_here, new_owner, repeating
from mm_assets.flows.workspace import Workspace

LEASE_S = 60.0  # a holder that was killed on another machine is in the way for so long at most


class BusyError(ServiceError):
    """Another process holds the lock; what is to be done, it does.

    Attributes
    ----------
    holder : ``host/process/…`` of who holds it
    """

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(
            f"{name!r} is under way in {holder}; it goes on there, or here within {LEASE_S:.0f} s of its end"
        )
        self.holder = holder


@contextmanager
def held(workspace: Workspace, name: str, *, lease_s: float = LEASE_S) -> Iterator[int]:
    """Hold a lock, renewed by a thread, while the block lasts; yields its fencing token.

    Raises
    ------
    BusyError
        Another process holds it.
    """
    locks = workspace.ledger.locks
    token = _take(workspace, name, lease_s)
    try:
        with repeating(lease_s / 3, partial(locks.renew, name, token, lease_s)):
            yield token
    finally:
        locks.release(name, token)


def _take(workspace: Workspace, name: str, lease_s: float) -> int:
    locks, owner = workspace.ledger.locks, new_owner()
    token = locks.take(name, owner, lease_s)
    holder = locks.holder(name) if token is None else None
    if holder is not None and is_dead_here(holder):
        token = locks.take(name, owner, lease_s, instead_of=holder)
    if token is None:
        raise BusyError(name, holder or "a process that has just ended")
    return token
