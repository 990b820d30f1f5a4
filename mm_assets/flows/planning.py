"""From wanted work to batches, one for each run.

Put here: which steps a batch runs, and freeing what dead workers held. Keep out: starting runs.
"""

from mm_assets.flows.processing import is_dead_here, new_owner, steps_for_pods
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Batch

# A planned batch whose run never claimed anything is planned anew after this time.
_UNSTARTED_S = 24 * 3_600.0


# Beyond so many waiting batches no more are planned: a queue of a day holds nothing that could not be planned later.
_MAX_UNSTARTED = 100


def free_lost_work(workspace: Workspace) -> int:
    """Free what dead workers held and what was planned but never started; returns how many rows."""
    work = workspace.ledger.work
    return work.release_expired() + work.release_dead(is_dead_here) + work.release_unstarted(is_dead_here, _UNSTARTED_S)


def plan_batches(workspace: Workspace, *, limit: int = 1_000) -> dict[str, list[Batch]]:
    """Plan all wanted work.

    Returns
    -------
    job name → batches: ``ingest_job`` runs all steps; where the settings split by device, ``decode_job`` runs the
    steps of CPU pods and ``infer_job`` the models, once the segments are there
    """
    limit = min(limit, max(0, _MAX_UNSTARTED - workspace.ledger.work.n_unstarted()))
    if not workspace.settings.kubernetes.split_by_device:
        return {"ingest_job": _plan(workspace, tuple(workspace.recipes), limit)}
    return {
        "decode_job": _plan(workspace, steps_for_pods(workspace, gpu=False), limit),
        "infer_job": _plan(workspace, steps_for_pods(workspace, gpu=True), limit),
    }


def _plan(workspace: Workspace, steps: tuple[str, ...], limit: int) -> list[Batch]:
    runs = workspace.settings.runs
    recipes = {step: workspace.recipes[step] for step in steps}
    if not recipes or not limit:
        return []
    needs = workspace.needs()
    return workspace.ledger.work.plan(
        recipes,
        needs=needs,
        aliases=[source.alias for source in workspace.settings.sources],
        size=runs.batch_objects,
        max_tries=runs.max_tries,
        planner=new_owner(),
        limit=limit,
    )
