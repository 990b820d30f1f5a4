"""``/tasks/{id}``: how far an object is, cancel, retry.

Put here: tasks as JSON. Keep out: what changes them.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path

from mm_assets.flows.tasks import Task, cancel_task, read_task, retry_task
from mm_assets.flows.workspace import Workspace
from mm_assets.server.access import Caller, Guard

_TaskId = Annotated[str, Path(description="id of an object version, as an upload answered with it")]


def build_tasks(workspace: Workspace, guard: Guard) -> APIRouter:
    """Build the routes; who may upload may also change what becomes of it."""
    router = APIRouter()
    may_read, may_upload = guard.requires("read"), guard.requires("upload")

    @router.get("/tasks/{task_id}")
    def show(task_id: _TaskId, caller: Annotated[Caller, Depends(may_read)]) -> dict[str, Any]:
        """Show how far an object is."""
        return _describe(_read(workspace, task_id, caller))

    @router.post("/tasks/{task_id}/cancel")
    def cancel(task_id: _TaskId, caller: Annotated[Caller, Depends(may_upload)]) -> dict[str, Any]:
        """Skip what was not begun."""
        _read(workspace, task_id, caller)
        n_steps = cancel_task(workspace, task_id)
        return {"n_cancelled": n_steps} | _describe(_read(workspace, task_id, caller))

    @router.post("/tasks/{task_id}/retry")
    def retry(task_id: _TaskId, caller: Annotated[Caller, Depends(may_upload)]) -> dict[str, Any]:
        """Want again what is dead or was cancelled."""
        _read(workspace, task_id, caller)
        n_steps = retry_task(workspace, task_id)
        return {"n_wanted": n_steps} | _describe(_read(workspace, task_id, caller))

    return router


def _read(workspace: Workspace, task_id: str, caller: Caller) -> Task:
    task = read_task(workspace, task_id)
    if task is None or not caller.sees(task.known.version.alias):
        raise HTTPException(404, "there is no such task")
    return task


def _describe(task: Task) -> dict[str, Any]:
    known = task.known
    return {
        "task_id": known.object_id,
        "status": task.status,
        "source": known.version.alias,
        "key": known.version.key,
        "etag": known.version.etag,
        "size_bytes": known.size_bytes,
        "steps": [{"step": step.step, "state": step.state, "reason": step.reason} for step in task.steps],
    }
