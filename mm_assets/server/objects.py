"""``GET /objects/{id}``, ``GET /segments/{id}/thumbnail``, ``GET /tables``: what is known and published.

Put here: who sees what of it, and its form. Keep out: putting it together, which flows, lake and ledger do.
"""

import re
from collections import Counter
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response

from mm_assets.flows.showing import step_table
from mm_assets.flows.telling import read_story
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject
from mm_assets.retrieval.answers import Pictures
from mm_assets.schemas import TABLES, VECTOR
from mm_assets.server.access import Caller, Guard

_ObjectId = Annotated[str, Path(description="id of an object version, 32 hex digits")]
_SegmentId = Annotated[str, Path(description="id of a segment, as answers and the table `segments` have it")]
_OBJECT_ID = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{16})?")  # 16 digits are those of a refused name
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}},
    304: {"description": "As it was"},
    404: {"description": "There is none"},
}
_READERS = 16  # threads of their own: a lake that does not answer holds up no event and no probe
_HEADERS = {
    "Cache-Control": "private, max-age=86400",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",  # the bytes are of a process that read hostile files
}


def build_objects(workspace: Workspace, guard: Guard) -> APIRouter:
    """Build the routes."""
    router, may_read, readers = APIRouter(), guard.requires("read"), CapacityLimiter(_READERS)

    @router.get("/objects/{object_id}")
    async def show(object_id: _ObjectId, caller: Annotated[Caller, Depends(may_read)]) -> dict[str, Any]:
        """Tell all that is known of an object version: place, steps, segments, what was found."""

        def tell() -> dict[str, Any]:
            return read_story(workspace, find_object(workspace, object_id, caller))

        return await run_sync(tell, limiter=readers)

    @router.get("/segments/{segment_id}/thumbnail", response_class=Response, responses=_JPEG)
    async def thumbnail(
        request: Request, segment_id: _SegmentId, caller: Annotated[Caller, Depends(may_read)]
    ) -> Response:
        """Give the keyframe of a segment as a JPEG of at most 320 pixels a side."""
        known_tags = request.headers.get("if-none-match", "")
        return await run_sync(_draw, workspace, segment_id, caller, known_tags, limiter=readers)

    @router.get("/tables")
    def tables(caller: Annotated[Caller, Depends(may_read)]) -> list[dict[str, Any]]:
        """List the published tables with their columns; how many rows, only for who may see all sources."""
        return [_describe(workspace, name, n_rows, caller) for name, n_rows in sorted(_published(workspace).items())]

    return router


def _draw(workspace: Workspace, segment_id: str, caller: Caller, known_tags: str) -> Response:
    known = find_object(workspace, segment_id.partition("-")[0], caller)
    pictures = published_pictures(workspace)
    headers = {"ETag": f'"{segment_id}.{pictures.recipe}"', **_HEADERS}
    if headers["ETag"] in known_tags:
        return Response(status_code=304, headers=headers)
    picture = pictures.thumbnail(known.object_id, segment_id)
    if picture is None:
        raise HTTPException(404, "this segment has no picture")
    return Response(picture, media_type="image/jpeg", headers=headers)


def published_pictures(workspace: Workspace) -> Pictures:
    """Return the pictures of what is published; before anything is, of what was made so far."""
    recipe = workspace.ledger.catalog.published().get("segments") or workspace.recipes["segments"]
    return Pictures(workspace.lake, recipe)


def find_object(workspace: Workspace, object_id: str, caller: Caller) -> KnownObject:
    """Return an object version of the caller's sources; raises HTTPException (404)."""
    found = workspace.ledger.objects.by_ids([object_id]) if _OBJECT_ID.fullmatch(object_id) else []
    if not found or not caller.sees(found[0].version.alias):
        raise HTTPException(404, "there is no such object")
    return found[0]


def _published(workspace: Workspace) -> Counter[str]:
    """Return table → how many rows its files have, but for those of a plug-in that is no longer here."""
    n_rows: Counter[str] = Counter()
    for file in workspace.ledger.catalog.shard_files().values():
        if file.name in {*TABLES, *workspace.extractors}:
            n_rows[file.name] += file.n_rows
    return n_rows


def _describe(workspace: Workspace, name: str, n_rows: int, caller: Caller) -> dict[str, Any]:
    table = step_table(workspace, name)
    return {
        "name": name,
        "description": table.description,
        "n_rows": None if caller.sources else n_rows,
        "uri": f"{workspace.lake.uri}/tables/{name}/**/*.parquet",
        "columns": [
            {
                "name": column.name,
                "type": "fixed_size_list<float>" if column.type is VECTOR else str(column.type),
                "nullable": column.nullable,
                "meaning": column.description,
            }
            for column in table.columns
            if column.name not in table.private
        ],
    }
