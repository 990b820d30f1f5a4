"""What a batch made, for who searches before the next refresh: the rows that the indexes will hold.

Put here: results of one batch → one file for each space. Keep out: searching them, and sweeping them once the tables
show them (``removing``).

A batch whose worker was killed leaves no such file: what it made shows after the refresh.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.flows.preparing import Prepared
from mm_assets.flows.workspace import Workspace
from mm_assets.spaces import ALL_SPACES, WORDS, Space
from mm_assets.wording import SEGMENT_COLUMNS, texts_of

_SEGMENTS = "segments"


class Arrivals:
    """Collects the rows of a batch, group by group."""

    def __init__(self, workspace: Workspace, batch_id: str) -> None:
        self._workspace = workspace
        self._batch_id = batch_id
        self._rows: dict[str, list[pa.Table]] = {space.name: [] for space in ALL_SPACES}

    def add(self, group: Sequence[Prepared], results: Mapping[str, Mapping[str, pa.Table]]) -> None:
        """Take what a group made: step → object_id → rows."""
        tables = {step: pa.concat_tables(of.values()) for step, of in results.items() if of}
        layers = [read_layers(prepared) for prepared in group if prepared.segments is not None]
        if layers:
            tables[_SEGMENTS] = pa.concat_tables(layers)
        for space in ALL_SPACES:
            rows = _rows(space, tables)
            if rows is not None and rows.num_rows:
                self._rows[space.name].append(rows)

    def write(self) -> None:
        """Write the batch's files."""
        for space in ALL_SPACES:
            if tables := self._rows[space.name]:
                recipe = self._workspace.recipes[space.table]
                self._workspace.lake.write_arrivals(space.name, recipe, self._batch_id, pa.concat_tables(tables))


def _rows(space: Space, tables: Mapping[str, pa.Table]) -> pa.Table | None:
    if space == WORDS:
        return texts_of({name: tables[name] for name in space.tables if name in tables})
    return tables[space.table].drop_columns("recipe") if space.table in tables else None


def read_layers(prepared: Prepared) -> pa.Table:
    """Read the text layers of an object's pages, without its images; it must have segments."""
    return pq.read_table(prepared.segments, columns=list(SEGMENT_COLUMNS))
