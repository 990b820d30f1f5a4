"""New, changed and gone objects → batches → runs.

Put here: a tick's time, shared among the sources. Keep out: listing, which is ``flows``'. A tick that Dagster gives up
on keeps running in the code server, so everything here can be repeated.
"""

import time

import dagster as dg

from jobs.ingest import decode_job, infer_job, ingest_job
from mm_assets.errors import MmAssetsError
from mm_assets.flows.discovery import Discovery, discover
from mm_assets.flows.workspace import Workspace
from mm_assets.resources.workspace import WorkspaceResource
from sensors.run_requests import TICK_S, ask_for_runs

_LISTING_S = 25.0  # of a tick; the rest is for planning


@dg.sensor(
    jobs=[ingest_job, decode_job, infer_job],
    minimum_interval_seconds=60,
    description="Lists the sources page by page and asks for a run for each batch of new or changed objects.",
)
def bucket_objects_sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
    """List for at most 25 s, then plan; 40 s in all."""
    started = time.monotonic()
    with workspace.open(check=False) as opened:
        found = _discover_all(opened, started + _LISTING_S, context)
        requests = ask_for_runs(context, opened, started + TICK_S)
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
        found = discover(opened, alias, deadline_s=max(0.0, deadline_s), is_paced=True)
    except MmAssetsError as error:
        context.log.error("source %s cannot be listed: %s", alias, error)  # noqa: TRY400  the message says what to do
        return None
    if found.alarm:
        context.log.error("%s", found.alarm)
    if found.stopped_by:
        context.log.info("source %s: %s", alias, found.stopped_by)
    if found.n_unanswered:
        context.log.warning("source %s: %d missing objects cannot be described; they stay", alias, found.n_unanswered)
    return found
