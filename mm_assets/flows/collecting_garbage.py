"""What lies in the lake and nobody wants: found by what the ledger knows, shown first, removed on request.

Put here: telling garbage from what is needed, and refusing where that cannot be told. Keep out: versions that left,
which leave with a receipt (``removing``); damage, which ``verifying`` finds.

Receipts and erasures are never garbage. Everything younger than a limit is kept: it may be about to be known.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from mm_assets.buckets.base import StoredObject
from mm_assets.errors import ConfigError
from mm_assets.flows.generations import OF_OBJECTS, TAXONOMY
from mm_assets.flows.locking import held
from mm_assets.flows.removing import old_generation_files
from mm_assets.flows.showing import is_listed, withdrawn_shards
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import ARRIVALS, DISCOVERY, JUDGEMENTS, parse_result_key
from mm_assets.ledger.catalog import PUBLISH_LOCK

_THREADS = 8
_AT_ONCE = 1_000
_UNDER_WAY_S = 7 * 86_400.0  # others write into sources, too: theirs may be under way for days


@dataclass(frozen=True, slots=True)
class Garbage:
    """One file that nobody wants."""

    kind: str
    key: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as garbage.

    Attributes
    ----------
    older_than_s : younger files are kept, seconds
    recipes : also results of recipes that are neither current nor published (going back to them would cost computing)
    generations : also builds that are not current (going back to them would be a pointer)
    """

    older_than_s: float
    recipes: bool = False
    generations: bool = False


def refuse_unless_complete(workspace: Workspace) -> None:
    """Raise ConfigError where the ledger may not know what is needed: then everything would look like garbage."""
    if not is_listed(workspace):
        msg = "the ledger is incomplete: not every source was listed to its end; run `mm ingest` (or `mm rebuild-ledger`) first"
        raise ConfigError(msg)
    if workspace.ledger.removals.is_empty() and next(workspace.lake.walk("results/"), None) is not None:
        msg = (
            "the ledger knows no object, but the lake holds results; run `mm rebuild-ledger` first, and check `sources`"
        )
        raise ConfigError(msg)


def find_garbage(workspace: Workspace, rules: Rules) -> Iterator[Garbage]:
    """Yield every file that nobody wants.

    Raises
    ------
    ConfigError
        The ledger is incomplete.
    """
    refuse_unless_complete(workspace)
    before = time.time() - rules.older_than_s
    yield from _results(workspace, rules, before)
    yield from _letters(workspace, before)
    yield from _shards(workspace, before)
    published_at = min(before, workspace.ledger.catalog.last_published_at())
    for prefix in (JUDGEMENTS, ARRIVALS):
        for stored in _older(workspace.lake.walk(prefix), published_at):
            yield Garbage(f"{prefix.rstrip('/')} of a batch, published since", stored.key, stored.size_bytes)
    for stored in _older(old_generation_files(workspace, (*OF_OBJECTS, TAXONOMY)), before) if rules.generations else ():
        yield Garbage("build that is not current", stored.key, stored.size_bytes)


def collect(workspace: Workspace, rules: Rules, on_removed: Callable[[Garbage, bool], None]) -> int:
    """Remove every file that nobody wants; returns how many unfinished uploads were aborted.

    Parameters
    ----------
    on_removed : called with each file, and whether nothing of it is left (some stores keep hidden versions)

    Raises
    ------
    ConfigError
        The ledger is incomplete.
    BusyError
        Another process publishes.
    """
    store = workspace.lake.store
    with held(workspace, PUBLISH_LOCK), ThreadPoolExecutor(_THREADS) as pool:
        garbage = find_garbage(workspace, rules)
        while part := list(islice(garbage, _AT_ONCE)):
            for found, is_erased in zip(part, pool.map(lambda item: store.erase(item.key), part), strict=True):
                on_removed(found, is_erased)
    return _abort_uploads(workspace, rules.older_than_s)


def _abort_uploads(workspace: Workspace, older_than_s: float) -> int:
    """Abort what killed writers left in the lake, and in the sources that `mm serve` writes into; returns how many."""
    taking = [workspace.sources[source.alias] for source in workspace.settings.sources if source.uploads]
    n_aborted = workspace.lake.store.abort_stale_uploads(older_than_s)
    return n_aborted + sum(store.abort_stale_uploads(max(older_than_s, _UNDER_WAY_S)) for store in taking)


def _older(files: Iterable[StoredObject], before: float) -> Iterator[StoredObject]:
    return (stored for stored in files if stored.modified_at.timestamp() < before)


def _results(workspace: Workspace, rules: Rules, before: float) -> Iterator[Garbage]:
    wanted = {*workspace.recipes.items(), *workspace.ledger.catalog.published().items()}
    files = ((of, s) for s in _older(workspace.lake.walk("results/"), before) if (of := parse_result_key(s.key)))
    while part := list(islice(files, _AT_ONCE)):
        kept = workspace.ledger.removals.kept([object_id for (_, _, object_id), _ in part])
        for (step, recipe, object_id), stored in part:
            if object_id not in kept:
                yield Garbage("result of a version that is unknown or left", stored.key, stored.size_bytes)
            elif rules.recipes and (step, recipe) not in wanted:
                yield Garbage("result of an old recipe", stored.key, stored.size_bytes)


def _letters(workspace: Workspace, before: float) -> Iterator[Garbage]:
    refused = {refusal.refusal_id for refusal in workspace.ledger.objects.refusals()}
    letters = ((of, step, s) for of, step, s in workspace.lake.dead_letters() if s.modified_at.timestamp() < before)
    while part := list(islice(letters, _AT_ONCE)):
        dead = workspace.ledger.removals.dead_steps([object_id for object_id, _, _ in part])
        for object_id, step, stored in part:
            is_wanted = object_id in refused if step == DISCOVERY else (object_id, step) in dead
            if not is_wanted:
                yield Garbage("dead letter of nothing dead", stored.key, stored.size_bytes)


def _shards(workspace: Workspace, before: float) -> Iterator[Garbage]:
    gone = {workspace.lake.shard_key(*of) for of in withdrawn_shards(workspace, workspace.lake.shard_files())}
    for stored in _older(workspace.lake.walk("tables/") if gone else (), before):
        if stored.key in gone:
            yield Garbage("withdrawn shard of a table", stored.key, stored.size_bytes)
