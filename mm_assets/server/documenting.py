"""``GET /openapi.json`` and ``GET /docs``: what can be asked of this server, for programs and for people.

Put here: what FastAPI cannot see of our routes, and the page. Keep out: what the routes do, which their docstrings say.
The page is text alone: no script, no style, nothing from elsewhere.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from mm_assets.server.searching import GivenQuestion

HTML_HEADERS = {
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ABOUT = "Search over media and what is known of them. Without a key, only this machine may read and search."
_REF = "#/components/schemas/{model}"
_UPLOAD = "/objects/{source}/{key}"
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def document(app: FastAPI) -> None:
    """Add both routes, and let ``app.openapi`` describe all."""

    @cache
    def openapi() -> dict[str, Any]:
        return _describe(app)

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
    router = APIRouter(include_in_schema=False)

    @router.get("/openapi.json")
    def schema() -> dict[str, Any]:
        """Give the description for programs."""
        return openapi()

    @router.get("/docs")
    def page() -> HTMLResponse:
        """Give the description for people."""
        return HTMLResponse("".join(_page(openapi())), headers=HTML_HEADERS)

    app.include_router(router)


def _describe(app: FastAPI) -> dict[str, Any]:
    """Describe all routes, with the bodies that they read themselves and the key that may hold slashes."""
    whole = get_openapi(title="mm_assets", version=version("mm-assets"), description=_ABOUT, routes=app.routes)
    question = GivenQuestion.model_json_schema(ref_template=_REF)
    whole["components"]["schemas"] |= question.pop("$defs") | {"GivenQuestion": question}
    asked = {"application/json": {"schema": {"$ref": _REF.format(model="GivenQuestion")}}}
    whole["paths"]["/search"]["post"]["requestBody"] = {"required": True, "content": asked}
    whole["paths"][_UPLOAD] = whole["paths"].pop("/objects/{rest}")
    whole["paths"][_UPLOAD]["post"] |= {
        "parameters": [_parameter("source", "alias of the source"), _parameter("key", "key; it may hold slashes")],
        "requestBody": {"required": True, "content": _BINARY},
    }
    return whole


def _parameter(name: str, meaning: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": meaning, "schema": {"type": "string"}}


def _page(whole: Mapping[str, Any]) -> Iterator[str]:
    yield "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    yield f"<title>mm_assets</title><h1>mm_assets {escape(whole['info']['version'])}</h1><p>{escape(_ABOUT)}"
    yield " A key goes into the header <code>Authorization: Bearer …</code>. For programs: <a href=/openapi.json>openapi.json</a>."
    for path, methods in sorted(whole["paths"].items()):
        for method, route in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(route.get('description') or route['summary'])}"
            yield " Needs a key." if "security" in route else ""
            yield "".join(_fields(whole, route))
    yield "</html>"


def _fields(whole: Mapping[str, Any], route: Mapping[str, Any]) -> Iterator[str]:
    """List what goes into a request: parts of the path, and names in the body."""
    body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    model = whole["components"]["schemas"].get(body.get("$ref", "").rpartition("/")[2], {})
    fields = {given["name"]: given for given in route.get("parameters", ())} | model.get("properties", {})
    if fields:
        yield "<dl>"
        for name, given in fields.items():
            yield f"<dt><code>{escape(name)}</code><dd>{escape(given.get('description', ''))}"
        yield "</dl>"
