"""``/tasks/{id}``: how far an object is, cancel, retry.

Put here: tasks as JSON. Keep out: what changes them.
"""

from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request

from mm_assets.flows.tasks import Task, cancel_task, read_task, retry_task
from mm_assets.flows.workspace import Workspace
from mm_assets.server.access import require_key


def build_tasks(workspace: Workspace) -> APIRouter:
    """Build the routes; all need a key."""

    def check(request: Request) -> None:
        require_key(request, workspace.settings.serve.api_keys)

    router = APIRouter(dependencies=[Depends(check)])

    @router.get("/tasks/{task_id}")
    def show(task_id: str) -> dict[str, Any]:
        """Show a task."""
        return _describe(_read(workspace, task_id))

    @router.post("/tasks/{task_id}/cancel")
    def cancel(task_id: str) -> dict[str, Any]:
        """Skip what was not begun."""
        _read(workspace, task_id)
        n_steps = cancel_task(workspace, task_id)
        return {"n_cancelled": n_steps} | _describe(_read(workspace, task_id))

    @router.post("/tasks/{task_id}/retry")
    def retry(task_id: str) -> dict[str, Any]:
        """Want again what is dead or was cancelled."""
        _read(workspace, task_id)
        n_steps = retry_task(workspace, task_id)
        return {"n_wanted": n_steps} | _describe(_read(workspace, task_id))

    return router


def _read(workspace: Workspace, task_id: str) -> Task:
    task = read_task(workspace, task_id)
    if task is None:
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
