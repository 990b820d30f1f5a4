"""The asset of what was removed: the last part of a refresh.

Put here: its declaration and metadata for Dagster's pages. Keep out: the removing, which is ``flows``'.
"""

import dagster as dg

from mm_assets.assets.collection import OWNERS, judgement_tables
from mm_assets.flows.removing import Swept, sweep
from mm_assets.resources.workspace import WorkspaceResource


@dg.asset(
    description="Receipts of what was removed of object versions that left: results, rows, vectors, dead letters.",
    group_name="reports",
    kinds={"parquet"},
    owners=OWNERS,
    deps=[judgement_tables],
    pool="publish",
)
def removals(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One row per version and file removed; made from the ledger after tables and builds are without it."""
    with workspace.open(check=False) as opened:
        swept = sweep(opened)
        uri = f"{opened.lake.uri.rstrip('/')}/receipts/"
    return dg.MaterializeResult(metadata=_metadata(swept, uri))


def _metadata(swept: Swept, uri: str) -> dict[str, dg.MetadataValue]:
    return {
        "dagster/uri": dg.MetadataValue.text(uri),
        "versions_swept": dg.MetadataValue.int(swept.n_versions),
        "files_removed": dg.MetadataValue.int(swept.n_files),
        "rows_removed": dg.MetadataValue.int(swept.n_rows),
        "hidden_not_erased": dg.MetadataValue.int(swept.n_hidden),
        "versions_waiting": dg.MetadataValue.int(swept.n_waiting),
        "receipts": dg.MetadataValue.int(len(swept.receipts)),
    }
