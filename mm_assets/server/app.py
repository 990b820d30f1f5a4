"""The application: routes, and how every error is answered in one line of JSON.

Put here: putting the parts together. Keep out: each part's own work.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from mm_assets.errors import MmAssetsError, ObjectError, ServiceError
from mm_assets.events.base import DeliveryRefusedError
from mm_assets.flows.receiving import Receiver
from mm_assets.flows.workspace import Workspace
from mm_assets.server.access import Guard
from mm_assets.server.documenting import document
from mm_assets.server.health import build_health
from mm_assets.server.objects import build_objects
from mm_assets.server.pages import build_pages, build_sign_in
from mm_assets.server.receivers import build_receivers
from mm_assets.server.searching import Desk, build_search
from mm_assets.server.tasks import build_tasks
from mm_assets.server.uploads import build_uploads

_RETRY_AFTER_S = "5"
_LOG = logging.getLogger(__name__)


def build_app(workspace: Workspace) -> FastAPI:
    """Build the application over an open workspace; its lifespan ends with all that was accepted committed."""
    guard, desk = Guard(workspace), Desk(workspace.settings)
    receiver = Receiver(workspace.settings, workspace.ledger)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Commit what was accepted before the end."""
        yield
        desk.close()
        await run_in_threadpool(receiver.close)

    # Not FastAPI's pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(build_search(workspace, guard, desk))
    app.include_router(build_objects(workspace, guard))
    app.include_router(build_receivers(workspace.settings.events, receiver, guard))
    app.include_router(build_health(workspace, receiver, guard))
    app.include_router(build_uploads(workspace, guard))
    app.include_router(build_tasks(workspace, guard))
    app.include_router(build_pages(workspace, guard, desk))
    app.include_router(build_sign_in(guard))
    document(app)
    _add_handlers(app)
    return app


def _add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(DeliveryRefusedError, _answer_refused)
    app.add_exception_handler(ObjectError, _answering(400))
    app.add_exception_handler(ServiceError, _answer_later)
    app.add_exception_handler(MmAssetsError, _answer_failure)
    app.add_exception_handler(ClientDisconnect, _answering(400, "the body broke off"))
    app.add_exception_handler(Exception, _answer_failure)


def _answer_refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DeliveryRefusedError)  # noqa: S101  registered for it
    # Amazon SNS sends the user and password of its subscription only after it was asked for them.
    headers = {"WWW-Authenticate": 'Basic realm="mm_assets"'} if error.why == "unauthorized" else {}
    return JSONResponse({"detail": str(error)}, error.status, headers)


def _answer_later(_: Request, error: Exception) -> JSONResponse:
    _LOG.warning("answered with 503: %s", error)
    return JSONResponse({"detail": "not now; send again later"}, 503, {"Retry-After": _RETRY_AFTER_S})


def _answer_failure(_: Request, error: Exception) -> JSONResponse:
    """Tell the caller nothing of the inside; the server's log has all of it."""
    _LOG.error("answered with 500", exc_info=error)
    return JSONResponse({"detail": "internal error; see the server's log"}, 500)


def _answering(status: int, text: str = "") -> Callable[[Request, Exception], JSONResponse]:
    def answer(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": text or str(error)}, status)

    return answer
