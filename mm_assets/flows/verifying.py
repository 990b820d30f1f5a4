"""Whether ledger, lake, tables, indexes and sources say the same, and wanting again what is damaged.

Put here: comparing streams that are sorted alike, so that memory stays flat. Keep out: making anything anew, which the
next ingest does; clearing orphans, which ``collecting_garbage`` does.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.buckets.base import ObjectChangedError, ObjectNotFoundError, StoredObject
from mm_assets.errors import SchemaError
from mm_assets.flows.indexes import indexed_ids
from mm_assets.flows.judging import JUDGEMENTS
from mm_assets.flows.publishing import stale_judgement_shards, stale_step_shards
from mm_assets.flows.rebuilding import selected
from mm_assets.flows.refreshing import lagging
from mm_assets.flows.showing import STATES, shown_recipes
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import DISCOVERY, RangeFile, parse_result_key, read_parquet, read_provenance
from mm_assets.spaces import SPACES, WORDS
from mm_assets.vectors import as_vector_ids

_THREADS = 8
_RESULTS_AT_ONCE = 500
_K = TypeVar("_K", str, bytes)
_L = TypeVar("_L")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Difference:
    """Two places that do not say the same.

    Attributes
    ----------
    where : key in the lake, key in a source, or id
    redo : (step, recipe, object_id) to be computed again
    rewrite : (table, shard) to be published again
    rebuild : generation to be built again
    """

    kind: str
    where: str
    found: str
    redo: tuple[str, str, str] | None = None
    rewrite: tuple[str, int] | None = None
    rebuild: str | None = None

    @property
    def is_repairable(self) -> bool:
        """Whether something is damaged that can be made again; all else ends with the next ingest, or ``mm gc``."""
        return bool(self.redo or self.rewrite or self.rebuild)


def find_differences(workspace: Workspace, *, deep: bool = False) -> Iterator[Difference]:
    """Compare everything; what changes meanwhile shows as a difference.

    Parameters
    ----------
    deep : read every result whole, instead of its footer
    """
    yield from _compare_results(workspace, deep=deep)
    yield from _compare_letters(workspace)
    damaged: set[str] = set()
    for found in _compare_tables(workspace):
        damaged |= {found.rewrite[0]} if found.rewrite else set()
        yield found
    yield from _compare_generations(workspace, damaged)
    for source in workspace.settings.sources:
        yield from _compare_source(workspace, source.alias)
    n_leaving = workspace.ledger.removals.n_leaving()
    if n_leaving:
        yield Difference(
            "not swept yet", "ledger", f"{n_leaving} versions left; the next refresh removes their results"
        )


def repair(workspace: Workspace, differences: Iterable[Difference]) -> Counter[str]:
    """Want again what can be made again; the next ingest makes it. Returns how many of which kind."""
    wanted: Counter[str] = Counter()
    for found in differences:
        if found.redo is not None:
            step, recipe, object_id = found.redo
            workspace.ledger.work.want_again(step, recipe, [object_id])
        if found.rewrite is not None:
            workspace.ledger.catalog.forget_shard_files([found.rewrite])
        if found.rebuild is not None:
            workspace.ledger.removals.forget_generation(found.rebuild)
        if found.is_repairable:
            wanted[found.kind] += 1
    return wanted


def _merge(left: Iterable[tuple[_K, _L]], right: Iterable[tuple[_K, _R]]) -> Iterator[tuple[_K, _L | None, _R | None]]:
    """Yield (key, left, right) of two streams sorted by key, None where one has no such key."""
    lefts, rights = iter(left), iter(right)
    one, other = next(lefts, None), next(rights, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None  # noqa: S101  the loop's own condition, which mypy cannot follow
            yield one[0], one[1], None
            one = next(lefts, None)
        elif one is None or other[0] < one[0]:
            yield other[0], None, other[1]
            other = next(rights, None)
        else:
            yield one[0], one[1], other[1]
            one, other = next(lefts, None), next(rights, None)


# -- results -----------------------------------------------------------------------------------------------------------


_Pair = tuple[str, StoredObject | None, tuple[int, int] | None]  # object_id, file, (rows, shard) in the ledger


def _compare_results(workspace: Workspace, *, deep: bool) -> Iterator[Difference]:
    for step, recipe in sorted({*workspace.recipes.items(), *shown_recipes(workspace).items()}):
        files = (
            (of[2], s) for s in workspace.lake.walk(f"results/{step}/{recipe}/") if (of := parse_result_key(s.key))
        )
        merged = _merge(files, workspace.ledger.comparing.results(step, recipe))
        compare = partial(_compare_result, workspace, step, recipe, deep=deep)
        with ThreadPoolExecutor(_THREADS) as pool:
            while part := list(islice(merged, _RESULTS_AT_ONCE)):
                known = [pair for pair in part if pair[2] is not None]
                yield from (found for found in pool.map(compare, known) if found is not None)
                yield from _unknown_results(workspace, [pair for pair in part if pair[2] is None])


def _unknown_results(workspace: Workspace, pairs: Sequence[_Pair]) -> Iterator[Difference]:
    """Tell results without a row apart: of live versions, of those that the next sweep takes, of none."""
    kept = workspace.ledger.removals.kept([object_id for object_id, _, _ in pairs])
    live = workspace.ledger.removals.live(sorted(kept))
    for object_id, stored, _ in pairs:
        if stored is not None and object_id in live:
            yield Difference("result unknown to the ledger", stored.key, "it is kept when its object is processed next")
        elif stored is not None and object_id not in kept:
            yield Difference("orphan", stored.key, "its object version is unknown or left; mm gc")


def _compare_result(workspace: Workspace, step: str, recipe: str, pair: _Pair, *, deep: bool) -> Difference | None:
    object_id, stored, known = pair
    n_rows, shard = known or (0, 0)
    if stored is None:
        wrong: tuple[str, str] | None = "result missing", f"{n_rows} rows expected"
    else:
        wrong = _read_result(workspace, stored, n_rows, (object_id, recipe) if deep else None)
    if wrong is None:
        return None
    key = workspace.lake.result_key(step, recipe, object_id)
    return Difference(wrong[0], key, wrong[1], redo=(step, recipe, object_id), rewrite=(step, shard))


def _read_result(
    workspace: Workspace, stored: StoredObject, n_rows: int, identity: tuple[str, str] | None
) -> tuple[str, str] | None:
    """Return (kind, what is wrong); with an identity (object_id, recipe) the whole file is read."""
    try:
        with RangeFile(workspace.lake.store, stored.key) as file:
            if file.etag != stored.etag:
                return None  # replaced since it was listed
            rows = read_parquet(file) if identity else None
            n_found = rows.num_rows if rows is not None else pq.read_metadata(file).num_rows
    except (ObjectNotFoundError, ObjectChangedError):
        return None  # removed since, or replaced while it was read
    except (pa.ArrowException, OSError) as error:
        return "result damaged", str(error)
    if n_found != n_rows:
        return "wrong number of rows", f"{n_found} rows, the ledger says {n_rows}"
    if rows is None or identity is None:
        return None
    object_id, recipe = identity
    others = set(rows["object_id"].to_pylist()) - {object_id} if rows.num_rows else set()
    made_by = read_provenance(rows.schema).get("recipe")
    return (
        ("result of something else", f"recipe {made_by}, objects {sorted(others)}")
        if others or made_by != recipe
        else None
    )


# -- dead letters ------------------------------------------------------------------------------------------------------


def _compare_letters(workspace: Workspace) -> Iterator[Difference]:
    recipes = dict(workspace.recipes)
    dead = _grouped(workspace.ledger.comparing.dead(recipes) if recipes else ())
    recorded = _grouped((object_id, step) for object_id, step, _ in workspace.lake.dead_letters())
    for object_id, steps, records in _merge(dead, recorded):
        for step in sorted((steps or set()) - (records or set())):
            where = f"dead_letters/{object_id}/{step}.json"
            yield Difference("dead letter missing", where, "no record", redo=(step, recipes[step], object_id))
        extra = (records or set()) - (steps or set()) - {DISCOVERY}
        for step in sorted(extra and extra - {step for _, step in workspace.ledger.removals.dead_steps([object_id])}):
            where = f"dead_letters/{object_id}/{step}.json"
            yield Difference("dead letter of nothing dead", where, "`mm gc` removes it")


def _grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, set[str]]]:
    for first, group in groupby(pairs, lambda pair: pair[0]):
        yield first, {second for _, second in group}


# -- tables ------------------------------------------------------------------------------------------------------------


def _compare_tables(workspace: Workspace) -> Iterator[Difference]:
    known, there = workspace.ledger.catalog.shard_files(), workspace.lake.shard_files()
    behind = stale_step_shards(workspace).keys() | stale_judgement_shards(workspace).keys()
    recipes = shown_recipes(workspace)
    for table, shard in sorted(known.keys() | there | behind):
        key, place = workspace.lake.shard_key(table, shard), (table, shard)
        if place not in known:
            kind = "file unknown to the ledger" if place in there else "not published yet"
            yield Difference(kind, key, "the next refresh settles it")
            continue
        wrong = _compare_file(workspace, table, shard, (known[place].fingerprint, known[place].n_rows))
        if wrong is not None:
            yield Difference(wrong[0], key, wrong[1], rewrite=place)
        elif place in behind:
            yield Difference("not published yet", key, "results changed since; mm ingest")
        elif (wrong_ids := _compare_ids(workspace, table, shard, recipes)) is not None:
            yield Difference("table shows other objects", key, wrong_ids, rewrite=place)
    if workspace.lake.published() != workspace.ledger.catalog.published():
        # Whatever is published again writes it anew.
        where, found = "tables/published.json", "the lake names other recipes than the ledger"
        yield Difference("pointer differs", where, found, rewrite=(STATES, 0))


def _compare_file(workspace: Workspace, table: str, shard: int, known: tuple[str, int]) -> tuple[str, str] | None:
    try:
        found = workspace.lake.describe_shard(table, shard)
    except (pa.ArrowException, OSError) as error:
        return "table file damaged", str(error)
    if found is None:
        return "table file missing", f"{known[1]} rows expected"
    return None if found == known else ("table file of another publish", f"{found[1]} rows, made from {found[0]}")


def _compare_ids(workspace: Workspace, table: str, shard: int, recipes: Mapping[str, str]) -> str | None:
    """Compare rows for each object with what the ledger, or for judgements the vectors, say."""
    try:
        rows = workspace.lake.read_shard(table, shard, ["object_id"])
    except (pa.ArrowException, OSError) as error:
        return str(error)
    shown = Counter(rows["object_id"].to_pylist() if rows is not None else ())
    if table in recipes:
        work = workspace.ledger.work.of_shard(shard, {table: recipes[table]})
        wanted = Counter({known.object_id: row["n_rows"] for known, row in work if row["n_rows"]})
    elif table == STATES:
        wanted = Counter(known.object_id for known, _ in workspace.ledger.work.of_shard(shard, recipes))
    else:
        spaces = [SPACES["visual"]] if table in JUDGEMENTS else list(SPACES.values())
        parts = [workspace.lake.read_shard(space.table, shard, ["object_id"]) for space in spaces]
        objects = {of for part in parts if part is not None for of in part["object_id"].to_pylist()}
        extra = shown.keys() - objects
        return f"{len(extra)} objects without vectors" if extra else None
    n_wrong = sum(shown[of] != wanted[of] for of in shown.keys() | wanted.keys())
    return f"{n_wrong} objects with other rows than their results have" if n_wrong else None


# -- generations -------------------------------------------------------------------------------------------------------


def _compare_generations(workspace: Workspace, damaged: AbstractSet[str]) -> Iterator[Difference]:
    """Compare builds; those of damaged tables only for being there, since their rows cannot be told."""
    behind = set(lagging(workspace))
    for name, manifest in sorted(workspace.ledger.catalog.generations().items()):
        where = f"{name}/{manifest['generation']}"
        if workspace.lake.current_generation(name) != manifest:
            yield Difference("pointer differs", f"{name}/current.json", "the lake names another build", rebuild=name)
        elif name in behind:
            yield Difference("not built yet", where, "its table changed since; mm ingest")
        elif (wrong := _compare_build(workspace, name, manifest, damaged)) is not None:
            yield Difference("build damaged", where, wrong, rebuild=name)


def _compare_build(
    workspace: Workspace, name: str, manifest: Mapping[str, Any], damaged: AbstractSet[str]
) -> str | None:
    space = next((space for space in SPACES.values() if space.generation_name == name), None)
    try:
        wanted = {workspace.lake.part_key(name, part["name"]): part["name"] for part in manifest.get("parts", ())}
        wanted |= {f"{name}/{manifest['generation']}/{file}": digest for file, digest in manifest["sha256"].items()}
        for key, digest in wanted.items():
            if not hashlib.sha256(workspace.lake.store.read(key)).hexdigest().startswith(digest):
                return f"{key.removeprefix(f'{name}/')} is not what was written"
        if space is None and name != WORDS.generation_name:
            workspace.lake.read_columns(f"{name}/{manifest['generation']}/model.parquet").validate(full=True)
        loaded = indexed_ids(workspace, space) if space is not None else None
    except ObjectNotFoundError:
        return "a file is missing"
    except (pa.ArrowException, OSError, SchemaError) as error:
        return str(error).partition("\n")[0]
    if space is None or space.table in damaged:
        return None
    rows = workspace.lake.read_table(space.table, [space.item_column])
    live = set(as_vector_ids(rows[space.item_column].to_pylist()).tolist()) if rows is not None else set()
    indexed = set(loaded[0].tolist()) if loaded else set()
    return index_difference(live, indexed)


def index_difference(live: set[int], indexed: set[int]) -> str | None:
    """Say how the ids of an index differ from those of the rows of its table."""
    if live == indexed:
        return None
    return f"{len(live - indexed)} live rows not indexed, {len(indexed - live)} indexed not live"


# -- sources -----------------------------------------------------------------------------------------------------------


def _compare_source(workspace: Workspace, alias: str) -> Iterator[Difference]:
    known = ((key.encode("utf-8"), object_id) for key, object_id in workspace.ledger.comparing.by_key(alias))
    alarm = workspace.ledger.objects.scan(alias).waiting_alarm
    settled_by = f"it waits for `mm deletions confirm {alias}`" if alarm else "the next listing settles it"
    for key, object_id, here in _merge(known, _listed(workspace, alias)):
        where = f"{alias}/{key.decode('utf-8')}"
        if here is None:
            yield Difference("not in the source", where, f"the ledger calls it live; {settled_by}")
        elif here != object_id and not _is_erased(workspace, here):
            kind = "unknown to the ledger" if object_id is None else "another version in the source"
            yield Difference(kind, where, "the next listing settles it")


def _listed(workspace: Workspace, alias: str) -> Iterator[tuple[bytes, str]]:
    for seen in selected(workspace, alias):
        yield seen.version.key.encode("utf-8"), seen.version.object_id


def _is_erased(workspace: Workspace, object_id: str) -> bool:
    return any(known.state == "erased" for known in workspace.ledger.objects.by_ids([object_id]))
