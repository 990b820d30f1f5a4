"""What is claimed, done, skipped and dead: one row per object version, step and recipe.

Put here: claims with fencing tokens, their ends, the two budgets. Keep out: what a step computes, and batches.

``tries`` counts failures that the object caused; ``claims`` counts starts, so that deaths of the worker show. Neither
is touched by throttling and outages. Only the holder of the latest token may finish a row. Leases are measured by the
database's clock.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, case, null, or_, select, update
from sqlalchemy.engine import Connection, Row

from mm_assets.errors import Reason
from mm_assets.ledger.batches import BatchBook, change_work, lock_work, open_rows
from mm_assets.ledger.clock import epoch_now
from mm_assets.ledger.progress import IS_OF_LIVE, these, wanted_by_source
from mm_assets.ledger.reading import Reads, read_again, wait_for_inputs
from mm_assets.ledger.tables import INPUT_CHANGED, IS_LIVE, OBJECTS, SEGMENTS_DEAD, WORK
from mm_assets.ledger.transactions import retried
from mm_assets.ledger.versions import KnownObject, chunks, known_object

_GiveUp = Callable[[Connection, ColumnElement[bool]], None]
_HELD_BY_NOBODY: dict[str, Any] = {"batch_id": None, "owner": None, "lease_until": None}


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on some steps of one object version, until the lease ends.

    Attributes
    ----------
    steps : step → recipe
    tokens : step → fencing token
    tries : step → failures so far
    n_starts : how often work on it was begun, this time included
    """

    known: KnownObject
    steps: Mapping[str, str]
    tokens: Mapping[str, int]
    tries: Mapping[str, int]
    n_starts: int = 1


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one step of one object version.

    Attributes
    ----------
    state : done | skipped | dead | wanted (to be tried again)
    """

    object_id: str
    step: str
    recipe: str
    token: int
    state: str
    reason: str | None = None
    error: str | None = None
    n_rows: int | None = None
    retry_after_s: float = 0.0
    counts_as_try: bool = False


class WorkBook(BatchBook):
    """Work on object versions: what ``BatchBook`` plans, from the claim to the end."""

    # -- claims --------------------------------------------------------------------------------------------------

    def claim_batch(
        self,
        batch_id: str,
        owner: str,
        *,
        recipes: Mapping[str, str],
        lease_s: float,
        max_claims: int,
        reads: Reads = MappingProxyType({}),
    ) -> list[Claim]:
        """Claim what a batch still has to do under these recipes; rows begun too often die as ``crash_loop`` instead.

        An owner whose name ends like that of an earlier one (the same Dagster run, resumed in another pod) takes over
        what the earlier one held. Rows of other recipes (the code changed since the batch was planned) are left, and
        those of versions that left meanwhile: a sweep may be removing their results.
        """
        return self._claim(
            _of_batch(batch_id, owner, recipes), owner, lease_s, partial(_give_up, max_claims, recipes, reads)
        )

    def worn_out(self, batch_id: str, owner: str, recipes: Mapping[str, str], max_claims: int) -> list[Claim]:
        """Return what ``claim_batch`` would give up as ``crash_loop``, so that it can be recorded before."""
        rows = and_(_of_batch(batch_id, owner, recipes), WORK.c.claims >= max_claims)
        with self._reader.connect() as connection:
            return _to_claims(connection, connection.execute(select(WORK).where(rows)))

    def claim_objects(
        self, object_ids: Sequence[str], recipes: Mapping[str, str], owner: str, *, lease_s: float
    ) -> list[Claim]:
        """Claim these steps of those versions that are live, whatever their state, unless another worker holds them."""
        self._open(object_ids)
        claims: list[Claim] = []
        for part in chunks(sorted(object_ids)):
            free = or_(WORK.c.state != "claimed", WORK.c.lease_until < epoch_now())
            claims += self._claim(and_(WORK.c.object_id.in_(part), these(recipes), free, IS_OF_LIVE), owner, lease_s)
        return claims

    @retried
    def _open(self, object_ids: Sequence[str]) -> None:
        """Open the rows that the sources of these versions ask for."""
        with self._engine.begin() as connection:
            for alias, wants in sorted(wanted_by_source(connection).items()):
                ids: list[str] = []
                for part in chunks(sorted(object_ids)):
                    live = and_(IS_LIVE, OBJECTS.c.alias == alias, OBJECTS.c.object_id.in_(part))
                    ids += connection.scalars(select(OBJECTS.c.object_id).where(live))
                open_rows(connection, ids, wants)

    @retried
    def _claim(
        self, rows: ColumnElement[bool], owner: str, lease_s: float, give_up: _GiveUp = lambda *_: None
    ) -> list[Claim]:
        with self._engine.begin() as connection:
            lock_work(connection, rows)
            give_up(connection, rows)
            values: dict[str, Any] = {"state": "claimed", "owner": owner, "lease_until": epoch_now() + lease_s}
            values["changed_at"] = time.time()
            values["reason"] = case((WORK.c.reason == INPUT_CHANGED, null()), else_=WORK.c.reason)
            counters = {"claims": WORK.c.claims + 1, "token": WORK.c.token + 1}
            taken = connection.execute(update(WORK).where(rows).values(**values, **counters).returning(WORK))
            return _to_claims(connection, taken)

    @retried
    def renew(self, owner: str, lease_s: float) -> int:
        """Lengthen all leases of an owner; returns how many it still has."""
        mine = and_(WORK.c.owner == owner, WORK.c.state == "claimed")
        with self._engine.begin() as connection:
            return change_work(connection, mine, {"lease_until": epoch_now() + lease_s})

    # -- ends ----------------------------------------------------------------------------------------------------

    @retried
    def finish(
        self, ends: Sequence[Finished], recipes: Mapping[str, str], reads: Reads = MappingProxyType({})
    ) -> list[bool]:
        """Write ends, each only where its token is still the latest; returns which were accepted.

        Steps that were skipped because an object had no segments are opened with the commit that says it has some, and
        steps that read others' results with the commit that changes those.
        Can be repeated when the answer was lost: an end that is written already is accepted and not written again.

        Parameters
        ----------
        recipes : step → recipe that the worker makes; segments of another recipe are none for these steps
        reads : step → (step → recipe), of steps that read the results of others
        """
        with self._engine.begin() as connection:
            rows = _lock_rows(connection, {end.object_id for end in ends})
            found = [rows.get((end.object_id, end.step, end.recipe)) for end in ends]
            changes = [_change(end, row) for end, row in zip(ends, found, strict=True) if _is_held(end, row)]
            if changes:
                _keep_open(changes, rows.values(), recipes)
                wait_for_inputs(changes, rows, reads)
                connection.execute(_END, changes)
                decoded = [change["of_object"] for change in changes if _has_segments(change)]
                _reopen(connection, decoded, recipes)
                read_again(connection, changes, rows, reads, recipes)
        return [_is_held(end, row) or _is_written(end, row) for end, row in zip(ends, found, strict=True)]

    @retried
    def want_again(self, step: str, recipe: str, object_ids: Sequence[str]) -> None:
        """Reopen rows whose result is lost or damaged, with all their tries; what a worker holds it is about to make."""
        values = {"state": "wanted", "n_rows": None, "tries": 0, "claims": 0, "not_before": 0.0} | _HELD_BY_NOBODY
        with self._engine.begin() as connection:
            for part in chunks(sorted(object_ids)):
                rows = and_(WORK.c.object_id.in_(part), WORK.c.step == step, WORK.c.recipe == recipe)
                rows = and_(rows, WORK.c.state != "claimed")
                change_work(connection, rows, values | {"changed_at": time.time()})

    # -- giving back ---------------------------------------------------------------------------------------------

    def release(self, owner: str) -> int:
        """Give back all claims of an owner that stops in good order; the starts are not counted."""
        return self._release(and_(WORK.c.owner == owner, WORK.c.state == "claimed"), -1)

    def release_expired(self) -> int:
        """Free the claims whose lease has ended: their worker is dead or lost."""
        return self._release(and_(WORK.c.state == "claimed", WORK.c.lease_until < epoch_now()), 0)

    def release_dead(self, is_dead: Callable[[str], bool]) -> int:
        """Free the claims of owners that are known to be dead."""
        query = select(WORK.c.owner).where(WORK.c.state == "claimed").distinct()
        with self._reader.connect() as connection:
            dead = [owner for owner in connection.scalars(query) if owner and is_dead(owner)]
        return self._release(and_(WORK.c.owner.in_(dead), WORK.c.state == "claimed"), 0) if dead else 0


def _give_up(
    max_claims: int, recipes: Mapping[str, str], reads: Reads, connection: Connection, rows: ColumnElement[bool]
) -> None:
    """Let those of these rows die that were begun too often, and want again what reads them."""
    dead = {"state": "dead", "reason": str(Reason.CRASH_LOOP), "changed_at": time.time()} | _HELD_BY_NOBODY
    dead["error"] = f"the worker died {max_claims} times over this object"
    worn = connection.execute(
        update(WORK).where(rows, WORK.c.claims >= max_claims).values(**dead).returning(WORK)
    ).all()
    if worn and reads:
        changes = [
            {"of_object": row.object_id, "of_step": row.step, "of_recipe": row.recipe, "state": "dead"} for row in worn
        ]
        read_again(connection, changes, _lock_rows(connection, {row.object_id for row in worn}), reads, recipes)


def _of_batch(batch_id: str, owner: str, recipes: Mapping[str, str]) -> ColumnElement[bool]:
    run = owner.rpartition("/")[2]
    held_before = and_(WORK.c.state == "claimed", WORK.c.owner.endswith(f"/{run}", autoescape=True))
    return and_(WORK.c.batch_id == batch_id, or_(WORK.c.state == "wanted", held_before), these(recipes), IS_OF_LIVE)


def _to_claims(connection: Connection, rows: Iterable[Row[Any]]) -> list[Claim]:
    """Group rows of work into one claim for each version."""
    work: dict[str, list[Row[Any]]] = {}
    for row in rows:
        work.setdefault(row.object_id, []).append(row)
    known: list[tuple[int, KnownObject]] = []
    for part in chunks(sorted(work)):
        query = select(OBJECTS).where(OBJECTS.c.object_id.in_(part))
        known += [(row.place, known_object(row)) for row in connection.execute(query)]
    return [
        Claim(
            item,
            {row.step: row.recipe for row in work[item.object_id]},
            {row.step: row.token for row in work[item.object_id]},
            {row.step: row.tries for row in work[item.object_id]},
            max(row.claims for row in work[item.object_id]),
        )
        for _, item in sorted(known, key=lambda pair: pair[0])
    ]


def _lock_rows(connection: Connection, object_ids: Iterable[str]) -> dict[tuple[str, str, str], Row[Any]]:
    found: dict[tuple[str, str, str], Row[Any]] = {}
    for part in chunks(sorted(object_ids)):
        order = (WORK.c.object_id, WORK.c.step, WORK.c.recipe)
        query = select(WORK).where(WORK.c.object_id.in_(part)).order_by(*order).with_for_update()
        found.update(((row.object_id, row.step, row.recipe), row) for row in connection.execute(query))
    return found


def _has_segments(change: Mapping[str, Any]) -> bool:
    return bool(change["of_step"] == "segments" and change["state"] == "done")


def _keep_open(changes: Sequence[dict[str, Any]], rows: Iterable[Row[Any]], recipes: Mapping[str, str]) -> None:
    """Let steps wait on that found no segments, where another worker's commit says by now that there are some."""
    recipe = recipes.get("segments")
    states = {row.object_id: row.state for row in rows if (row.step, row.recipe) == ("segments", recipe)}
    states |= {change["of_object"]: change["state"] for change in changes if change["of_step"] == "segments"}
    for change in changes:
        if (change["state"], change["reason"]) == ("skipped", SEGMENTS_DEAD) and states.get(
            change["of_object"]
        ) == "done":
            change |= {"state": "wanted", "reason": None, "error": None}


def _reopen(connection: Connection, object_ids: Sequence[str], recipes: Mapping[str, str]) -> None:
    """Open the steps that these objects' missing segments had ended; the caller holds all their rows."""
    values = {"state": "wanted", "reason": None, "changed_at": time.time()}
    for part in chunks(sorted(object_ids)):
        waited = and_(WORK.c.object_id.in_(part), WORK.c.state == "skipped", WORK.c.reason == SEGMENTS_DEAD)
        waited = and_(waited, these(recipes))
        connection.execute(update(WORK).where(waited).values(**values))


def _is_held(end: Finished, row: Row[Any] | None) -> bool:
    return row is not None and row.state == "claimed" and row.token == end.token


def _is_written(end: Finished, row: Row[Any] | None) -> bool:
    return row is not None and row.state == end.state != "wanted" and row.token == end.token


def _change(end: Finished, row: Row[Any] | None) -> dict[str, Any]:
    assert row is not None  # noqa: S101  only rows that are held are changed
    return {
        "of_object": end.object_id,
        "of_step": end.step,
        "of_recipe": end.recipe,
        "state": end.state,
        "reason": end.reason,
        "error": end.error,
        # An earlier result, where there is one, holds until the retry is over.
        "n_rows": row.n_rows if end.state == "wanted" else end.n_rows,
        "tries": row.tries + int(end.counts_as_try),
        "wait_s": end.retry_after_s,
        "changed_at": time.time(),
    }


_END = (
    update(WORK)
    .where(
        WORK.c.object_id == bindparam("of_object"),
        WORK.c.step == bindparam("of_step"),
        WORK.c.recipe == bindparam("of_recipe"),
    )
    .values(
        state=bindparam("state"),
        reason=bindparam("reason"),
        error=bindparam("error"),
        n_rows=bindparam("n_rows"),
        tries=bindparam("tries"),
        claims=0,  # an end of any kind proves that the worker lives: only starts without one count
        not_before=epoch_now() + bindparam("wait_s", type_=WORK.c.not_before.type),
        changed_at=bindparam("changed_at"),
        owner=None,
        lease_until=None,
        batch_id=None,
    )
)
