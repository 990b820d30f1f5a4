"""Wanted work → batches → requests for runs, within what is left of a tick.

Put here: what the sensors that find objects ask of Dagster. Keep out: how objects are found.

A tick that Dagster gives up on keeps running in the code server, and what it then asks for is heard by nobody: so a
batch whose request comes too late is given back.
"""

import time
from collections.abc import Iterator

import dagster as dg

from mm_assets.assets.per_object import bulk_config
from mm_assets.flows.planning import free_lost_work, plan_batches
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Batch, KnownObject
from mm_assets.partitions import hold_keys, retire_keys

TICK_S = 40.0  # Dagster gives a tick 60
_LATE_S = 15.0  # beyond this over its time a tick may not be heard any more
_RUNS_PER_TICK = 20  # each costs 0.3-0.5 s to create
_UNHEARD_S = 600.0  # a request that became no run by then never will
# A run that has ended claims nothing any more. Whatever else Dagster says of one, it may still do so.
_ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
_MAY_CLAIM = [status for status in dg.DagsterRunStatus if status not in _ENDED]
_RETIRING_S = 15.0  # what some hundred keys that leave Dagster cost


def ask_for_runs(context: dg.SensorEvaluationContext, opened: Workspace, ends_at: float) -> list[dg.RunRequest]:
    """Plan at most 20 batches and ask for their runs.

    Parameters
    ----------
    ends_at : by ``time.monotonic``; batches that were not reached by then are given back
    """
    free_lost_work(opened)
    _free_unheard(context.instance, opened)
    planned = [(job, batch) for job, batches in plan_batches(opened, limit=_RUNS_PER_TICK).items() for batch in batches]
    requests: list[dg.RunRequest] = []
    try:
        for job, batch, objects in _filled(opened, planned):
            if time.monotonic() >= ends_at:
                break
            hold_keys(context.instance, opened, objects)
            requests.append(run_request(job, batch, objects))
        if time.monotonic() < ends_at - _RETIRING_S:
            retire_keys(context.instance, opened)
        is_heard = time.monotonic() < ends_at + _LATE_S
    except BaseException:
        is_heard = False
        raise
    finally:
        asked = {request.run_key for request in requests} if is_heard else set()
        opened.ledger.work.release_batches([batch.batch_id for _, batch in planned if batch.batch_id not in asked])
    return requests if is_heard else []


def _free_unheard(instance: dg.DagsterInstance, opened: Workspace) -> None:
    """Give back batches that no run will claim: the daemon died before the launch, or the run ended before its work.

    Only rows that are not claimed are given back, so a run that ends or begins meanwhile loses nothing.
    """
    work = opened.ledger.work
    lost = [batch_id for batch_id in work.unstarted(_UNHEARD_S) if not _may_be_claimed(instance, batch_id)]
    work.release_batches(lost)


def _may_be_claimed(instance: dg.DagsterInstance, batch_id: str) -> bool:
    return instance.get_runs_count(dg.RunsFilter(tags={"mm_assets/batch": batch_id}, statuses=_MAY_CLAIM)) > 0


def _filled(opened: Workspace, planned: list[tuple[str, Batch]]) -> Iterator[tuple[str, Batch, list[KnownObject]]]:
    """Leave out batches that have become empty: their objects were overwritten or deleted since."""
    for job, batch in planned:
        if objects := opened.ledger.work.objects_of(batch.batch_id):
            yield job, batch, objects


def run_request(job: str, batch: Batch, objects: list[KnownObject]) -> dg.RunRequest:
    """Ask for the run of a batch; a batch of one that is on its last try runs as its own partition."""
    tags = {"mm_assets/lane": batch.lane, "mm_assets/batch": batch.batch_id}
    key = objects[0].partition_key if batch.lane == "single" else None
    config = bulk_config(batch.batch_id)
    return dg.RunRequest(run_key=batch.batch_id, job_name=job, run_config=config, partition_key=key, tags=tags)
