"""Receipts: what of the versions that left was removed from the lake, file by file, and of tables how many rows.

Put here: writing them, and removing what they name. Keep out: deciding what goes.

A receipt is written twice: into ``receipts/open`` before anything is touched, into ``receipts`` with each outcome once
all is removed. So what a kill interrupts is finished from its own receipt, and none is ever incomplete. It is named by
its content, so that repeating writes the same one. No key of a source stands in it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.flows.generations import OF_OBJECTS
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.lake import to_parquet

ERASED = "erased"
HIDDEN = "hidden, not erased"  # the store keeps or may keep old bytes that a listing does not show
TABLE_ROWS = "table_rows"
SCHEMA = pa.schema(
    [
        ("object_id", pa.string()),  # null for files of many versions
        ("what", pa.string()),  # result | dead_letter | table_rows | judgements | arrivals | generation
        ("key", pa.string()),  # of the file in the lake
        ("n_rows", pa.int64()),
        ("outcome", pa.string()),
    ]
)
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing to be removed; of ``table_rows`` the file stays, and its older versions go."""

    object_id: str | None
    what: str
    key: str
    n_rows: int | None = None


def intend(workspace: Workspace, removals: Sequence[Removal]) -> str | None:
    """Write down what is about to be removed; returns the receipt's name, None where there is nothing."""
    if not removals:
        return None
    rows = [
        asdict(removal) | {"outcome": None} for removal in sorted(removals, key=lambda r: (r.key, str(r.object_id)))
    ]
    name = short_hash(*(str(value) for row in rows for value in row.values()))
    workspace.lake.store.put(_open_key(name), _encode(pa.Table.from_pylist(rows, SCHEMA)))
    return name


def intend_rows(workspace: Workspace, table: str, shard: int, kept: pa.ChunkedArray) -> None:
    """Write down which rows of versions that left a shard's file is about to lose.

    Parameters
    ----------
    kept : object_id of the rows that the new file has
    """
    old = workspace.lake.read_shard(table, shard, ["object_id"])
    if old is None:
        return
    going = old.filter(pc.invert(pc.is_in(old["object_id"], kept.combine_chunks())))["object_id"]
    counts = {str(row["values"]): int(row["counts"]) for row in pc.value_counts(going).to_pylist()}
    left = counts.keys() - workspace.ledger.removals.live(sorted(counts))
    key = workspace.lake.shard_key(table, shard)
    intend(workspace, [Removal(object_id, TABLE_ROWS, key, counts[object_id]) for object_id in left])


def open_receipts(workspace: Workspace) -> Iterator[str]:
    """Yield the names of receipts whose removals may not be over."""
    for stored in workspace.lake.walk("receipts/open/"):
        yield stored.key.removeprefix("receipts/open/").removesuffix(".parquet")


def names(workspace: Workspace) -> set[str]:
    """Return the names of all complete receipts."""
    found = (stored.key.removeprefix("receipts/") for stored in workspace.lake.walk("receipts/"))
    return {name.removesuffix(".parquet") for name in found if "/" not in name}


def read(workspace: Workspace, name: str) -> pa.Table:
    """Read a complete receipt."""
    return workspace.lake.read_columns(_key(name))


def settle(workspace: Workspace, name: str) -> pa.Table | None:
    """Remove what an open receipt names, and complete it; returns it.

    Of versions that came back meanwhile nothing is removed, nor of builds that are current again: what they are made of
    names them, so that an older one can come back. None: a file still shows rows that are to leave it, since
    its publish was killed; the receipt stays open until the next one.
    """
    rows = workspace.lake.read_columns(_open_key(name))
    live = workspace.ledger.removals.live(
        [object_id for object_id in rows["object_id"].unique().to_pylist() if object_id]
    )
    rows = rows.filter(pc.invert(pc.is_in(rows["object_id"], pa.array(sorted(live), pa.string()))))
    current = pa.array(sorted(current_files(workspace, OF_OBJECTS)), pa.string())
    rows = rows.filter(pc.invert(pc.is_in(rows["key"], current)))
    if _still_shown(workspace, rows):
        return None
    targets = sorted(set(zip(rows["key"].to_pylist(), rows["what"].to_pylist(), strict=True)))
    with ThreadPoolExecutor(_THREADS) as pool:
        erased = dict(zip(targets, pool.map(lambda target: _remove(workspace, *target), targets), strict=True))
    outcomes = [ERASED if erased[row["key"], row["what"]] else HIDDEN for row in rows.to_pylist()]
    done = rows.set_column(rows.schema.get_field_index("outcome"), "outcome", pa.array(outcomes, pa.string()))
    if done.num_rows:
        workspace.lake.store.put(_key(name), _encode(done))
    workspace.lake.store.erase(_open_key(name))
    return done


def current_files(workspace: Workspace, names: Sequence[str]) -> set[str]:
    """Return the keys of the files of the generations that ledger or lake point to."""
    found: set[str] = set()
    for name in names:
        for manifest in (workspace.ledger.catalog.generation(name), workspace.lake.current_generation(name)):
            if manifest is not None:
                found.update(workspace.lake.generation_keys(manifest))
    return found


def _still_shown(workspace: Workspace, rows: pa.Table) -> bool:
    of_tables = rows.filter(pc.equal(rows["what"], TABLE_ROWS))
    for key in of_tables["key"].unique().to_pylist():
        leaving = of_tables.filter(pc.equal(of_tables["key"], key))["object_id"].combine_chunks()
        with suppress(ObjectNotFoundError, pa.ArrowException, OSError):  # missing or damaged, it shows nothing
            shown = workspace.lake.read_columns(key, ["object_id"])["object_id"]
            if pc.any(pc.is_in(shown, leaving)).as_py():
                return True
    return False


def _remove(workspace: Workspace, key: str, what: str) -> bool:
    """Return whether nothing of it is left, as far as the store knows."""
    return workspace.lake.store.erase(key, keep_current=what == TABLE_ROWS)


def _key(name: str) -> str:
    return f"receipts/{name}.parquet"


def _open_key(name: str) -> str:
    return f"receipts/open/{name}.parquet"


def _encode(rows: pa.Table) -> bytes:
    return to_parquet(rows, {"table": "receipts"}, rows_per_group=65_536)
