"""From what sources want to batches of work.

Put here: opening rows of work, grouping them into batches, freeing batches that were never begun. Keep out: claims.

A million new objects cost a row each: the rows of their work are opened only as fast as batches are planned.
"""

import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, func, literal, or_, select, text, update
from sqlalchemy.engine import Connection

from mm_assets.ledger.clock import epoch_now
from mm_assets.ledger.progress import FINAL_STATES, WorkReader, mark_of, these, unopened, wanted_by_source
from mm_assets.ledger.scans import lock_scan, set_scan
from mm_assets.ledger.tables import BATCHES, IS_LIVE, OBJECTS, WORK
from mm_assets.ledger.transactions import insert_into, retried, take_turn
from mm_assets.ledger.versions import KnownObject, chunks, known_object

_SUSPECT_CLAIMS = 2  # starts without an end before an object is run alone
_MANY = 500  # versions opened at once that change what a planner should know
_RETRIED_AT_ONCE = 8  # objects that failed before, in one batch
NEW_ROW = {"state": "wanted", "tries": 0, "claims": 0, "not_before": 0.0, "replays": 0}
_ROW = (WORK.c.object_id, WORK.c.step, WORK.c.recipe)


@dataclass(frozen=True, slots=True)
class Batch:
    """The object versions that one run processes."""

    batch_id: str
    lane: str
    steps: tuple[str, ...]
    n_objects: int


def lock_work(connection: Connection, rows: ColumnElement[bool]) -> None:
    """Lock rows of work until the transaction ends, in one order everywhere, so that nobody waits in a circle.

    A statement of its own: put into the one that changes the rows, it made PostgreSQL read the whole table (2026-11).
    SQLite has one writer at a time.
    """
    if connection.dialect.name == "postgresql":
        ordered = select(*_ROW).where(rows).order_by(*_ROW).with_for_update().subquery()
        connection.execute(select(func.count()).select_from(ordered))


def change_work(connection: Connection, rows: ColumnElement[bool], values: Mapping[str, Any]) -> int:
    """Change rows of work, locked in order; returns how many."""
    lock_work(connection, rows)
    return connection.execute(update(WORK).where(rows).values(**values)).rowcount


def open_rows(connection: Connection, object_ids: Sequence[str], recipes: Mapping[str, str]) -> int:
    """Open rows of work for these versions, and mark them; existing rows stay as they are. Returns how many are new."""
    n = 0
    for part in chunks(sorted(object_ids)):
        for step, recipe in sorted(recipes.items()):
            row = NEW_ROW | {"step": step, "recipe": recipe, "changed_at": time.time()}
            n += insert_work(connection, row, OBJECTS.c.object_id.in_(part))
        marked = update(OBJECTS).where(OBJECTS.c.object_id.in_(part)).values(opened_for=mark_of(recipes))
        connection.execute(marked)
    return n


def insert_work(connection: Connection, row: Mapping[str, Any], versions: ColumnElement[bool]) -> int:
    """Open one row for each of these versions that has none; returns how many."""
    new = select(OBJECTS.c.object_id, OBJECTS.c.last_token, *map(literal, row.values())).where(versions)
    into = insert_into(connection, WORK).from_select(["object_id", "token", *row], new, include_defaults=False)
    return connection.execute(into.on_conflict_do_nothing()).rowcount


class BatchBook(WorkReader):
    """What waits for a worker."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        # recipes → what the ids of the batches begin with whose planning was not answered
        self._unanswered: dict[tuple[tuple[str, str], ...], str] = {}

    # -- opening -------------------------------------------------------------------------------------------------

    @retried
    def want(self, alias: str, recipes: Mapping[str, str]) -> None:
        """Note what a source asks for (step → recipe); its rows are opened by and by."""
        with self._reader.connect() as connection:
            if wanted_by_source(connection).get(alias) == dict(recipes):
                return
        with self._engine.begin() as connection:
            lock_scan(connection, alias)
            set_scan(connection, alias, wants=json.dumps(dict(recipes), sort_keys=True))

    def open_work(self, alias: str, recipes: Mapping[str, str], limit: int) -> int:
        """Open the rows of at most ``limit`` live versions that lack some, in the order of discovery.

        Returns
        -------
        versions opened; a transaction for every thousand, so that others can write in between
        """
        self.want(alias, recipes)
        n = 0
        while n < limit and (opened := self._open_some(alias, recipes, min(1_000, limit - n))):
            n += opened
        if n >= _MANY:
            self._analyze()
        return n

    def _analyze(self) -> None:
        """Tell PostgreSQL at once what it would notice in a minute: without figures it plans as for empty tables.

        SQLite's planner needs none: its figures (no share of each state) made it choose worse (2026-11).
        """
        if self._engine.dialect.name == "postgresql":
            with self._engine.begin() as connection:
                connection.execute(text("ANALYZE objects, work"))

    @retried
    def _open_some(self, alias: str, recipes: Mapping[str, str], limit: int) -> int:
        with self._engine.begin() as connection:
            lock_scan(connection, alias)
            found: list[str] = []
            for versions in unopened(alias, recipes):
                query = select(OBJECTS.c.object_id).where(versions).order_by(OBJECTS.c.opened_for, OBJECTS.c.place)
                found += connection.scalars(query.limit(limit - len(found)))
            open_rows(connection, found, recipes)
        return len(found)

    # -- planning ------------------------------------------------------------------------------------------------

    def plan(
        self,
        recipes: Mapping[str, str],
        *,
        needs: Mapping[str, Mapping[str, str]],
        aliases: Collection[str],
        size: int,
        max_tries: int,
        planner: str,
        limit: int = 1_000,
    ) -> list[Batch]:
        """Group open work into batches; those of a call whose commit was not answered come with the next call.

        Parameters
        ----------
        recipes : the steps (and recipes) that the batches may run
        needs : step → (step → recipe) that must be done before, unless the same batch runs them
        aliases : the sources to take from
        size : object versions in one batch; objects that failed before go eight at a time, on their last try alone
        planner : name of this process, so that batches of a dead one can be freed
        limit : batches made at most
        """

        def make(connection: Connection, call: str) -> list[Batch]:
            rows = and_(WORK.c.state == "wanted", WORK.c.batch_id.is_(None), _can_start(recipes, needs))
            ready = _ready(connection, rows, aliases, max_tries, size * limit)
            groups = [
                ("bulk", size, [o for o, tries in ready if tries == 0]),
                ("bulk", min(size, _RETRIED_AT_ONCE), [o for o, tries in ready if 0 < tries < max_tries - 1]),
                ("single", 1, [o for o, tries in ready if tries and tries >= max_tries - 1]),
            ]
            made = [(lane, part) for lane, most, ids in groups for part in chunks(ids, most)][:limit]
            return [
                _make(
                    connection, Batch(f"{call}{number:012x}", lane, tuple(recipes), len(part)), part, recipes, planner
                )
                for number, (lane, part) in enumerate(made)
            ]

        alike = tuple(sorted(recipes.items()))
        planned = self._plan(self._unanswered.setdefault(alike, uuid.uuid4().hex[:20]), make)
        self._unanswered.pop(alike, None)
        return planned

    @retried
    def _plan(self, call: str, make: Callable[[Connection, str], list[Batch]]) -> list[Batch]:
        """Make batches whose ids begin with ``call``, unless that was done and nobody was told."""
        with self._engine.begin() as connection:
            take_turn(connection, "plan")
            made = select(BATCHES).where(BATCHES.c.batch_id.startswith(call)).order_by(BATCHES.c.batch_id)
            known = [
                Batch(b.batch_id, b.lane, tuple(b.steps.split(",")), b.n_objects) for b in connection.execute(made)
            ]
            return known or make(connection, call)

    def objects_of(self, batch_id: str) -> list[KnownObject]:
        """Return the object versions of a batch that still have work in it."""
        query = (
            select(OBJECTS)
            .where(OBJECTS.c.object_id.in_(select(WORK.c.object_id).where(WORK.c.batch_id == batch_id)))
            .order_by(OBJECTS.c.place)
        )
        with self._reader.connect() as connection:
            return [known_object(row) for row in connection.execute(query)]

    def n_unstarted(self) -> int:
        """Count the planned batches that no run has begun."""
        planned = and_(WORK.c.batch_id.is_not(None), WORK.c.state == "wanted")
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count(WORK.c.batch_id.distinct())).where(planned)) or 0)

    def unstarted(self, older_than_s: float) -> list[str]:
        """Return the batches that were planned so long ago and that no run has begun."""
        planned = select(WORK.c.batch_id).where(WORK.c.batch_id.is_not(None), WORK.c.state == "wanted")
        old = BATCHES.c.created_at < time.time() - older_than_s
        with self._reader.connect() as connection:
            return list(connection.scalars(select(BATCHES.c.batch_id).where(BATCHES.c.batch_id.in_(planned), old)))

    # -- freeing -------------------------------------------------------------------------------------------------

    def release_unstarted(self, is_dead: Callable[[str], bool], older_than_s: float) -> int:
        """Free planned rows whose run never began: their planner is dead, or too much time has gone.

        A run that begins later all the same finds nothing to claim, so this may be called at any time.
        """
        planned = select(WORK.c.batch_id).where(WORK.c.batch_id.is_not(None), WORK.c.state == "wanted")
        with self._reader.connect() as connection:
            batches = connection.execute(select(BATCHES).where(BATCHES.c.batch_id.in_(planned))).all()
        earliest = time.time() - older_than_s
        return self.release_batches([b.batch_id for b in batches if is_dead(b.planner) or b.created_at < earliest])

    def release_batches(self, batch_ids: Sequence[str]) -> int:
        """Free what these batches still hold and have not claimed; returns how many rows."""
        parts = chunks(sorted(batch_ids))
        return sum(self._release(and_(WORK.c.state == "wanted", WORK.c.batch_id.in_(part)), 0) for part in parts)

    @retried
    def _release(self, rows: ColumnElement[bool], claims: int) -> int:
        values: dict[str, Any] = {
            "state": "wanted",
            "owner": None,
            "lease_until": None,
            "batch_id": None,
            "changed_at": time.time(),
        }
        with self._engine.begin() as connection:
            return change_work(connection, rows, values | {"claims": WORK.c.claims + claims})


def _can_start(recipes: Mapping[str, str], needs: Mapping[str, Mapping[str, str]]) -> ColumnElement[bool]:
    """Return the condition for rows of these recipes whose needs are met, or are met by the batch itself."""
    return or_(
        *(
            and_(
                WORK.c.step == step,
                WORK.c.recipe == recipe,
                *(_is_over(need, needed) for need, needed in needs.get(step, {}).items() if need not in recipes),
            )
            for step, recipe in recipes.items()
        )
    )


def _is_over(step: str, recipe: str) -> ColumnElement[bool]:
    other = WORK.alias(f"needed_{step}")
    over = select(other.c.object_id).where(
        other.c.object_id == WORK.c.object_id,
        other.c.step == step,
        other.c.recipe == recipe,
        other.c.state.in_(FINAL_STATES),
    )
    return over.exists()


def _ready(
    connection: Connection, rows: ColumnElement[bool], aliases: Collection[str], max_tries: int, limit: int
) -> list[tuple[str, int]]:
    """Return (object_id, most tries so far) of live versions with such rows, in the order of discovery.

    An object over which workers died is a suspect: it counts as one on its last try, and so runs alone.
    """
    query = (
        select(WORK.c.object_id, func.max(WORK.c.tries), func.max(WORK.c.claims))
        .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
        .where(rows, WORK.c.not_before <= epoch_now(), IS_LIVE, OBJECTS.c.alias.in_(list(aliases)))
        .group_by(WORK.c.object_id, OBJECTS.c.place)
        .order_by(OBJECTS.c.place)
        .limit(limit)
    )
    return [
        (object_id, max_tries if claims >= _SUSPECT_CLAIMS else int(tries))
        for object_id, tries, claims in connection.execute(query)
    ]


def _make(
    connection: Connection, batch: Batch, object_ids: Sequence[str], recipes: Mapping[str, str], planner: str
) -> Batch:
    values = {
        "batch_id": batch.batch_id,
        "lane": batch.lane,
        "steps": ",".join(batch.steps),
        "n_objects": batch.n_objects,
    }
    connection.execute(BATCHES.insert().values(**values, planner=planner, created_at=time.time()))
    for part in chunks(sorted(object_ids)):
        free = and_(WORK.c.object_id.in_(part), WORK.c.state == "wanted", WORK.c.batch_id.is_(None), these(recipes))
        free = and_(free, WORK.c.not_before <= epoch_now())  # its other rows may have to wait
        change_work(connection, free, {"batch_id": batch.batch_id})
    return batch
