"""Versions that leave: superseded, gone from the source, or erased by a person.

Put here: who leaves, what the ledger knows of their results, and forgetting it. Keep out: the files, which go first.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, and_, delete, func, or_, select, update
from sqlalchemy.engine import Connection

from mm_assets.ledger.batches import lock_work
from mm_assets.ledger.clock import epoch_now
from mm_assets.ledger.objects import KnownObject, chunks, known_object
from mm_assets.ledger.tables import GENERATIONS, IS_LIVE, MAY_BE_RECORDED, NO_INPUT, OBJECTS, WORK
from mm_assets.ledger.transactions import retried
from mm_assets.ledger.watches import forget_matches

_ROWS_AT_ONCE = 1_000
_TO_SWEEP = and_(OBJECTS.c.left_at.is_not(None), OBJECTS.c.swept_at.is_(None))
_IS_HELD = and_(WORK.c.state == "claimed", WORK.c.lease_until > epoch_now())
_LAST_TOKEN = func.coalesce(
    select(func.max(WORK.c.token)).where(WORK.c.object_id == OBJECTS.c.object_id).scalar_subquery(),
    OBJECTS.c.last_token,
)
# Its very bytes give the step nothing, so there never was a result.
_HAS_NOTHING = and_(WORK.c.state == "skipped", or_(WORK.c.reason == "unsupported", WORK.c.reason.startswith(NO_INPUT)))
_MAY_BE_UNTOLD = and_(WORK.c.n_rows.is_(None), ~_HAS_NOTHING)


@dataclass(frozen=True, slots=True)
class WorkRow:
    """What the ledger knows of one result of a version that leaves.

    Attributes
    ----------
    n_rows : rows of the result; None where there is none, as far as the ledger knows
    may_be_untold : whether a result may lie in the lake of which the ledger does not know, or not any more
    may_be_recorded : whether a dead letter may lie in the lake
    """

    step: str
    recipe: str
    n_rows: int | None
    may_be_untold: bool
    may_be_recorded: bool


class RemovalBook:
    """Versions that are to leave the lake, until nothing of them is left there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    # -- by command ----------------------------------------------------------------------------------------------

    def find_below(self, alias: str, prefix: str) -> list[KnownObject]:
        """Return all versions of a source whose raw key starts with a prefix, in the order of their keys."""
        # Not LIKE: "%" and "_" are plain characters here, and SQLite's does not tell A from a.
        below = func.substr(OBJECTS.c.key, 1, len(prefix)) == prefix
        query = select(OBJECTS).where(OBJECTS.c.alias == alias, below, OBJECTS.c.state != "erased")
        with self._reader.connect() as connection:
            return [known_object(row) for row in connection.execute(query.order_by(OBJECTS.c.key, OBJECTS.c.object_id))]

    def versions_of(self, alias: str, key: str) -> list[KnownObject]:
        """Return all versions of one key, live or not, but for those that are erased already."""
        return [known for known in self.find_below(alias, key) if known.version.key == key]

    @retried
    def erase(self, object_ids: Sequence[str]) -> int:
        """Let versions leave for good: no listing brings them back. Returns how many were not erased before."""
        n = 0
        left_at = func.coalesce(OBJECTS.c.left_at, epoch_now())
        with self._engine.begin() as connection:
            for part in chunks(sorted(object_ids)):
                rows = update(OBJECTS).where(OBJECTS.c.object_id.in_(part), OBJECTS.c.state != "erased")
                n += connection.execute(rows.values(state="erased", left_at=left_at, swept_at=None)).rowcount
        return n

    # -- sweeping ------------------------------------------------------------------------------------------------

    def n_leaving(self) -> int:
        """Count the versions that left and were not swept."""
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(OBJECTS).where(_TO_SWEEP)) or 0)

    def leaving(self, limit: int) -> list[KnownObject]:
        """Return some of the versions that left and were not swept, first come first."""
        query = select(OBJECTS).where(_TO_SWEEP).order_by(OBJECTS.c.left_at, OBJECTS.c.object_id).limit(limit)
        with self._reader.connect() as connection:
            return [known_object(row) for row in connection.execute(query)]

    def to_sweep(self) -> Iterator[KnownObject]:
        """Yield the versions that can be swept now, shard by shard; those under work wait for its end."""
        held = select(WORK.c.object_id).where(WORK.c.object_id == OBJECTS.c.object_id, _IS_HELD)
        query = select(OBJECTS).where(_TO_SWEEP, ~held.exists()).order_by(OBJECTS.c.shard, OBJECTS.c.object_id)
        with self._reader.connect().execution_options(yield_per=_ROWS_AT_ONCE) as connection:
            for row in connection.execute(query):
                yield known_object(row)

    def work_of(self, object_ids: Sequence[str]) -> dict[str, list[WorkRow]]:
        """Return object_id → what is known of its results, under every recipe."""
        found: dict[str, list[WorkRow]] = {object_id: [] for object_id in object_ids}
        with self._reader.connect() as connection:
            for part in chunks(object_ids):
                query = select(
                    WORK.c.object_id,
                    WORK.c.step,
                    WORK.c.recipe,
                    WORK.c.n_rows,
                    func.coalesce(_MAY_BE_UNTOLD, True),
                    func.coalesce(MAY_BE_RECORDED, False),
                ).where(WORK.c.object_id.in_(part))
                for object_id, *values in connection.execute(query.order_by(WORK.c.step, WORK.c.recipe)):
                    found[object_id].append(WorkRow(*values))
        return found

    def known_recipes(self) -> set[tuple[str, str]]:
        """Return each (step, recipe) that has a row of work."""
        with self._reader.connect() as connection:
            return {(row.step, row.recipe) for row in connection.execute(select(WORK.c.step, WORK.c.recipe).distinct())}

    def hold_rows(self, steps: Sequence[str]) -> bool:
        """Whether a version that is to be swept may have had rows of these steps, under any recipe.

        Work that is done again, or died doing so, no longer tells what the result before it was.
        """
        may_have = or_(WORK.c.n_rows > 0, func.coalesce(_MAY_BE_UNTOLD, True))
        rows = select(OBJECTS.c.object_id).where(
            _TO_SWEEP,
            or_(
                OBJECTS.c.state == "erased",  # whatever is known of it
                select(WORK.c.object_id)
                .where(WORK.c.object_id == OBJECTS.c.object_id, WORK.c.step.in_(steps), may_have)
                .exists(),
            ),
        )
        with self._reader.connect() as connection:
            return connection.execute(rows.limit(1)).first() is not None

    def live(self, object_ids: Sequence[str]) -> set[str]:
        """Return those of these versions that are live."""
        return self._those(object_ids, IS_LIVE)

    @retried
    def forget(self, object_ids: Sequence[str]) -> list[str]:
        """Drop the rows of work of versions whose results were removed, and their matches; returns those that are not done with.

        What came back meanwhile is live again without its results, so it loses the rows as well: they are opened anew.
        What left and is under work keeps them: its worker may write a result yet, and the next sweep takes it.
        """
        stay: list[str] = []
        with self._engine.begin() as connection:
            for part in chunks(sorted(object_ids)):
                lock_work(connection, WORK.c.object_id.in_(part))  # no claim begins from here on
                held = _held(connection, part)
                stay += held
                these = OBJECTS.c.object_id.in_(sorted(set(part) - set(held)))
                connection.execute(update(OBJECTS).where(these).values(last_token=_LAST_TOKEN))
                gone = update(OBJECTS).where(these, _TO_SWEEP).values(swept_at=time.time(), opened_for="")
                forget_matches(connection, set(connection.scalars(gone.returning(OBJECTS.c.object_id))))
                back = update(OBJECTS).where(these, IS_LIVE).values(opened_for="")
                stay += connection.scalars(back.returning(OBJECTS.c.object_id))
                connection.execute(delete(WORK).where(WORK.c.object_id.in_(sorted(set(part) - set(held)))))
        return stay

    @retried
    def forget_generation(self, name: str) -> None:
        """Point to no generation of this name, so that the next refresh builds one."""
        with self._engine.begin() as connection:
            connection.execute(delete(GENERATIONS).where(GENERATIONS.c.name == name))

    # -- what no row stands for ----------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        """Whether no object version was ever known."""
        with self._reader.connect() as connection:
            return connection.execute(select(OBJECTS.c.object_id).limit(1)).first() is None

    def kept(self, object_ids: Sequence[str]) -> set[str]:
        """Return those of these versions whose results are wanted: live ones, and those that the next sweep takes."""
        return self._those(object_ids, or_(IS_LIVE, _TO_SWEEP))

    def dead_steps(self, object_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Return the (object_id, step) of these versions that died, or that are tried again and may have died before."""
        found: set[tuple[str, str]] = set()
        is_begun = or_(WORK.c.replays > 0, WORK.c.token > 0)
        died = or_(WORK.c.state == "dead", and_(is_begun, WORK.c.state.in_(("wanted", "claimed"))))
        with self._reader.connect() as connection:
            for part in chunks(sorted(object_ids)):
                query = select(WORK.c.object_id, WORK.c.step).where(WORK.c.object_id.in_(part), died)
                found.update((row.object_id, row.step) for row in connection.execute(query))
        return found

    def _those(self, object_ids: Sequence[str], condition: ColumnElement[bool]) -> set[str]:
        found: set[str] = set()
        with self._reader.connect() as connection:
            for part in chunks(sorted(object_ids)):
                found.update(
                    connection.scalars(select(OBJECTS.c.object_id).where(OBJECTS.c.object_id.in_(part), condition))
                )
        return found


def _held(connection: Connection, object_ids: Sequence[str]) -> list[str]:
    """Return those of these versions that left and that a worker holds."""
    under_work = select(WORK.c.object_id).where(WORK.c.object_id == OBJECTS.c.object_id, _IS_HELD)
    query = select(OBJECTS.c.object_id).where(OBJECTS.c.object_id.in_(object_ids), _TO_SWEEP, under_work.exists())
    return list(connection.scalars(query))
