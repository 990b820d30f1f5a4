"""Object versions as rows, and the rules by which they follow each other.

Put here: one live version of each key, places, versions that supersede, leave and return. Keep out: cursors, transactions.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Text, and_, cast, select, update
from sqlalchemy.engine import Connection

from mm_assets.identity import ObjectVersion
from mm_assets.ledger.bulk import among, insert_rows
from mm_assets.ledger.tables import FACTS, IS_LIVE, OBJECTS, short_key
from mm_assets.ledger.transactions import insert_into

_CHUNK = 1_000  # bound parameters in one statement; SQLite's limit is 32,766
_T = TypeVar("_T")


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


def chunks(items: Sequence[_T], size: int = _CHUNK) -> Iterable[Sequence[_T]]:
    """Cut a sequence into pieces that fit one statement."""
    return (items[start : start + size] for start in range(0, len(items), size))


def known_object(row: Row[Any]) -> KnownObject:
    """Build from a row of ``objects``."""
    return KnownObject(
        ObjectVersion(row.alias, row.key, row.etag, row.version_id),
        row.object_id,
        row.partition_key,
        row.size_bytes,
        row.modified_at,
        row.shard,
        row.state,
    )


def live_at_keys(connection: Connection, alias: str, keys: Iterable[str]) -> dict[str, Row[Any]]:
    """Return the live versions of these keys, by key."""
    query = select(OBJECTS).where(_live_at(alias, keys))
    return {row.key: row for row in connection.execute(query)}


def _live_at(alias: str, keys: Iterable[str]) -> ColumnElement[bool]:
    return and_(IS_LIVE, OBJECTS.c.alias == alias, among(OBJECTS.c.short_key, sorted(map(short_key, keys))))


def leave(connection: Connection, object_ids: Sequence[str], state: str, *also: ColumnElement[bool]) -> int:
    """Let live versions leave: superseded or gone, until they are seen again; returns how many did."""
    if not object_ids:
        return 0
    rows = update(OBJECTS).where(IS_LIVE, among(OBJECTS.c.object_id, sorted(object_ids)), *also)
    return connection.execute(rows.values(state=state, left_at=time.time())).rowcount


def upsert(
    connection: Connection, alias: str, seen: Sequence[SeenObject], pass_number: int, shard_objects: int
) -> PageDelta:
    """Make these the live versions of their keys; the caller holds the scan of the source.

    A version seen before returns with its results; an erased one stays erased, but what it replaced leaves all the same.
    """
    by_key = {item.version.key: item for item in seen}  # a store may name a key twice: the last one counts
    by_id = {item.version.object_id: item for item in by_key.values()}
    live = _touch(connection, alias, by_key, pass_number)
    replaced = {row.key: row for row in live if row.object_id not in by_id}
    for row in live:
        by_id.pop(row.object_id, None)
    if not by_id:
        return PageDelta()
    leave(connection, [row.object_id for row in replaced.values()], "superseded")
    known = _known(connection, by_id)
    n_revived = _revive(connection, known, pass_number)
    new = {object_id: item for object_id, item in by_id.items() if object_id not in known}
    _insert(connection, new, replaced, pass_number, shard_objects)
    n_changed = sum(item.version.key in replaced for item in new.values())
    return PageDelta(len(new) - n_changed, n_changed, n_revived)


def _touch(connection: Connection, alias: str, keys: Collection[str], pass_number: int) -> list[Row[Any]]:
    """Mark the live versions of these keys as seen; returns them, also those that are about to be superseded."""
    if not keys:
        return []
    live = update(OBJECTS).where(_live_at(alias, keys)).values(seen_pass=pass_number)
    columns = (OBJECTS.c.object_id, OBJECTS.c.key, OBJECTS.c.place, OBJECTS.c.shard)
    return list(connection.execute(live.returning(*columns)))


def _known(connection: Connection, object_ids: Iterable[str]) -> set[str]:
    return set(connection.scalars(select(OBJECTS.c.object_id).where(among(OBJECTS.c.object_id, sorted(object_ids)))))


def _revive(connection: Connection, object_ids: Collection[str], pass_number: int) -> int:
    """Bring back versions that were there before (A, B, A): results hold, and a sweep that took them reopens the work.

    Whoever erases takes no turns with listings, so only the statement itself can tell what is erased. Returns how many.
    """
    if not object_ids:
        return 0
    values = {"state": "live", "seen_pass": pass_number, "left_at": None, "swept_at": None}
    rows = and_(among(OBJECTS.c.object_id, sorted(object_ids)), OBJECTS.c.state != "erased")
    return connection.execute(update(OBJECTS).where(rows).values(**values)).rowcount


def _insert(
    connection: Connection,
    new: Mapping[str, SeenObject],
    replaced: Mapping[str, Row[Any]],
    pass_number: int,
    shard_objects: int,
) -> None:
    if not new:
        return
    place = _take_places(connection, sum(item.version.key not in replaced for item in new.values()))
    rows = []
    for object_id, item in new.items():
        old = replaced.get(item.version.key)
        here, shard = (old.place, old.shard) if old is not None else (place, place // shard_objects)
        place += old is None
        rows.append(_new_row(object_id, item, here, shard, pass_number))
    insert_rows(connection, OBJECTS, _NEW_COLUMNS, rows)


def _take_places(connection: Connection, n: int) -> int:
    """Reserve n places in the order of discovery; returns the first."""
    taken = (
        insert_into(connection, FACTS)
        .values(name="next_place", value=str(n))
        .on_conflict_do_update(
            index_elements=["name"], set_={"value": cast(cast(FACTS.c.value, OBJECTS.c.place.type) + n, Text)}
        )
        .returning(FACTS.c.value)
    )
    return int(connection.execute(taken).scalar_one()) - n


_NEW_COLUMNS = (
    *("object_id", "alias", "key", "short_key", "etag", "version_id", "partition_key", "size_bytes", "modified_at"),
    *("place", "shard", "state", "first_seen_at", "seen_pass", "in_dagster", "opened_for"),
)


def _new_row(object_id: str, item: SeenObject, place: int, shard: int, pass_number: int) -> tuple[Any, ...]:
    version = item.version
    identity = (object_id, version.alias, version.key, short_key(version.key), version.etag, version.version_id)
    told = (version.partition_key, item.size_bytes, item.modified_at)
    return (*identity, *told, place, shard, "live", time.time(), pass_number, False, "")
