"""The index of a space, made of its published tables a shard at a time.

Put here: shards → parts → index. Keep out: the mathematics, which is ``indexing``'s and ``texts``', and generations.

Each shard's rows are a part, named by its content; a shard that did not change keeps its part, and is neither read nor
written again.
"""

import hashlib
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.errors import SchemaError
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.indexing import ROWS_FILE, Part, Rows, VectorIndex, build_index, read_rows, update_index, write_part
from mm_assets.ledger import ShardFile
from mm_assets.ledger.catalog import DOUBTED, OVERTAKEN
from mm_assets.mirror import local_files
from mm_assets.retrieval.indexes import TEXTS, open_index
from mm_assets.spaces import WORDS, Space
from mm_assets.texts import Text, TextIndex, update_texts
from mm_assets.vectors import Ids
from mm_assets.wording import texts_of

_LOG = logging.getLogger(__name__)
StoredPart = Mapping[str, Any]  # of a manifest: name, shard, made_of, n_rows, dim, recipes


def indexed_ids(workspace: Workspace, space: Space) -> tuple[Ids, dict[str, Any]] | None:
    """Return the ids of the items in the current index of a space, ascending, and its manifest; None without one."""
    manifest = workspace.ledger.catalog.generation(space.generation_name)
    if manifest is None:
        return None
    rows = read_rows(workspace.lake.read_generation(space.generation_name, manifest["generation"], ROWS_FILE))
    return rows["vector_id"].to_numpy(), manifest


def store_parts(
    workspace: Workspace, space: Space, current: Mapping[str, Any] | None, folder: Path
) -> Iterator[StoredPart]:
    """Yield the parts of a space as it is published now; those that the lake may not have are made in ``folder``, and stored.

    Parameters
    ----------
    current : manifest whose parts are known to be in the lake
    """
    known = {part["shard"]: part for part in current["parts"]} if current else {}
    for shard, files in _shards(workspace, space).items():
        made_of = short_hash(*(f"{file.name} {file.fingerprint}" for file in files))
        before, is_whole = known.get(shard), all(file.fingerprint not in {OVERTAKEN, DOUBTED} for file in files)
        if before is not None and is_whole and before["made_of"] == made_of:
            yield before
        elif (part := _store_part(workspace, space, shard, files, folder)) is not None:
            yield part | {"made_of": made_of}


def _shards(workspace: Workspace, space: Space) -> dict[int, list[ShardFile]]:
    """Return shard → its published files with rows."""
    found = defaultdict(list)
    for (table, shard), file in sorted(workspace.ledger.catalog.shard_files().items()):
        if table in space.tables and file.n_rows:
            found[shard].append(file)
    return dict(sorted(found.items()))


def _store_part(
    workspace: Workspace, space: Space, shard: int, files: Sequence[ShardFile], folder: Path
) -> dict[str, Any] | None:
    """Make and store a part; None where there is no row for it."""
    tables = {file.name: _read(workspace, file) for file in files}
    recipes = sorted({recipe for table in tables.values() for recipe in table["recipe"].unique().to_pylist()})
    rows = texts_of(tables) if space == WORDS else tables[space.table].drop_columns("recipe")
    if not rows.num_rows:
        return None
    made = folder / f"{shard}.new"
    write_part(made, rows, space.item_column)
    with made.open("rb") as data:
        name = hashlib.file_digest(data, "sha256").hexdigest()[:32]
    made.replace(folder / name)
    workspace.lake.store.upload(workspace.lake.part_key(space.generation_name, name), folder / name)
    dim = rows["vector"].type.list_size if "vector" in rows.schema.names else 0
    return {"name": name, "shard": shard, "n_rows": rows.num_rows, "dim": dim, "recipes": recipes}


def _read(workspace: Workspace, file: ShardFile) -> pa.Table:
    rows = workspace.lake.read_shard(file.name, file.shard)
    if rows is None:
        raise SchemaError(file.name, f"shard {file.shard}", "a missing or damaged file; run `mm verify --yes`")
    return rows


def open_rows(workspace: Workspace, space: Space, parts: Sequence[StoredPart], dim: int, folder: Path) -> Rows:
    """Open the rows of parts, those in the lake and those just made in ``folder``."""
    keys = [workspace.lake.part_key(space.generation_name, part["name"]) for part in parts]
    made = {key: folder / part["name"] for key, part in zip(keys, parts, strict=True)}
    elsewhere = [key for key, file in made.items() if not file.is_file()]
    made |= dict(zip(elsewhere, local_files(workspace.lake, elsewhere, workspace.settings.cache), strict=True))
    return Rows.of_parts([Part(part["name"], made[key]) for key, part in zip(keys, parts, strict=True)], dim)


def make_index(workspace: Workspace, rows: Rows, base: Mapping[str, Any] | None) -> VectorIndex:
    """Return an index of these rows.

    Parameters
    ----------
    base : manifest of an index of the same recipes, to be changed; None to build anew
    """
    options = workspace.settings.refresh
    old, exact_rows, min_recall = _open_to_change(workspace, base), options.exact_index_rows, options.min_recall
    if old is None:
        return build_index(rows, exact_rows=exact_rows, min_recall=min_recall)
    return update_index(old, rows, exact_rows=exact_rows, min_recall=min_recall)


def make_text_index(
    workspace: Workspace, parts: Sequence[StoredPart], rows: Rows, base: Mapping[str, Any] | None, folder: Path
) -> dict[str, Path]:
    """Make the text index of these parts in ``folder``; returns its files by their names in the generation.

    Parameters
    ----------
    base : manifest of an index, of which a copy is changed; None to build anew
    """
    target = folder / TEXTS
    had = _copy_texts(workspace, base, target)
    new = {part["name"]: part["shard"] for part in parts}
    replaced = [shard for name, shard in had.items() if new.get(name) != shard]
    added = (part for part in rows.parts if part.name not in had)
    update_texts(target, replaced, (text for part in added for text in _texts(part, new[part.name])))
    return {f"{TEXTS}/{file.name}": file for file in sorted(target.iterdir()) if file.suffix != ".lock"}


def _texts(part: Part, shard: int) -> Iterator[Text]:
    columns = (part.rows[name].to_pylist() for name in ("vector_id", "kind", "text"))
    return (Text(text_id, shard, kind, text) for text_id, kind, text in zip(*columns, strict=True))


def _copy_texts(workspace: Workspace, base: Mapping[str, Any] | None, target: Path) -> dict[str, int]:
    """Copy the files of a text index; returns part → shard of what it holds, nothing where it cannot be copied."""
    if base is None:
        return {}
    keys = [key for key in workspace.lake.generation_keys(base) if f"/{TEXTS}/" in key]
    try:
        files = local_files(workspace.lake, keys, workspace.settings.cache)
        target.mkdir()
        for file in files:
            shutil.copyfile(file, target / file.name)
        TextIndex.open(target)
    except (ObjectNotFoundError, SchemaError) as error:
        _LOG.warning("%s is built anew, since its last build cannot be changed: %s", base["name"], error)
        shutil.rmtree(target, ignore_errors=True)
        return {}
    return {part["name"]: part["shard"] for part in base["parts"]}


def _open_to_change(workspace: Workspace, base: Mapping[str, Any] | None) -> VectorIndex | None:
    """Open an index to change it; None where it cannot be, and the index is built anew."""
    if base is None:
        return None
    try:
        return open_index(workspace.lake, base, workspace.settings.cache, to_change=True)
    except (ObjectNotFoundError, SchemaError) as error:
        _LOG.warning("%s is built anew, since its last build cannot be changed: %s", base["name"], error)
        return None
