"""Filling an empty ledger again from what the lake remembers.

Put here: rows as they were, written so that a kill anywhere only repeats. Keep out: reading the lake (``rebuilding``).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Table, and_, delete, or_, select, update
from sqlalchemy.engine import Connection

from mm_assets.identity import ObjectVersion
from mm_assets.ledger.objects import SeenObject, chunks
from mm_assets.ledger.tables import FACTS, IS_LIVE, OBJECTS, PUBLISHED, WORK, short_key
from mm_assets.ledger.transactions import insert_into, retried

UNKNOWN_SIZE = -1
_IDENTITY = ("object_id", "step", "recipe")
_UNDER_WAY = "rebuild_under_way"
_ERASED: dict[str, Any] = {
    "alias": "",
    "key": "",
    "short_key": "",
    "etag": "",
    "version_id": "",
    "size_bytes": 0,
    "modified_at": 0.0,
    "in_dagster": False,
    "opened_for": "",
}


@dataclass(frozen=True, slots=True)
class RestoredVersion:
    """A version that was published.

    Attributes
    ----------
    size_bytes : ``UNKNOWN_SIZE`` where only a listing can tell
    place : order within the shard, as the published file has it
    """

    version: ObjectVersion
    size_bytes: int
    modified_at: float
    place: int
    shard: int


@dataclass(frozen=True, slots=True)
class RestoredWork:
    """How a step of a version had ended, or that it had not.

    Attributes
    ----------
    state : done, skipped, dead or wanted
    changed_at : seconds since the epoch; None for now
    """

    object_id: str
    step: str
    recipe: str
    state: str
    reason: str | None = None
    error: str | None = None
    n_rows: int | None = None
    tries: int = 0
    claims: int = 0
    replays: int = 0
    changed_at: float | None = None


class RestoringBook:
    """The rows of a ledger that was lost. Everything can be repeated: what is there stays as it is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    def is_under_way(self) -> bool:
        """Whether a rebuild was begun and not ended."""
        with self._reader.connect() as connection:
            return connection.execute(select(FACTS).where(FACTS.c.name == _UNDER_WAY)).first() is not None

    def is_empty(self) -> bool:
        """Whether nothing was ever recorded, or only by a rebuild that was not ended."""
        with self._reader.connect() as connection:
            rows = (connection.execute(select(table).limit(1)).first() for table in (OBJECTS, WORK, PUBLISHED))
            return all(row is None for row in rows) or self.is_under_way()

    @retried
    def begin(self) -> None:
        """Note that a rebuild is under way: until its end the ledger is incomplete."""
        with self._engine.begin() as connection:
            _add(connection, FACTS, [{"name": _UNDER_WAY, "value": str(time.time())}])

    @retried
    def end(self) -> None:
        """Note that the rebuild is over."""
        with self._engine.begin() as connection:
            connection.execute(delete(FACTS).where(FACTS.c.name == _UNDER_WAY))

    @retried
    def add_versions(self, versions: Sequence[RestoredVersion], work: Sequence[RestoredWork]) -> int:
        """Write one shard's versions and their work, in one transaction; new versions then get later places.

        They count as not yet seen, so that the next listing retires what is gone. Returns how many versions were new.
        """
        object_ids = [item.version.object_id for item in versions]
        with self._engine.begin() as connection:
            before = _known(connection, object_ids)
            _add(connection, OBJECTS, [_version_row(item) for item in versions])
            known = _known(connection, object_ids, OBJECTS.c.swept_at.is_(None))  # of what was swept, no result is left
            _add(connection, WORK, [_work_row(item) for item in work if item.object_id in known])
            _take_places(connection, max((item.place for item in versions), default=-1) + 1)
        return len(known - before)

    @retried
    def add_erased(self, object_ids: Sequence[str]) -> None:
        """Write versions that may not come back; their keys are not known, and what is left of them is swept."""
        now = time.time()
        facts = {"state": "erased", "place": 0, "shard": 0, "first_seen_at": now, "seen_pass": 0, "left_at": now}
        with self._engine.begin() as connection:
            rows = [_ERASED | facts | {"object_id": of, "partition_key": of} for of in sorted(object_ids)]
            _add(connection, OBJECTS, rows)

    def unsized(self) -> set[str]:
        """Return the sources with versions whose size only a listing can tell."""
        query = select(OBJECTS.c.alias).where(OBJECTS.c.size_bytes == UNKNOWN_SIZE).distinct()
        with self._reader.connect() as connection:
            return set(connection.scalars(query))

    @retried
    def set_sizes(self, seen: Iterable[SeenObject]) -> None:
        """Write what a listing tells of versions whose size was not known."""
        with self._engine.begin() as connection:
            for item in seen:
                row = and_(OBJECTS.c.object_id == item.version.object_id, OBJECTS.c.size_bytes == UNKNOWN_SIZE)
                values = {"size_bytes": item.size_bytes, "modified_at": item.modified_at}
                connection.execute(update(OBJECTS).where(row).values(**values))

    def without_end(self, step: str, recipe: str, object_ids: Sequence[str]) -> list[str]:
        """Return the live ones of these versions whose step was neither done nor skipped, in the order given."""
        ended = select(WORK.c.object_id).where(
            WORK.c.object_id == OBJECTS.c.object_id,
            WORK.c.step == step,
            WORK.c.recipe == recipe,
            WORK.c.state.in_(("done", "skipped")),
        )
        found: set[str] = set()
        with self._reader.connect() as connection:
            for part in chunks(object_ids):
                query = select(OBJECTS.c.object_id).where(IS_LIVE, OBJECTS.c.object_id.in_(part), ~ended.exists())
                found.update(connection.scalars(query))
        return [object_id for object_id in object_ids if object_id in found]

    @retried
    def set_ends(self, ends: Sequence[RestoredWork]) -> int:
        """Write ends newer than the last publish; returns how many were written.

        A result counts more than a death, an end more than none; a death that is known learns its tries.
        """
        n = 0
        with self._engine.begin() as connection:
            for end in ends:
                values = _work_row(end)
                same_death = and_(WORK.c.state == "dead", WORK.c.reason == end.reason)
                replaced = same_death if end.state == "dead" else WORK.c.state == "dead"
                row = insert_into(connection, WORK).values(**values)
                changed = {name: value for name, value in values.items() if name not in _IDENTITY}
                row = row.on_conflict_do_update(
                    index_elements=_IDENTITY, set_=changed, where=or_(WORK.c.state == "wanted", replaced)
                )
                n += connection.execute(row).rowcount
        return n


def _add(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert what is not there yet; one statement for all rows, since building one for each batch costs more than it."""
    if rows:
        connection.execute(insert_into(connection, table).on_conflict_do_nothing(), [dict(row) for row in rows])


def _known(connection: Connection, object_ids: Sequence[str], *those: ColumnElement[bool]) -> set[str]:
    found: set[str] = set()
    for part in chunks(object_ids):
        found.update(connection.scalars(select(OBJECTS.c.object_id).where(OBJECTS.c.object_id.in_(part), *those)))
    return found


def _take_places(connection: Connection, following: int) -> None:
    """Let the next new version have this place or a later one."""
    known = connection.scalar(select(FACTS.c.value).where(FACTS.c.name == "next_place"))
    if int(known or 0) < following:
        row = insert_into(connection, FACTS).values(name="next_place", value=str(following))
        connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": str(following)}))


def _version_row(item: RestoredVersion) -> dict[str, Any]:
    version = item.version
    return {
        "object_id": version.object_id,
        "alias": version.alias,
        "key": version.key,
        "short_key": short_key(version.key),
        "etag": version.etag,
        "version_id": version.version_id,
        "partition_key": version.partition_key,
        "size_bytes": item.size_bytes,
        "modified_at": item.modified_at,
        "place": item.place,
        "shard": item.shard,
        "state": "live",
        "first_seen_at": time.time(),
        "seen_pass": 0,
        "in_dagster": False,
        "opened_for": "",
    }


def _work_row(item: RestoredWork) -> Mapping[str, Any]:
    changed_at = time.time() if item.changed_at is None else item.changed_at
    return asdict(item) | {"token": 0, "not_before": 0.0, "changed_at": changed_at}
