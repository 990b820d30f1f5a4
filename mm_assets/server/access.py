"""Who may ask for what: keys, tokens, and this machine's own user where there are none.

Put here: the rule for each right, and for addresses. Keep out: providers' signatures, which are checked by ``events``.

With a key of the ledger (``mm keys``), of the settings, or a token of ``serve.oidc``, a caller has that key's rights.
Where there never was any, whoever sits at this machine may read and search, and nobody may do more: any page in a
browser can send requests to loopback, but its requests say where they come from, or name the host they were tricked by.
"""

import hashlib
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPBearer

from mm_assets.errors import ConfigError
from mm_assets.events.verification import is_authorized
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger.keys import RIGHTS
from mm_assets.server.limits import RateLimit
from mm_assets.server.tokens import TokenReader

COOKIE = "mm_assets_key"
_OWN_SITES = {"same-origin", "none"}  # of Sec-Fetch-Site: our own page, or a person's own doing
_OPEN = ("search", "read")  # without keys, and counted for the limit
_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="a key of `mm keys add`, or a token of OIDC")
Admit = Callable[..., "Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes
    ----------
    name : by which requests are counted
    sources : aliases of the sources that it may see; all when empty
    """

    name: str
    rights: tuple[str, ...]
    sources: tuple[str, ...] = ()

    def sees(self, alias: str) -> bool:
        """Whether a source is one of the caller's."""
        return not self.sources or alias in self.sources


class Guard:
    """Lets in whom a right was given."""

    def __init__(self, workspace: Workspace) -> None:
        self._settings = workspace.settings.serve
        self._keys = workspace.ledger.keys
        self._tokens = TokenReader(self._settings.oidc) if self._settings.oidc.issuer else None
        self._limit = RateLimit(self._settings.requests_per_minute)

    def requires(self, right: str) -> Admit:
        """Return the dependency of a route: it gives the caller, or answers 401, 403 or 429."""

        def admit(request: Request, _: Annotated[object, Security(_BEARER)]) -> Caller:
            caller = self._admit(request, right)
            if right in _OPEN:
                self._limit.take(caller.name)
            return caller

        return admit

    def find(self, header: str) -> Caller | None:
        """Return whose key or token an ``Authorization`` header holds; None where it is nobody's."""
        scheme, _, text = header.strip().partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer":
            return None
        if is_authorized(header, self._settings.api_keys):
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            return Caller(f"key of the settings {digest[:16]}", RIGHTS)
        if (key := self._keys.find(text)) is not None:
            return Caller(f"key {key.key_id}", key.rights, key.sources)
        identity = self._tokens.read(text) if self._tokens is not None else None
        return None if identity is None else Caller(f"token of {identity.subject}", identity.rights)

    def is_given(self, right: str) -> bool:
        """Whether anybody can have a right by a key."""
        return bool(self._settings.api_keys) or self._tokens is not None or right in self._keys.rights()

    @property
    def has_keys(self) -> bool:
        """Whether there is, or ever was, a key."""
        return bool(self._settings.api_keys) or self._tokens is not None or not self._keys.is_empty()

    def _admit(self, request: Request, right: str) -> Caller:
        caller = self.find(_credentials(request))
        if caller is None and not self.has_keys:
            return _admit_without_key(request, right)
        if caller is None:
            raise HTTPException(401, "the API key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
        if right not in caller.rights:
            raise HTTPException(403, f"this key does not allow {right}; `mm keys add` makes one that does")
        return caller


def _credentials(request: Request) -> str:
    """Return what a program sends along, or what the page keeps in a cookie, which no other site may use."""
    header = request.headers.get("authorization", "")
    is_own = all(site in _OWN_SITES for site in request.headers.getlist("sec-fetch-site"))
    return f"Bearer {request.cookies[COOKIE]}" if not header and is_own and COOKIE in request.cookies else header


def _admit_without_key(request: Request, right: str) -> Caller:
    if right not in _OPEN:
        raise HTTPException(403, f"this needs an API key, and there is none: `mm keys add NAME --allow {right}`")
    if not _is_of_this_machine(request):
        told = f"without a key only this machine may ask, directly: `mm keys add NAME --allow {right}`"
        raise HTTPException(403, told)
    return Caller(f"address {request.client.host if request.client else ''}", _OPEN)


def _is_of_this_machine(request: Request) -> bool:
    """Whether a request came over loopback and no page of another site, renamed host or proxy is behind it."""
    headers, (address, _) = request.headers, request.scope["server"]
    is_direct = is_loopback(address) and not any(name in headers for name in _FORWARDED)
    is_named_so = _LOOPBACK_HOST.fullmatch(headers.get("host", "")) is not None
    return is_direct and is_named_so and all(site in _OWN_SITES for site in headers.getlist("sec-fetch-site"))


def check_address(host: str, *, has_keys: bool) -> None:
    """Refuse to listen where others can reach us while there is no key; raises ConfigError."""
    if not is_loopback(host) and not has_keys:
        msg = (
            f"listening on {host} lets others reach this server: make a key with `mm keys add`, set `serve.api_keys` "
            "(MM_ASSETS_SERVE__API_KEYS='[\"…\"]'), or listen on 127.0.0.1"
        )
        raise ConfigError(msg)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address; a name other than localhost may lead anywhere."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
