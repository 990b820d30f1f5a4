"""How far the listing of each source has come, what holds it up, and what the source asks for.

Put here: cursors, calls of the day, pauses, alarms. Keep out: the objects that a listing finds.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select, update
from sqlalchemy.engine import Connection, Row

from mm_assets.errors import ServiceError
from mm_assets.ledger.clock import epoch_now, gmt_day
from mm_assets.ledger.tables import SCANS
from mm_assets.ledger.transactions import insert_into, retried


class LostCursorError(ServiceError):
    """Another lister moved the cursor meanwhile; nothing was written, and the listing goes on from where it is now."""

    def __init__(self, alias: str) -> None:
        super().__init__(f"another process listed {alias!r} meanwhile; this one wrote nothing, and the other goes on")


@dataclass(frozen=True, slots=True)
class Scan:
    """How far the listing of a source has come.

    Attributes
    ----------
    n_gone_by_event : versions that the last complete pass saw and that left by an event since
    n_calls : listing calls today (GMT)
    paused_until, pause_reason : when a daily cap ends, seconds since the epoch; may be over
    events_alarm : why no events come
    """

    alias: str
    after: str
    pass_number: int
    n_seen: int
    alarm: str | None
    deletions_confirmed: bool
    finished_at: float | None
    n_gone_by_event: int = 0
    n_calls: int = 0
    paused_until: float | None = None
    pause_reason: str | None = None
    events_alarm: str | None = None

    @property
    def waiting_alarm(self) -> str | None:
        """The alarm, as long as no person has confirmed the deletions."""
        return None if self.deletions_confirmed else self.alarm


def lock_scan(connection: Connection, alias: str, at: Scan | None = None) -> Row[Any]:
    """Return the row of a source and keep it until the transaction ends: who changes its objects takes turns.

    Raises
    ------
    LostCursorError
        The cursor is no longer where ``at`` has it.
    """
    query = select(SCANS).where(SCANS.c.alias == alias).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        connection.execute(insert_into(connection, SCANS).values(alias=alias).on_conflict_do_nothing())
        row = connection.execute(query).one()
    if at is not None and (row.pass_number, row.after) != (at.pass_number, at.after):
        raise LostCursorError(alias)
    return row


def set_scan(connection: Connection, alias: str, **values: Any) -> None:
    """Change the row of a source."""
    connection.execute(update(SCANS).where(SCANS.c.alias == alias).values(**values))


def calls_today(row: Row[Any], more: int = 0) -> dict[str, Any]:
    """Return the columns that count the listing calls of today, with ``more`` of them."""
    today = gmt_day()
    return {"call_day": today, "n_calls": (row.n_calls if row.call_day == today else 0) + more}


class ScanBook:
    """Scans of all sources."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    def scan(self, alias: str) -> Scan:
        """Return the scan of a source, opening its first pass where there is none."""
        with self._reader.connect() as connection:
            row = connection.execute(select(SCANS).where(SCANS.c.alias == alias)).one_or_none()
        return _to_scan(row if row is not None else self._first(alias))

    @retried
    def _first(self, alias: str) -> Row[Any]:
        with self._engine.begin() as connection:
            return lock_scan(connection, alias)

    @retried
    def confirm_deletions(self, alias: str) -> bool:
        """Let the next complete pass retire what is missing; returns False when no alarm waits."""
        query = update(SCANS).where(SCANS.c.alias == alias, SCANS.c.alarm.is_not(None))
        with self._engine.begin() as connection:
            return bool(connection.execute(query.values(deletions_confirmed=True)).rowcount)

    @retried
    def pause(self, alias: str, until: float, reason: str) -> None:
        """Leave a source alone until then (seconds since the epoch); a time that is over ends the pause."""
        with self._engine.begin() as connection:
            lock_scan(connection, alias)
            set_scan(connection, alias, paused_until=until, pause_reason=reason)

    def paused(self) -> dict[str, tuple[float, str]]:
        """Return alias → (until, reason) of the sources that are left alone now."""
        query = select(SCANS).where(SCANS.c.paused_until > epoch_now())
        with self._reader.connect() as connection:
            return {row.alias: (row.paused_until, row.pause_reason or "") for row in connection.execute(query)}

    @retried
    def set_events_alarm(self, alias: str, text: str | None) -> None:
        """Say why no events come; None when they do."""
        with self._engine.begin() as connection:
            lock_scan(connection, alias)
            set_scan(connection, alias, events_alarm=text)

    @retried
    def count_calls(self, alias: str, n: int) -> None:
        """Count listing calls that brought no page."""
        with self._engine.begin() as connection:
            row = lock_scan(connection, alias)
            set_scan(connection, alias, **calls_today(row, n))


def _to_scan(row: Row[Any]) -> Scan:
    return Scan(
        row.alias,
        row.after,
        row.pass_number,
        row.n_seen,
        row.alarm,
        row.deletions_confirmed,
        row.finished_at,
        n_gone_by_event=row.n_gone_by_event,
        n_calls=calls_today(row)["n_calls"],
        paused_until=row.paused_until,
        pause_reason=row.pause_reason,
        events_alarm=row.events_alarm,
    )
