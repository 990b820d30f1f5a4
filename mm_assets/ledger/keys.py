"""Keys for the server: who may ask it for what.

Put here: making, finding and revoking keys. Keep out: HTTP, and what each right covers.

A key is ``mm_<id>_<secret>``. It is looked up by its id, and of the secret only the SHA-256 is kept: 256 random bits
cannot be guessed, so no slow hash is needed. A key that was revoked stays in the book: who revokes the last one does not
open the server to everybody.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, select, update
from sqlalchemy.exc import IntegrityError

from mm_assets.errors import ConfigError
from mm_assets.ledger.tables import API_KEYS
from mm_assets.ledger.transactions import retried

RIGHTS = ("search", "read", "upload", "events")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TEXT = re.compile(r"mm_(?P<key_id>[0-9a-f]{16})_(?P<secret>[A-Za-z0-9_-]{43})")
_IS_LIVE = API_KEYS.c.revoked_at.is_(None)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without its secret.

    Attributes
    ----------
    rights : what it allows, of ``RIGHTS``
    sources : aliases of the sources that it is for; all when empty
    created_at, revoked_at : seconds since the epoch; None while it is good
    """

    key_id: str
    name: str
    rights: tuple[str, ...]
    sources: tuple[str, ...]
    created_at: float
    revoked_at: float | None = None


class KeyBook:
    """The keys of the server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = engine.execution_options(mm_reads=True)

    @retried
    def add(self, name: str, rights: Collection[str], sources: Collection[str] = ()) -> str:
        """Make a key and return it, this once.

        Raises
        ------
        ConfigError
            The name is none or taken, or a right is unknown.
        """
        _check(name, rights)
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        row = {"key_id": key_id, "name": name, "digest": _digest(secret), "created_at": time.time()}
        row |= {"rights": ",".join(sorted(set(rights), key=RIGHTS.index)), "sources": ",".join(sorted(set(sources)))}
        try:
            with self._engine.begin() as connection:
                connection.execute(API_KEYS.insert().values(row))
        except IntegrityError as error:
            msg = f"a key is called {name!r} already; choose another name, or revoke that one"
            raise ConfigError(msg) from error
        return f"mm_{key_id}_{secret}"

    def find(self, text: str) -> ApiKey | None:
        """Return the key that this is; None where it is none, or was revoked. Compares in constant time."""
        parts = _TEXT.fullmatch(text)
        if parts is None:
            return None
        with self._reader.connect() as connection:
            row = connection.execute(select(API_KEYS).where(API_KEYS.c.key_id == parts["key_id"], _IS_LIVE)).first()
        if row is None or not hmac.compare_digest(row.digest, _digest(parts["secret"])):
            return None
        return _to_key(row)

    @retried
    def revoke(self, name: str) -> bool:
        """Let a key be good no longer; returns whether there was one of this name."""
        live = update(API_KEYS).where(API_KEYS.c.name == name, _IS_LIVE)
        with self._engine.begin() as connection:
            return connection.execute(live.values(revoked_at=time.time())).rowcount > 0

    def all(self) -> list[ApiKey]:
        """Return all keys, also those that were revoked, in the order in which they were made."""
        with self._reader.connect() as connection:
            found = connection.execute(select(API_KEYS).order_by(API_KEYS.c.created_at, API_KEYS.c.key_id))
            return [_to_key(row) for row in found]

    def is_empty(self) -> bool:
        """Whether no key was ever made."""
        with self._reader.connect() as connection:
            return connection.execute(select(API_KEYS.c.key_id).limit(1)).first() is None

    def rights(self) -> set[str]:
        """Return what any key that is good allows."""
        return {right for key in self.all() if key.revoked_at is None for right in key.rights}


def _check(name: str, rights: Collection[str]) -> None:
    if not _NAME.fullmatch(name):
        msg = f"a key cannot be called {name!r}: use 1-63 letters, digits, '.', '_' or '-'"
        raise ConfigError(msg)
    unknown = sorted(set(rights) - set(RIGHTS))
    if unknown or not rights:
        told = f"unknown right {unknown[0]!r}" if unknown else "a key without a right is of no use"
        msg = f"{told}; there are {', '.join(RIGHTS)}"
        raise ConfigError(msg)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def _to_key(row: Row[Any]) -> ApiKey:
    rights, sources = (tuple(text.split(",")) if text else () for text in (row.rights, row.sources))
    return ApiKey(row.key_id, row.name, rights, sources, row.created_at, row.revoked_at)
