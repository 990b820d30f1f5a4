"""What one object version still has to do, taken back by the person who asked for it.

Put here: cancelling. Keep out: asking again, which is what dead letters are replayed by.
"""

import time
from collections.abc import Mapping

from sqlalchemy import Engine, update

from mm_assets.ledger.progress import these
from mm_assets.ledger.tables import WORK
from mm_assets.ledger.transactions import insert_into, retried

CANCELLED = "cancelled"


class TaskBook:
    """The work on single object versions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @retried
    def cancel(self, object_id: str, recipes: Mapping[str, str]) -> int:
        """Skip what is wanted and not begun, also where no row of work was opened yet; returns how many steps.

        What a worker holds goes on to its end. What was to be done again keeps its earlier result.
        """
        if not recipes:
            return 0
        values = {"state": "skipped", "reason": CANCELLED, "changed_at": time.time()}
        rows = [{"object_id": object_id, "step": step, "recipe": recipe, **values} for step, recipe in recipes.items()]
        wanted = update(WORK).where(WORK.c.object_id == object_id, WORK.c.state == "wanted", these(recipes))
        with self._engine.begin() as connection:
            n = connection.execute(wanted.values(**values, batch_id=None, error=None)).rowcount
            opened = insert_into(connection, WORK).on_conflict_do_nothing().returning(WORK.c.step)
            return n + len(connection.execute(opened, rows).all())
