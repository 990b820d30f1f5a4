"""An empty ledger filled again from lake and sources; nothing is computed anew.

Put here: what of the lake says which row. Keep out: computing; whatever no file remembers, the next listing and the
next ingest find out.

The published ``step_states`` say how each version's steps ended, in the order of their places; ``raw_objects`` their
sizes; result files and dead letters what came after the last publish. It goes shard by shard, and a rebuild that was
killed is begun again: what is there stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

import pyarrow as pa

from mm_assets.errors import ConfigError, MmAssetsError
from mm_assets.flows.discovery import discover
from mm_assets.flows.generations import OF_OBJECTS, TAXONOMY
from mm_assets.flows.locking import held
from mm_assets.flows.selecting import Selection
from mm_assets.flows.showing import STATES, shown_recipes
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import ObjectVersion
from mm_assets.lake import DISCOVERY, parse_result_key
from mm_assets.ledger import LedgerUnavailableError, SeenObject, ShardFile
from mm_assets.ledger.catalog import PUBLISH_LOCK
from mm_assets.ledger.restoring import UNKNOWN_SIZE, RestoredVersion, RestoredWork

_THREADS = 8
_AT_ONCE = 500


@dataclass
class Rebuilt:
    """What was written, or would be.

    Attributes
    ----------
    n_adopted : results that are newer than the last publish
    n_dead : dead letters with their tries
    alarms : source → what is wrong with its listing
    """

    n_versions: int = 0
    n_ends: int = 0
    n_files: int = 0
    n_generations: int = 0
    n_erasures: int = 0
    n_adopted: int = 0
    n_dead: int = 0
    n_listed: int = 0
    alarms: dict[str, str] = field(default_factory=dict)


def preview(workspace: Workspace) -> Rebuilt:
    """Count what a rebuild would find in the lake; reads footers and listings.

    Raises
    ------
    ConfigError
        The ledger is not empty.
    """
    refuse_unless_empty(workspace)
    files = workspace.lake.shard_files()
    states = [_describe(workspace, STATES, shard) for table, shard in files if table == STATES]
    raws = [_describe(workspace, "raw_objects", shard) for table, shard in files if table == "raw_objects"]
    return Rebuilt(
        n_versions=sum(found[1] for found in raws if found),
        n_ends=sum(found[1] for found in states if found),
        n_files=len(files),
        n_generations=sum(workspace.lake.current_generation(name) is not None for name in (*OF_OBJECTS, TAXONOMY)),
        n_erasures=sum(1 for _ in workspace.lake.erasures()),
        n_dead=sum(step != DISCOVERY for _, step, _ in workspace.lake.dead_letters()),
    )


def refuse_unless_empty(workspace: Workspace) -> None:
    """Raise ConfigError where the ledger remembers anything."""
    ledger = workspace.unbound_ledger
    if not ledger.restoring.is_empty():
        msg = (
            f"the ledger at {ledger.shown_url} is not empty, and a rebuild only fills an empty one; "
            "move the file away, or name an empty database in `ledger_url`"
        )
        raise ConfigError(msg)


def rebuild(workspace: Workspace, on_progress: Callable[[str], None] = lambda _: None) -> Rebuilt:
    """Fill the ledger from the lake, then list the sources.

    Raises
    ------
    ConfigError
        The ledger is not empty.
    BusyError
        Another process publishes.
    """
    done = Rebuilt()
    workspace.bind(to_rebuild=True)
    with held(workspace, PUBLISH_LOCK):
        refuse_unless_empty(workspace)
        workspace.ledger.restoring.begin()
        on_progress("what was erased")
        erased = list(workspace.lake.erasures())
        workspace.ledger.restoring.add_erased(erased)
        done.n_erasures = len(erased)
        workspace.ledger.catalog.publish(workspace.lake.published())
        _restore_shards(workspace, done, on_progress)
        _restore_pointers(workspace, done)
        on_progress("the listing of the sources")
        _list_sources(workspace, done)
        _restore_newer(workspace, done, on_progress)
        workspace.ledger.restoring.end()
    return done


# -- what was published ------------------------------------------------------------------------------------------------


def _restore_shards(workspace: Workspace, done: Rebuilt, on_progress: Callable[[str], None]) -> None:
    for shard in workspace.lake.shards(STATES):
        on_progress(f"shard {shard}")
        states = workspace.lake.read_shard(STATES, shard)
        if states is not None and states.num_rows:
            versions, work = _read_shard(workspace, shard, states)
            done.n_versions += workspace.ledger.restoring.add_versions(versions, work)
            done.n_ends += len(work)


def _read_shard(workspace: Workspace, shard: int, states: pa.Table) -> tuple[list[RestoredVersion], list[RestoredWork]]:
    """Read the versions of a shard, their places by the order in the file, and how their steps ended."""
    facts = _facts(workspace, shard)
    rows = states.to_pylist()
    identities = {row["object_id"]: row for row in rows}  # the first of each counts for the order
    versions = []
    for number, (object_id, row) in enumerate(identities.items()):
        known = facts.get(object_id, {})
        version = ObjectVersion(row["bucket"], row["key"], row["etag"], known.get("version_id") or "")
        size = known.get("size_bytes", UNKNOWN_SIZE)
        at = known["modified_at"].timestamp() if known else 0.0
        place = shard * workspace.settings.refresh.shard_objects + number
        versions.append(RestoredVersion(version, size, at, place, shard))
    kept = {item.version.object_id for item in versions}
    return versions, [_to_work(row) for row in rows if row["object_id"] in kept]


def _facts(workspace: Workspace, shard: int) -> dict[str, dict[str, Any]]:
    rows = workspace.lake.read_shard("raw_objects", shard, ["object_id", "version_id", "size_bytes", "modified_at"])
    return {row["object_id"]: row for row in rows.to_pylist()} if rows is not None else {}


def _to_work(row: Mapping[str, Any]) -> RestoredWork:
    state = "wanted" if row["state"] == "pending" else row["state"]
    reason, error = (None, None) if state == "wanted" else (row["reason"], row["error"])
    return RestoredWork(row["object_id"], row["step"], row["recipe"], state, reason, error, row["n_rows"])


def _describe(workspace: Workspace, table: str, shard: int) -> tuple[str, int] | None:
    """Return fingerprint and rows of a published file; None for a damaged one, which the next publish writes again."""
    try:
        return workspace.lake.describe_shard(table, shard)
    except (pa.ArrowException, OSError):  # failures of the store are our own errors
        return None


def _restore_pointers(workspace: Workspace, done: Rebuilt) -> None:
    for table, shard in sorted(workspace.lake.shard_files()):
        found = _describe(workspace, table, shard)
        if found is not None:
            workspace.ledger.catalog.set_shard_file(ShardFile(table, shard, *found))
            done.n_files += 1
    for name in (*OF_OBJECTS, TAXONOMY):
        manifest = workspace.lake.current_generation(name)
        if manifest is not None:
            workspace.ledger.catalog.set_generation(name, manifest)
            done.n_generations += 1


# -- what is in the sources --------------------------------------------------------------------------------------------


def _list_sources(workspace: Workspace, done: Rebuilt) -> None:
    """List each source; one that does not answer is told, and the next ingest lists it."""
    for source in workspace.settings.sources:
        try:
            _set_sizes(workspace, source.alias)
            found = discover(workspace, source.alias)
        except LedgerUnavailableError:
            raise
        except MmAssetsError as error:
            done.alarms[source.alias] = f"{error}; once it answers, the next `mm ingest` goes on with it"
            continue
        done.n_listed += found.n_listed
        if found.alarm or not found.is_complete:
            done.alarms[source.alias] = (
                found.alarm or "its listing is not complete; the next `mm ingest` goes on with it"
            )


def _set_sizes(workspace: Workspace, alias: str) -> None:
    """Look up the sizes that the lake does not tell."""
    if alias in workspace.ledger.restoring.unsized():
        listed = selected(workspace, alias)
        while part := list(islice(listed, _AT_ONCE)):
            workspace.ledger.restoring.set_sizes(part)


def selected(workspace: Workspace, alias: str) -> Iterator[SeenObject]:
    """Yield the objects of a source that are ours to process, in the order of the keys' UTF-8 bytes; writes nothing."""
    selection, after = Selection.of(workspace, alias), ""
    more: str | None = after
    while more is not None:
        page = workspace.sources[alias].list_page(after=selection.beyond_own(more))
        yield from selection.pick(page.objects).seen
        more = page.next_after


# -- what is newer than the last publish -------------------------------------------------------------------------------


def _restore_newer(workspace: Workspace, done: Rebuilt, on_progress: Callable[[str], None]) -> None:
    recipes = {*workspace.recipes.items(), *shown_recipes(workspace).items()}
    for step, recipe in sorted(recipes):
        on_progress(f"results of {step}")
        found = (parse_result_key(stored.key) for stored in workspace.lake.walk(f"results/{step}/{recipe}/"))
        results = (result[2] for result in found if result is not None)
        while part := list(islice(results, _AT_ONCE)):
            done.n_adopted += _adopt(workspace, step, recipe, part)
    on_progress("dead letters")
    letters = ((object_id, step) for object_id, step, _ in workspace.lake.dead_letters() if step != DISCOVERY)
    while part_of_letters := list(islice(letters, _AT_ONCE)):
        done.n_dead += _bury(workspace, part_of_letters, recipes)


def _adopt(workspace: Workspace, step: str, recipe: str, object_ids: list[str]) -> int:
    """Count the rows of results that no published file knows of, and call them done."""
    newer = workspace.ledger.restoring.without_end(step, recipe, object_ids)
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(lambda object_id: workspace.lake.n_result_rows(step, recipe, object_id), newer))
    pairs = zip(newer, counts, strict=True)
    return workspace.ledger.restoring.set_ends(
        [RestoredWork(object_id, step, recipe, "done", n_rows=n) for object_id, n in pairs if n is not None]
    )


def _bury(workspace: Workspace, letters: list[tuple[str, str]], recipes: set[tuple[str, str]]) -> int:
    live = workspace.ledger.removals.live([object_id for object_id, _ in letters])
    wanted = [letter for letter in letters if letter[0] in live]
    with ThreadPoolExecutor(_THREADS) as pool:
        records = list(pool.map(lambda letter: workspace.lake.read_dead_letter(*letter), wanted))
    ends = [
        _to_end(record) for record in records if record is not None and (record["step"], record["recipe"]) in recipes
    ]
    return workspace.ledger.restoring.set_ends(ends)


def _to_end(record: Mapping[str, Any]) -> RestoredWork:
    return RestoredWork(
        record["object_id"],
        record["step"],
        record["recipe"],
        "dead",
        record["reason"],
        record["error"],
        tries=int(record["tries"]),
        claims=int(record.get("claims", 0)),
        replays=int(record.get("replays", 0)),
        changed_at=datetime.fromisoformat(record["died_at"]).timestamp(),
    )
