"""Locks with a lease and a fencing token: one process lists a source, one publishes.

Put here: taking, renewing and giving back. Keep out: what is done under a lock, and waiting for one.

A token rises with each holder, and a lock given back keeps its row, so no two holders ever have the same token.
"""

from sqlalchemy import Engine, or_, select, update
from sqlalchemy.engine import Connection

from mm_assets.ledger.clock import epoch_now
from mm_assets.ledger.tables import LOCKS
from mm_assets.ledger.transactions import insert_into, retried


def keeps_lock(connection: Connection, name: str, token: int) -> bool:
    """Return whether the token is the latest and its lease runs; until the transaction ends, nobody else can take it."""
    query = select(LOCKS.c.token).where(LOCKS.c.name == name, LOCKS.c.expires_at > epoch_now()).with_for_update()
    return connection.scalar(query) == token


class LockBook:
    """Locks with a lease and a fencing token."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    @retried
    def take(self, name: str, owner: str, lease_s: float, *, instead_of: str = "") -> int | None:
        """Take a lock that is free, whose lease has ended, or that a holder left who is known to be dead.

        Returns the fencing token; None when another holds it.
        """
        until = epoch_now() + lease_s
        with self._engine.begin() as connection:
            taken = (
                insert_into(connection, LOCKS)
                .values(name=name, owner=owner, token=1, expires_at=until)
                .on_conflict_do_update(
                    index_elements=["name"],
                    set_={"owner": owner, "token": LOCKS.c.token + 1, "expires_at": until},
                    where=or_(LOCKS.c.expires_at <= epoch_now(), LOCKS.c.owner == instead_of),
                )
                .returning(LOCKS.c.token)
            )
            return connection.scalar(taken)

    @retried
    def renew(self, name: str, token: int, lease_s: float) -> bool:
        """Lengthen the lease; False when another took the lock meanwhile, or it was given back."""
        mine = update(LOCKS).where(LOCKS.c.name == name, LOCKS.c.token == token, LOCKS.c.expires_at > 0)
        with self._engine.begin() as connection:
            return bool(connection.execute(mine.values(expires_at=epoch_now() + lease_s)).rowcount)

    def is_held(self, name: str, token: int) -> bool:
        """Return whether the token is the latest and its lease runs."""
        query = select(LOCKS.c.token).where(LOCKS.c.name == name, LOCKS.c.expires_at > epoch_now())
        with self._reader.connect() as connection:
            return connection.scalar(query) == token

    @retried
    def release(self, name: str, token: int) -> None:
        """Give a lock back; without effect when another took it meanwhile."""
        mine = update(LOCKS).where(LOCKS.c.name == name, LOCKS.c.token == token)
        with self._engine.begin() as connection:
            connection.execute(mine.values(expires_at=0.0))

    def holder(self, name: str) -> str | None:
        """Return who holds a lock."""
        query = select(LOCKS.c.owner).where(LOCKS.c.name == name, LOCKS.c.expires_at > epoch_now())
        with self._reader.connect() as connection:
            return connection.scalar(query)
