"""What Dagster is told of each object version.

Put here: materializations with row counts and version tags, observations of failures. Keep out: thumbnails and plots
(they would be stored once per object in Dagster's database), and the truth about tries, which is the ledger's.
"""

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

import dagster as dg

from mm_assets.flows.ends import StepEnd
from mm_assets.flows.processing import ObjectEnd
from mm_assets.flows.recipes import DECODING_CODE_VERSIONS, upstream
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash


class RunTotals:
    """Objects and seconds of each step in one run: its one op is one bar in Dagster's chart."""

    def __init__(self) -> None:
        self._n_done: defaultdict[str, int] = defaultdict(int)
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, end: ObjectEnd) -> None:
        """Count the ends of one object version."""
        for step_end in end.ends:
            self._n_done[step_end.step] += step_end.state == "done"
            self._seconds[step_end.step] += step_end.seconds

    def to_tags(self) -> dict[str, str]:
        """Return one run tag per step."""
        return {f"mm_assets/{step}": f"{n} done, {self._seconds[step]:.1f} s" for step, n in self._n_done.items()}


def object_events(
    workspace: Workspace, end: ObjectEnd, selected: AbstractSet[str]
) -> Iterator[dg.AssetMaterialization | dg.AssetObservation]:
    """Yield the events of one object version, for the selected assets."""
    key = end.claim.known.partition_key
    for step_end in end.ends:
        if step_end.state == "done" and step_end.step in selected:
            yield _materialization(workspace, end, step_end)
        elif step_end.error and step_end.step in selected:
            metadata = {"state": step_end.state, "reason": step_end.reason or "", "error": step_end.error}
            yield dg.AssetObservation(step_end.step, partition=key, metadata=metadata)
    for name, rows in end.judgements.items():
        if name in selected:
            generation = rows["generation"][0].as_py() if rows.num_rows else ""
            metadata = {"dagster/partition_row_count": rows.num_rows, "generation": generation}
            yield dg.AssetMaterialization(name, partition=key, metadata=metadata)


def _materialization(workspace: Workspace, end: ObjectEnd, step_end: StepEnd) -> dg.AssetMaterialization:
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/partition_row_count": dg.MetadataValue.int(step_end.n_rows or 0),
        "dagster/uri": dg.MetadataValue.text(f"{workspace.lake.uri.rstrip('/')}/{step_end.key}"),
        "recipe": dg.MetadataValue.text(end.claim.steps[step_end.step]),
        "seconds": dg.MetadataValue.float(round(step_end.seconds, 3)),
    }
    return dg.AssetMaterialization(
        step_end.step,
        partition=end.claim.known.partition_key,
        metadata=metadata,
        tags=version_tags(workspace, end.claim.known.object_id, step_end.step),
    )


def version_tags(workspace: Workspace, object_id: str, step: str) -> dict[str, str]:
    """Return all four kinds of version tags: with fewer, Dagster shows everything downstream as stale."""

    def data_version(name: str) -> str:
        return short_hash(object_id, workspace.recipes[name])

    code_version = DECODING_CODE_VERSIONS.get(step) or workspace.extractors[step].code_version
    tags = {
        "dagster/data_version": data_version(step),
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": code_version,
    }
    for need in upstream(step, workspace.extractors):
        tags[f"dagster/input_data_version/{need}"] = data_version(need)
        tags[f"dagster/input_event_pointer/{need}"] = "NULL"
    return tags
