"""Runs flows in their order without Dagster, for tests of the flows themselves.

Put here: discover, process, refresh as one call each. Keep out: assertions.
"""

from collections.abc import Sequence

from mm_assets.flows import publishing, refreshing, removing
from mm_assets.flows.discovery import Discovery, discover
from mm_assets.flows.planning import free_lost_work, plan_batches
from mm_assets.flows.processing import ObjectEnd, process_batch
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Batch
from mm_assets.spaces import SPACES


def plan(workspace: Workspace) -> list[Batch]:
    """Plan all wanted work."""
    free_lost_work(workspace)
    return [batch for batches in plan_batches(workspace).values() for batch in batches]


def process(workspace: Workspace) -> list[ObjectEnd]:
    """Process all wanted work, and then what reads its results; what failed meanwhile is not tried again."""
    ends = [end for batch in plan(workspace) for end in process_batch(workspace, batch.batch_id)]
    for batch in plan(workspace):
        if set(batch.steps) <= workspace.reads().keys():
            ends += process_batch(workspace, batch.batch_id)
        else:
            workspace.ledger.work.release_batches([batch.batch_id])
    return ends


def refresh(workspace: Workspace) -> None:
    """Publish and rebuild everything, as refresh_job does."""
    publishing.publish_steps(workspace)
    for space in SPACES.values():
        if space.table in workspace.recipes:
            refreshing.build_vector_index(workspace, space)
    refreshing.build_text_index(workspace)
    refreshing.build_cluster_model(workspace)
    refreshing.build_anomaly_baseline(workspace)
    refreshing.freeze_taxonomy(workspace)
    publishing.publish_judgements(workspace)
    removing.sweep(workspace)


def ingest(workspace: Workspace, alias: str = "source") -> Discovery:
    """Discover, process, refresh."""
    found = discover(workspace, alias)
    process(workspace)
    refresh(workspace)
    return found


def column(workspace: Workspace, table: str, name: str = "key") -> Sequence[object]:
    """Return a column of a published table."""
    rows = workspace.lake.read_table(table, [name])
    assert rows is not None
    values: list[object] = rows[name].to_pylist()
    return values
