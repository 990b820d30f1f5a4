"""One object version as a task: how far it is, cancel, ask again. The id of the task is the object's.

Put here: what a caller of the server may know and change. Keep out: HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject
from mm_assets.ledger.dead import DeadFilter
from mm_assets.ledger.tasks import CANCELLED


@dataclass(frozen=True, slots=True)
class StepState:
    """One step: wanted, claimed, done, skipped or dead, and why."""

    step: str
    state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """How far an object version is.

    Attributes
    ----------
    status : waiting, running, failed, cancelled or done; superseded, gone or erased where it is no longer live
    """

    known: KnownObject
    status: str
    steps: tuple[StepState, ...]


def read_task(workspace: Workspace, task_id: str) -> Task | None:
    """Return a task; None where the id is unknown or its source has left the settings."""
    known = _find(workspace, task_id)
    if known is None:
        return None
    steps = _steps(workspace, known)
    return Task(known, _status(known, steps), steps)


def cancel_task(workspace: Workspace, task_id: str) -> int:
    """Skip what was not begun; returns how many steps."""
    known = _find(workspace, task_id)
    return workspace.ledger.tasks.cancel(task_id, _recipes(workspace, known)) if known else 0


def retry_task(workspace: Workspace, task_id: str) -> int:
    """Want again what is dead or was cancelled, with all its tries; returns how many steps."""
    known = _find(workspace, task_id)
    if known is None:
        return 0
    book, recipes = workspace.ledger.dead, _recipes(workspace, known)
    letters = book.letters(DeadFilter(object_ids=[task_id], recipes=recipes))
    letters += book.letters(DeadFilter(object_ids=[task_id], recipes=recipes, state="skipped", reason=CANCELLED))
    return book.replay(letters, recipes)


def _find(workspace: Workspace, task_id: str) -> KnownObject | None:
    aliases = {source.alias for source in workspace.settings.sources}
    found = [known for known in workspace.ledger.objects.by_ids([task_id]) if known.version.alias in aliases]
    return found[0] if found else None


def _recipes(workspace: Workspace, known: KnownObject) -> Mapping[str, str]:
    return workspace.recipes_of(known.version.alias)


def _steps(workspace: Workspace, known: KnownObject) -> tuple[StepState, ...]:
    """Return the steps of the present recipes; one without a row is wanted and not opened yet."""
    rows = {(row["step"], row["recipe"]): row for row in workspace.ledger.work.states(known.object_id)}
    return tuple(
        StepState(step, str(row["state"]), str(row["reason"]) if row["reason"] else None)
        if (row := rows.get((step, recipe)))
        else StepState(step, "wanted", None)
        for step, recipe in _recipes(workspace, known).items()
    )


def _status(known: KnownObject, steps: tuple[StepState, ...]) -> str:
    if known.state != "live":
        return known.state
    states = {step.state for step in steps}
    for state, status in (("claimed", "running"), ("wanted", "waiting"), ("dead", "failed")):
        if state in states:
            return status
    return CANCELLED if any(step.reason == CANCELLED for step in steps) else "done"
