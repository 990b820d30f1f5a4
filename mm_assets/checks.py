"""Asset checks: statements about the published tables that are true, or an operator hears of it.

Put here: one check per promise of ``schemas`` and of the index, and of search over it. Keep out: repairs.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.assets.collection import VECTOR_INDEXES, judgement_tables, tables, text_index
from mm_assets.assets.dead_letters import dead_letters_are_few
from mm_assets.errors import ConfigError, SchemaError
from mm_assets.flows.indexes import indexed_ids
from mm_assets.flows.showing import STATES, shown_recipes, step_table
from mm_assets.flows.verifying import index_difference
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import RangeFile
from mm_assets.resources.workspace import WorkspaceResource
from mm_assets.schemas import JUDGEMENT_TABLES, TABLES, Table, check_schema
from mm_assets.spaces import SPACES
from mm_assets.vectors import UNIT_TOLERANCE, as_vector_ids, from_arrow

if TYPE_CHECKING:
    from mm_assets.retrieval.evaluation import Evaluation

_GOLDEN_ANSWERS = 10  # asked of each golden query
_SHOWN_QUERIES = 20


def _tables_of(workspace: Workspace, *, judged: bool) -> list[Table]:
    if judged:
        return [TABLES[name] for name in JUDGEMENT_TABLES]
    return [*(step_table(workspace, step) for step in shown_recipes(workspace)), TABLES[STATES]]


def wrong_schemas(workspace: Workspace, *, judged: bool) -> dict[str, str]:
    """Return table → difference, where a shard has other columns than promised."""
    wrong = {}
    for table in _tables_of(workspace, judged=judged):
        for shard in workspace.lake.shards(table.name):
            with RangeFile(workspace.lake.store, workspace.lake.shard_key(table.name, shard)) as file:
                actual = pq.read_schema(file)
            try:
                check_schema(table.name, table.published_schema(_dim(actual)), actual)
            except SchemaError as error:
                wrong[f"{table.name} shard {shard}"] = str(error)
    return wrong


def _dim(schema: pa.Schema) -> int:
    """Length of the vectors; 0, which no table has, where there is no column of fixed-size vectors."""
    index = schema.get_field_index("vector")
    return schema.field(index).type.list_size if index >= 0 and pa.types.is_fixed_size_list(schema.types[index]) else 0


def repeated_ids(workspace: Workspace, *, judged: bool) -> dict[str, int]:
    """Return table → rows whose key occurs more than once."""
    repeated = {}
    for table in _tables_of(workspace, judged=judged):
        rows = workspace.lake.read_table(table.name, list(table.key))
        n = rows.num_rows - rows.group_by(list(table.key)).aggregate([]).num_rows if rows is not None else 0
        if n:
            repeated[table.name] = n
    return repeated


def vectors_off_unit(workspace: Workspace) -> dict[str, int]:
    """Return table → vectors that are not finite or not of length 1."""
    wrong = {}
    for space in SPACES.values():
        rows = workspace.lake.read_table(space.table, ["vector"])
        if rows is None:
            continue
        lengths = np.linalg.norm(from_arrow(rows["vector"]), axis=1)
        n = int((~(np.abs(lengths - 1) <= UNIT_TOLERANCE)).sum())
        if n:
            wrong[space.table] = n
    return wrong


def index_differences(workspace: Workspace) -> dict[str, str]:
    """Return space → difference, where the index does not hold exactly the live rows of its table."""
    wrong = {}
    for space in SPACES.values():
        loaded = indexed_ids(workspace, space)
        rows = workspace.lake.read_table(space.table, [space.item_column])
        live = set(as_vector_ids(rows[space.item_column].to_pylist()).tolist()) if rows is not None else set()
        indexed = set(loaded[0].tolist()) if loaded else set()
        if difference := index_difference(live, indexed):
            wrong[space.name] = difference
    return wrong


def _result(found: dict[str, object]) -> dg.AssetCheckResult:
    metadata = {"found": dg.MetadataValue.json({key: str(value) for key, value in list(found.items())[:20]})}
    return dg.AssetCheckResult(passed=not found, metadata=metadata)


def _build_schema_check(asset: dg.AssetsDefinition, *, judged: bool) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, name="schemas_are_exact", description="Every published file has the promised columns.")
    def check(workspace: WorkspaceResource) -> dg.AssetCheckResult:
        with workspace.open(check=False) as opened:
            return _result(dict(wrong_schemas(opened, judged=judged)))

    return check


def _build_id_check(asset: dg.AssetsDefinition, *, judged: bool) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, name="ids_are_unique", description="No key occurs twice in a table.")
    def check(workspace: WorkspaceResource) -> dg.AssetCheckResult:
        with workspace.open(check=False) as opened:
            return _result(dict(repeated_ids(opened, judged=judged)))

    return check


@dg.asset_check(asset=tables, description="Every vector is finite and of length 1.")
def vectors_are_unit(workspace: WorkspaceResource) -> dg.AssetCheckResult:
    """Check the visual and the face space."""
    with workspace.open(check=False) as opened:
        return _result(dict(vectors_off_unit(opened)))


@dg.asset_check(asset=judgement_tables, description="Each index holds exactly the live rows of its table.")
def index_rows_are_live_rows(workspace: WorkspaceResource) -> dg.AssetCheckResult:
    """Check the visual and the face index."""
    with workspace.open(check=False) as opened:
        return _result(dict(index_differences(opened)))


@dg.asset_check(
    asset=text_index,
    additional_deps=VECTOR_INDEXES,
    description="Search finds what `refresh.golden` expects: recall@1 is at least `refresh.min_golden_recall`.",
)
def golden_moments_are_found(workspace: WorkspaceResource) -> dg.AssetCheckResult:
    """Ask the golden queries of the new indexes, as `mm evaluate` does."""
    from mm_assets.resources.readers import evaluate_search  # boto3, which definitions need not wait for
    from mm_assets.retrieval.golden import read_golden

    settings = workspace.settings()
    file, bar = settings.refresh.golden, settings.refresh.min_golden_recall
    if file is None:
        return dg.AssetCheckResult(passed=True, description="skipped: no golden file is set (`refresh.golden`)")
    try:
        evaluation = evaluate_search(settings, read_golden(file), _GOLDEN_ANSWERS)
    except ConfigError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    recall = evaluation.overall.recall_at_1
    return dg.AssetCheckResult(
        passed=recall >= bar,
        description="" if recall >= bar else f"recall@1 is {recall:.3f}, below {bar:g}; `mm evaluate {file}` says more",
        metadata=_golden_metadata(evaluation),
    )


def _golden_metadata(evaluation: "Evaluation") -> dict[str, Any]:
    missed = [item.describe() for item in evaluation.missed[:_SHOWN_QUERIES]]
    by_kind = {kind: asdict(metrics) for kind, metrics in evaluation.by_kind.items()}
    return {
        **asdict(evaluation.overall),
        "k": evaluation.k,
        "by_kind": dg.MetadataValue.json(by_kind),
        "missed": dg.MetadataValue.json(missed),
    }


CHECKS = [
    _build_schema_check(tables, judged=False),
    _build_schema_check(judgement_tables, judged=True),
    _build_id_check(tables, judged=False),
    _build_id_check(judgement_tables, judged=True),
    vectors_are_unit,
    index_rows_are_live_rows,
    golden_moments_are_found,
    dead_letters_are_few,
]
