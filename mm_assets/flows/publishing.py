"""From results to the tables that analysts read, shard by shard, only where something changed.

Put here: fingerprints of shards, gathering rows, writing files. Keep out: what is shown at all, indexes and models.

A fingerprint names all that determined a shard's file. It is compared before anything is read, so an unchanged shard
costs nothing and a kill between file and ledger only repeats the file. One process at a time publishes; what one that
was overtaken writes all the same is noted as such and written again by the next. Rows of versions that left go onto a
receipt before the file without them replaces the one with them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mm_assets.flows.generations import Frozen, load_frozen, tables_of
from mm_assets.flows.indexes import indexed_ids
from mm_assets.flows.judging import JUDGEMENTS, judge_vectors
from mm_assets.flows.locking import BusyError, held
from mm_assets.flows.receipts import intend_rows
from mm_assets.flows.showing import (
    INDEXED,
    STATES,
    Key,
    is_listed,
    promote_recipes,
    shown_recipes,
    shown_tables,
    step_table,
    withdrawn_shards,
)
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.lake import read_provenance
from mm_assets.ledger import KnownObject, ShardFile
from mm_assets.ledger.catalog import PUBLISH_LOCK
from mm_assets.schemas import TABLES, Table
from mm_assets.spaces import SPACES, WORDS
from mm_assets.vectors import Ids, as_vector_ids


@dataclass
class Published:
    """What a publish did.

    Attributes
    ----------
    n_rows : table → rows it now has
    n_missing : results that the ledger calls done and the lake does not have; they are wanted again
    new_objects : table → object versions that have rows in it for the first time; of judgements only
    """

    n_rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    n_written: int = 0
    n_removed: int = 0
    n_missing: int = 0
    new_objects: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


_States = Sequence[tuple[KnownObject, Mapping[str, Any]]]
Indexes = Mapping[str, tuple[Ids, dict[str, Any]] | None]


def stale_step_shards(workspace: Workspace) -> dict[Key, str]:
    """Return (table, shard) → fingerprint of the files of the steps that must be written.

    Reads every row of published work: 4 s of CPU for 100,000 object versions with eight steps.
    """
    published = shown_recipes(workspace)
    tables = (*published, STATES)
    live = workspace.ledger.objects.live_shards() | {0}
    known = [key for key in workspace.ledger.catalog.shard_files() if key[0] in tables and key[1] in live]
    marks = {key: _fingerprint(workspace, key[0], ()) for key in (*known, *((table, 0) for table in tables))}
    rows = workspace.ledger.work.published_rows(published) if published else iter(())
    for shard, of_shard in groupby(rows, itemgetter(0)):
        for table, lines in _lines(of_shard).items():
            marks[table, shard] = _fingerprint(workspace, table, lines)
    return _stale(workspace, marks)


def _lines(rows: Iterable[tuple[int, str, str, str, str, str | None, int | None]]) -> dict[str, list[str]]:
    """Return table → what determines its file, for the rows of work of one shard."""
    lines: dict[str, list[str]] = defaultdict(list)
    for _, object_id, step, recipe, state, reason, n_rows in rows:
        if n_rows is not None:
            lines[step].append(f"{object_id} {recipe} {n_rows}")
        shown = _shown_state(state, n_rows is not None)
        lines[STATES].append(f"{object_id} {step} {recipe} {shown} {n_rows} {reason!r}")
    return lines


def _fingerprint(workspace: Workspace, table: str, lines: Sequence[str]) -> str:
    """Name a file by its table's columns (another schema is another file) and by what determines its rows."""
    columns = (TABLES[STATES] if table == STATES else step_table(workspace, table)).columns
    return short_hash(" ".join(f"{column.name}:{column.type}" for column in columns), "\n".join(lines))


def _shown_state(state: str, has_result: bool) -> str:
    """Say what analysts read: work that is done again keeps its earlier result until its end."""
    is_open = state in {"wanted", "claimed"}
    return ("done" if has_result else "pending") if is_open else state


def _stale(workspace: Workspace, wanted: Mapping[Key, str]) -> dict[Key, str]:
    known = workspace.ledger.catalog.shard_files()
    return {key: mark for key, mark in wanted.items() if key not in known or known[key].fingerprint != mark}


def publish_steps(workspace: Workspace, on_file: Callable[[str], None] = lambda _: None) -> Published:
    """Write the changed shards of the steps' tables, and remove those without a live object.

    Raises
    ------
    BusyError
        Another process publishes.
    """
    outcome = Published()
    with held(workspace, PUBLISH_LOCK) as token:
        promote_recipes(workspace)
        recipes = shown_recipes(workspace)
        for name, shard in sorted(stale_step_shards(workspace), key=_states_last):
            on_file(f"{name} shard {shard}")
            former = _begin(workspace, name, shard, token)
            if name == STATES:
                file = _state_file(workspace, shard, recipes)
            else:
                file, n_missing = _step_file(workspace, name, shard, recipes[name], former)
                outcome.n_missing += n_missing
            _write(workspace, file, token)
            outcome.n_written += 1
        outcome.n_removed = _withdraw(workspace)
    _count(workspace, outcome)
    return outcome


def _states_last(key: Key) -> tuple[bool, Key]:
    return key[0] == STATES, key


@dataclass(frozen=True, slots=True)
class _File:
    table: Table
    shard: int
    rows: pa.Table
    fingerprint: str


def _begin(workspace: Workspace, name: str, shard: int, token: int) -> str | None:
    """Note that a file is about to be made and written; returns the fingerprint that it had.

    Before anything is read that goes into it: what changes from now on leaves it in doubt, and a kill before the end leaves
    it to the next publish.

    Raises
    ------
    BusyError
        Another process publishes by now.
    """
    former = workspace.ledger.catalog.begin_shard_file(name, shard, token)
    # Asked after the note: held all the while, the lock let nobody else note the file in between.
    if not workspace.ledger.locks.is_held(PUBLISH_LOCK, token):
        holder = workspace.ledger.locks.holder(PUBLISH_LOCK)
        raise BusyError(PUBLISH_LOCK, holder or "a process that has just ended")
    return former


def _step_file(workspace: Workspace, step: str, shard: int, recipe: str, former: str | None) -> tuple[_File, int]:
    """Return one shard of a step's table, and how many results are missing, which leaves it to be written again.

    Its fingerprint is of the states that are read here: since the file was found stale they may have changed.

    Parameters
    ----------
    former : fingerprint of the published file
    """
    states = workspace.ledger.work.of_shard(shard, {step: recipe})
    fingerprint = _fingerprint(workspace, step, _lines_of(shard, states)[step])
    counts: dict[str, Any] = {known.object_id: work["n_rows"] for known, work in states if work["n_rows"]}
    rows, n_missing = _gather(workspace, step, shard, recipe, counts, former)
    mark = short_hash("incomplete", fingerprint) if n_missing else fingerprint
    return _File(step_table(workspace, step), shard, rows, mark), n_missing


def _lines_of(shard: int, states: _States) -> dict[str, list[str]]:
    names = ("step", "recipe", "state", "reason", "n_rows")
    return _lines((shard, known.object_id, *(work[name] for name in names)) for known, work in states)


def _write(workspace: Workspace, file: _File, token: int) -> None:
    """Write a file that was begun; until the ledger has its fingerprint it counts as overtaken, whatever becomes of us."""
    intend_rows(workspace, file.table.name, file.shard, file.rows["object_id"])
    workspace.lake.write_shard(file.table, file.shard, file.rows, _dim(file.rows), file.fingerprint)
    known = ShardFile(file.table.name, file.shard, file.fingerprint, file.rows.num_rows)
    workspace.ledger.catalog.set_shard_file(known, token)


def _gather(
    workspace: Workspace, step: str, shard: int, recipe: str, counts: Mapping[str, int], former: str | None
) -> tuple[pa.Table, int]:
    """Return the rows of a shard: those already published, and the results that are new to it.

    Parameters
    ----------
    counts : object → rows of its result
    """
    done, empty = list(counts), _empty(workspace, step)
    old = workspace.lake.read_shard(step, shard)
    is_known = old is not None and former is not None and read_provenance(old.schema).get("fingerprint") == former
    kept = _kept(old, recipe, counts, empty.schema) if is_known else None
    have = set(kept["object_id"].unique().to_pylist()) if kept is not None else set()
    new = [object_id for object_id in done if object_id not in have]
    results = workspace.lake.read_results(step, [(recipe, object_id) for object_id in new], empty.schema.names)
    missing = [object_id for object_id, rows in zip(new, results, strict=True) if rows is None]
    for object_id in missing:  # what is damaged must not be found and kept by who makes it again
        workspace.lake.store.erase(workspace.lake.result_key(step, recipe, object_id))
    workspace.ledger.work.want_again(step, recipe, missing)
    parts = [part for part in (kept, *results) if part is not None]
    rows = pa.concat_tables(parts) if parts else empty
    return _in_order(rows.replace_schema_metadata(), done), len(missing)


def _kept(old: pa.Table, recipe: str, counts: Mapping[str, int], schema: pa.Schema) -> pa.Table | None:
    """Return the rows of the published file that still hold; an object with another number of rows was made again since."""
    if old.schema.names != schema.names:
        return None
    old = old.filter(pc.equal(old["recipe"], recipe))
    found = pc.value_counts(old["object_id"]).to_pylist()
    same = [row["values"] for row in found if counts.get(row["values"]) == row["counts"]]
    kept = old.filter(pc.is_in(old["object_id"], pa.array(same, pa.string())))
    return kept if kept.num_rows else None  # rows of another recipe may have vectors of another dimension


def _in_order(rows: pa.Table, object_ids: list[str]) -> pa.Table:
    """Sort by place of the object; rows of one object keep their order."""
    place = pc.index_in(rows["object_id"], pa.array(object_ids, pa.string()))
    keys = pa.table({"place": place, "row": pa.array(range(rows.num_rows), pa.int64())})
    return rows.take(pc.sort_indices(keys, [("place", "ascending"), ("row", "ascending")])).combine_chunks()


def _empty(workspace: Workspace, step: str) -> pa.Table:
    dim = workspace.extractors[step].card.dim if step in workspace.extractors else None
    return step_table(workspace, step).published_schema(dim).empty_table()


def _dim(rows: pa.Table) -> int | None:
    return rows.schema.field("vector").type.list_size if "vector" in rows.schema.names else None


def _state_file(workspace: Workspace, shard: int, recipes: Mapping[str, str]) -> _File:
    states = workspace.ledger.work.of_shard(shard, recipes) if recipes else []
    rows = []
    for known, work in states:
        version = known.version
        state = _shown_state(str(work["state"]), work["n_rows"] is not None)
        identity = {"object_id": known.object_id, "bucket": version.alias, "key": version.key, "etag": version.etag}
        rows.append(identity | work | {"state": state})
    table = pa.Table.from_pylist(rows, TABLES[STATES].published_schema())
    return _File(TABLES[STATES], shard, table, _fingerprint(workspace, STATES, _lines_of(shard, states)[STATES]))


def _withdraw(workspace: Workspace) -> int:
    """Remove what is not shown any more: files, also those of an earlier ledger, and what was built from them."""
    known = set(workspace.ledger.catalog.shard_files())
    gone = withdrawn_shards(workspace, known | workspace.lake.shard_files() if is_listed(workspace) else known)
    for name, shard in gone:
        intend_rows(workspace, name, shard, pa.chunked_array([], pa.string()))
        workspace.ledger.catalog.doubt_shard_file(name, shard)
        workspace.lake.store.erase(workspace.lake.shard_key(name, shard))
    workspace.ledger.catalog.forget_shard_files(gone)
    shown = shown_tables(workspace)
    for name in workspace.ledger.catalog.generations():
        if not shown.intersection(tables_of(name)):
            workspace.lake.store.erase(f"{name}/current.json")
            workspace.ledger.removals.forget_generation(name)
    return len(gone)


def _count(workspace: Workspace, outcome: Published) -> None:
    for (name, _), file in workspace.ledger.catalog.shard_files().items():
        outcome.n_rows[name] += file.n_rows


# -- judgements --------------------------------------------------------------------------------------------------------


def publish_judgements(workspace: Workspace, on_file: Callable[[str], None] = lambda _: None) -> Published:
    """Write the shards of the judgements' tables whose vectors or generation changed.

    Raises
    ------
    BusyError
        Another process publishes.
    """
    outcome = Published()
    with held(workspace, PUBLISH_LOCK) as token:
        frozen = load_frozen(workspace, shown_recipes(workspace).get(SPACES["visual"].table, ""))
        indexes = {space.name: indexed_ids(workspace, space) for space in SPACES.values()}
        for (name, shard), fingerprint in stale_judgement_shards(workspace).items():
            on_file(f"{name} shard {shard}")
            _begin(workspace, name, shard, token)
            is_index = name == INDEXED
            rows = _index_rows(workspace, shard, indexes) if is_index else _judged(workspace, frozen, name, shard)
            outcome.new_objects[name] += _new_in(workspace.lake.read_shard(name, shard, ["object_id"]), rows)
            _write(workspace, _File(TABLES[name], shard, rows, fingerprint), token)
            outcome.n_written += 1
    _count(workspace, outcome)
    return outcome


def _new_in(old: pa.Table | None, rows: pa.Table) -> list[str]:
    known = set(old["object_id"].to_pylist()) if old is not None else set()
    return [object_id for object_id in rows["object_id"].unique().to_pylist() if object_id not in known]


def stale_judgement_shards(workspace: Workspace) -> dict[Key, str]:
    """Return (table, shard) → fingerprint of the files of the judgements that must be written."""
    files = workspace.ledger.catalog.shard_files()
    generations = workspace.ledger.catalog.generations()
    marks = {name: manifest["generation"] for name, manifest in generations.items() if name != WORDS.generation_name}
    limit = str(workspace.settings.refresh.anomaly_percentile)
    all_marks = short_hash(limit, *(f"{name}={mark}" for name, mark in sorted(marks.items())))
    wanted: dict[Key, str] = {}
    for (table, shard), file in files.items():
        if table == SPACES["visual"].table:
            wanted |= {(name, shard): short_hash(name, file.fingerprint, all_marks) for name in JUDGEMENTS}
    for shard in {shard for table, shard in files if table in {space.table for space in SPACES.values()}}:
        vectors = [files[space.table, shard].fingerprint for space in SPACES.values() if (space.table, shard) in files]
        wanted[INDEXED, shard] = short_hash(INDEXED, all_marks, *vectors)
    return _stale(workspace, wanted)


def _judged(workspace: Workspace, frozen: Frozen, name: str, shard: int) -> pa.Table:
    vectors = workspace.lake.read_shard("visual_embeddings", shard)
    empty = TABLES[name].arrow_schema().empty_table()
    if vectors is None or not vectors.num_rows:
        return empty
    return judge_vectors(frozen, vectors, workspace).get(name, empty)


def _index_rows(workspace: Workspace, shard: int, indexes: Indexes) -> pa.Table:
    schema = TABLES[INDEXED].arrow_schema()
    parts = [schema.empty_table()]
    for space in SPACES.values():
        columns = list(dict.fromkeys(["object_id", "bucket", "key", "etag", "segment_id", space.item_column]))
        rows = workspace.lake.read_shard(space.table, shard, columns)
        loaded = indexes[space.name]
        if rows is None or not rows.num_rows or loaded is None:
            continue
        indexed, manifest = loaded
        ids = as_vector_ids(rows[space.item_column].to_pylist())
        found = {
            **{name: rows[name] for name in ("object_id", "bucket", "key", "etag", "segment_id")},
            "space": pa.repeat(pa.scalar(space.name), rows.num_rows),
            "item_id": rows[space.item_column],
            "vector_id": pa.array(ids),
            "generation": pa.repeat(pa.scalar(manifest["generation"]), rows.num_rows),
        }
        table = pa.table(found).select(schema.names).cast(schema)
        parts.append(table.filter(pc.is_in(table["vector_id"], pa.array(indexed))))
    return pa.concat_tables(parts)
