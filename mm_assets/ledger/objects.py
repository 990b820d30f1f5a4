"""Which object versions exist, and how far each listing has come.

Put here: upserts of listed pages, versions that supersede each other, deletions. Keep out: the work on them.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Engine, and_, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from mm_assets.identity import ObjectVersion
from mm_assets.ledger.tables import FACTS, OBJECTS, SCANS, WORK

_CHUNK = 500  # bound parameters in one statement; SQLite's limit is 32,766


@dataclass(frozen=True, slots=True)
class SeenObject:
    """One selected object of a listing."""

    version: ObjectVersion
    size_bytes: int
    modified_at: float


@dataclass(frozen=True, slots=True)
class KnownObject:
    """One row of the ledger."""

    version: ObjectVersion
    object_id: str
    partition_key: str
    size_bytes: int
    modified_at: float
    shard: int
    state: str


@dataclass(frozen=True, slots=True)
class PageDelta:
    """What a page of a listing changed."""

    n_new: int = 0
    n_changed: int = 0
    n_revived: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """How far the listing of a source has come."""

    alias: str
    after: str
    pass_number: int
    n_seen: int
    alarm: str | None
    deletions_confirmed: bool
    finished_at: float | None


def chunks(items: Sequence[str], size: int = _CHUNK) -> Iterable[Sequence[str]]:
    """Cut a sequence into pieces that fit one statement."""
    return (items[start : start + size] for start in range(0, len(items), size))


def want(connection: Connection, object_ids: Sequence[str], recipes: Mapping[str, str]) -> None:
    """Open rows of work for these versions; existing rows stay as they are."""
    rows = [
        {"object_id": object_id, "step": step, "recipe": recipe, "state": "wanted", "changed_at": time.time()}
        for object_id in object_ids
        for step, recipe in recipes.items()
    ]
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    if rows:
        connection.execute(dialect.insert(WORK).on_conflict_do_nothing(), rows)


def known_object(row: Row[tuple[object, ...]]) -> KnownObject:
    """Build from a row of ``objects``."""
    fields = row._mapping  # noqa: SLF001  SQLAlchemy's documented way to read a row by name
    return KnownObject(
        ObjectVersion(fields["alias"], fields["key"], fields["etag"], fields["version_id"]),
        fields["object_id"],
        fields["partition_key"],
        fields["size_bytes"],
        fields["modified_at"],
        fields["shard"],
        fields["state"],
    )


class ObjectBook:
    """Object versions and scans."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    # -- scans ---------------------------------------------------------------------------------------------------

    def scan(self, alias: str) -> Scan:
        """Return the scan of a source, opening its first pass where there is none."""
        with self._engine.begin() as connection:
            row = connection.execute(select(SCANS).where(SCANS.c.alias == alias)).one_or_none()
            if row is None:
                connection.execute(SCANS.insert().values(alias=alias))
                return Scan(alias, "", 1, 0, None, False, None)
        return Scan(
            row.alias, row.after, row.pass_number, row.n_seen, row.alarm, row.deletions_confirmed, row.finished_at
        )

    def record_page(
        self,
        alias: str,
        seen: Sequence[SeenObject],
        *,
        after: str | None,
        shard_objects: int,
        recipes: Mapping[str, str] = MappingProxyType({}),
    ) -> PageDelta:
        """Store one page of a listing, want the work on what is new, and move the cursor, in one transaction.

        Parameters
        ----------
        seen : the selected objects of the page
        after : where the next page starts; None leaves the cursor for ``finish_pass`` to wrap
        shard_objects : object versions in one shard
        recipes : step → recipe that new versions get a row of work for
        """
        with self._engine.begin() as connection:
            scan = connection.execute(select(SCANS).where(SCANS.c.alias == alias)).one()
            delta, fresh = self._upsert(connection, seen, scan.pass_number, shard_objects)
            want(connection, fresh, recipes)
            values: dict[str, Any] = {"n_seen": SCANS.c.n_seen + len(seen), "pages": SCANS.c.pages + 1}
            if after is not None:
                values["after"] = after
            connection.execute(update(SCANS).where(SCANS.c.alias == alias).values(**values))
        return delta

    def missing(self, alias: str) -> list[KnownObject]:
        """Return the live versions that the current pass has not seen; meaningful once the pass has ended."""
        with self._reader.connect() as connection:
            scan = connection.execute(select(SCANS).where(SCANS.c.alias == alias)).one()
            query = select(OBJECTS).where(
                OBJECTS.c.alias == alias, OBJECTS.c.state == "live", OBJECTS.c.seen_pass < scan.pass_number
            )
            return [known_object(row) for row in connection.execute(query)]

    def n_live(self, alias: str) -> int:
        """Count the live versions of a source."""
        query = select(func.count()).where(OBJECTS.c.alias == alias, OBJECTS.c.state == "live")
        with self._reader.connect() as connection:
            return int(connection.scalar(query) or 0)

    def live_shards(self) -> set[int]:
        """Return the shards that hold a live version."""
        with self._reader.connect() as connection:
            return set(connection.scalars(select(OBJECTS.c.shard).where(OBJECTS.c.state == "live").distinct()))

    def finish_pass(self, alias: str, gone: Sequence[str], alarm: str | None) -> None:
        """End a pass: retire what is gone, wrap the cursor, keep or clear the alarm. One transaction."""
        with self._engine.begin() as connection:
            for part in chunks(gone):
                connection.execute(update(OBJECTS).where(OBJECTS.c.object_id.in_(part)).values(state="gone"))
            values = {"after": "", "pass_number": SCANS.c.pass_number + 1, "n_seen": 0, "alarm": alarm}
            values |= {"finished_at": time.time(), "deletions_confirmed": False}
            connection.execute(update(SCANS).where(SCANS.c.alias == alias).values(**values))

    def confirm_deletions(self, alias: str) -> bool:
        """Let the next complete pass retire what is missing; returns False when no alarm waits."""
        query = update(SCANS).where(SCANS.c.alias == alias, SCANS.c.alarm.is_not(None))
        with self._engine.begin() as connection:
            return bool(connection.execute(query.values(deletions_confirmed=True)).rowcount)

    # -- versions ------------------------------------------------------------------------------------------------

    def _upsert(
        self, connection: Connection, seen: Sequence[SeenObject], pass_number: int, shard_objects: int
    ) -> tuple[PageDelta, list[str]]:
        by_id = {item.version.object_id: item for item in seen}
        states = self._states(connection, list(by_id))
        self._touch(connection, [object_id for object_id, state in states.items() if state == "live"], pass_number)
        fresh = {object_id: item for object_id, item in by_id.items() if states.get(object_id) != "live"}
        if not fresh:
            return PageDelta(), []
        replaced = self._supersede(connection, fresh)
        revived = [object_id for object_id in fresh if object_id in states]
        self._revive(connection, revived, pass_number)
        new = {object_id: item for object_id, item in fresh.items() if object_id not in states}
        self._insert(connection, new, replaced, pass_number, shard_objects)
        n_changed = sum((item.version.alias, item.version.key) in replaced for item in new.values())
        return PageDelta(len(new) - n_changed, n_changed, len(revived)), list(fresh)

    def _states(self, connection: Connection, object_ids: list[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in chunks(object_ids):
            query = select(OBJECTS.c.object_id, OBJECTS.c.state).where(OBJECTS.c.object_id.in_(part))
            found.update((row.object_id, row.state) for row in connection.execute(query))
        return found

    def _touch(self, connection: Connection, object_ids: list[str], pass_number: int) -> None:
        for part in chunks(object_ids):
            connection.execute(update(OBJECTS).where(OBJECTS.c.object_id.in_(part)).values(seen_pass=pass_number))

    def _revive(self, connection: Connection, object_ids: list[str], pass_number: int) -> None:
        """Bring back versions that were there before (A, B, A): their results still hold."""
        for part in chunks(object_ids):
            values = {"state": "live", "seen_pass": pass_number}
            connection.execute(update(OBJECTS).where(OBJECTS.c.object_id.in_(part)).values(**values))

    def _supersede(
        self, connection: Connection, fresh: dict[str, SeenObject]
    ) -> dict[tuple[str, str], Row[tuple[object, ...]]]:
        """Retire the live versions of the same keys; returns them by (alias, key)."""
        replaced: dict[tuple[str, str], Row[tuple[object, ...]]] = {}
        alias = next(iter(fresh.values())).version.alias
        for part in chunks([item.version.key for item in fresh.values()]):
            of_keys = and_(OBJECTS.c.alias == alias, OBJECTS.c.key.in_(part), OBJECTS.c.state == "live")
            for row in connection.execute(select(OBJECTS).where(of_keys)):
                replaced[row.alias, row.key] = row
            connection.execute(update(OBJECTS).where(of_keys).values(state="superseded"))
        return replaced

    def _insert(
        self,
        connection: Connection,
        new: dict[str, SeenObject],
        replaced: dict[tuple[str, str], Row[tuple[object, ...]]],
        pass_number: int,
        shard_objects: int,
    ) -> None:
        n_first = sum((item.version.alias, item.version.key) not in replaced for item in new.values())
        place = self._take_places(connection, n_first)
        rows = []
        for object_id, item in new.items():
            old = replaced.get((item.version.alias, item.version.key))
            here, shard = (old.place, old.shard) if old is not None else (place, place // shard_objects)
            place += old is None
            rows.append(_new_row(object_id, item, here, shard, pass_number))
        if rows:
            connection.execute(OBJECTS.insert(), rows)

    def _take_places(self, connection: Connection, n: int) -> int:
        """Reserve n places in the order of discovery; returns the first."""
        mine = FACTS.c.name == "next_place"
        known = connection.scalar(select(FACTS.c.value).where(mine))
        if known is None:
            connection.execute(FACTS.insert().values(name="next_place", value=str(n)))
            return 0
        connection.execute(update(FACTS).where(mine).values(value=str(int(known) + n)))
        return int(known)

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
        return self._by(OBJECTS.c.partition_key, partition_keys)

    def by_ids(self, object_ids: Sequence[str]) -> list[KnownObject]:
        """Return the versions of these ids, in the order given; unknown ones are left out."""
        return self._by(OBJECTS.c.object_id, object_ids)

    def _by(self, column: object, values: Sequence[str]) -> list[KnownObject]:
        found: dict[str, KnownObject] = {}
        with self._reader.connect() as connection:
            for part in chunks(values):
                for row in connection.execute(select(OBJECTS).where(column.in_(part))):  # type: ignore[attr-defined]
                    found[getattr(row, column.name)] = known_object(row)  # type: ignore[attr-defined]
        return [found[value] for value in values if value in found]

    # -- Dagster's working set -----------------------------------------------------------------------------------

    def n_in_dagster(self) -> int:
        """Count the keys that Dagster holds."""
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count()).where(OBJECTS.c.in_dagster)) or 0)

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

    def set_in_dagster(self, object_ids: Sequence[str], held: bool) -> None:
        """Note which keys Dagster holds."""
        with self._engine.begin() as connection:
            for part in chunks(object_ids):
                connection.execute(update(OBJECTS).where(OBJECTS.c.object_id.in_(part)).values(in_dagster=held))


def _new_row(object_id: str, item: SeenObject, place: int, shard: int, pass_number: int) -> dict[str, object]:
    return {
        "object_id": object_id,
        "alias": item.version.alias,
        "key": item.version.key,
        "etag": item.version.etag,
        "version_id": item.version.version_id,
        "partition_key": item.version.partition_key,
        "size_bytes": item.size_bytes,
        "modified_at": item.modified_at,
        "place": place,
        "shard": shard,
        "state": "live",
        "first_seen_at": time.time(),
        "seen_pass": pass_number,
        "in_dagster": False,
    }
