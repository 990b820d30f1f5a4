"""The page: search with filters, answers as pictures, and all of one object beside its player.

Put here: the routes. Keep out: forms (``asking``), values (``describing``), HTML (``rendering``), bytes (``media``).

Everything works without a script; what a script adds (dropping a picture, jumping in the player) is in ``page.js``.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response

from mm_assets.errors import ConfigError
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import has_picture
from mm_assets.server.access import COOKIE, Admit, Caller, Guard
from mm_assets.server.asking import MAX_FORM_BYTES, Asked, read_form, read_pictures
from mm_assets.server.describing import Facets, describe, is_playable
from mm_assets.server.media import stream
from mm_assets.server.objects import find_object, published_pictures
from mm_assets.server.reading import open_form, promised_bytes
from mm_assets.server.rendering import render
from mm_assets.server.searching import READ_WITHIN_S, Desk, check_like

_FOLDER = Path(__file__).parent / "static"
_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
_KEPT = {"X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=3600"}
_DRAWN_WITHIN_S = 0.5  # a page waits no longer for its pictures
_READERS = 16  # threads of their own for the lake, and for the sources: one that hangs holds up no event and no probe
_MAX_KEY_BYTES = 4_096  # of the form of a key
_KEY_WITHIN_S = 10.0


def build_pages(workspace: Workspace, guard: Guard, desk: Desk) -> APIRouter:
    """Build the routes."""
    router = APIRouter(include_in_schema=False)
    may_search, may_read = _or_sign_in(guard.requires("search")), _or_sign_in(guard.requires("read"))
    readers, players = CapacityLimiter(_READERS), CapacityLimiter(_READERS)
    answers = _Answers(workspace, desk, Facets(workspace), readers)

    @router.get("/")
    async def search(request: Request, caller: Annotated[Caller, Depends(may_search)]) -> Response:
        """Show the form, and the answers to what its address holds."""
        return await answers.page(request, read_form(request.query_params), caller)

    @router.post("/")
    async def search_by_picture(request: Request, caller: Annotated[Caller, Depends(may_search)]) -> Response:
        """Answer a form with a picture."""
        limits = {"max_files": 2, "max_fields": 200, "max_part_size": 100_000}
        with desk.room.taken(min(MAX_FORM_BYTES, promised_bytes(request, MAX_FORM_BYTES))):
            async with open_form(request, MAX_FORM_BYTES, READ_WITHIN_S, **limits) as form:
                asked = await read_pictures(form)
            return await answers.page(request, asked, caller)

    @router.get("/view/{object_id}")
    async def view(request: Request, object_id: str, caller: Annotated[Caller, Depends(may_read)]) -> Response:
        """Show one object."""
        return await run_sync(_view, workspace, request, object_id, caller, limiter=readers)

    @router.get("/media/{object_id}")
    async def media(request: Request, object_id: str, caller: Annotated[Caller, Depends(may_read)]) -> Response:
        """Give an object's bytes, while it is in its source and the source is in the settings."""
        known = await run_in_threadpool(find_object, workspace, object_id, caller)
        if not is_playable(workspace, known):
            raise HTTPException(404, "the object is no longer in its source")
        return await stream(workspace.sources[known.version.alias], known, request.headers.get("range"), players)

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        """Give a file of the page."""
        if name not in _FILES:
            raise HTTPException(404)
        return Response((_FOLDER / name).read_bytes(), media_type=_FILES[name], headers=_KEPT)

    return router


@dataclass(frozen=True)
class _Answers:
    """The page of answers.

    Attributes
    ----------
    readers : threads that wait for the lake
    """

    workspace: Workspace
    desk: Desk
    facets: Facets
    readers: CapacityLimiter

    async def page(self, request: Request, asked: Asked, caller: Caller) -> Response:
        """Return the form, and below it the answers or what is wrong with the question."""
        shown: dict[str, Any] = {"asked": asked, "moments": None, "notes": (), "error": "", "took_ms": 0}
        started, status = time.monotonic(), 200
        try:
            if asked.is_question:
                await run_in_threadpool(check_like, self.workspace, asked.like, caller)
                found = await self.desk.ask(asked.to_question(caller.sources))
                shown |= {"moments": found.rows.to_pylist(), "notes": found.notes}
                shown["took_ms"] = round((time.monotonic() - started) * 1_000)
                if "read" in caller.rights:
                    seen = [moment for moment in shown["moments"] if caller.sees(moment["bucket"])]
                    await run_sync(self._draw, seen, limiter=self.readers)
        except ConfigError as error:
            shown["error"], status = str(error), 400
        except HTTPException as error:
            shown["error"], status = str(error.detail), error.status_code
        shown["facets"] = await run_sync(self.facets.read, caller, limiter=self.readers)
        return render(request, "search.html", shown, status)

    def _draw(self, moments: Sequence[dict[str, Any]]) -> None:
        """Put the pictures into the page: asked for one by one, each would cost three times as much.

        What the lake does not give in time is left to the browser.
        """
        pictures, seen = published_pictures(self.workspace), [m for m in moments if has_picture(m["segment_id"])]
        reads = [self.desk.drawers.submit(pictures.thumbnail, m["object_id"], m["segment_id"]) for m in seen]
        wait(reads, _DRAWN_WITHIN_S)
        for moment, read in zip(seen, reads, strict=True):
            if not read.cancel() and read.done() and read.exception() is None:
                moment["thumbnail_jpeg"] = read.result()


def _view(workspace: Workspace, request: Request, object_id: str, caller: Caller) -> Response:
    try:
        known = find_object(workspace, object_id, caller)
    except HTTPException as error:
        return render(request, "missing.html", {}, error.status_code)
    if known.state == "erased":
        return render(request, "missing.html", {}, 404)
    return render(request, "object.html", describe(workspace, known, request.query_params))


def build_sign_in(guard: Guard) -> APIRouter:
    """Build the routes by which a browser gets its key into a cookie, and rid of it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    def form(request: Request) -> Response:
        """Show the form."""
        return render(request, "login.html", {"error": ""})

    @router.post("/login")
    async def sign_in(request: Request) -> Response:
        """Keep a good key in a cookie that no script reads and no other site sends."""
        limits = {"max_files": 0, "max_fields": 1, "max_part_size": 1_000}
        async with open_form(request, _MAX_KEY_BYTES, _KEY_WITHIN_S, **limits) as given:
            key = str(given.get("key", "")).strip()
        if await run_in_threadpool(guard.find, f"Bearer {key}") is None:
            return render(request, "login.html", {"error": "This is no key, or it was revoked."}, 401)
        answer = RedirectResponse("/", 303)
        # A proxy with TLS says so; a client that only claims it keeps the cookie from itself alone.
        secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        answer.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=secure, path="/")
        return answer

    @router.post("/logout")
    def sign_out() -> Response:
        """Forget the key."""
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    return router


def _or_sign_in(admit: Admit) -> Callable[[Request], Caller]:
    """Lead a person without a key to where one is asked for."""

    def admit_person(request: Request) -> Caller:
        try:
            return admit(request, None)
        except HTTPException as error:
            if error.status_code != 401:
                raise
            raise HTTPException(303, headers={"Location": "/login"}) from None

    return admit_person
