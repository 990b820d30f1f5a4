"""Which object versions exist.

Put here: pages of a listing, hints of events, deletions, names that cannot be held, looking versions up. Keep out: the
work on them.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, true, update
from sqlalchemy.engine import Connection

from mm_assets.ledger import inbox
from mm_assets.ledger.scans import LostCursorError, Scan, ScanBook, calls_today, lock_scan, set_scan
from mm_assets.ledger.tables import IS_LIVE, OBJECTS, REFUSALS, SCANS, WORK
from mm_assets.ledger.transactions import insert_into, retried
from mm_assets.ledger.versions import (
    KnownObject,
    PageDelta,
    SeenObject,
    chunks,
    known_object,
    leave,
    live_at_keys,
    upsert,
)

__all__ = [
    "KnownObject",
    "LostCursorError",
    "ObjectBook",
    "PageDelta",
    "Refusal",
    "SeenObject",
    "chunks",
    "known_object",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object whose name no key can hold.

    Attributes
    ----------
    refusal_id : hash of alias and raw name
    shown_key : the name, escaped
    first_seen_at : set when it is stored
    """

    refusal_id: str
    alias: str
    shown_key: str
    reason: str
    error: str
    first_seen_at: float = 0.0


class ObjectBook(ScanBook):
    """Object versions and scans."""

    # -- what is seen --------------------------------------------------------------------------------------------

    @retried
    def record_page(
        self,
        alias: str,
        seen: Sequence[SeenObject],
        *,
        at: Scan,
        after: str | None,
        shard_objects: int,
        n_calls: int = 1,
    ) -> PageDelta:
        """Store pages of a listing that follow each other, and move the cursor, in one transaction.

        Parameters
        ----------
        seen : the selected objects of the pages
        at : where the listing was when the first page was asked for
        after : where the next page starts; None leaves the cursor for ``finish_pass`` to wrap
        shard_objects : object versions in one shard
        n_calls : listing calls that they took

        Raises
        ------
        LostCursorError
            Another lister moved the cursor; nothing is written.
        """
        with self._engine.begin() as connection:
            row = lock_scan(connection, alias, at)
            delta = upsert(connection, alias, seen, row.pass_number, shard_objects)
            moved = {"after": row.after if after is None else after, "pages": row.pages + 1}
            set_scan(connection, alias, n_seen=row.n_seen + len(seen), **moved, **calls_today(row, n_calls))
        return delta

    @retried
    def record_hinted(
        self, alias: str, seen: Sequence[SeenObject], settled: Sequence[int], *, shard_objects: int
    ) -> PageDelta:
        """Store what events led to, and settle them, in one transaction; no cursor moves.

        Parameters
        ----------
        settled : rows of the inbox
        """
        with self._engine.begin() as connection:
            row = lock_scan(connection, alias)
            delta = upsert(connection, alias, seen, row.pass_number, shard_objects)
            inbox.settle(connection, settled)
        return delta

    # -- what is gone --------------------------------------------------------------------------------------------

    @retried
    def retire(self, alias: str, object_ids: Sequence[str], settled: Sequence[int], *, at: Scan | None = None) -> int:
        """Let versions leave, and settle events, in one transaction; returns how many left.

        Parameters
        ----------
        at : the pass that missed them; what an event showed meanwhile stays
        """
        missed = OBJECTS.c.seen_pass < at.pass_number if at is not None else true()
        with self._engine.begin() as connection:
            row = lock_scan(connection, alias)
            n_listed = _n_listed(connection, alias, object_ids, row.finished_at)
            n = leave(connection, object_ids, "gone", OBJECTS.c.alias == alias, missed)
            set_scan(connection, alias, n_gone_by_event=row.n_gone_by_event + n_listed)
            inbox.settle(connection, settled)
        return n

    def n_listed(self, alias: str, object_ids: Sequence[str]) -> int:
        """Count those of these live versions that a complete pass may have seen: younger ones come and go at will."""
        with self._reader.connect() as connection:
            row = connection.execute(select(SCANS.c.finished_at).where(SCANS.c.alias == alias)).one_or_none()
            return _n_listed(connection, alias, object_ids, row.finished_at if row else None)

    def n_missing(self, alias: str) -> int:
        """Count the live versions that the current pass has not seen; meaningful once the pass has ended."""
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(OBJECTS).where(_missing(alias))) or 0)

    def missing(self, alias: str) -> list[KnownObject]:
        """Return the live versions that the current pass has not seen; all of them in memory, so count them before."""
        with self._reader.connect() as connection:
            return [known_object(row) for row in connection.execute(select(OBJECTS).where(_missing(alias)))]

    @retried
    def finish_pass(self, alias: str, gone: Sequence[str], alarm: str | None, *, at: Scan, n_calls: int = 0) -> int:
        """End a pass: retire what is gone, wrap the cursor, keep or clear the alarm. One transaction.

        A version that an event showed meanwhile stays. While an alarm waits, what events removed keeps counting: else
        the brake would let go by itself one pass later. Returns how many left.

        Raises
        ------
        LostCursorError
            Another lister moved the cursor; nothing is written.
        """
        with self._engine.begin() as connection:
            row = lock_scan(connection, alias, at)
            n = leave(connection, gone, "gone", OBJECTS.c.seen_pass < row.pass_number)
            ended = {"after": "", "pass_number": row.pass_number + 1, "n_seen": 0, "finished_at": time.time()}
            # Confirmed since the alarm was decided, it counts for the next pass.
            ended |= {"alarm": alarm, "deletions_confirmed": alarm is not None and row.deletions_confirmed}
            ended |= {"n_gone_by_event": 0 if alarm is None else row.n_gone_by_event}
            set_scan(connection, alias, **ended, **calls_today(row, n_calls))
        return n

    # -- names that no key can hold ------------------------------------------------------------------------------

    def unrefused(self, refusal_ids: Sequence[str]) -> set[str]:
        """Return those of these names that are not refused yet."""
        new = set(refusal_ids)
        with self._reader.connect() as connection:
            for part in chunks(refusal_ids):
                known = select(REFUSALS.c.refusal_id).where(REFUSALS.c.refusal_id.in_(part))
                new.difference_update(connection.scalars(known))
        return new

    @retried
    def refuse(self, refusals: Sequence[Refusal], seen_pass: int) -> None:
        """Remember names that cannot be held, and which pass met them last."""
        now = time.time()
        with self._engine.begin() as connection:
            for refusal in sorted(refusals, key=lambda item: item.refusal_id):
                row = insert_into(connection, REFUSALS).values(
                    **asdict(refusal) | {"first_seen_at": now, "seen_pass": seen_pass}
                )
                is_later = REFUSALS.c.seen_pass < seen_pass  # a lister that was overtaken sets nothing back
                connection.execute(
                    row.on_conflict_do_update(
                        index_elements=["refusal_id"], set_={"seen_pass": seen_pass}, where=is_later
                    )
                )

    @retried
    def forget_refusals(self, alias: str, pass_number: int, limit: int) -> list[str]:
        """Forget names of a source that this pass did not meet, so many at most; returns their ids."""
        missed = and_(REFUSALS.c.alias == alias, REFUSALS.c.seen_pass < pass_number)
        some = select(REFUSALS.c.refusal_id).where(missed).order_by(REFUSALS.c.refusal_id).limit(limit)
        with self._reader.connect() as connection:
            ids = list(connection.scalars(some))
        if not ids:
            return []
        with self._engine.begin() as connection:
            gone = delete(REFUSALS).where(REFUSALS.c.refusal_id.in_(ids), missed).returning(REFUSALS.c.refusal_id)
            return sorted(connection.scalars(gone))

    def n_refusals(self) -> int:
        """Count the names that cannot be held."""
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(REFUSALS)) or 0)

    def refusals(self) -> list[Refusal]:
        """Return all names that cannot be held, in the order of discovery."""
        query = select(REFUSALS).order_by(REFUSALS.c.first_seen_at, REFUSALS.c.refusal_id)
        with self._reader.connect() as connection:
            return [
                Refusal(r.refusal_id, r.alias, r.shown_key, r.reason, r.error, r.first_seen_at)
                for r in connection.execute(query)
            ]

    # -- looking up ----------------------------------------------------------------------------------------------

    def n_live(self, alias: str) -> int:
        """Count the live versions of a source."""
        query = select(func.count()).select_from(OBJECTS).where(IS_LIVE, OBJECTS.c.alias == alias)
        with self._reader.connect() as connection:
            return int(connection.scalar(query) or 0)

    def live_shards(self) -> set[int]:
        """Return the shards that hold a live version."""
        with self._reader.connect() as connection:
            return set(connection.scalars(select(OBJECTS.c.shard).where(IS_LIVE).distinct()))

    def live_at_key(self, alias: str, keys: Iterable[str]) -> dict[str, KnownObject]:
        """Return key → live version."""
        with self._reader.connect() as connection:
            return {key: known_object(row) for key, row in live_at_keys(connection, alias, keys).items()}

    def find(self, text: str) -> list[KnownObject]:
        """Find versions by object id, partition key, key, or ``alias/key``; live ones first."""
        alias, _, key = text.partition("/")
        matches = or_(
            OBJECTS.c.object_id == text,
            OBJECTS.c.partition_key == text,
            OBJECTS.c.key == text,
            and_(OBJECTS.c.alias == alias, OBJECTS.c.key == key),
        )
        query = select(OBJECTS).where(matches).order_by(OBJECTS.c.state != "live", OBJECTS.c.place)
        with self._reader.connect() as connection:
            return [known_object(row) for row in connection.execute(query)]

    def by_partition_keys(self, partition_keys: Sequence[str]) -> list[KnownObject]:
        """Return the versions of these partition keys, in the order given; unknown ones are left out."""
        return self._by("partition_key", partition_keys)

    def by_ids(self, object_ids: Sequence[str]) -> list[KnownObject]:
        """Return the versions of these ids, in the order given; unknown ones are left out."""
        return self._by("object_id", object_ids)

    def _by(self, column: str, values: Sequence[str]) -> list[KnownObject]:
        found: dict[str, KnownObject] = {}
        with self._reader.connect() as connection:
            for part in chunks(values):
                for row in connection.execute(select(OBJECTS).where(OBJECTS.c[column].in_(part))):
                    found[getattr(row, column)] = known_object(row)
        return [found[value] for value in values if value in found]

    # -- Dagster's working set -----------------------------------------------------------------------------------

    def n_in_dagster(self) -> int:
        """Count the keys that Dagster holds."""
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(OBJECTS).where(OBJECTS.c.in_dagster)) or 0)

    def retirable(self, limit: int, recipes: Collection[str]) -> list[KnownObject]:
        """Return versions held by Dagster with nothing left to do and nothing dead, oldest first."""
        unfinished = select(WORK.c.object_id).where(
            WORK.c.object_id == OBJECTS.c.object_id,
            WORK.c.state.in_(("wanted", "claimed", "dead")),
            WORK.c.recipe.in_(list(recipes)),
        )
        query = select(OBJECTS).where(OBJECTS.c.in_dagster, or_(OBJECTS.c.state != "live", ~unfinished.exists()))
        with self._reader.connect() as connection:
            return [known_object(row) for row in connection.execute(query.order_by(OBJECTS.c.place).limit(limit))]

    @retried
    def set_in_dagster(self, object_ids: Sequence[str], held: bool) -> None:
        """Note which keys Dagster holds."""
        with self._engine.begin() as connection:
            for part in chunks(sorted(object_ids)):
                connection.execute(update(OBJECTS).where(OBJECTS.c.object_id.in_(part)).values(in_dagster=held))


def _missing(alias: str) -> ColumnElement[bool]:
    current = select(SCANS.c.pass_number).where(SCANS.c.alias == alias).scalar_subquery()
    return and_(IS_LIVE, OBJECTS.c.alias == alias, OBJECTS.c.seen_pass < current)


def _n_listed(connection: Connection, alias: str, object_ids: Sequence[str], finished_at: float | None) -> int:
    """Count the live versions among these that were there before the last complete pass ended; all before the first."""
    here = and_(IS_LIVE, OBJECTS.c.alias == alias)
    if finished_at is not None:
        here = and_(here, OBJECTS.c.first_seen_at <= finished_at)
    parts = (select(func.count()).where(here, OBJECTS.c.object_id.in_(part)) for part in chunks(sorted(object_ids)))
    return sum(int(connection.scalar(query) or 0) for query in parts)
