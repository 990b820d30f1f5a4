"""Events that wait in the inbox → what really changed → batches → runs.

Put here: a tick's time. Keep out: receiving events, and what they mean, which are ``flows``'.
"""

import dataclasses
import time

import dagster as dg

from jobs.ingest import decode_job, infer_job, ingest_job
from mm_assets.flows.delivering import deliver
from mm_assets.flows.hints import Drained, drain_inbox
from mm_assets.resources.workspace import WorkspaceResource
from sensors.run_requests import TICK_S, ask_for_runs

_DRAINING_S = 25.0  # of a tick; the rest is for planning
_TELLING_S = 10.0


@dg.sensor(
    jobs=[ingest_job, decode_job, infer_job],
    minimum_interval_seconds=30,
    description="Looks at the objects that events named and asks for a run for each batch of new or changed ones.",
)
def bucket_events_sensor(context: dg.SensorEvaluationContext, workspace: WorkspaceResource) -> dg.SensorResult:
    """Drain the inbox for at most 25 s, and plan at once where that found something; 40 s in all.

    Where no run is asked for, that tells matches at its end, those that wait are told here.
    """
    started = time.monotonic()
    with workspace.open(check=False) as opened:
        drained = drain_inbox(opened, deadline_s=_DRAINING_S)
        requests = ask_for_runs(context, opened, started + TICK_S) if drained.has_changes else []
        if not requests:
            deliver(opened, _TELLING_S)
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else _nothing(drained))


def _nothing(drained: Drained) -> str:
    told = {name.removeprefix("n_"): n for name, n in dataclasses.asdict(drained).items() if n}
    return f"nothing to do ({', '.join(f'{n} {name}' for name, n in told.items()) or 'no events wait'})"
