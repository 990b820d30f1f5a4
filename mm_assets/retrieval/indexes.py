"""The index of a space that the lake holds, opened for searching or for changing.

Put here: manifest → files → index. Keep out: building, and what an answer means.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_assets.indexing import ROWS_FILE, Part, Rows, VectorIndex, read_rows
from mm_assets.lake import Lake
from mm_assets.mirror import local_files
from mm_assets.texts import TextIndex

TEXTS = "texts"  # folder of tantivy's files in a generation of the text index


def open_index(lake: Lake, manifest: Mapping[str, Any], cache: Path, *, to_change: bool = False) -> VectorIndex:
    """Open a generation; what a lake in a bucket holds of it is copied once.

    Parameters
    ----------
    to_change : read the codes instead of mapping them, for ``indexing.update_index``

    Raises
    ------
    ObjectNotFoundError
        A file is missing: the generation was removed since, or the lake is damaged.
    SchemaError
        A file is damaged.
    """
    folder, parts = _files(lake, manifest, cache)
    return VectorIndex.open(folder, parts, manifest["parameters"], to_change=to_change)


def open_texts(lake: Lake, manifest: Mapping[str, Any], cache: Path) -> tuple[TextIndex, Rows]:
    """Open a generation of the text index and its rows; raises as ``open_index`` does."""
    folder, parts = _files(lake, manifest, cache)
    return TextIndex.open(folder / TEXTS), Rows.open(read_rows(folder / ROWS_FILE), parts)


def _files(lake: Lake, manifest: Mapping[str, Any], cache: Path) -> tuple[Path, list[Part]]:
    """Return the folder of a generation, and its parts."""
    files = local_files(lake, lake.generation_keys(manifest), cache)
    parts = [Part(part["name"], file) for part, file in zip(manifest["parts"], files, strict=False)]
    return files[-1].parent, parts
