"""Vector indexes: ``VectorIndex`` and ``GrownIndex`` search, ``build_index`` and ``update_index`` make, ``Rows`` holds."""

from mm_assets.indexing.building import build_index, update_index
from mm_assets.indexing.growing import GrownIndex, GrownSelection
from mm_assets.indexing.parts import Part, Row, Rows, read_part, read_rows, write_part, write_rows
from mm_assets.indexing.searching import INDEX_FILE, ROWS_FILE, Selection, VectorIndex

__all__ = [
    "INDEX_FILE",
    "ROWS_FILE",
    "GrownIndex",
    "GrownSelection",
    "Part",
    "Row",
    "Rows",
    "Selection",
    "VectorIndex",
    "build_index",
    "read_part",
    "read_rows",
    "update_index",
    "write_part",
    "write_rows",
]
