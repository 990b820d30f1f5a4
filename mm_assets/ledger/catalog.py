"""What is published: the recipe of each step, the current generations, the files of each shard.

Put here: pointers. Keep out: the things pointed at, which lie in the lake.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Table, case, delete, func, select, update
from sqlalchemy.engine import Connection

from mm_assets.ledger.locks import keeps_lock
from mm_assets.ledger.tables import GENERATIONS, PUBLISHED, SHARD_FILES
from mm_assets.ledger.transactions import insert_into, retried

PUBLISH_LOCK = "publish"
# Equals no fingerprint, so that the next publish writes the file again: of a file whose writer lost the lock, and of one
# that is being replaced or removed.
OVERTAKEN = "overtaken"
DOUBTED = "doubted"  # so does this: what a published file holds was made again since


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One published file: its fingerprint says from which results and generations it was made."""

    name: str
    shard: int
    fingerprint: str
    n_rows: int


class Catalog:
    """Pointers to what is published."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    def published(self) -> dict[str, str]:
        """Return step → recipe whose rows the tables show."""
        with self._reader.connect() as connection:
            return {row.step: row.recipe for row in connection.execute(select(PUBLISHED))}

    @retried
    def publish(self, recipes: Mapping[str, str]) -> None:
        """Show these recipes from the next publish on; all of them at once."""
        with self._engine.begin() as connection:
            for step, recipe in sorted(recipes.items()):
                _replace(connection, PUBLISHED, {"step": step}, {"recipe": recipe})

    def generation(self, name: str) -> dict[str, Any] | None:
        """Return the manifest of the current generation of an index, model or baseline."""
        with self._reader.connect() as connection:
            row = connection.execute(select(GENERATIONS).where(GENERATIONS.c.name == name)).one_or_none()
        return json.loads(row.manifest) if row is not None else None

    def generations(self) -> dict[str, dict[str, Any]]:
        """Return all current manifests by name."""
        with self._reader.connect() as connection:
            return {row.name: json.loads(row.manifest) for row in connection.execute(select(GENERATIONS))}

    @retried
    def set_generation(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Point to another generation; going back is the same call."""
        values = {"generation": manifest["generation"], "manifest": json.dumps(manifest, sort_keys=True)}
        with self._engine.begin() as connection:
            _replace(connection, GENERATIONS, {"name": name}, values)

    def shard_files(self) -> dict[tuple[str, int], ShardFile]:
        """Return all published files by (table, shard)."""
        with self._reader.connect() as connection:
            return {
                (row.name, row.shard): ShardFile(row.name, row.shard, row.fingerprint, row.n_rows)
                for row in connection.execute(select(SHARD_FILES))
            }

    def last_published_at(self) -> float:
        """Return when a file was last published; 0 for never."""
        with self._reader.connect() as connection:
            return float(connection.scalar(select(func.max(SHARD_FILES.c.published_at))) or 0.0)

    @retried
    def begin_shard_file(self, name: str, shard: int, token: int) -> str | None:
        """Note that a file is about to be written; returns its fingerprint until now, None where there is no file.

        Until ``set_shard_file`` it counts as overtaken, whatever becomes of the publisher. What was in doubt is so no more:
        the publisher reads what is in it after this. Nothing is noted, and None returned, where the lock ``publish`` is no
        longer held with this token: the doubt is another publisher's to see.
        """
        here = (SHARD_FILES.c.name == name, SHARD_FILES.c.shard == shard)
        with self._engine.begin() as connection:
            if not keeps_lock(connection, PUBLISH_LOCK, token):
                return None
            former: str | None = connection.scalar(select(SHARD_FILES.c.fingerprint).where(*here).with_for_update())
            values: dict[str, Any] = {"fingerprint": OVERTAKEN, "published_at": time.time()}
            if former is None:
                _replace(connection, SHARD_FILES, {"name": name, "shard": shard}, values | {"n_rows": 0})
            else:
                connection.execute(update(SHARD_FILES).where(*here).values(**values))
        return former

    @retried
    def set_shard_file(self, file: ShardFile, token: int | None = None) -> None:
        """Note a published file, after it is durable; it stays in doubt where that came up since it was begun.

        Parameters
        ----------
        token : of the lock ``publish``; when it is no longer ours, another publisher may have written the file before
            or after, so it is noted as overtaken and written again by the next publish
        """
        with self._engine.begin() as connection:
            is_ours = token is None or keeps_lock(connection, PUBLISH_LOCK, token)
            fingerprint = file.fingerprint if is_ours else OVERTAKEN
            values: dict[str, Any] = {"n_rows": file.n_rows, "published_at": time.time()}
            is_doubted = (SHARD_FILES.c.fingerprint == DOUBTED, DOUBTED)
            here = {"name": file.name, "shard": file.shard, "fingerprint": fingerprint}
            row = insert_into(connection, SHARD_FILES).values(**here, **values)
            values["fingerprint"] = case(is_doubted, else_=fingerprint)
            connection.execute(row.on_conflict_do_update(index_elements=["name", "shard"], set_=values))

    @retried
    def doubt_shard_file(self, name: str, shard: int) -> None:
        """Note that a published file, if there is one, is about to be removed.

        A process killed after that leaves no file where the ledger knew one, and what the next publish wants may be just
        what it knew: a version that left and came back.
        """
        row = update(SHARD_FILES).where(SHARD_FILES.c.name == name, SHARD_FILES.c.shard == shard)
        with self._engine.begin() as connection:
            connection.execute(row.values(fingerprint=OVERTAKEN))

    @retried
    def forget_shard_files(self, names: Sequence[tuple[str, int]]) -> None:
        """Forget removed files."""
        with self._engine.begin() as connection:
            for name, shard in sorted(names):
                connection.execute(delete(SHARD_FILES).where(SHARD_FILES.c.name == name, SHARD_FILES.c.shard == shard))


def _replace(connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    row = insert_into(connection, table).values(**key, **values)
    connection.execute(row.on_conflict_do_update(index_elements=list(key), set_=values))
