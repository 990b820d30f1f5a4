"""Counters of all processes, summed in the database: one row for each day, name and set of labels.

Put here: adding and reading, and how far the work lags. Keep out: what is counted, and numbers that other books give.
"""

import json
import re
from collections.abc import Mapping

from sqlalchemy import Engine, func, select

from mm_assets.ledger.clock import gmt_day
from mm_assets.ledger.progress import OPEN_STATES
from mm_assets.ledger.tables import IS_LIVE, METERS, OBJECTS, SCANS, WORK
from mm_assets.ledger.transactions import insert_into, retried

Labels = tuple[tuple[str, str], ...]
_MAX_LABEL_CHARS = 48
# Codes and reasons come from strangers' servers, and a label is kept for as long as the ledger is.
_FOREIGN = re.compile(r"[^A-Za-z0-9 ._:/,=-]")


class MeterBook:
    """Counters that only rise, over all processes and restarts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    @retried
    def add(self, values: Mapping[tuple[str, Labels], float]) -> None:
        """Add to the counters of today (GMT), all in one transaction.

        Parameters
        ----------
        values : (name, labels) → what to add. Of a label's value 48 characters are kept, and of those that are neither
            letters, digits nor ``._:/,=-`` a ``_``
        """
        day = gmt_day()
        sums: dict[tuple[str, str], float] = {}
        for (name, labels), value in values.items():
            key = name, _to_text(labels)
            sums[key] = sums.get(key, 0.0) + value
        # In order, so that two processes never wait for each other's rows.
        rows = [{"day": day, "name": n, "labels": t, "value": v} for (n, t), v in sorted(sums.items()) if v]
        if not rows:
            return
        keys = [METERS.c.day, METERS.c.name, METERS.c.labels]
        with self._engine.begin() as connection:
            insert = insert_into(connection, METERS)
            added = METERS.c.value + insert.excluded.value
            connection.execute(insert.on_conflict_do_update(index_elements=keys, set_={"value": added}), rows)

    def totals(self) -> dict[tuple[str, Labels], float]:
        """Return all counters, summed over all days."""
        query = select(METERS.c.name, METERS.c.labels, func.sum(METERS.c.value)).group_by(
            METERS.c.name, METERS.c.labels
        )
        with self._reader.connect() as connection:
            return {(name, _from_text(text)): float(value) for name, text, value in connection.execute(query)}

    def today(self, name: str) -> dict[Labels, float]:
        """Return labels → what was added to one counter since 00:00 GMT."""
        query = select(METERS.c.labels, METERS.c.value).where(METERS.c.day == gmt_day(), METERS.c.name == name)
        with self._reader.connect() as connection:
            return {_from_text(text): float(value) for text, value in connection.execute(query)}

    def n_rows(self) -> dict[tuple[str, str, str], int]:
        """Count the rows of work by (step, recipe, state), off one index: those of versions that left are in it."""
        columns = (WORK.c.state, WORK.c.step, WORK.c.recipe)
        with self._reader.connect() as connection:
            found = connection.execute(select(*columns, func.count().label("n")).group_by(*columns))
            return {(row.step, row.recipe, row.state): row.n for row in found}

    def n_unplanned(self, alias: str) -> int:
        """Count the live versions of a source for which no work was planned yet; they have no rows."""
        here = (IS_LIVE, OBJECTS.c.alias == alias, OBJECTS.c.opened_for == "")
        with self._reader.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(OBJECTS).where(*here)) or 0)

    def oldest_unprocessed_at(self) -> float | None:
        """Return when the oldest live version with unfinished work was first seen; None when nothing waits.

        Of those that no batch was planned for yet, the one whose turn comes first stands for all of a source: a new
        version keeps the place of the one before it, so an older one may stand behind it.
        """
        unfinished = select(WORK.c.object_id).where(WORK.c.state.in_(OPEN_STATES))
        opened = select(func.min(OBJECTS.c.first_seen_at)).where(IS_LIVE, OBJECTS.c.object_id.in_(unfinished))
        with self._reader.connect() as connection:
            found = [connection.scalar(opened)]
            for alias in connection.scalars(select(SCANS.c.alias)).all():
                never_opened = (IS_LIVE, OBJECTS.c.alias == alias, OBJECTS.c.opened_for == "")
                first = select(OBJECTS.c.first_seen_at).where(*never_opened).order_by(OBJECTS.c.place).limit(1)
                found.append(connection.scalar(first))
        return min((moment for moment in found if moment is not None), default=None)


def _to_text(labels: Labels) -> str:
    return json.dumps({key: _FOREIGN.sub("_", value)[:_MAX_LABEL_CHARS] for key, value in sorted(labels)})


def _from_text(text: str) -> Labels:
    return tuple(json.loads(text).items())
