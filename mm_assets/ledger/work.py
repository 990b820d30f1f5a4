"""What is wanted, claimed, done, skipped and dead: one row per object version, step and recipe.

Put here: planning of batches, claims with fencing tokens, the two budgets. Keep out: what a step computes.

``tries`` counts failures that the object caused; ``claims`` counts starts, so that deaths of the worker show. Neither
is touched by throttling and outages. Only the holder of the latest token may finish a row.
"""

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, literal, or_, select, update
from sqlalchemy.engine import Connection, Row

from mm_assets.errors import Reason
from mm_assets.ledger.objects import KnownObject, chunks, known_object
from mm_assets.ledger.progress import FINAL_STATES, WorkReader, these
from mm_assets.ledger.tables import BATCHES, OBJECTS, WORK

_SUSPECT_CLAIMS = 2  # starts without an end before an object is run alone


@dataclass(frozen=True, slots=True)
class Batch:
    """The object versions that one run processes."""

    batch_id: str
    lane: str
    steps: tuple[str, ...]
    n_objects: int


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


class WorkBook(WorkReader):
    """Work on object versions: what ``WorkReader`` reads, and all that changes it."""

    def want(self, alias: str, recipes: Mapping[str, str]) -> int:
        """Open a row for every live version of a source that has none for these recipes; returns how many."""
        n = 0
        with self._engine.begin() as connection:
            for step, recipe in recipes.items():
                known = select(WORK.c.object_id).where(
                    WORK.c.object_id == OBJECTS.c.object_id, WORK.c.step == step, WORK.c.recipe == recipe
                )
                missing = select(
                    OBJECTS.c.object_id,
                    literal(step),
                    literal(recipe),
                    literal("wanted"),
                    *(literal(value) for value in (0, 0, 0, 0.0, time.time())),
                ).where(OBJECTS.c.alias == alias, OBJECTS.c.state == "live", ~known.exists())
                columns = [
                    "object_id",
                    "step",
                    "recipe",
                    "state",
                    "tries",
                    "claims",
                    "token",
                    "not_before",
                    "changed_at",
                ]
                n += connection.execute(insert(WORK).from_select(columns, missing)).rowcount
        return n

    # -- batches -------------------------------------------------------------------------------------------------

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
        """Group wanted work into batches.

        Parameters
        ----------
        recipes : the steps (and recipes) that the batches may run
        needs : step → (step → recipe) that must be done before, unless the same batch runs them
        aliases : the sources there are
        size : object versions in one batch; objects that failed before go eight at a time, on their last try alone
        planner : name of this process, so that batches of a dead one can be freed
        limit : batches made at most
        """
        with self._engine.begin() as connection:
            ready = self._ready(connection, recipes, needs, aliases, max_tries, size * limit)
            groups = [
                ("bulk", _cut([o for o, tries in ready if tries == 0], size)),
                ("bulk", _cut([o for o, tries in ready if 0 < tries < max_tries - 1], min(size, 8))),
                ("single", _cut([o for o, tries in ready if tries and tries >= max_tries - 1], 1)),
            ]
            made = [(lane, part) for lane, parts in groups for part in parts][:limit]
            return [self._make(connection, lane, part, recipes, planner) for lane, part in made]

    def _ready(
        self,
        connection: Connection,
        recipes: Mapping[str, str],
        needs: Mapping[str, Mapping[str, str]],
        aliases: Collection[str],
        max_tries: int,
        limit: int,
    ) -> list[tuple[str, int]]:
        """Return (object_id, most tries so far) of live versions with work that can start now.

        An object over which workers died is a suspect: it counts as one on its last try, and so runs alone.
        """
        blocked = WORK.alias("blocked")
        conditions = []
        for step, recipe in recipes.items():
            condition = and_(WORK.c.step == step, WORK.c.recipe == recipe)
            for need, need_recipe in needs.get(step, {}).items():
                if need in recipes:
                    continue
                done = select(blocked.c.object_id).where(
                    blocked.c.object_id == WORK.c.object_id,
                    blocked.c.step == need,
                    blocked.c.recipe == need_recipe,
                    blocked.c.state.in_(FINAL_STATES),
                )
                condition = and_(condition, done.exists())
            conditions.append(condition)
        query = (
            select(WORK.c.object_id, func.max(WORK.c.tries), func.max(WORK.c.claims))
            .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
            .where(WORK.c.state == "wanted", WORK.c.batch_id.is_(None), WORK.c.not_before <= time.time())
            .where(OBJECTS.c.state == "live", OBJECTS.c.alias.in_(list(aliases)), or_(*conditions))
            .group_by(WORK.c.object_id, OBJECTS.c.place)
            .order_by(OBJECTS.c.place)
            .limit(limit)
        )
        found = connection.execute(query)
        return [
            (object_id, max_tries if claims >= _SUSPECT_CLAIMS else int(tries)) for object_id, tries, claims in found
        ]

    def _make(
        self, connection: Connection, lane: str, object_ids: Sequence[str], recipes: Mapping[str, str], planner: str
    ) -> Batch:
        batch = Batch(uuid.uuid4().hex, lane, tuple(recipes), len(object_ids))
        connection.execute(
            BATCHES.insert().values(
                batch_id=batch.batch_id,
                lane=lane,
                steps=",".join(batch.steps),
                n_objects=batch.n_objects,
                planner=planner,
                created_at=time.time(),
            )
        )
        for part in chunks(object_ids):
            rows = and_(WORK.c.object_id.in_(part), WORK.c.state == "wanted", WORK.c.batch_id.is_(None), these(recipes))
            connection.execute(update(WORK).where(rows).values(batch_id=batch.batch_id))
        return batch

    def objects_of(self, batch_id: str) -> list[KnownObject]:
        """Return the object versions of a batch that still have work in it."""
        query = (
            select(OBJECTS)
            .where(OBJECTS.c.object_id.in_(select(WORK.c.object_id).where(WORK.c.batch_id == batch_id)))
            .order_by(OBJECTS.c.place)
        )
        with self._reader.connect() as connection:
            return [known_object(row) for row in connection.execute(query)]

    # -- claims --------------------------------------------------------------------------------------------------

    def claim_batch(
        self, batch_id: str, owner: str, *, recipes: Mapping[str, str], lease_s: float, max_claims: int
    ) -> list[Claim]:
        """Claim what a batch still has to do under these recipes; rows begun too often die as ``crash_loop`` instead.

        An owner whose name ends like that of an earlier one (the same Dagster run, resumed in another pod) takes over
        what the earlier one held. Rows of other recipes (the code changed since the batch was planned) are left.
        """
        return self._claim(_of_batch(batch_id, owner, recipes), owner, lease_s, max_claims)

    def worn_out(self, batch_id: str, owner: str, recipes: Mapping[str, str], max_claims: int) -> list[Claim]:
        """Return what ``claim_batch`` would give up as ``crash_loop``, so that it can be recorded before."""
        rows = and_(_of_batch(batch_id, owner, recipes), WORK.c.claims >= max_claims)
        with self._reader.connect() as connection:
            found = list(connection.execute(select(WORK).where(rows)))
            return self._to_claims(connection, found)

    def claim_objects(
        self, object_ids: Sequence[str], recipes: Mapping[str, str], owner: str, *, lease_s: float
    ) -> list[Claim]:
        """Claim these steps of these versions whatever their state, unless another worker holds them."""
        claims: list[Claim] = []
        for part in chunks(object_ids):
            free = or_(WORK.c.state != "claimed", WORK.c.lease_until < time.time())
            claims += self._claim(and_(WORK.c.object_id.in_(part), these(recipes), free), owner, lease_s, None)
        return claims

    def _claim(self, rows: ColumnElement[bool], owner: str, lease_s: float, max_claims: int | None) -> list[Claim]:
        now = time.time()
        with self._engine.begin() as connection:
            if max_claims is not None:
                dead = {"state": "dead", "reason": str(Reason.CRASH_LOOP), "changed_at": now}
                dead["error"] = f"the worker died {max_claims} times over this object"
                connection.execute(update(WORK).where(rows, WORK.c.claims >= max_claims).values(**dead))
            keys = [(r.object_id, r.step, r.recipe) for r in connection.execute(select(WORK).where(rows))]
            values = {"state": "claimed", "owner": owner, "lease_until": now + lease_s, "changed_at": now}
            counters = {"claims": WORK.c.claims + 1, "token": WORK.c.token + 1}
            connection.execute(update(WORK).where(rows).values(**values, **counters))
            return self._claimed(connection, owner, {object_id for object_id, _, _ in keys}, set(keys))

    def _claimed(
        self, connection: Connection, owner: str, object_ids: set[str], keys: set[tuple[str, str, str]]
    ) -> list[Claim]:
        rows: list[Row[Any]] = []
        for part in chunks(sorted(object_ids)):
            mine = and_(WORK.c.object_id.in_(part), WORK.c.state == "claimed", WORK.c.owner == owner)
            rows += connection.execute(select(WORK).where(mine))
        return self._to_claims(connection, [row for row in rows if (row.object_id, row.step, row.recipe) in keys])

    @staticmethod
    def _to_claims(connection: Connection, rows: Sequence[Row[Any]]) -> list[Claim]:
        """Group rows of work into one claim for each version."""
        work: dict[str, list[Row[Any]]] = {}
        for row in rows:
            work.setdefault(row.object_id, []).append(row)
        known: list[KnownObject] = []
        for part in chunks(sorted(work)):
            found = connection.execute(select(OBJECTS).where(OBJECTS.c.object_id.in_(part)).order_by(OBJECTS.c.place))
            known += [known_object(row) for row in found]
        return [
            Claim(
                item,
                {row.step: row.recipe for row in work[item.object_id]},
                {row.step: row.token for row in work[item.object_id]},
                {row.step: row.tries for row in work[item.object_id]},
                max(row.claims for row in work[item.object_id]),
            )
            for item in known
        ]

    def renew(self, owner: str, lease_s: float) -> None:
        """Lengthen all leases of an owner."""
        mine = and_(WORK.c.owner == owner, WORK.c.state == "claimed")
        with self._engine.begin() as connection:
            connection.execute(update(WORK).where(mine).values(lease_until=time.time() + lease_s))

    def finish(self, ends: Sequence[Finished]) -> list[bool]:
        """Write ends, each only where its token is still the latest; returns which were accepted."""
        with self._engine.begin() as connection:
            return [self._finish(connection, end) for end in ends]

    def _finish(self, connection: Connection, end: Finished) -> bool:
        now = time.time()
        values: dict[str, Any] = {"state": end.state, "reason": end.reason, "error": end.error, "batch_id": None}
        if end.state != "wanted":
            values["n_rows"] = end.n_rows  # an earlier result, where there is one, holds until the retry is over
        values |= {"not_before": now + end.retry_after_s, "lease_until": None, "changed_at": now, "owner": None}
        row = and_(
            WORK.c.object_id == end.object_id,
            WORK.c.step == end.step,
            WORK.c.recipe == end.recipe,
            WORK.c.token == end.token,
            WORK.c.state == "claimed",
        )
        # An end of any kind proves that the worker lives: only starts without one count.
        counters = {"tries": WORK.c.tries + int(end.counts_as_try), "claims": 0}
        return bool(connection.execute(update(WORK).where(row).values(**values, **counters)).rowcount)

    def want_again(self, step: str, recipe: str, object_ids: Sequence[str]) -> None:
        """Reopen rows whose result is lost or damaged, with all their tries."""
        values = {
            "state": "wanted",
            "n_rows": None,
            "tries": 0,
            "claims": 0,
            "not_before": 0.0,
            "changed_at": time.time(),
        }
        with self._engine.begin() as connection:
            for part in chunks(object_ids):
                rows = and_(WORK.c.object_id.in_(part), WORK.c.step == step, WORK.c.recipe == recipe)
                connection.execute(update(WORK).where(rows).values(**values))

    def reopen(self, object_id: str, reason: str) -> None:
        """Reopen rows that were skipped for a reason which no longer holds."""
        rows = and_(WORK.c.object_id == object_id, WORK.c.state == "skipped", WORK.c.reason == reason)
        with self._engine.begin() as connection:
            connection.execute(update(WORK).where(rows).values(state="wanted", reason=None, changed_at=time.time()))

    def n_unstarted(self) -> int:
        """Count the planned batches that no run has begun."""
        query = select(func.count(WORK.c.batch_id.distinct())).where(WORK.c.state == "wanted")
        with self._reader.connect() as connection:
            return int(connection.scalar(query) or 0)

    def release(self, owner: str) -> int:
        """Give back all claims of an owner that stops in good order; the starts are not counted."""
        return self._release(and_(WORK.c.owner == owner, WORK.c.state == "claimed"), -1)

    def release_expired(self) -> int:
        """Free the claims whose lease has ended: their worker is dead or lost."""
        return self._release(and_(WORK.c.state == "claimed", WORK.c.lease_until < time.time()), 0)

    def release_dead(self, is_dead: Callable[[str], bool]) -> int:
        """Free the claims of owners that are known to be dead."""
        with self._reader.connect() as connection:
            owners = [
                row.owner
                for row in connection.execute(select(WORK.c.owner).where(WORK.c.state == "claimed").distinct())
            ]
        dead = [owner for owner in owners if owner and is_dead(owner)]
        return self._release(and_(WORK.c.owner.in_(dead), WORK.c.state == "claimed"), 0) if dead else 0

    def release_unstarted(self, is_dead: Callable[[str], bool], older_than_s: float) -> int:
        """Free planned rows whose run never began: their planner is dead, or too much time has gone.

        A run that begins later all the same finds nothing to claim, so this may be called at any time.
        """
        waiting = select(BATCHES.c.batch_id, BATCHES.c.planner, BATCHES.c.created_at).where(
            BATCHES.c.batch_id.in_(
                select(WORK.c.batch_id).where(WORK.c.state == "wanted", WORK.c.batch_id.is_not(None))
            )
        )
        with self._reader.connect() as connection:
            rows = connection.execute(waiting).all()
        lost = [r.batch_id for r in rows if is_dead(r.planner) or r.created_at < time.time() - older_than_s]
        return sum(self._release(and_(WORK.c.state == "wanted", WORK.c.batch_id.in_(part)), 0) for part in chunks(lost))

    def release_batches(self, batch_ids: Sequence[str]) -> int:
        """Free what these batches still hold and have not claimed."""
        return self._release(and_(WORK.c.state == "wanted", WORK.c.batch_id.in_(list(batch_ids))), 0)

    def _release(self, rows: ColumnElement[bool], claims: int) -> int:
        values = {"state": "wanted", "owner": None, "lease_until": None, "batch_id": None, "changed_at": time.time()}
        with self._engine.begin() as connection:
            return connection.execute(update(WORK).where(rows).values(**values, claims=WORK.c.claims + claims)).rowcount


def _of_batch(batch_id: str, owner: str, recipes: Mapping[str, str]) -> ColumnElement[bool]:
    run = owner.rpartition("/")[2]
    held_before = and_(WORK.c.state == "claimed", WORK.c.owner.endswith(f"/{run}", autoescape=True))
    return and_(WORK.c.batch_id == batch_id, or_(WORK.c.state == "wanted", held_before), these(recipes))


def _cut(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return list(chunks(items, size))
