"""What is published: the recipe of each step, the current generations, the files of each shard.

Put here: pointers. Keep out: the things pointed at, which lie in the lake.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Table, delete, func, select

from mm_assets.ledger.tables import GENERATIONS, PUBLISHED, SHARD_FILES


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

    def _replace(self, table: Table, where: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        with self._engine.begin() as connection:
            connection.execute(delete(table).where(*(table.c[name] == value for name, value in where.items())))
            connection.execute(table.insert().values(**where, **values))

    def published(self) -> dict[str, str]:
        """Return step → recipe whose rows the tables show."""
        with self._reader.connect() as connection:
            return {row.step: row.recipe for row in connection.execute(select(PUBLISHED))}

    def publish(self, recipes: Mapping[str, str]) -> None:
        """Show these recipes from the next publish on; all of them at once."""
        with self._engine.begin() as connection:
            connection.execute(delete(PUBLISHED).where(PUBLISHED.c.step.in_(list(recipes))))
            rows = [{"step": step, "recipe": recipe} for step, recipe in recipes.items()]
            if rows:
                connection.execute(PUBLISHED.insert(), rows)

    def generation(self, name: str) -> dict[str, Any] | None:
        """Return the manifest of the current generation of an index, model or baseline."""
        with self._reader.connect() as connection:
            row = connection.execute(select(GENERATIONS).where(GENERATIONS.c.name == name)).one_or_none()
        return json.loads(row.manifest) if row is not None else None

    def generations(self) -> dict[str, dict[str, Any]]:
        """Return all current manifests by name."""
        with self._reader.connect() as connection:
            return {row.name: json.loads(row.manifest) for row in connection.execute(select(GENERATIONS))}

    def set_generation(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Point to another generation; going back is the same call."""
        values = {"generation": manifest["generation"], "manifest": json.dumps(manifest, sort_keys=True)}
        self._replace(GENERATIONS, {"name": name}, values)

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

    def set_shard_file(self, file: ShardFile) -> None:
        """Note a published file, after it is durable."""
        values = {"fingerprint": file.fingerprint, "n_rows": file.n_rows, "published_at": time.time()}
        self._replace(SHARD_FILES, {"name": file.name, "shard": file.shard}, values)

    def forget_shard_files(self, names: Sequence[tuple[str, int]]) -> None:
        """Forget removed files."""
        with self._engine.begin() as connection:
            for name, shard in names:
                connection.execute(delete(SHARD_FILES).where(SHARD_FILES.c.name == name, SHARD_FILES.c.shard == shard))
