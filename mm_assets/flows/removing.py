"""Deletion to the end: what of a version that left still lies in the lake, and taking it away.

Put here: sweeping after a refresh, and erasing by command. Keep out: noticing deletions, which is discovery's; what no
version stands for, which ``collecting_garbage`` finds.

Order: tables and indexes without the version · receipt of what is about to go · files · receipt with the outcomes ·
ledger. A kill anywhere repeats; while the ledger knows the version, nothing is forgotten. A version under work waits
for the end of its lease, one that a published file still shows for the next publish.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice

import pyarrow as pa
import pyarrow.compute as pc

from mm_assets.buckets.base import StoredObject
from mm_assets.errors import ConfigError
from mm_assets.flows import receipts
from mm_assets.flows.generations import OF_OBJECTS, tables_of
from mm_assets.flows.locking import held
from mm_assets.flows.receipts import Removal
from mm_assets.flows.refreshing import lagging
from mm_assets.flows.workspace import Workspace, reserved_prefixes
from mm_assets.lake import ARRIVALS, JUDGEMENTS
from mm_assets.ledger import KnownObject
from mm_assets.ledger.catalog import PUBLISH_LOCK
from mm_assets.ledger.removals import WorkRow
from mm_assets.spaces import SPACES, WORDS

_THREADS = 8
_VERSIONS_AT_ONCE = 500  # on one receipt: bounds memory, and what a kill repeats
_REMOVALS_AT_ONCE = 10_000  # of what arrived: the same
_SHARDS_IN_MEMORY = 16


@dataclass
class Swept:
    """What a sweep removed.

    Attributes
    ----------
    n_rows : rows that tables lost
    n_hidden : files of which the store keeps or may keep older bytes
    n_waiting : versions that left and are still to be swept
    receipts : names of the receipts
    """

    n_versions: int = 0
    n_files: int = 0
    n_rows: int = 0
    n_hidden: int = 0
    n_waiting: int = 0
    receipts: list[str] = field(default_factory=list)

    def add(self, name: str, rows: pa.Table) -> None:
        """Count a receipt."""
        if not rows.num_rows:
            return
        of_tables = pc.equal(rows["what"], receipts.TABLE_ROWS)
        self.n_rows += pc.sum(rows.filter(of_tables)["n_rows"]).as_py() or 0
        self.n_files += len(rows.filter(pc.invert(of_tables))["key"].unique())
        self.n_hidden += len(rows.filter(pc.equal(rows["outcome"], receipts.HIDDEN))["key"].unique())
        self.receipts.append(name)


def sweep(workspace: Workspace) -> Swept:
    """Remove what is left of versions that no published file shows any more; the last part of a refresh.

    Raises
    ------
    BusyError
        Another process publishes.
    """
    swept = Swept()
    with held(workspace, PUBLISH_LOCK):
        for name in receipts.open_receipts(workspace):
            _settle(workspace, name, swept)
        # A generation that lags may hold vectors of a version that the tables have lost already.
        if not set(lagging(workspace)) & set(OF_OBJECTS):
            shown = _Shown(workspace)
            _remove_arrivals(workspace, shown, swept)
            _remove_generations(workspace, swept)
            _remove_versions(workspace, shown, swept)
    swept.n_waiting = workspace.ledger.removals.n_leaving()
    return swept


def _settle(workspace: Workspace, name: str | None, swept: Swept) -> None:
    rows = receipts.settle(workspace, name) if name is not None else None
    if name is not None and rows is not None:
        swept.add(name, rows)


class _Shown:
    """Which versions the published files show; the last few shards stay in memory."""

    def __init__(self, workspace: Workspace) -> None:
        self._lake = workspace.lake
        self._files = workspace.ledger.catalog.shard_files().keys()
        self._known: OrderedDict[int, dict[str, set[str]]] = OrderedDict()

    def by_table(self, shard: int) -> dict[str, set[str]]:
        """Return table → object ids in its file of this shard."""
        if shard not in self._known:
            tables = [table for table, number in self._files if number == shard]
            with ThreadPoolExecutor(_THREADS) as pool:
                self._known[shard] = dict(
                    zip(tables, pool.map(lambda table: self._read(table, shard), tables), strict=True)
                )
        self._known.move_to_end(shard)
        while len(self._known) > _SHARDS_IN_MEMORY:
            self._known.popitem(last=False)
        return self._known[shard]

    def of_shard(self, shard: int) -> set[str]:
        """Return the object ids in any file of this shard."""
        return set().union(*self.by_table(shard).values())

    def _read(self, table: str, shard: int) -> set[str]:
        rows = self._lake.read_shard(table, shard, ["object_id"])
        return set(rows["object_id"].unique().to_pylist()) if rows is not None else set()


# -- what holds many versions ------------------------------------------------------------------------------------------


def _remove_arrivals(workspace: Workspace, shown: _Shown, swept: Swept) -> None:
    """Remove what was written on arrival and the tables hold by now, and that with rows of versions that left.

    Texts are of the table that their file names; judgements come with the vectors that they were made of.

    Rows of others that go with them come back at the next publish.
    """
    removals: list[Removal] = []
    for stored in (*workspace.lake.walk(JUDGEMENTS), *workspace.lake.walk(ARRIVALS)):
        what, name, part = stored.key.split("/")[:3]
        table = part if name == WORDS.name else SPACES[name if name in SPACES else "visual"].table
        try:
            counts = pc.value_counts(workspace.lake.read_columns(stored.key, ["object_id"])["object_id"]).to_pylist()
        except (pa.ArrowException, OSError):  # damaged: it says nothing of anybody
            workspace.lake.store.erase(stored.key)
            continue
        n_rows = {str(row["values"]): int(row["counts"]) for row in counts}
        live = workspace.ledger.removals.live(sorted(n_rows))
        left = [Removal(of, what, stored.key, n_rows[of]) for of in n_rows if of not in live]
        removals += left
        if not left and all(_is_shown(shown, known, table) for known in workspace.ledger.objects.by_ids(sorted(live))):
            workspace.lake.store.erase(stored.key)
        if len(removals) >= _REMOVALS_AT_ONCE:
            _settle(workspace, receipts.intend(workspace, removals), swept)
            removals = []
    _settle(workspace, receipts.intend(workspace, removals), swept)


def _is_shown(shown: _Shown, known: KnownObject, table: str) -> bool:
    return known.object_id in shown.by_table(known.shard).get(table, set())


def _remove_generations(workspace: Workspace, swept: Swept) -> None:
    """Remove all generations but the current ones where a version that they may hold left; else they stay for going back."""
    if not workspace.ledger.removals.hold_rows([table for name in OF_OBJECTS for table in tables_of(name)]):
        return
    removals = [Removal(None, "generation", file.key) for file in old_generation_files(workspace, OF_OBJECTS)]
    _settle(workspace, receipts.intend(workspace, removals), swept)


def old_generation_files(workspace: Workspace, names: Sequence[str]) -> Iterator[StoredObject]:
    """Yield the files of generations that neither ledger nor lake points to."""
    for name in names:
        current = receipts.current_files(workspace, [name])
        for stored in workspace.lake.walk(f"{name}/"):
            if "/" in stored.key.removeprefix(f"{name}/") and stored.key not in current:
                yield stored


# -- what belongs to one version ---------------------------------------------------------------------------------------


def _remove_versions(workspace: Workspace, shown: _Shown, swept: Swept) -> None:
    if not workspace.ledger.removals.n_leaving():
        return
    in_lake = set(workspace.lake.recipes())
    unknown = in_lake - workspace.ledger.removals.known_recipes()
    for shard, versions in groupby(workspace.ledger.removals.to_sweep(), lambda known: known.shard):
        there = shown.of_shard(shard)
        ready = (known for known in versions if known.object_id not in there)
        while part := list(islice(ready, _VERSIONS_AT_ONCE)):
            for table in shown.by_table(shard):  # hidden versions of a file may hold rows that were never on a receipt
                workspace.lake.store.erase(workspace.lake.shard_key(table, shard), keep_current=True)
            _settle(workspace, receipts.intend(workspace, _files_of(workspace, part, unknown, in_lake)), swept)
            came_back = workspace.ledger.removals.forget([known.object_id for known in part])
            swept.n_versions += len(part) - len(came_back)


def _files_of(
    workspace: Workspace, versions: Sequence[KnownObject], unknown: set[tuple[str, str]], in_lake: set[tuple[str, str]]
) -> list[Removal]:
    """Find what the lake holds of these versions.

    Parameters
    ----------
    unknown : (step, recipe) that have results and no row of work at all
    in_lake : all (step, recipe) that have results; looked through for versions that a person erased
    """
    work = workspace.ledger.removals.work_of([known.object_id for known in versions])

    def find(known: KnownObject) -> list[Removal]:
        rows, is_erased = work[known.object_id], known.state == "erased"
        found = _results_of(workspace, known.object_id, rows, in_lake if is_erased else unknown)
        if is_erased or any(row.may_be_recorded for row in rows):
            letters = workspace.lake.dead_letters(known.object_id)
            found += [Removal(known.object_id, "dead_letter", stored.key) for _, _, stored in letters]
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        return [removal for found in pool.map(find, versions) for removal in found]


def _results_of(
    workspace: Workspace, object_id: str, rows: Sequence[WorkRow], elsewhere: set[tuple[str, str]]
) -> list[Removal]:
    """List the results that the ledger knows, and those that its worker wrote without living to tell."""
    n_rows = {(row.step, row.recipe): row.n_rows for row in rows if row.n_rows is not None}
    untold = {(row.step, row.recipe) for row in rows if row.may_be_untold} | elsewhere
    found = {of for of in untold - n_rows.keys() if workspace.lake.has_result(*of, object_id)}
    keys = {of: workspace.lake.result_key(*of, object_id) for of in sorted(found | n_rows.keys())}
    return [Removal(object_id, "result", key, n_rows.get(of)) for of, key in keys.items()]


# -- by command --------------------------------------------------------------------------------------------------------


def find_named(workspace: Workspace, text: str) -> list[KnownObject]:
    """Find what answers to an object id, partition key, key or alias/key: versions of one object, the live one first.

    Raises
    ------
    ConfigError
        None is known, or several objects answer to it.
    """
    found = workspace.ledger.objects.find(text)
    if not found:
        msg = f"no object is known as {text!r}; give an object id, a key, alias/key or a partition key"
        raise ConfigError(msg)
    # "a/b" may be a key, and the key "b" of the source "a": only ids name an object whatever others are called.
    ids = {f"{known.version.alias}/{known.version.key}": known.object_id for known in reversed(found)}
    if len(ids) > 1:
        told = ", ".join(f"{object_id} for {name}" for name, object_id in sorted(ids.items()))
        msg = f"several objects answer to {text!r}; give an object id: {told}"
        raise ConfigError(msg)
    return found


def find_object(workspace: Workspace, text: str) -> list[KnownObject]:
    """Find all versions of one object, live or not; raises as ``find_named`` does."""
    version = find_named(workspace, text)[0].version
    return workspace.ledger.removals.versions_of(version.alias, version.key)


def find_below(workspace: Workspace, text: str) -> list[KnownObject]:
    """Find all versions of the objects whose raw key starts with a prefix, given as ``alias/prefix``.

    Raises
    ------
    ConfigError
        No such source is known, no slash follows it, or the prefix lies inside the lake.
    """
    alias, slash, prefix = text.partition("/")
    if not slash:
        msg = f"write {text}/ for all of source {text!r}, or {text}/PREFIX"
        raise ConfigError(msg)
    found = workspace.ledger.removals.find_below(alias, prefix)
    if found and alias not in {source.alias for source in workspace.settings.sources}:
        return found  # of a source that is no longer watched
    source = workspace.settings.source(alias)
    if any(prefix.startswith(own) for own in reserved_prefixes(source, workspace.settings)):
        msg = f"{text!r} lies inside the lake or the state, which hold results and never sources; name a source's keys"
        raise ConfigError(msg)
    return found


def erase(workspace: Workspace, versions: Sequence[KnownObject]) -> int:
    """Mark versions as erased; the next refresh removes what is left of them. Returns how many were not erased before.

    The record in the lake comes first and holds no key: a ledger that is rebuilt does not bring them back.
    """
    object_ids, now = [known.object_id for known in versions], time.time()
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda object_id: workspace.lake.write_erasure(object_id, now), object_ids))
    return workspace.ledger.removals.erase(object_ids)
