"""Enough has changed → a refresh.

Put here: when to ask. Keep out: what a refresh does.
"""

import time

import dagster as dg

from jobs.refresh import refresh_job
from mm_assets.flows.refreshing import needs_refresh
from mm_assets.resources.workspace import WorkspaceResource


@dg.sensor(
    job=refresh_job,
    minimum_interval_seconds=60,
    description="Asks for a refresh when enough objects changed, or the oldest change has waited long enough.",
)
def refresh_needed_sensor(
    context: dg.SensorEvaluationContext, workspace: WorkspaceResource
) -> dg.SensorResult | dg.SkipReason:
    """Compare what is done with what was published or asked for last; one refresh at a time.

    The cursor is the time of the last request: a refresh that fails, or that waits for a recipe to be complete, is
    asked for again only when as much has changed or as long has passed once more.
    """
    if context.instance.get_runs_count(dg.RunsFilter(job_name=refresh_job.name, statuses=_UNDER_WAY)):
        return dg.SkipReason("a refresh is under way")
    with workspace.open(check=False) as opened:
        refresh = opened.settings.refresh
        last_at = max(opened.ledger.catalog.last_published_at(), float(context.cursor or 0.0))
        n_changed = opened.ledger.work.n_changed_since(last_at)
        waited_s = time.time() - last_at
        if n_changed < refresh.min_changed and waited_s < refresh.max_wait_s:
            return dg.SkipReason(f"{n_changed} objects changed, {waited_s:.0f} s since the last refresh")
        if not needs_refresh(opened):
            return dg.SkipReason("everything is published")
    request = dg.RunRequest(tags={"mm_assets/reason": f"{n_changed} objects changed"})
    return dg.SensorResult(run_requests=[request], cursor=str(time.time()))


_UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
