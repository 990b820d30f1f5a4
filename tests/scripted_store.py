"""A store in memory that a test changes and disturbs while it is asked.

Put here: the calls that discovery makes, and faults on order. Keep out: assertions; what needs real bytes.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, cast

from mm_assets.buckets.base import ObjectNotFoundError, Page, Store, StoredObject
from mm_assets.flows.workspace import Workspace

Hook = Callable[[str, str], None]


class ScriptedStore:
    """Objects by key, each with an ETag; every object is one byte long.

    Attributes
    ----------
    asked : how often each (operation, key) was called; a listing's key is where it began
    before : called with (operation, key) before each answer; what it raises is the answer
    after : called with (operation, key) when the answer is made and not yet given
    """

    uri = "memory://"

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.etags = dict.fromkeys(keys, "1")
        self.asked: Counter[tuple[str, str]] = Counter()
        self.before: Hook = lambda _operation, _key: None
        self.after: Hook = lambda _operation, _key: None

    def list_page(self, after: str = "", limit: int = 1_000, prefix: str = "") -> Page:  # noqa: ARG002  as stores have it
        """List in the order of UTF-8; a lone surrogate is a byte sequence like any other here."""
        self._ask("list", after)
        keys = sorted((key for key in list(self.etags) if _raw(key) > _raw(after)), key=_raw)
        objects = tuple(self._describe(key) for key in keys[:limit])
        self.after("list", after)
        return Page(objects, objects[-1].key if len(keys) > limit else None)

    def head(self, key: str) -> StoredObject:
        """Describe one object."""
        self._ask("head", key)
        if key not in self.etags:
            raise ObjectNotFoundError(key)
        stored = self._describe(key)
        self.after("head", key)
        return stored

    def n_asked(self, operation: str) -> int:
        """Count the calls of one operation."""
        return sum(n for (name, _), n in self.asked.items() if name == operation)

    def _ask(self, operation: str, key: str) -> None:
        self.asked[operation, key] += 1
        self.before(operation, key)

    def _describe(self, key: str) -> StoredObject:
        return StoredObject(key, self.etags[key], 1, datetime.fromtimestamp(0, tz=UTC))


def scripted(workspace: Workspace, alias: str = "source", keys: Iterable[str] = ()) -> ScriptedStore:
    """Put a scripted store in the place of a workspace's source."""
    store = ScriptedStore(keys)
    workspace.sources = {**workspace.sources, alias: cast("Store", store)}
    return store


def raising(error: Exception, *, operation: str = "", key: str = "") -> Hook:
    """Give a hook that raises for one operation, or one key, or for all."""

    def hook(asked: str, at: str) -> None:
        if operation in {"", asked} and key in {"", at}:
            raise error

    return hook


def live(workspace: Workspace, alias: str = "source") -> dict[str, str]:
    """Key → ETag of the versions that the ledger holds for live, of which a key has one at most."""
    from sqlalchemy import select

    from mm_assets.ledger.tables import OBJECTS

    query = select(OBJECTS.c.key, OBJECTS.c.etag).where(OBJECTS.c.alias == alias, OBJECTS.c.state == "live")
    with cast("Any", workspace.ledger)._engine.connect() as connection:
        rows = [(row.key, row.etag) for row in connection.execute(query)]
    assert len(dict(rows)) == len(rows), "a key has two live versions"
    return dict(rows)


def _raw(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
