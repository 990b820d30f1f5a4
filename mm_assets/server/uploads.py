"""``POST /objects/{source}/{key}``: a body into a source that takes uploads.

Put here: the key as the caller meant it, the body into a file. Keep out: what becomes of the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor

from mm_assets.errors import ServiceError
from mm_assets.flows.scratch import scratch
from mm_assets.flows.uploading import check_key, store_upload
from mm_assets.flows.workspace import Workspace
from mm_assets.server.access import Caller, Guard
from mm_assets.server.reading import Room, promised_bytes, read_pieces
from mm_assets.settings import SourceSettings

_AT_ONCE = 8
_HELD_BYTES = 16 << 30  # of all bodies under way, which lie in files; deploy/serve.yaml makes room for them
_BUFFER_BYTES = 1 << 20


class _AnyText(Convertor[str]):
    """Takes every path, newlines included; ``path`` does not."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anytext", _AnyText())


def build_uploads(workspace: Workspace, guard: Guard) -> APIRouter:
    """Build the route."""
    router = APIRouter()
    room = Room(_AT_ONCE, _HELD_BYTES)

    @router.post("/objects/{rest:anytext}", status_code=201)
    async def upload(request: Request, caller: Annotated[Caller, Depends(guard.requires("upload"))]) -> dict[str, Any]:
        """Store a body as an object of a source, and answer with the id of its task."""
        alias, key = read_place(request.scope["raw_path"])
        source = _find_source(workspace, alias, caller)
        await run_in_threadpool(check_key, workspace, alias, key)
        with room.taken(min(source.max_object_bytes, promised_bytes(request, source.max_object_bytes))):
            return await _receive(request, workspace, source, key)

    return router


def read_place(raw_path: bytes) -> tuple[str, str]:
    """Return (alias, key) of ``/objects/{alias}/{key}``, percent-decoded once; the rest of the path is the key, as it is.

    The decoded path that frameworks offer cannot tell ``%2F`` from ``/`` or ``%252F``.
    """
    parts = raw_path.split(b"/", 3)
    if len(parts) != 4 or parts[1] != b"objects":  # routes are found by the decoded path: %2F may have led here
        raise HTTPException(404, "write /objects/{source}/{key}")
    try:
        return unquote_to_bytes(parts[2]).decode("utf-8"), unquote_to_bytes(parts[3]).decode("utf-8")
    except UnicodeDecodeError:
        raise HTTPException(400, "the path is no percent-encoded UTF-8") from None


def _find_source(workspace: Workspace, alias: str, caller: Caller) -> SourceSettings:
    source = next((source for source in workspace.settings.sources if source.alias == alias), None)
    if source is None or not caller.sees(alias):
        raise HTTPException(404, "there is no such source")
    if not source.uploads:
        raise HTTPException(403, "this source takes no uploads; set `uploads: true` for it")
    return source


async def _receive(request: Request, workspace: Workspace, source: SourceSettings, key: str) -> dict[str, Any]:
    # In threads: what dead workers left behind is swept on the way in, and may be much.
    with _translated():
        async with contextmanager_in_threadpool(scratch()) as folder:
            file = folder / "body.bin"
            await _save(request, file, source.max_object_bytes)
            uploaded = await run_in_threadpool(store_upload, workspace, source.alias, key, file)
    seen = uploaded.seen
    return {
        "task_id": uploaded.task_id,
        "source": source.alias,
        "key": seen.version.key,
        "etag": seen.version.etag,
        "size_bytes": seen.size_bytes,
    }


async def _save(request: Request, file: Path, max_bytes: int) -> None:
    """Write the body into a file; memory stays at one buffer."""
    with file.open("wb", buffering=0) as target:
        buffer = bytearray()
        async for piece in read_pieces(request, max_bytes):
            buffer += piece
            if len(buffer) >= _BUFFER_BYTES:
                await run_in_threadpool(_write, target, bytes(buffer))
                buffer.clear()
        await run_in_threadpool(_write, target, bytes(buffer))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"the upload cannot be kept meanwhile: {error.strerror}; send again later"
        raise ServiceError(msg) from error


def _write(target: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[target.write(rest) :]
