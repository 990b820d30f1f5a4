"""Reading the work: how much is done, what waits, what each shard shows.

Put here: queries. Keep out: anything that changes a row.
"""

from collections.abc import Iterator, Mapping

from sqlalchemy import ColumnElement, Engine, and_, func, or_, select

from mm_assets.ledger.objects import KnownObject, known_object
from mm_assets.ledger.tables import OBJECTS, WORK

FINAL_STATES = ("done", "skipped", "dead")
_ROWS_AT_ONCE = 10_000
_WORK_FIELDS = ("step", "recipe", "state", "reason", "error", "n_rows")


def these(recipes: Mapping[str, str]) -> ColumnElement[bool]:
    """Return the condition for the rows of these steps under these recipes."""
    return or_(*(and_(WORK.c.step == step, WORK.c.recipe == recipe) for step, recipe in recipes.items()))


class WorkReader:
    """What can be asked of the work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    def counts(self, recipes: Mapping[str, str]) -> dict[tuple[str, str, str | None], int]:
        """Count rows of live versions by (step, state, reason)."""
        query = (
            select(WORK.c.step, WORK.c.state, WORK.c.reason, func.count())
            .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
            .where(OBJECTS.c.state == "live", these(recipes))
            .group_by(WORK.c.step, WORK.c.state, WORK.c.reason)
        )
        with self._reader.connect() as connection:
            return {(step, state, reason): n for step, state, reason, n in connection.execute(query)}

    def n_changed_since(self, moment: float) -> int:
        """Count the object versions with an end since a moment."""
        query = select(func.count(WORK.c.object_id.distinct())).where(
            WORK.c.changed_at > moment, WORK.c.state.in_(FINAL_STATES)
        )
        with self._reader.connect() as connection:
            return int(connection.scalar(query) or 0)

    def states(self, object_id: str) -> list[dict[str, object]]:
        """Return all work rows of one object version."""
        query = select(WORK).where(WORK.c.object_id == object_id).order_by(WORK.c.step)
        with self._reader.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001  SQLAlchemy's way

    def complete(self, step: str, recipe: str) -> bool:
        """Return whether every live version that wants the step has an end under this recipe."""
        open_rows = (
            select(func.count())
            .select_from(WORK.join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id))
            .where(OBJECTS.c.state == "live", WORK.c.step == step, WORK.c.recipe == recipe)
            .where(WORK.c.state.not_in(FINAL_STATES))
        )
        with self._reader.connect() as connection:
            return not connection.scalar(open_rows)

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
            .where(OBJECTS.c.state == "live", these(recipes))
            .order_by(OBJECTS.c.shard, OBJECTS.c.place, WORK.c.step)
        )
        with self._reader.connect().execution_options(yield_per=_ROWS_AT_ONCE) as connection:
            for r in connection.execute(query):
                yield r.shard, r.object_id, r.step, r.recipe, r.state, r.reason, r.n_rows

    def of_shard(self, shard: int, recipes: Mapping[str, str]) -> list[tuple[KnownObject, dict[str, object]]]:
        """Return (version, work row) of the live versions of one shard, in order."""
        query = (
            select(OBJECTS, *(WORK.c[name].label(f"work_{name}") for name in _WORK_FIELDS))
            .join(WORK, OBJECTS.c.object_id == WORK.c.object_id)
            .where(OBJECTS.c.state == "live", OBJECTS.c.shard == shard, these(recipes))
            .order_by(OBJECTS.c.place, WORK.c.step)
        )
        with self._reader.connect() as connection:
            return [
                (known_object(row), {name: getattr(row, f"work_{name}") for name in _WORK_FIELDS})
                for row in connection.execute(query)
            ]

    def n_open_objects(self, batch_id: str) -> int:
        """Count the object versions of a batch that have work left in it."""
        with self._reader.connect() as connection:
            return int(
                connection.scalar(select(func.count(WORK.c.object_id.distinct())).where(WORK.c.batch_id == batch_id))
                or 0
            )

    def n_waiting(self, recipes: Mapping[str, str]) -> int:
        """Count the live object versions with work that is not over."""
        query = (
            select(func.count(WORK.c.object_id.distinct()))
            .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
            .where(OBJECTS.c.state == "live", these(recipes), WORK.c.state.not_in(FINAL_STATES))
        )
        with self._reader.connect() as connection:
            return int(connection.scalar(query) or 0)
