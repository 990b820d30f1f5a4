"""Values → HTML.

Put here: the templates' environment, headers of every page, and how times, places and marks are written. Keep out: routes.
"""

from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from mm_assets.identity import has_picture
from mm_assets.server.access import COOKIE

_TEMPLATES = Path(__file__).parent / "templates"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'self'; "
    "script-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}


def render(request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Return a page; everything in it is escaped, and no script but ours runs in it."""
    signed_in = COOKIE in request.cookies
    html = _environment().get_template(template).render(**values, signed_in=signed_in)
    return HTMLResponse(html, status, _HEADERS)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup, escape

    def marked(text: str) -> Markup:
        """Mark the words between ** and escape everything."""
        parts = [escape(part) for part in text.split("**")]
        return Markup("").join(Markup("<mark>{}</mark>").format(p) if n % 2 else p for n, p in enumerate(parts))

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "marked": marked,
        "base64": lambda data: b64encode(data).decode(),
        "place": place,
        "has_picture": has_picture,
        "clock": clock,
        "bytes": n_bytes,
    }
    return environment


def clock(seconds: float) -> str:
    """Write seconds as 01:02.3."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes):02}:{rest:04.1f}"


def place(row: Mapping[str, Any]) -> str:
    """Write where in an object something is; nothing for a still image."""
    if row["page_number"] is not None:
        return f"page {row['page_number']}"
    return f"{clock(row['start_s'])}-{clock(row['end_s'])}" if row["start_s"] is not None else ""


def n_bytes(n: int) -> str:
    """Write a size."""
    size = float(n)
    for unit in ("bytes", "kB", "MB"):
        if size < 1_000:
            return f"{size:.0f} {unit}"
        size /= 1_000
    return f"{size:.1f} GB"
