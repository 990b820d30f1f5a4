"""From wanted work to batches, one for each run.

Put here: which steps a batch runs, which sources it takes from, and freeing what dead workers held. Keep out: starting
runs.

A step that reads what other extractors found comes in batches of its own, once those are over for an object: done,
skipped or dead. Whoever plans again after a batch finds them.
"""

from collections.abc import Collection, Mapping

from mm_assets.flows.processing import is_dead_here, new_owner, steps_for_pods
from mm_assets.flows.recipes import waves
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
    """Plan what is wanted of all sources that are not paused.

    Parameters
    ----------
    limit : batches made at most, for each job

    Returns
    -------
    job name → batches: ``ingest_job`` runs all steps; where the settings split by device, ``decode_job`` runs the
    steps of CPU pods and ``infer_job`` the models, once the segments are there
    """
    limit = min(limit, max(0, _MAX_UNSTARTED - workspace.ledger.work.n_unstarted()))
    paused = workspace.ledger.objects.paused()
    aliases = [source.alias for source in workspace.settings.sources if source.alias not in paused]
    for alias in aliases:  # no more than can be planned now: what is found need not be opened at once
        workspace.ledger.work.open_work(
            alias, workspace.recipes_of(alias), limit * workspace.settings.runs.batch_objects
        )
    if not workspace.settings.kubernetes.split_by_device:
        return {"ingest_job": _plan(workspace, tuple(workspace.recipes), aliases, limit)}
    return {
        "decode_job": _plan(workspace, steps_for_pods(workspace, gpu=False), aliases, limit),
        "infer_job": _plan(workspace, steps_for_pods(workspace, gpu=True), aliases, limit),
    }


_Needs = Mapping[str, Mapping[str, str]]


def _plan(workspace: Workspace, steps: tuple[str, ...], aliases: Collection[str], limit: int) -> list[Batch]:
    """Plan the last wave first: objects that were begun are finished before more are."""
    planned: list[Batch] = []
    for wave in reversed(waves(steps, workspace.extractors)):
        for needs, alike in _by_needs(workspace, wave, aliases):
            planned += _plan_wave(workspace, wave, needs, alike, limit - len(planned))
    return planned


def _by_needs(workspace: Workspace, wave: tuple[str, ...], aliases: Collection[str]) -> list[tuple[_Needs, list[str]]]:
    """Group sources by what must be over before the steps of a wave: a source may not ask for all that they read."""
    groups: list[tuple[_Needs, list[str]]] = []
    for alias in aliases:
        of_source = workspace.needs(alias)
        needs = {step: of_source[step] for step in wave}
        alike = next((group for known, group in groups if known == needs), None)
        if alike is None:
            groups.append((needs, [alias]))
        else:
            alike.append(alias)
    return groups


def _plan_wave(
    workspace: Workspace, steps: tuple[str, ...], needs: _Needs, aliases: Collection[str], limit: int
) -> list[Batch]:
    runs = workspace.settings.runs
    recipes = {step: workspace.recipes[step] for step in steps}
    if not recipes or not limit:
        return []
    return workspace.ledger.work.plan(
        recipes,
        needs=needs,
        aliases=aliases,
        size=runs.batch_objects,
        max_tries=runs.max_tries,
        planner=new_owner(),
        limit=limit,
    )
