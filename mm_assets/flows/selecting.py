"""Which of a source's objects are ours to process, by the settings as they are now.

Put here: patterns, sizes, reserved prefixes, names no ledger can hold. Keep out: asking stores, writing books.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mm_assets.buckets.base import StoredObject
from mm_assets.buckets.globs import is_selected
from mm_assets.errors import ObjectError
from mm_assets.flows.workspace import Workspace, reserved_prefixes
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import SeenObject
from mm_assets.settings import SourceSettings

_LAST_CHARACTER = chr(0x10FFFF)  # sorts after every other, in UTF-8 too


@dataclass(slots=True)
class Picked:
    """What was chosen.

    Attributes
    ----------
    refused : (name, why) of what nothing of ours can hold
    """

    seen: list[SeenObject] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


class Selection:
    """The rule of one source.

    Parameters
    ----------
    own : key prefixes that hold our own files
    """

    def __init__(self, source: SourceSettings, own: tuple[str, ...]) -> None:
        self._source, self._own = source, own
        self._takes_all = (
            "**" in source.include and not source.exclude
        )  # most do: a million keys then need no automaton

    @classmethod
    def of(cls, workspace: Workspace, alias: str) -> "Selection":
        """Build the rule of a source from the settings."""
        source = workspace.settings.source(alias)
        return cls(source, reserved_prefixes(source, workspace.settings))

    def pick(self, stored: Iterable[StoredObject]) -> Picked:
        """Choose what is wanted and can be held."""
        alias, picked = self._source.alias, Picked()
        for item in stored:
            if not self.wants(item):
                continue
            try:
                version = ObjectVersion(alias, item.key, item.etag)
            except ObjectError as error:
                picked.refused.append((item.key, error.message))
                continue
            picked.seen.append(SeenObject(version, item.size_bytes, item.modified_at.timestamp()))
        return picked

    def wants(self, stored: StoredObject) -> bool:
        """Return whether an object is ours to process; the empty object that shows a folder is not."""
        key, size_bytes = stored.key, stored.size_bytes
        if size_bytes < self._source.min_object_bytes or (not size_bytes and key.endswith("/")):
            return False
        return not key.startswith(self._own) and (self._takes_all or self._is_selected(key))

    def _is_selected(self, key: str) -> bool:
        return is_selected(key, self._source.include, self._source.exclude)

    def beyond_own(self, after: str) -> str:
        """Return where a listing goes on: at ``after``, or behind our own files when it has come among them."""
        for prefix in self._own:
            if after.startswith(prefix):
                return prefix + _LAST_CHARACTER
        return after
