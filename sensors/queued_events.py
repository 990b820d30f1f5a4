"""Events that wait in queues → the inbox.

Put here: the sensor's time. Keep out: queues and what their messages say, which are ``flows``'.
"""

import time

import dagster as dg

from mm_assets.flows.b2_rules import CHECK_EVERY_S, check_b2_rules
from mm_assets.flows.pulling import pull_queues
from mm_assets.flows.workspace import Workspace
from mm_assets.resources.workspace import WorkspaceResource

_DEADLINE_S = 40.0  # Dagster gives a tick 60
_PULLING_S = 25.0  # the rest is for the rules


@dg.sensor(
    minimum_interval_seconds=30,
    description="Fetches events from queues (SQS, R2) into the inbox, and sees whether Backblaze still sends its own.",
)
def queued_events_sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
    """Fetch for at most 25 s, 40 s with the rules; ask for no run: the inbox is emptied elsewhere. The cursor is the last look at the rules."""
    ends_at = time.monotonic() + _DEADLINE_S
    with workspace.open(check=False) as opened:
        pulled = pull_queues(opened, _PULLING_S)
        checked_at = _check_rules(context, opened, float(context.cursor or 0.0), ends_at)
    for queue, why in pulled.failures.items():
        context.log.error("queue %s: %s", queue, why)
    told = f"{pulled.n_messages} messages, {pulled.n_new} new events, {pulled.n_ignored} ignored"
    return dg.SensorResult(skip_reason=told, cursor=str(checked_at))


def _check_rules(context: dg.SensorEvaluationContext, opened: Workspace, checked_at: float, ends_at: float) -> float:
    if time.time() - checked_at < CHECK_EVERY_S:
        return checked_at
    for alarm in check_b2_rules(opened, ends_at - time.monotonic()).values():
        if alarm:
            context.log.error("%s", alarm)
    return time.time()
