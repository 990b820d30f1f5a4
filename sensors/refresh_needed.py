"""Enough has changed → a refresh.

Put here: one refresh at a time. Keep out: when it is due, and what a refresh does, which are ``flows``'.
"""

import time

import dagster as dg

from jobs.refresh import refresh_job
from mm_assets.flows.pacing import refresh_due
from mm_assets.resources.workspace import WorkspaceResource

_UNDER_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]


@dg.sensor(
    job=refresh_job,
    minimum_interval_seconds=60,
    description="Asks for a refresh when enough objects changed, or the oldest change has waited long enough.",
)
def refresh_needed_sensor(
    context: dg.SensorEvaluationContext, workspace: WorkspaceResource
) -> dg.SensorResult | dg.SkipReason:
    """Ask for a refresh when it is due; the cursor is the time of the last request."""
    if context.instance.get_runs_count(dg.RunsFilter(job_name=refresh_job.name, statuses=_UNDER_WAY)):
        return dg.SkipReason("a refresh is under way")
    with workspace.open(check=False) as opened:
        due = refresh_due(opened, float(context.cursor or 0.0))
    if not due.is_due:
        return dg.SkipReason(due.why)
    return dg.SensorResult(run_requests=[dg.RunRequest(tags={"mm_assets/reason": due.why})], cursor=str(time.time()))
