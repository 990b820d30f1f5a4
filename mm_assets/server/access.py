"""Who may upload, see tasks and read metrics.

Put here: API keys and the rule for addresses. Keep out: providers' signatures, which are checked by ``events``.
"""

import ipaddress
from collections.abc import Sequence

from fastapi import HTTPException, Request

from mm_assets.errors import ConfigError
from mm_assets.events.verification import is_authorized
from mm_assets.settings import ServeSettings


def require_key(request: Request, api_keys: Sequence[str]) -> None:
    """Let only a key's bearer pass.

    Without keys nobody may: any page in a browser on this machine can send requests to loopback.
    """
    if not api_keys:
        raise HTTPException(403, "this needs an API key, and none is set; set serve.api_keys")
    header = request.headers.get("authorization", "")
    if not header.lower().startswith("bearer ") or not is_authorized(header, api_keys):
        raise HTTPException(401, "the API key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})


def check_address(host: str, serve: ServeSettings) -> None:
    """Refuse to listen where others can reach us while no key is set; raises ConfigError."""
    if not is_loopback(host) and not serve.api_keys:
        msg = (
            f"listening on {host} lets others reach this server: set `serve.api_keys` "
            "(MM_ASSETS_SERVE__API_KEYS='[\"…\"]'), or listen on 127.0.0.1"
        )
        raise ConfigError(msg)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address; a name other than localhost may lead anywhere."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
