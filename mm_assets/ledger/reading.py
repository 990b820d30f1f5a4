"""Steps that read what other steps found: they are made again when that changes under the same recipe.

Put here: what an end means for the steps that read it. Keep out: which steps read which, that comes with the call.

Both happen in the transaction that writes the ends, while all rows of their objects are locked. So a step that was
given up and is replayed, a lost result that is made again, or a step that a source asked for later, all reach their
readers in the same way: by ending.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.engine import Connection, Row

from mm_assets.ledger.catalog import DOUBTED
from mm_assets.ledger.progress import FINAL_STATES, OPEN_STATES
from mm_assets.ledger.tables import INPUT_CHANGED, OBJECTS, SHARD_FILES, WAITS_FOR_INPUT, WORK
from mm_assets.ledger.versions import chunks

Reads = Mapping[str, Mapping[str, str]]  # step → (read step → recipe)
Rows = Mapping[tuple[str, str, str], Row[Any]]  # object, step, recipe → row of work
_INPUT_WAIT_S = 60.0
_ANEW: dict[str, Any] = {"state": "wanted", "reason": None, "error": None, "n_rows": None, "tries": 0, "claims": 0}
_ANEW |= {"not_before": 0.0, "batch_id": None, "owner": None, "lease_until": None}


def wait_for_inputs(changes: Sequence[dict[str, Any]], rows: Rows, reads: Reads) -> None:
    """Let ends of readers count for nothing where what they read is being made, or was made meanwhile."""
    states = {key: row.state for key, row in rows.items()}
    states |= {_key(change): change["state"] for change in changes}
    for change in changes:
        needs = reads.get(change["of_step"], {}).items()
        is_open = any(states.get((change["of_object"], *need)) in OPEN_STATES for need in needs)
        row = rows[_key(change)]
        if change["state"] in FINAL_STATES and (is_open or row.reason == INPUT_CHANGED):
            change |= {"state": "wanted", "reason": WAITS_FOR_INPUT, "error": None, "n_rows": row.n_rows}
            change["tries"] = 0
            change["wait_s"] = _INPUT_WAIT_S if is_open else 0.0


def read_again(
    connection: Connection, changes: Sequence[Mapping[str, Any]], rows: Rows, reads: Reads, recipes: Mapping[str, str]
) -> None:
    """Want readers again whose inputs ended now; the caller holds all rows of the objects.

    Their results are shown no longer, and the published files that may hold them are written anew. What a worker holds
    is marked, so that its end does not count. What a person left out stays left out.
    """
    made = {(change["of_object"], change["of_step"]) for change in changes}
    ended = {_key(change) for change in changes if _may_differ(change, rows[_key(change)])}
    for reader, needs in reads.items():
        changed = {object_id for object_id, step, recipe in ended if needs.get(step) == recipe}
        keys = [(object_id, reader, recipes.get(reader, "")) for object_id in sorted(changed)]
        found = [rows[key] for key in keys if key in rows and key[:2] not in made]
        over = [row.object_id for row in found if row.state in {"done", "dead"}]
        held = [row.object_id for row in found if row.state == "claimed"]
        _set(connection, reader, recipes.get(reader, ""), over, _ANEW | {"changed_at": time.time()})
        _set(connection, reader, recipes.get(reader, ""), held, {"reason": INPUT_CHANGED})
        _doubt_files(connection, reader, over)


def _may_differ(change: Mapping[str, Any], before: Row[Any]) -> bool:
    """Whether there may be other rows to read now; where a step gave none before, being skipped changes nothing."""
    return change["state"] in {"done", "dead"} or (change["state"] == "skipped" and bool(before.n_rows))


def _set(connection: Connection, step: str, recipe: str, object_ids: Iterable[str], values: Mapping[str, Any]) -> None:
    for part in chunks(list(object_ids)):
        rows = and_(WORK.c.object_id.in_(part), WORK.c.step == step, WORK.c.recipe == recipe)
        connection.execute(update(WORK).where(rows).values(**values))


def _doubt_files(connection: Connection, table: str, object_ids: Sequence[str]) -> None:
    """Let the next publish read all results of these objects' shards again: the same number of rows may be others."""
    for part in chunks(list(object_ids)):
        shards = select(OBJECTS.c.shard).where(OBJECTS.c.object_id.in_(part))
        files: ColumnElement[bool] = and_(SHARD_FILES.c.name == table, SHARD_FILES.c.shard.in_(shards))
        in_order = select(SHARD_FILES.c.shard).where(files).order_by(SHARD_FILES.c.shard).with_for_update()
        connection.execute(in_order).all()  # so that two workers do not wait for each other
        connection.execute(update(SHARD_FILES).where(files).values(fingerprint=DOUBTED))


def _key(change: Mapping[str, Any]) -> tuple[str, str, str]:
    return change["of_object"], change["of_step"], change["of_recipe"]
