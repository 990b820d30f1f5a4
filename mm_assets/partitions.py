"""Dagster's view of identity: one dynamic partition per object version, ``alias/key/etag``.

Put here: the partitions definition, and which keys Dagster holds. Keep out: the codec, which is ``identity``'s.

Dagster's pages slow down beyond some hundred thousand keys, so it holds the working set: finished keys leave it once
there are more than the settings allow. The ledger is the catalogue; adding a key again brings its history back.
"""

from collections.abc import Sequence

import dagster as dg

from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject

OBJECTS = dg.DynamicPartitionsDefinition(name="objects")
_ADD_CHUNK = 10_000  # one statement of SQLite holds no more
_RETIRE_AT_ONCE = 500  # each costs 10-30 ms, and a sensor's time is short


def hold_keys(instance: dg.DagsterInstance, workspace: Workspace, objects: Sequence[KnownObject]) -> None:
    """Add the keys of these versions; known ones stay as they are."""
    keys = [known.partition_key for known in objects]
    for start in range(0, len(keys), _ADD_CHUNK):
        instance.add_dynamic_partitions(str(OBJECTS.name), keys[start : start + _ADD_CHUNK])
    workspace.ledger.objects.set_in_dagster([known.object_id for known in objects], held=True)


def retire_keys(instance: dg.DagsterInstance, workspace: Workspace) -> int:
    """Remove finished keys beyond the allowed number, some at a time; returns how many."""
    book = workspace.ledger.objects
    surplus = book.n_in_dagster() - workspace.settings.runs.max_live_partitions
    finished = book.retirable(min(surplus, _RETIRE_AT_ONCE), workspace.recipes.values()) if surplus > 0 else []
    for known in finished:
        instance.delete_dynamic_partition(str(OBJECTS.name), known.partition_key)
    book.set_in_dagster([known.object_id for known in finished], held=False)
    return len(finished)
