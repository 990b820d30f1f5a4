"""One multi_asset for everything that is made per object version: the steps and, on arrival, the judgements.

Put here: asset specs, the three lanes into the one body, events. Keep out: the work, which is ``flows.processing``'s.

Three lanes: *bulk* (a batch of the ledger, no partition tags: any set of objects), *single* (one partition key: its
failure shows red on that partition alone) and *backfill* (a range of partitions from the UI or command line). The body
yields AssetMaterialization for each result after it is durable, and never an Output, which would mark a whole range.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from mm_assets.assets.collection import COLLECTION_KEYS
from mm_assets.assets.events import RunTotals, object_events
from mm_assets.extractors.registry import extractor_class, known_steps
from mm_assets.flows.judging import Judge
from mm_assets.flows.processing import ObjectEnd, new_owner, process, process_batch
from mm_assets.flows.recipes import DECODING_CODE_VERSIONS, DECODING_STEPS, upstream
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Claim, KnownObject
from mm_assets.partitions import OBJECTS
from mm_assets.resources.workspace import WorkspaceResource
from mm_assets.schemas import JUDGEMENT_TABLES, TABLES
from mm_assets.spaces import SPACES

OWNERS = ["team:mm-assets"]
_BACKFILL_OBJECTS = 128
_JUDGED_STEP = "visual_embeddings"
_JUDGED_FROM = {
    "indexed_vectors": tuple(name for s in SPACES.values() for name in (s.table, f"vector_index/{s.name}")),
    "tags": ("visual_embeddings", "taxonomy"),
    "cluster_assignments": ("visual_embeddings", "cluster_model"),
    "anomaly_scores": ("visual_embeddings", "anomaly_baseline"),
}


KINDS = {step: extractor_class(step) for step in known_steps()}


def _step_spec(step: str) -> dg.AssetSpec:
    if step in DECODING_STEPS:
        code_version, library, description = DECODING_CODE_VERSIONS[step], "python", TABLES[step].description
    else:
        extractor = KINDS[step]
        code_version, library = extractor.code_version, extractor.__module__.rpartition(".")[2].replace("_", "")
        description = TABLES[step].description if step in TABLES else (extractor.__doc__ or "").partition("\n")[0]
    group = {"raw_objects": "raw", "segments": "segments"}.get(step, "features")
    return dg.AssetSpec(
        step,
        deps=list(upstream(step, KINDS)),
        description=description,
        group_name=group,
        kinds={library, "parquet"},
        owners=OWNERS,
        code_version=code_version,
        skippable=True,
    )


def _judgement_spec(name: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        name,
        deps=[dg.AssetKey(key.split("/")) for key in _JUDGED_FROM[name]],
        description=TABLES[name].description,
        group_name="judgements",
        kinds={"python", "parquet"},
        owners=OWNERS,
        code_version="1",
        skippable=True,
    )


STEPS = (*DECODING_STEPS, *known_steps())
SPECS = [*(_step_spec(step) for step in STEPS), *(_judgement_spec(name) for name in JUDGEMENT_TABLES)]


FAILURES = "failures"  # in the metadata of a run that is red because steps of its object failed


class BatchConfig(dg.Config):
    """What a bulk run processes; empty in the other lanes."""

    batch_id: str = Field("", description="id of a batch in the ledger; empty: the partitions of the run")


def bulk_config(batch_id: str) -> dict[str, Any]:
    """Return the run configuration of the bulk lane."""
    return {"ops": {"process_batch": {"config": {"batch_id": batch_id}}}}


@dg.multi_asset(
    name="process_batch",
    specs=SPECS,
    can_subset=True,
    partitions_def=OBJECTS,
    backfill_policy=dg.BackfillPolicy.multi_run(_BACKFILL_OBJECTS),
    pool="gpu",
)
def process_objects(
    context: dg.AssetExecutionContext, config: BatchConfig, workspace: WorkspaceResource
) -> Iterator[dg.AssetMaterialization | dg.AssetObservation]:
    """Read, take apart and describe object versions; each result is durable before its event."""
    failures: dict[str, str] = {}
    totals = RunTotals()
    with workspace.open(check=False) as opened:  # a source that is down must not stop objects of the others
        selected = {key.to_user_string() for key in context.selected_asset_keys}
        for end in _ends(opened, context, config, selected):
            yield from object_events(opened, end, selected)
            totals.add(end)
            failures |= {
                f"{end.claim.known.partition_key} {e.step}": f"{e.reason}: {e.error}" for e in end.ends if e.error
            }
    context.instance.add_run_tags(context.run.run_id, totals.to_tags())
    if failures:
        context.log.warning("%s steps failed: %s", len(failures), failures)
    if failures and (context.has_partition_key or not config.batch_id):
        msg = f"{len(failures)} steps failed"
        raise dg.Failure(msg, metadata={FAILURES: dg.MetadataValue.json(failures)}, allow_retries=False)


def _ends(
    opened: Workspace, context: dg.AssetExecutionContext, config: BatchConfig, selected: set[str]
) -> Iterator[ObjectEnd]:
    if config.batch_id:
        yield from process_batch(opened, config.batch_id, context.run.run_id)
        return
    known = opened.ledger.objects.by_partition_keys(list(context.partition_keys))
    if not known:
        msg = "none of these partitions is known to the ledger; run `mm ingest` or wait for the bucket sensor"
        raise dg.Failure(msg, allow_retries=False)
    for alias in {item.version.alias for item in known}:
        opened.ledger.work.want(alias, opened.recipes_of(alias))
    recipes = {step: recipe for step, recipe in opened.recipes.items() if step in selected}
    if recipes:
        owner, ids = new_owner(context.run.run_id), [item.object_id for item in known]
        claims = opened.ledger.work.claim_objects(ids, recipes, owner, lease_s=opened.settings.runs.lease_s)
        yield from process(opened, claims, owner, context.run.run_id)
    if _JUDGED_STEP not in selected and selected & set(JUDGEMENT_TABLES):
        yield from _judge_kept(opened, known, context.run.run_id)


def _judge_kept(opened: Workspace, known: Sequence[KnownObject], batch_id: str) -> Iterator[ObjectEnd]:
    """Judge vectors of earlier runs against what is frozen now: for a selection of judgements without their step."""
    recipe, names = opened.recipes.get(_JUDGED_STEP, ""), [column.name for column in TABLES[_JUDGED_STEP].columns]
    kept = opened.lake.read_results(_JUDGED_STEP, [(recipe, item.object_id) for item in known], names)
    vectors = {item.object_id: rows for item, rows in zip(known, kept, strict=True) if rows is not None}
    judged = Judge(opened).judge(batch_id, vectors)
    for item in known:
        yield ObjectEnd(Claim(item, {}, {}, {}), (), judged.get(item.object_id, {}))


assert set(COLLECTION_KEYS) >= {key for names in _JUDGED_FROM.values() for key in names if key not in STEPS}  # noqa: S101  a misspelt dependency would become an external asset
