"""Events that were told and not yet looked at: kept before the sender is answered, done when a HEAD was booked.

Put here: storing, handing out and settling hints. Keep out: what providers say, and what stores answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, delete, func, select, update
from sqlalchemy.engine import Connection

from mm_assets.ledger.clock import epoch_now
from mm_assets.ledger.tables import INBOX, key_hash
from mm_assets.ledger.transactions import insert_into, retried

_CHUNK = 5_000  # ids in one statement, or rows in one transaction of a purge
_ROWS_AT_ONCE = 100  # in one INSERT; drivers keep a statement for each number of rows, and large ones take memory


@dataclass(frozen=True, slots=True)
class Hint:
    """Someone said that something happened to a key of a source.

    Attributes
    ----------
    event_id : at most 64 characters; one that is known already is not stored again
    provider : who said it, at most 16 characters
    key : below the source's prefix
    """

    event_id: str
    provider: str
    alias: str
    key: str


@dataclass(frozen=True, slots=True)
class WaitingHint:
    """What waits for one key.

    Attributes
    ----------
    inbox_ids : all rows that one look at the key settles
    fails : how often the looking failed
    """

    alias: str
    key: str
    inbox_ids: tuple[int, ...]
    fails: int


class Inbox:
    """Events that were told and not yet looked at."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    @retried
    def add(self, hints: Sequence[Hint]) -> int:
        """Store hints in one transaction; returns how many were not known."""
        by_id = {hint.event_id: hint for hint in hints}
        rows = [_to_row(by_id[event_id]) for event_id in sorted(by_id)]  # in order: two writers never lock crosswise
        if not rows:
            return 0
        times = {"received_at": epoch_now(), "not_before": epoch_now()}
        with self._engine.begin() as connection:
            insert = insert_into(connection, INBOX).values(**times).on_conflict_do_nothing()
            stored = insert.returning(INBOX.c.inbox_id).execution_options(insertmanyvalues_page_size=_ROWS_AT_ONCE)
            return len(connection.execute(stored, rows).all())

    def waiting(self, limit: int) -> list[WaitingHint]:
        """Return what is due, one for each key, oldest first; reads at most ``limit`` rows."""
        query = (
            select(INBOX.c.inbox_id, INBOX.c.alias, INBOX.c.key, INBOX.c.fails)
            .where(INBOX.c.done_at.is_(None), INBOX.c.not_before <= epoch_now())
            .order_by(INBOX.c.not_before, INBOX.c.inbox_id)
            .limit(limit)
        )
        found: dict[tuple[str, str], list[tuple[int, int]]] = {}
        with self._reader.connect() as connection:
            for row in connection.execute(query):
                found.setdefault((row.alias, row.key), []).append((row.inbox_id, row.fails))
        return [
            WaitingHint(alias, key, tuple(inbox_id for inbox_id, _ in rows), max(fails for _, fails in rows))
            for (alias, key), rows in found.items()
        ]

    @retried
    def put_off(self, inbox_ids: Sequence[int], wait_s: float, *, is_failure: bool = True) -> None:
        """Look again after a time; a failure is counted, a source that is not asked for now is none."""
        values = {"fails": INBOX.c.fails + int(is_failure), "not_before": epoch_now() + wait_s}
        with self._engine.begin() as connection:
            for rows in _in_parts(inbox_ids):
                connection.execute(update(INBOX).where(rows).values(**values))

    def depth(self) -> int:
        """Count what waits."""
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count()).where(INBOX.c.done_at.is_(None))) or 0)

    def oldest_at(self) -> float | None:
        """Return when the oldest of what waits was received; None when nothing waits."""
        with self._reader.connect() as connection:
            oldest = connection.scalar(select(func.min(INBOX.c.received_at)).where(INBOX.c.done_at.is_(None)))
        return None if oldest is None else float(oldest)

    def purge(self, done_before: float) -> int:
        """Forget what was settled before a time; returns how many rows.

        Until then a repetition of the event is known as one. After it, it is a hint like any other: one more HEAD.
        """
        old = select(INBOX.c.inbox_id).where(INBOX.c.done_at < done_before).limit(_CHUNK)
        n_forgotten = 0
        while True:
            with self._engine.begin() as connection:
                n = connection.execute(delete(INBOX).where(INBOX.c.inbox_id.in_(old))).rowcount
            n_forgotten += n
            if n < _CHUNK:
                return n_forgotten


def settle(connection: Connection, inbox_ids: Sequence[int]) -> None:
    """Mark rows as done, in the transaction that books what the look at their key found."""
    for rows in _in_parts(inbox_ids):
        connection.execute(update(INBOX).where(rows, INBOX.c.done_at.is_(None)).values(done_at=epoch_now()))


def _in_parts(inbox_ids: Sequence[int]) -> list[ColumnElement[bool]]:
    ordered = sorted(inbox_ids)
    return [INBOX.c.inbox_id.in_(ordered[start : start + _CHUNK]) for start in range(0, len(ordered), _CHUNK)]


def _to_row(hint: Hint) -> dict[str, str]:
    return {
        "event_id": hint.event_id,
        "provider": hint.provider,
        "alias": hint.alias,
        "key": hint.key,
        "key_hash": key_hash(hint.key),
    }
