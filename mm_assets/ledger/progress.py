"""Reading the work: how much is done, what waits, what each shard shows.

Put here: queries. Keep out: anything that changes a row.

Rows of work are opened as batches are planned, not as objects are found: a version whose ``opened_for`` is not the mark
of what its source wants may lack rows, and each row it lacks counts as wanted.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, and_, func, or_, select
from sqlalchemy.engine import Connection

from mm_assets.identity import short_hash
from mm_assets.ledger.tables import FORBIDDEN, IS_LIVE, OBJECTS, SCANS, WORK
from mm_assets.ledger.versions import KnownObject, known_object

FINAL_STATES = ("done", "skipped", "dead")
OPEN_STATES = ("wanted", "claimed")
_ROWS_AT_ONCE = 10_000
_FORBIDDEN_FRAC = 0.2  # of what has ended: more looks like lost rights than like a few private objects
_WORK_FIELDS = ("step", "recipe", "state", "reason", "error", "n_rows")
# Rows of work belong to live versions and to those that left and are not swept yet. The latter are few, so that to leave
# them out is cheaper than to look up every version.
_OF_LIVE = WORK.c.object_id.not_in(
    select(OBJECTS.c.object_id).where(OBJECTS.c.left_at.is_not(None), OBJECTS.c.swept_at.is_(None))
)


# Where few rows are asked about, one by one.
IS_OF_LIVE = select(OBJECTS.c.object_id).where(OBJECTS.c.object_id == WORK.c.object_id, IS_LIVE).exists()


def these(recipes: Mapping[str, str]) -> ColumnElement[bool]:
    """Return the condition for the rows of these steps under these recipes."""
    return or_(*(and_(WORK.c.step == step, WORK.c.recipe == recipe) for step, recipe in recipes.items()))


def mark_of(recipes: Mapping[str, str]) -> str:
    """Return what ``opened_for`` holds once all rows for these recipes are open."""
    return short_hash(*(part for item in sorted(recipes.items()) for part in item))


def unopened(alias: str, recipes: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return the conditions for live versions that may lack rows: two ranges, since no index serves 'differs'."""
    mark = mark_of(recipes)
    here = and_(IS_LIVE, OBJECTS.c.alias == alias)
    return [and_(here, OBJECTS.c.opened_for < mark), and_(here, OBJECTS.c.opened_for > mark)]


def wanted_by_source(connection: Connection, aliases: Collection[str] | None = None) -> dict[str, dict[str, str]]:
    """Return alias → (step → recipe) of what these sources ask for; None for all that were ever listed."""
    rows = connection.execute(select(SCANS.c.alias, SCANS.c.wants))
    return {row.alias: json.loads(row.wants) for row in rows if aliases is None or row.alias in aliases}


class WorkReader:
    """What can be asked of the work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    def counts(
        self, recipes: Mapping[str, str], aliases: Collection[str] | None = None
    ) -> dict[tuple[str, str, str | None], int]:
        """Count the work on live versions of these sources, or of all, by (step, state, reason)."""
        query = (
            select(WORK.c.step, WORK.c.state, WORK.c.reason, func.count())
            .where(_OF_LIVE, these(recipes))
            .group_by(WORK.c.step, WORK.c.state, WORK.c.reason)
        )
        if aliases is not None:
            elsewhere = select(OBJECTS.c.object_id).where(OBJECTS.c.alias.not_in(list(aliases)))
            query = query.where(WORK.c.object_id.not_in(elsewhere))
        with self._reader.connect() as connection:
            counts: dict[tuple[str, str, str | None], int] = {
                (step, state, reason): n for step, state, reason, n in connection.execute(query)
            }
            for step, n in self._n_lacking(connection, recipes, aliases).items():
                counts[step, "wanted", None] = counts.get((step, "wanted", None), 0) + n
        return counts

    @staticmethod
    def _n_lacking(
        connection: Connection, recipes: Mapping[str, str], aliases: Collection[str] | None
    ) -> dict[str, int]:
        """Count the rows that are not open yet, by step."""
        lacking: dict[str, int] = {}
        for alias, wants in wanted_by_source(connection, aliases).items():
            asked = {step: recipes[step] for step in wants if step in recipes}
            for versions in unopened(alias, wants):
                n = int(connection.scalar(_count(versions)) or 0)
                if n and asked:
                    there = (
                        select(WORK.c.step, func.count().label("n_rows"))
                        .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
                        .where(versions, these(asked))
                        .group_by(WORK.c.step)
                    )
                    n_open = {row.step: row.n_rows for row in connection.execute(there)}
                    lacking |= {step: lacking.get(step, 0) + n - n_open.get(step, 0) for step in asked}
        return {step: n for step, n in lacking.items() if n}

    def has_worked(self, step: str, recipe: str) -> bool:
        """Whether a step has ever given a row under this recipe."""
        those = (WORK.c.state == "done", WORK.c.step == step, WORK.c.recipe == recipe, WORK.c.n_rows > 0)
        with self._reader.connect() as connection:
            return connection.execute(select(WORK.c.object_id).where(*those).limit(1)).first() is not None

    def n_changed_since(self, moment: float) -> int:
        """Count the object versions with an end since a moment."""
        changed = and_(WORK.c.changed_at > moment, WORK.c.state.not_in(OPEN_STATES))  # no index serves 'not in'
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count(WORK.c.object_id.distinct())).where(changed)) or 0)

    def states(self, object_id: str) -> list[dict[str, object]]:
        """Return all work rows of one object version."""
        query = select(WORK).where(WORK.c.object_id == object_id).order_by(WORK.c.step)
        with self._reader.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001  SQLAlchemy's way

    def complete(self, step: str, recipe: str, aliases: Collection[str]) -> bool:
        """Return whether every live version of these sources that wants the step has an end under this recipe.

        Nothing is planned for a source that left the settings, so that to wait for it would be to wait for ever. So may it
        be for objects that we may not read: a few of them hold nothing back, many look like lost rights.
        """
        of_step = and_(WORK.c.step == step, WORK.c.recipe == recipe)
        is_forbidden = _is_forbidden()
        is_open = and_(WORK.c.state.in_(OPEN_STATES), of_step, _of_sources(aliases))
        still_open = select(WORK.c.object_id).where(is_open, ~is_forbidden)
        no_row = ~select(WORK.c.object_id).where(WORK.c.object_id == OBJECTS.c.object_id, of_step).exists()
        with self._reader.connect() as connection:
            if _any(connection, still_open):
                return False
            forbidden = connection.scalar(select(func.count()).select_from(WORK).where(is_open, is_forbidden)) or 0
            if forbidden and forbidden > _FORBIDDEN_FRAC * self._n_ended(connection, of_step):
                return False
            for alias, wants in wanted_by_source(connection, aliases).items():
                # Under another recipe than the source asked for last, an open version may lack the row as well.
                versions = unopened(alias, wants if wants.get(step) == recipe else {}) if step in wants else []
                if any(_any(connection, select(OBJECTS.c.object_id).where(part, no_row)) for part in versions):
                    return False
        return True

    @staticmethod
    def _n_ended(connection: Connection, of_step: ColumnElement[bool]) -> int:
        ended = select(func.count()).select_from(WORK).where(of_step, WORK.c.state.in_(FINAL_STATES))
        return int(connection.scalar(ended) or 0)

    def published_rows(
        self, recipes: Mapping[str, str]
    ) -> Iterator[tuple[int, str, str, str, str, str | None, int | None]]:
        """Yield (shard, object_id, step, recipe, state, reason, n_rows) of all live versions, by place in the shard.

        ``n_rows`` is None where there is no result; work that is being done again keeps its earlier one until its end.
        """
        query = (
            select(
                OBJECTS.c.shard,
                WORK.c.object_id,
                WORK.c.step,
                WORK.c.recipe,
                WORK.c.state,
                WORK.c.reason,
                WORK.c.n_rows,
            )
            .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
            .where(IS_LIVE, these(recipes))
            .order_by(OBJECTS.c.shard, OBJECTS.c.place, WORK.c.step)
        )
        with self._reader.connect().execution_options(yield_per=_ROWS_AT_ONCE) as connection:
            yield from connection.execute(query).tuples()  # by name, 800,000 rows would take twice as long

    def of_shard(self, shard: int, recipes: Mapping[str, str]) -> list[tuple[KnownObject, dict[str, object]]]:
        """Return (version, work row) of the live versions of one shard, in order."""
        query = (
            select(OBJECTS, *(WORK.c[name].label(f"work_{name}") for name in _WORK_FIELDS))
            .join(WORK, OBJECTS.c.object_id == WORK.c.object_id)
            .where(IS_LIVE, OBJECTS.c.shard == shard, these(recipes))
            .order_by(OBJECTS.c.place, WORK.c.step)
        )
        with self._reader.connect() as connection:
            return [
                (known_object(row), {name: getattr(row, f"work_{name}") for name in _WORK_FIELDS})
                for row in connection.execute(query)
            ]

    def n_open_objects(self, batch_id: str) -> int:
        """Count the live object versions of a batch that have work left in it."""
        left = select(func.count(WORK.c.object_id.distinct())).where(WORK.c.batch_id == batch_id, IS_OF_LIVE)
        with self._reader.connect() as connection:
            return int(connection.scalar(left) or 0)

    def n_waiting(self, recipes: Mapping[str, str], aliases: Collection[str] | None = None) -> int:
        """Count the live object versions of these sources, or of all, with work that is not over."""
        with self._reader.connect() as connection:
            wanted = wanted_by_source(connection, aliases)
            versions = [v for alias, wants in wanted.items() for v in unopened(alias, wants)]
            not_opened = sum(int(connection.scalar(_count(part)) or 0) for part in versions)
            begun = (
                select(func.count(WORK.c.object_id.distinct()))
                .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
                .where(WORK.c.state.in_(OPEN_STATES), these(recipes), IS_LIVE, ~or_(False, *versions))
            )
            if aliases is not None:
                begun = begun.where(OBJECTS.c.alias.in_(list(aliases)))
            return not_opened + int(connection.scalar(begun) or 0)


def _of_sources(aliases: Collection[str]) -> ColumnElement[bool]:
    """Return the condition for rows of work of live versions of these sources."""
    of_one = select(OBJECTS.c.object_id).where(OBJECTS.c.object_id == WORK.c.object_id, IS_LIVE)
    return of_one.where(OBJECTS.c.alias.in_(list(aliases))).exists()


def _is_forbidden() -> ColumnElement[bool]:
    """Return the condition for work on objects that we may not read; what reads other steps' results waits for those."""
    other = WORK.alias("other")
    waits = select(other.c.object_id).where(other.c.object_id == WORK.c.object_id, other.c.reason == FORBIDDEN)
    return or_(func.coalesce(WORK.c.reason, "") == FORBIDDEN, waits.where(other.c.state.in_(OPEN_STATES)).exists())


def _count(versions: ColumnElement[bool]) -> Select[Any]:
    return select(func.count()).select_from(OBJECTS).where(versions)


def _any(connection: Connection, query: Select[Any]) -> bool:
    return connection.execute(query.limit(1)).first() is not None
