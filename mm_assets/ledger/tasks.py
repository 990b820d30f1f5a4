"""What one object version still has to do, taken back by the person who asked for it.

Put here: cancelling. Keep out: asking again, which is what dead letters are replayed by.
"""

import time
from collections.abc import Mapping

from sqlalchemy import Engine, and_, select, update

from mm_assets.ledger.batches import NEW_ROW, insert_work
from mm_assets.ledger.progress import these
from mm_assets.ledger.tables import IS_LIVE, OBJECTS, WORK
from mm_assets.ledger.transactions import retried

CANCELLED = "cancelled"


class TaskBook:
    """The work on single object versions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @retried
    def cancel(self, object_id: str, recipes: Mapping[str, str]) -> int:
        """Skip what is wanted and not begun, also where no row of work was opened yet; returns how many steps.

        What a worker holds goes on to its end. What was to be done again keeps its earlier result. Of a version that
        left nothing is opened: it would not be done when it comes back.
        """
        if not recipes:
            return 0
        values = {"state": "skipped", "reason": CANCELLED, "changed_at": time.time()}
        live = and_(OBJECTS.c.object_id == object_id, IS_LIVE)
        wanted = update(WORK).where(WORK.c.object_id == object_id, WORK.c.state == "wanted", these(recipes))
        with self._engine.begin() as connection:
            held = wanted.where(select(OBJECTS.c.object_id).where(live).exists())
            n = connection.execute(held.values(**values, batch_id=None, error=None)).rowcount
            for step, recipe in sorted(recipes.items()):
                n += insert_work(connection, NEW_ROW | {"step": step, "recipe": recipe} | values, live)
        return n
