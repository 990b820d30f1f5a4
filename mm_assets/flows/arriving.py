"""What a group of objects gave, for who searches before the next refresh: the rows that the indexes will hold.

Put here: results of one group → files of its spaces. Keep out: searching them, and sweeping them once the tables show
them (``removing``).

They are written like results: while the objects are still under work, so that a sweep which finds one of them gone looks
again later. A worker that was killed before leaves no such file: what it made is adopted, and written then.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.flows.preparing import Prepared
from mm_assets.flows.workspace import Workspace
from mm_assets.spaces import SPACES, WORDS
from mm_assets.wording import SEGMENT_COLUMNS, texts_of

_SEGMENTS = "segments"


def write_arrivals(
    workspace: Workspace, name: str, group: Sequence[Prepared], results: Mapping[str, Mapping[str, pa.Table]]
) -> None:
    """Write what a group gave, one file for each vector space and for each table of texts.

    Parameters
    ----------
    name : of the files
    results : step → object_id → rows
    """
    tables = {step: pa.concat_tables(of.values()) for step, of in results.items() if of}
    decoded = [
        prepared for prepared in group if ("segments", "done") in {(end.step, end.state) for end in prepared.ends}
    ]
    layers = [read_layers(prepared) for prepared in decoded]
    if layers:
        tables[_SEGMENTS] = pa.concat_tables(layers)
    for space, part, rows in _rows(workspace, tables):
        if rows.num_rows:
            workspace.lake.write_arrivals(space, part, name, rows)


def _rows(workspace: Workspace, tables: Mapping[str, pa.Table]) -> Iterator[tuple[str, str, pa.Table]]:
    """Yield space, part of it (the recipe of vectors, the table of texts), and rows."""
    for space in SPACES.values():
        if space.table in tables:
            yield space.name, workspace.recipes[space.table], tables[space.table].drop_columns("recipe")
    for table in WORDS.tables:
        if table in tables:
            yield WORDS.name, table, texts_of({table: tables[table]})


def read_layers(prepared: Prepared) -> pa.Table:
    """Read the text layers of an object's pages, without its images; it must have segments."""
    return pq.read_table(prepared.segments, columns=list(SEGMENT_COLUMNS))
