"""Finding out what is in a source: new, changed and gone object versions.

Put here: the wrapping listing and its brake. Keep out: reading objects.

A full listing in pages is the truth: a cursor on modification times would lose late multipart uploads and ties. The
cursor and the rows of a page are one transaction, so a kill anywhere repeats at most one page.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mm_assets.buckets.base import ObjectNotFoundError, StoredObject
from mm_assets.buckets.globs import is_folder_marker, is_selected
from mm_assets.errors import ObjectError
from mm_assets.flows.workspace import Workspace, reserved_prefixes
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import KnownObject, SeenObject
from mm_assets.settings import SourceSettings

_PAGE = 1_000
# Below this many missing objects the share alone says nothing: one of four deleted is not an accident.
_BRAKE_FROM_OBJECTS = 10


@dataclass(frozen=True, slots=True)
class Discovery:
    """What one call of ``discover`` found.

    Attributes
    ----------
    is_complete : False when the deadline came first; the next call goes on where this one stopped
    n_refused : keys that cannot be read or stored (NUL, lone surrogates, unreadable entries of a listing)
    alarm : why deletions wait for a person
    """

    alias: str
    n_listed: int = 0
    n_new: int = 0
    n_changed: int = 0
    n_revived: int = 0
    n_gone: int = 0
    n_refused: int = 0
    is_complete: bool = False
    alarm: str | None = None

    @property
    def has_changes(self) -> bool:
        """Whether anything has to be done because of it."""
        return bool(self.n_new or self.n_changed or self.n_revived or self.n_gone)


def discover(
    workspace: Workspace,
    alias: str,
    *,
    deadline_s: float | None = None,
    on_page: Callable[[int], None] = lambda _: None,
) -> Discovery:
    """List a source until the pass is complete or the time is over, and note what is wanted.

    Parameters
    ----------
    deadline_s : seconds after which no further page is asked for
    on_page : called with the number of objects listed so far

    Raises
    ------
    ServiceError, ConfigError
        Of the store; nothing is lost, the next call goes on at the same page.
    """
    source = workspace.settings.source(alias)
    own = reserved_prefixes(source, workspace.settings)
    ends_at = time.monotonic() + deadline_s if deadline_s is not None else float("inf")
    counts = dict.fromkeys(("n_listed", "n_new", "n_changed", "n_revived", "n_refused"), 0)
    recipes = workspace.recipes_of(alias)
    after: str | None = workspace.ledger.objects.scan(alias).after
    while after is not None and time.monotonic() < ends_at:
        page = workspace.sources[alias].list_page(after=after, limit=_PAGE)
        seen, n_refused = _select(source, page.objects, own)
        delta = workspace.ledger.objects.record_page(
            alias, seen, after=page.next_after, shard_objects=workspace.settings.refresh.shard_objects, recipes=recipes
        )
        found = (len(page.objects), delta.n_new, delta.n_changed, delta.n_revived, n_refused + page.n_skipped)
        counts = {name: counts[name] + n for name, n in zip(counts, found, strict=True)}
        on_page(counts["n_listed"])
        after = page.next_after
    n_gone, alarm = _finish(workspace, alias) if after is None else (0, workspace.ledger.objects.scan(alias).alarm)
    if after is None:
        workspace.ledger.work.want(alias, recipes)  # for versions seen before the recipes changed
    return Discovery(alias, **counts, n_gone=n_gone, is_complete=after is None, alarm=alarm)


def _select(source: SourceSettings, listed: Sequence[StoredObject], own: Sequence[str]) -> tuple[list[SeenObject], int]:
    seen: list[SeenObject] = []
    n_refused = 0
    for stored in listed:
        if is_folder_marker(stored) or stored.key.startswith(tuple(own)) or stored.size_bytes < source.min_object_bytes:
            continue
        if not is_selected(stored.key, source.include, source.exclude):
            continue
        try:
            version = ObjectVersion(source.alias, stored.key, stored.etag)
        except ObjectError:
            n_refused += 1
            continue
        seen.append(SeenObject(version, stored.size_bytes, stored.modified_at.timestamp()))
    return seen, n_refused


def _finish(workspace: Workspace, alias: str) -> tuple[int, str | None]:
    """Decide what is gone: absent from a complete pass, and HEAD says so too; too much at once needs a person."""
    objects = workspace.ledger.objects
    scan, missing = objects.scan(alias), objects.missing(alias)
    alarm = None if scan.deletions_confirmed else _brake(workspace, alias, len(missing))
    gone = [known.object_id for known in missing if not _is_there(workspace, known)] if alarm is None else []
    objects.finish_pass(alias, gone, alarm)
    return len(gone), alarm


def _brake(workspace: Workspace, alias: str, n_missing: int) -> str | None:
    n_live = workspace.ledger.objects.n_live(alias)
    limit = workspace.settings.refresh.gone_brake
    is_empty = n_missing == n_live and n_live > 0
    if not is_empty and (n_missing < _BRAKE_FROM_OBJECTS or n_missing <= limit * n_live):
        return None
    return (
        f"{n_missing} of {n_live} objects of {alias!r} are missing from the listing; nothing was removed. If they were "
        f"deleted on purpose: mm deletions confirm {alias}. If not: check the source's rights and prefix."
    )


def _is_there(workspace: Workspace, known: KnownObject) -> bool:
    """Whether the version is still in the source, and still ours to show by the settings as they are now."""
    source = workspace.settings.source(known.version.alias)
    try:
        stored = workspace.sources[source.alias].head(known.version.key)
    except ObjectNotFoundError:
        return False
    seen, _ = _select(source, [stored], reserved_prefixes(source, workspace.settings))
    return [item.version for item in seen] == [known.version]
