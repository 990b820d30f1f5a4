"""The ledger in the orders in which lake and sources list their objects, so that two streams can be compared.

Put here: long, sorted reads. Keep out: what differences mean, and anything that changes a row.
"""

from collections.abc import Iterator, Mapping

from sqlalchemy import Engine, func, select

from mm_assets.ledger.progress import these
from mm_assets.ledger.tables import IS_LIVE, OBJECTS, WORK

_ROWS_AT_ONCE = 10_000


class ComparingBook:
    """Streams of what the ledger believes of live versions; memory stays flat however many there are."""

    def __init__(self, engine: Engine) -> None:
        self._reader = engine.execution_options(mm_reads=True).execution_options(yield_per=_ROWS_AT_ONCE)

    def by_key(self, alias: str) -> Iterator[tuple[str, str]]:
        """Yield (key, object_id) of a source, in the order of the keys' UTF-8 bytes."""
        with self._reader.connect() as connection:
            is_sqlite = connection.dialect.name == "sqlite"  # which compares bytes; PostgreSQL, as its locale has it
            order = OBJECTS.c.key if is_sqlite else func.convert_to(OBJECTS.c.key, "UTF8")
            query = select(OBJECTS.c.key, OBJECTS.c.object_id).where(IS_LIVE, OBJECTS.c.alias == alias)
            for row in connection.execute(query.order_by(order)):
                yield row.key, row.object_id

    def results(self, step: str, recipe: str) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield (object_id, (rows, shard)) of each result of a step under a recipe, by id."""
        query = (
            select(WORK.c.object_id, WORK.c.n_rows, OBJECTS.c.shard)
            .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
            .where(IS_LIVE, WORK.c.step == step, WORK.c.recipe == recipe, WORK.c.n_rows.is_not(None))
            .order_by(WORK.c.object_id)
        )
        with self._reader.connect() as connection:
            for row in connection.execute(query):
                yield row.object_id, (row.n_rows, row.shard)

    def dead(self, recipes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Yield (object_id, step) of what was given up under these recipes, by id."""
        query = (
            select(WORK.c.object_id, WORK.c.step)
            .join(OBJECTS, OBJECTS.c.object_id == WORK.c.object_id)
            .where(IS_LIVE, WORK.c.state == "dead", these(recipes))
            .order_by(WORK.c.object_id, WORK.c.step)
        )
        with self._reader.connect() as connection:
            for row in connection.execute(query):
                yield row.object_id, row.step
