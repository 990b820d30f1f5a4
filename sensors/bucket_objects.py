"""New, changed and gone objects → batches → runs.

Put here: the sensor's time, its requests. Keep out: listing and planning, which are ``flows``'. A tick that Dagster
gives up on keeps running in the code server, so everything here can be repeated.
"""

import time

import dagster as dg

from jobs.ingest import decode_job, infer_job, ingest_job
from mm_assets.assets.per_object import bulk_config
from mm_assets.errors import MmAssetsError
from mm_assets.flows.discovery import Discovery, discover
from mm_assets.flows.planning import free_lost_work, plan_batches
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Batch
from mm_assets.partitions import hold_keys, retire_keys
from mm_assets.resources.workspace import WorkspaceResource

_DEADLINE_S = 40.0  # Dagster gives a tick 60
_RUNS_PER_TICK = 20  # each costs 0.3-0.5 s to create


@dg.sensor(
    jobs=[ingest_job, decode_job, infer_job],
    minimum_interval_seconds=60,
    description="Lists the sources page by page and asks for a run for each batch of new or changed objects.",
)
def bucket_objects_sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
    """List for at most 40 s, plan at most 20 batches."""
    ends_at = time.monotonic() + _DEADLINE_S
    with workspace.open(check=False) as opened:
        found = _discover_all(opened, ends_at, context)
        free_lost_work(opened)
        requests = []
        for job, batches in plan_batches(opened, limit=_RUNS_PER_TICK).items():
            for batch in batches:
                hold_keys(context.instance, opened, opened.ledger.work.objects_of(batch.batch_id))
                requests.append(run_request(opened, job, batch))
        retire_keys(context.instance, opened)
    listed = ", ".join(f"{d.alias}: {d.n_listed} listed, {d.n_new} new, {d.n_gone} gone" for d in found if d)
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else f"nothing to do ({listed})")


def _discover_all(opened: Workspace, ends_at: float, context: dg.SensorEvaluationContext) -> list[Discovery | None]:
    """Give each source its share of what is left of the time, so that a large one does not starve the others."""
    sources = opened.settings.sources
    return [
        _discover(opened, source.alias, (ends_at - time.monotonic()) / (len(sources) - n), context)
        for n, source in enumerate(sources)
    ]


def _discover(
    opened: Workspace, alias: str, deadline_s: float, context: dg.SensorEvaluationContext
) -> Discovery | None:
    """One source that fails must not stop the others."""
    try:
        found = discover(opened, alias, deadline_s=max(0.0, deadline_s))
    except MmAssetsError as error:
        context.log.error("source %s cannot be listed: %s", alias, error)  # noqa: TRY400  the message says what to do
        return None
    if found.alarm:
        context.log.error("%s", found.alarm)
    return found


def run_request(opened: Workspace, job: str, batch: Batch) -> dg.RunRequest:
    """Ask for the run of a batch; a batch of one that is on its last try runs as its own partition."""
    tags = {"mm_assets/lane": batch.lane, "mm_assets/batch": batch.batch_id}
    key = None
    if batch.lane == "single":
        [known] = opened.ledger.work.objects_of(batch.batch_id)
        key = known.partition_key
    config = bulk_config(batch.batch_id)
    return dg.RunRequest(run_key=batch.batch_id, job_name=job, run_config=config, partition_key=key, tags=tags)
