"""From the segments of some objects to the results of one step: batches across objects, blame on one object.

Put here: forming batches, narrowing a failure down, committing results. Keep out: the models themselves.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mm_assets.errors import ConfigError, ObjectError, Reason, ServiceError
from mm_assets.extractors.base import Extractor
from mm_assets.flows import ends
from mm_assets.flows.preparing import Prepared
from mm_assets.flows.reading import read_inputs, slices
from mm_assets.flows.recipes import provenance
from mm_assets.flows.workspace import Workspace

_PLACE = (
    "object_id",
    "bucket",
    "key",
    "etag",
    "segment_id",
    "segment_kind",
    "start_s",
    "end_s",
    "page_number",
    "frame_s",
)
# When every one of so many objects fails in a step that has never worked, the model is at fault and not the objects.
_SYSTEMIC_FROM_OBJECTS = 4


class SystemicFailure(ServiceError):  # noqa: N818  the field's term
    """A step failed for every object of a group: the run stops, no object is blamed."""


def extract_step(workspace: Workspace, step: str, group: Sequence[Prepared]) -> dict[str, pa.Table]:
    """Run one step over the objects that want it, commit each object's result and note its end.

    Returns
    -------
    object_id → rows without private columns, of the objects that are done: made now, or found in the lake

    Raises
    ------
    SystemicFailure
        Every object failed, and the step has never given a row under this recipe; a retry may help after the model or
        program is mended. Once it has, each object is judged by itself: else the last few bad ones would fail for ever.
    """
    extractor = workspace.extractors[step]
    wanted = [prepared for prepared in group if step in prepared.open_steps]
    able = [prepared for prepared in wanted if _has_kind(prepared, extractor)]
    for prepared in wanted:
        if prepared not in able:
            prepared.ends.append(ends.without_input(step, extractor.takes))
    adopted = _adopt(workspace, step, [prepared for prepared in able if prepared.is_adopted])
    started = time.monotonic()
    inputs = read_inputs(workspace, step, [prepared for prepared in able if step in prepared.open_steps])
    able = [prepared for prepared in able if step in prepared.open_steps]
    if not able:
        return adopted
    chunks = _chunks(extractor, able) if inputs is None else slices(inputs, extractor.place.batch_size)
    rows, errors = _run(extractor, chunks, workspace.recipes[step])
    if len(errors) == len(able):
        _check_systemic(workspace, step, list(errors.values()))
    seconds = (time.monotonic() - started) / len(able)
    made = {p.claim.known.object_id: _commit(workspace, step, p, rows, errors, seconds) for p in able}
    names = _shown(extractor).names
    return adopted | {object_id: table.select(names) for object_id, table in made.items() if table is not None}


def _check_systemic(workspace: Workspace, step: str, errors: Sequence[ObjectError]) -> None:
    """Raise where these errors, one for each object of a group, are the model's."""
    is_total = len(errors) >= _SYSTEMIC_FROM_OBJECTS and not any(error.is_permanent for error in errors)
    if is_total and not workspace.ledger.work.has_worked(step, workspace.recipes[step]):
        msg = f"{step} failed for all {len(errors)} objects of a group, first: {errors[0]}"
        raise SystemicFailure(msg)


def _adopt(workspace: Workspace, step: str, group: Sequence[Prepared]) -> dict[str, pa.Table]:
    """Keep results that are in the lake although the ledger does not know them; a damaged one is made again."""
    schema = _shown(workspace.extractors[step])
    wanted = [(prepared.claim.steps[step], prepared.claim.known.object_id) for prepared in group]
    found = workspace.lake.read_results(step, wanted, schema.names)
    kept: dict[str, pa.Table] = {}
    for prepared, (recipe, object_id), rows in zip(group, wanted, found, strict=True):
        if rows is not None:
            kept[object_id] = rows.cast(schema)
            key = workspace.lake.result_key(step, recipe, object_id)
            prepared.ends.append(ends.done(step, rows.num_rows, key, 0.0, is_new=False))
    return kept


def _shown(extractor: Extractor) -> pa.Schema:
    """Return the schema of a step's rows without its private columns."""
    return extractor.table.published_schema(extractor.card.dim)


def _has_kind(prepared: Prepared, extractor: Extractor) -> bool:
    if prepared.segments is None:
        return False
    kinds = pq.read_table(prepared.segments, columns=["segment_kind"]).column(0)
    return bool(set(kinds.unique().to_pylist()) & extractor.takes)


def _run(
    extractor: Extractor, chunks: Iterable[pa.Table], recipe: str
) -> tuple[dict[str, list[pa.Table]], dict[str, ObjectError]]:
    rows: dict[str, list[pa.Table]] = defaultdict(list)
    errors: dict[str, ObjectError] = {}
    extractor.load()
    for chunk in chunks:
        for part, outcome in _try(extractor, chunk, recipe, errors):
            for object_id in part:
                rows[object_id].append(outcome.filter(pc.equal(outcome.column("object_id"), object_id)))
    return rows, errors


def _chunks(extractor: Extractor, group: Sequence[Prepared]) -> Iterator[pa.Table]:
    """Yield segments of any objects, a full batch at a time, with only the columns that the extractor reads."""
    size = extractor.place.batch_size
    names = [*dict.fromkeys((*_PLACE, *extractor.columns))]
    held: list[pa.Table] = []
    for prepared in group:
        for batch in pq.ParquetFile(prepared.segments).iter_batches(batch_size=size, columns=names):
            table = pa.Table.from_batches([batch])
            held.append(table.filter(pc.is_in(table.column("segment_kind"), pa.array(sorted(extractor.takes)))))
            while sum(part.num_rows for part in held) >= size:
                whole = pa.concat_tables(held)
                yield whole.slice(0, size)
                held = [whole.slice(size)]
    rest = pa.concat_tables(held) if held else None
    if rest is not None and rest.num_rows:
        yield rest


def _try(
    extractor: Extractor, chunk: pa.Table, recipe: str, errors: dict[str, ObjectError]
) -> Iterator[tuple[list[str], pa.Table]]:
    """Extract a chunk; when it fails, each object alone, so that one bad object fails by itself."""
    object_ids = [object_id for object_id in chunk.column("object_id").unique().to_pylist() if object_id not in errors]
    chunk = chunk.filter(pc.is_in(chunk.column("object_id"), pa.array(object_ids, pa.string())))
    if not object_ids:
        return
    try:
        yield object_ids, extractor.extract(chunk, recipe)
    except (ServiceError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001  any fault of a model library is this object's until shown otherwise
        if len(object_ids) > 1:
            for object_id in object_ids:
                alone = chunk.filter(pc.equal(chunk.column("object_id"), object_id))
                yield from _try(extractor, alone, recipe, errors)
            return
        errors[object_ids[0]] = _as_object_error(error)


def _as_object_error(error: Exception) -> ObjectError:
    if isinstance(error, ObjectError):
        return error
    return ObjectError(Reason.MODEL_ERROR, f"{type(error).__name__}: {error}")


def _commit(
    workspace: Workspace,
    step: str,
    prepared: Prepared,
    rows: dict[str, list[pa.Table]],
    errors: dict[str, ObjectError],
    seconds: float,
) -> pa.Table | None:
    object_id, recipe = prepared.claim.known.object_id, prepared.claim.steps[step]
    if object_id in errors:
        prepared.ends.append(ends.failed(workspace, prepared.claim, step, errors[object_id], step))
        return None
    extractor = workspace.extractors[step]
    table = pa.concat_tables(rows[object_id]) if object_id in rows else extractor.schema.empty_table()
    described = provenance(step, recipe, workspace.settings, workspace.extractors)
    key = workspace.lake.write_result(step, recipe, object_id, table, described)
    prepared.ends.append(ends.done(step, table.num_rows, key, seconds))
    return table
