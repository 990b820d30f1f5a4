"""What a step reads beside segments: the results of other steps of the same objects, from the lake.

Put here: which of them there are, and their rows. Keep out: the source object, which is never read again for this.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.flows import ends
from mm_assets.flows.preparing import Prepared
from mm_assets.flows.recipes import read_steps
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import WAITS_FOR_INPUT
from mm_assets.schemas import TABLES

_Results = dict[str, pa.Table]  # object_id → rows


def read_inputs(workspace: Workspace, step: str, group: Sequence[Prepared]) -> pa.Table | None:
    """Return what a step extracts from, of the objects of which all is there that it reads.

    What was skipped, given up or never asked for counts as nothing. An object of which something is not over, or is
    lost, gets its end here: it waits, and what is lost is made again.

    Returns
    -------
    None for a step that reads segments alone, and where no object is left
    """
    needs = read_steps(step, workspace.extractors)
    if not needs:
        return None
    ready = {need: _ready(workspace, step, need, group) for need in needs}
    found = {need: _read(workspace, step, need, _open(step, ready[need])) for need in needs}
    able = _open(step, group)
    if not able:
        return None
    ids = [prepared.claim.known.object_id for prepared in able]
    parts = {need: [of[object_id] for object_id in ids if object_id in of] for need, of in found.items()}
    tables = {need: pa.concat_tables(rows) for need, rows in parts.items() if rows}
    tables["segments"] = pa.concat_tables([_segments(prepared) for prepared in able])
    return workspace.extractors[step].gather(tables)


def _open(step: str, group: Sequence[Prepared]) -> list[Prepared]:
    return [prepared for prepared in group if step in prepared.open_steps]


def _ready(workspace: Workspace, step: str, need: str, group: Sequence[Prepared]) -> list[Prepared]:
    """Return the objects with a result of a step that is read; those that it is still to be made for get their end."""
    ready = []
    for prepared in _open(step, group):
        asked = need in workspace.recipes_of(prepared.claim.known.version.alias)
        state, n_rows = _state(workspace, prepared, need) if asked else ("skipped", None)
        if state == "done" and n_rows:
            ready.append(prepared)
        elif state in {"wanted", "claimed"}:
            prepared.ends.append(_waits(step, need, "is not over"))
    return ready


def _state(workspace: Workspace, prepared: Prepared, step: str) -> tuple[str, int | None]:
    """Return state and number of rows of a step, of this very claim or as the ledger has it."""
    for end in prepared.ends:
        if end.step == step:
            return end.state, end.n_rows
    for row in workspace.ledger.work.states(prepared.claim.known.object_id):
        if row["step"] == step and row["recipe"] == workspace.recipes[step]:
            n_rows: Any = row["n_rows"]
            return str(row["state"]), n_rows
    return "skipped", None


def _read(workspace: Workspace, step: str, need: str, group: Sequence[Prepared]) -> _Results:
    """Read the results of a step; an object whose result is lost or damaged waits until it is made again."""
    recipe, names = workspace.recipes[need], _columns(workspace, need)
    ids = [prepared.claim.known.object_id for prepared in group]
    tables = workspace.lake.read_results(need, [(recipe, object_id) for object_id in ids], names)
    for prepared, rows in zip(group, tables, strict=True):
        if rows is None:
            workspace.ledger.work.want_again(need, recipe, [prepared.claim.known.object_id])
            prepared.ends.append(_waits(step, need, "is not in the lake (any more), or damaged; it is made first"))
    return {object_id: rows for object_id, rows in zip(ids, tables, strict=True) if rows is not None}


def _columns(workspace: Workspace, step: str) -> list[str]:
    extractor = workspace.extractors[step]
    names: list[str] = extractor.table.published_schema(extractor.card.dim).names
    return names


def _segments(prepared: Prepared) -> pa.Table:
    """Read an object's segments without pictures and sound."""
    return pq.read_table(prepared.segments, columns=TABLES["segments"].published_schema().names)


def _waits(step: str, need: str, why: str) -> ends.StepEnd:
    return ends.interrupted(step, WAITS_FOR_INPUT, f"the result of {need} {why}")


def slices(rows: pa.Table, size: int) -> Iterator[pa.Table]:
    """Yield rows a full batch at a time."""
    for start in range(0, rows.num_rows, size):
        yield rows.slice(start, size)
