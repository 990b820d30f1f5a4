"""The index of a space that the lake holds, opened for searching or for changing.

Put here: manifest → files → index. Keep out: building, and what an answer means.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.errors import SchemaError
from mm_assets.indexing import ROWS_FILE, GrownIndex, Part, Rows, VectorIndex, build_index, read_rows
from mm_assets.indexing.parts import VECTOR
from mm_assets.lake import Lake
from mm_assets.mirror import local_files
from mm_assets.spaces import WORDS, Space
from mm_assets.texts import Text, TextIndex, extend_texts

TEXTS = "texts"  # folder of tantivy's files in a generation of the text index
_LOG = logging.getLogger(__name__)
_ARRIVED = (1 << 32) - 1  # the group of texts that are in no shard yet


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


def open_grown_index(
    lake: Lake, space: Space, manifest: Mapping[str, Any] | None, arrived: Sequence[str], cache: Path
) -> GrownIndex:
    """Open a generation, and what batches made since; raises as ``open_index`` does.

    Parameters
    ----------
    manifest : None where nothing is indexed yet
    arrived : keys of the lake, see ``Lake.arrivals``
    """
    parts = _arrived_parts(lake, space, arrived, cache)
    if manifest is not None and manifest["n_rows"]:
        return GrownIndex(open_index(lake, manifest, cache), parts)
    dim = parts[0].rows[VECTOR].type.list_size if parts else (manifest or {"dim": 1})["dim"]
    return GrownIndex(build_index(Rows.of_parts([], dim), exact_rows=0, min_recall=0.0), parts)


def open_grown_texts(
    lake: Lake, manifest: Mapping[str, Any] | None, arrived: Sequence[str], cache: Path
) -> tuple[TextIndex, Rows]:
    """Open a generation of the text index with the texts that came since, and the rows of both."""
    folder, files = _files(lake, manifest, cache) if manifest is not None else (None, [])
    rows = Rows.open(read_rows(folder / ROWS_FILE), files) if folder is not None else Rows.of_parts([])
    parts = _arrived_parts(lake, WORDS, arrived, cache)
    if folder is not None and not parts:
        return TextIndex.open(folder / TEXTS), rows
    whole = rows.extended(parts)
    return extend_texts(folder / TEXTS if folder is not None else None, _late_texts(whole, len(rows.parts))), whole


def _arrived_parts(lake: Lake, space: Space, keys: Sequence[str], cache: Path) -> list[Part]:
    """Read what came since; a damaged file is left out, since the next index has its rows."""
    parts = []
    for key, file in zip(keys, local_files(lake, keys, cache), strict=True):
        try:
            parts.append(Part.in_memory(key, pq.read_table(file), space.item_column))
        except (pa.ArrowException, SchemaError) as error:
            _LOG.warning("%s is left out of what is searched until the next refresh: %s", key, error)
    return parts


def _late_texts(rows: Rows, first_part: int) -> Iterator[Text]:
    ids = rows.ids[rows.part_numbers >= first_part]
    columns = rows.values(ids, ["kind", "text"])
    for text_id, kind, text in zip(ids.tolist(), columns["kind"], columns["text"], strict=True):
        yield Text(text_id, _ARRIVED, kind, text)


def _files(lake: Lake, manifest: Mapping[str, Any], cache: Path) -> tuple[Path, list[Part]]:
    """Return the folder of a generation, and its parts."""
    files = local_files(lake, lake.generation_keys(manifest), cache)
    parts = [Part(part["name"], file) for part, file in zip(manifest["parts"], files, strict=False)]
    return files[-1].parent, parts
