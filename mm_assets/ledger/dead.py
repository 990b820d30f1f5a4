"""Dead letters: finding them, asking for them again, dropping them.

Put here: the rows that were given up or left out, and every way back from there. Keep out: their records in the lake.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, func, select
from sqlalchemy.engine import Connection, Row

from mm_assets.ledger.batches import change_work
from mm_assets.ledger.progress import these
from mm_assets.ledger.tables import IS_LIVE, MAY_BE_RECORDED, OBJECTS, SEGMENTS_DEAD, WORK
from mm_assets.ledger.transactions import retried
from mm_assets.ledger.versions import KnownObject, chunks, known_object

_FIELDS = ("step", "recipe", "state", "reason", "error", "tries", "claims", "replays", "changed_at")


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which dead letters are meant; what is None or empty does not narrow them.

    Attributes
    ----------
    prefix : of the key, exact in case
    since : seconds since the epoch; letters of before are left out
    recipes : step → recipe that letters must have; of other recipes nothing is made any more
    state : dead, or skipped for rows that were left out (dropped, cancelled, too_large, segments_dead …)
    """

    step: str | None = None
    reason: str | None = None
    prefix: str | None = None
    alias: str | None = None
    since: float | None = None
    object_ids: Collection[str] | None = None
    recipes: Mapping[str, str] | None = None
    state: str = "dead"

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves anything out that a person could have named."""
        return any(
            v is not None for v in (self.step, self.reason, self.prefix, self.alias, self.since, self.object_ids)
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One step of one live object version that was given up, or left out.

    Attributes
    ----------
    tries : failures that the object caused
    claims : starts that came to no end
    replays : how often a person asked for it again
    first_seen_at, changed_at : seconds since the epoch; the latter is when it was given up
    """

    known: KnownObject
    step: str
    recipe: str
    state: str
    reason: str | None
    error: str | None
    tries: int
    claims: int
    replays: int
    first_seen_at: float
    changed_at: float


class DeadBook:
    """Rows of work that were given up or left out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    def letters(self, asked: DeadFilter, limit: int | None = None) -> list[DeadLetter]:
        """Return the letters of live versions that the filter leaves, those of a filter without ids in order of discovery."""
        query = (
            select(OBJECTS, *(WORK.c[name].label(f"work_{name}") for name in _FIELDS))
            .join(WORK, WORK.c.object_id == OBJECTS.c.object_id)
            .where(IS_LIVE, *_conditions(asked))
            .order_by(OBJECTS.c.place, WORK.c.step)
            .limit(limit)
        )
        found: list[DeadLetter] = []
        with self._reader.connect() as connection:
            for part in [None] if asked.object_ids is None else chunks(sorted(set(asked.object_ids))):
                narrowed = query if part is None else query.where(OBJECTS.c.object_id.in_(part))
                found += map(_letter, connection.execute(narrowed))
        return found[:limit]

    @retried
    def replay(self, letters: Sequence[DeadLetter], recipes: Mapping[str, str] | None = None) -> int:
        """Want these steps again with all their tries; returns how many there were.

        Steps that were skipped because the object had no segments are wanted again together with its segments.

        Parameters
        ----------
        recipes : of these skipped steps; None for all recipes
        """
        again: dict[str, Any] = {"state": "wanted", "reason": None, "error": None, "tries": 0, "claims": 0}
        again |= {"not_before": 0.0, "batch_id": None, "changed_at": time.time()}
        decoded = sorted({letter.known.object_id for letter in letters if letter.step == "segments"})
        waits = and_(WORK.c.state == "skipped", WORK.c.reason == SEGMENTS_DEAD)
        if recipes is not None:
            waits = and_(waits, these(recipes))
        with self._engine.begin() as connection:
            n = _change(connection, letters, again | {"replays": WORK.c.replays + 1})
            for part in chunks(decoded):
                change_work(connection, and_(WORK.c.object_id.in_(part), waits), again)
        return n

    @retried
    def drop(self, letters: Sequence[DeadLetter]) -> int:
        """Skip these steps for good, with the reason ``dropped``; returns how many there were."""
        values = {"state": "skipped", "reason": "dropped", "batch_id": None, "changed_at": time.time()}
        with self._engine.begin() as connection:
            return _change(connection, letters, values)

    def depth(self, recipes: Mapping[str, str] | None = None) -> dict[str, int]:
        """Count the dead rows of live versions by reason, of these recipes or of all."""
        # To leave out the few versions that left and are not swept is cheaper than to look up every version.
        left = select(OBJECTS.c.object_id).where(OBJECTS.c.left_at.is_not(None), OBJECTS.c.swept_at.is_(None))
        query = (
            select(func.coalesce(WORK.c.reason, "").label("reason"), func.count().label("n"))
            .where(WORK.c.state == "dead", WORK.c.object_id.not_in(left))
            .group_by(WORK.c.reason)
        )
        if recipes is not None:
            query = query.where(these(recipes))
        with self._reader.connect() as connection:
            return {row.reason: row.n for row in connection.execute(query)}

    def recorded(self, object_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Return the (object_id, step) that may have been given up once, under this or another recipe."""
        found: set[tuple[str, str]] = set()
        with self._reader.connect() as connection:
            for part in chunks(object_ids):
                query = select(WORK.c.object_id, WORK.c.step).where(WORK.c.object_id.in_(part), MAY_BE_RECORDED)
                found.update((row.object_id, row.step) for row in connection.execute(query))
        return found

    def history(self, object_id: str, step: str, recipe: str) -> tuple[float, int]:
        """Return when the version was first seen, and how often this step of it was replayed.

        A sweep may have taken the row of work of a version that left; then nobody asked for it again.
        """
        of_step = and_(WORK.c.object_id == OBJECTS.c.object_id, WORK.c.step == step, WORK.c.recipe == recipe)
        query = (
            select(OBJECTS.c.first_seen_at, func.coalesce(WORK.c.replays, 0).label("replays"))
            .outerjoin(WORK, of_step)
            .where(OBJECTS.c.object_id == object_id)
        )
        with self._reader.connect() as connection:
            row = connection.execute(query).one()
        return float(row.first_seen_at), int(row.replays)


def _conditions(asked: DeadFilter) -> list[ColumnElement[bool]]:
    """Return what a row must be; ids are left to the caller, who asks for them in pieces."""
    conditions = [WORK.c.state == asked.state]
    if asked.step is not None:
        conditions.append(WORK.c.step == asked.step)
    if asked.reason is not None:
        conditions.append(WORK.c.reason == asked.reason)
    if asked.alias is not None:
        conditions.append(OBJECTS.c.alias == asked.alias)
    if asked.prefix is not None:  # LIKE ignores the case of ASCII on SQLite, and keys may hold its wildcards
        conditions.append(func.substr(OBJECTS.c.key, 1, len(asked.prefix)) == asked.prefix)
    if asked.since is not None:
        conditions.append(WORK.c.changed_at >= asked.since)
    if asked.recipes is not None:
        conditions.append(these(asked.recipes))
    return conditions


def _change(connection: Connection, letters: Sequence[DeadLetter], values: Mapping[str, Any]) -> int:
    """Change the rows that are still as the letters say."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for letter in letters:
        alike.setdefault((letter.step, letter.recipe, letter.state), []).append(letter.known.object_id)
    n = 0
    for (step, recipe, state), object_ids in alike.items():
        alike_rows = and_(WORK.c.step == step, WORK.c.recipe == recipe, WORK.c.state == state)
        for part in chunks(sorted(object_ids)):
            n += change_work(connection, and_(alike_rows, WORK.c.object_id.in_(part)), values)
    return n


def _letter(row: Row[Any]) -> DeadLetter:
    work = {name: getattr(row, f"work_{name}") for name in _FIELDS}
    return DeadLetter(known_object(row), first_seen_at=row.first_seen_at, **work)
