"""The assets of the whole collection: tables, indexes, cluster model, baseline, taxonomy, report.

Put here: declarations and metadata for Dagster's pages. Keep out: the building, which is ``flows``'. They are
refreshed together by ``refresh_job`` and never in one job with per-object assets: without an Output of those, whatever
lies downstream in the same run would be skipped and the run still be green.
"""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from mm_assets.extractors.registry import known_steps
from mm_assets.flows import publishing, refreshing, reporting
from mm_assets.flows.recipes import DECODING_STEPS
from mm_assets.flows.workspace import Workspace
from mm_assets.resources.workspace import WorkspaceResource
from mm_assets.spaces import SPACES

OWNERS = ["team:mm-assets"]
_FEATURES = [*DECODING_STEPS, *known_steps()]
# Each event costs 4-9 ms in Dagster's storage; the tables hold the judgements of all objects in any case.
_SHOWN_OBJECTS = 2_000


@dg.asset(
    description="The tables that analysts read, a shard at a time: only shards whose results changed are written again.",
    group_name="tables",
    kinds={"parquet"},
    owners=OWNERS,
    deps=_FEATURES,
    pool="publish",
)
def tables(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Publish what the steps found; key: table and shard; refreshed by schedule and by amount of change."""
    with workspace.open(check=False) as opened:
        published = publishing.publish_steps(opened)
        uri = f"{opened.lake.uri.rstrip('/')}/tables/"
    return dg.MaterializeResult(metadata=_published_metadata(published, uri))


def _published_metadata(published: publishing.Published, uri: str) -> dict[str, Any]:
    return {
        "dagster/row_count": sum(published.n_rows.values()),
        "dagster/uri": uri,
        "rows": dg.MetadataValue.json(dict(sorted(published.n_rows.items()))),
        "files_written": published.n_written,
        "files_removed": published.n_removed,
        "results_missing": published.n_missing,
    }


def _first_judged(opened: Workspace, published: publishing.Published) -> Iterator[dg.AssetMaterialization]:
    """Yield the events of objects judged for the first time: on arrival there was nothing yet to judge them against."""
    for name, object_ids in published.new_objects.items():
        for known in opened.ledger.objects.by_ids(object_ids[:_SHOWN_OBJECTS]):
            yield dg.AssetMaterialization(name, partition=known.partition_key, metadata={"first_refresh": True})


def _build(
    workspace: WorkspaceResource, step: str, build: Callable[[Workspace], refreshing.Built]
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Build a generation from a step's table; where no source asks for the step, there is nothing to build."""
    with workspace.open(check=False) as opened:
        if step not in opened.recipes:
            return dg.MaterializeResult(metadata={"nothing_built": f"no source asks for {step}"})
        built = build(opened)
    facts = {key: value for key, value in built.manifest.items() if isinstance(value, int | float | str)}
    metadata = {"dagster/row_count": int(built.manifest["n_rows"]), "is_new": built.is_new, **facts}
    return dg.MaterializeResult(metadata=metadata)


def _build_index_asset(space: str) -> dg.AssetsDefinition:
    @dg.asset(
        key=["vector_index", space],
        description=f"FAISS index of the {space} space, with its own measured recall; an immutable generation.",
        group_name="indexes",
        kinds={"faiss"},
        owners=OWNERS,
        deps=[tables],
        pool="publish",
    )
    def vector_index(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return _build(
            workspace, SPACES[space].table, lambda opened: refreshing.build_vector_index(opened, SPACES[space])
        )

    return vector_index


VECTOR_INDEXES = [_build_index_asset(space) for space in SPACES]


@dg.asset(
    description="Full-text index over what is said and shown, by tantivy; an immutable generation.",
    group_name="indexes",
    kinds={"tantivy"},
    owners=OWNERS,
    deps=[tables],
    pool="publish",
)
def text_index(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One text per utterance, per image with words on it, and per page's text layer; refreshed with the tables."""
    return _build(workspace, "segments", refreshing.build_text_index)


@dg.asset(
    description="HDBSCAN clusters of the visual space on a FAISS graph of neighbours, frozen; an immutable generation.",
    group_name="clusters",
    kinds={"hdbscan", "faiss"},
    owners=OWNERS,
    deps=[tables],
    pool="publish",
)
def cluster_model(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One model for the visual space; made from visual_embeddings; refreshed with the tables."""
    return _build(workspace, SPACES["visual"].table, refreshing.build_cluster_model)


@dg.asset(
    description="Distances in the visual space against which new objects are scored, frozen; an immutable generation.",
    group_name="anomalies",
    kinds={"faiss"},
    owners=OWNERS,
    deps=[tables],
    pool="publish",
)
def anomaly_baseline(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One baseline for the visual space; made from visual_embeddings; refreshed with the tables."""
    return _build(workspace, SPACES["visual"].table, refreshing.build_anomaly_baseline)


@dg.asset(
    description="The taxonomy's prompts as vectors; edit the file and refresh to tag anew, without any model run on the media.",
    group_name="tags",
    kinds={"yaml"},
    owners=OWNERS,
    deps=[],
    pool="publish",
)
def taxonomy(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One row per tag; made from the taxonomy file and the text side of the visual model."""
    return _build(workspace, SPACES["visual"].table, refreshing.freeze_taxonomy)


@dg.asset(
    description="Tags, cluster assignments, anomaly scores and index membership of every live vector, derived shard by shard.",
    group_name="tables",
    kinds={"parquet"},
    owners=OWNERS,
    deps=[tables, *VECTOR_INDEXES, cluster_model, anomaly_baseline, taxonomy],
    pool="publish",
)
def judgement_tables(context: dg.AssetExecutionContext, workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Publish the judgements; key: table and shard; refreshed with the generations they are made against."""
    with workspace.open(check=False) as opened:
        published = publishing.publish_judgements(opened)
        for event in _first_judged(opened, published):
            context.log_event(event)
        uri = f"{opened.lake.uri.rstrip('/')}/tables/"
    return dg.MaterializeResult(metadata=_published_metadata(published, uri))


@dg.asset(
    description="What there is, what is done, what failed and why.",
    group_name="reports",
    kinds={"parquet"},
    owners=OWNERS,
    deps=[judgement_tables],
)
def scan_report(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One row per source, step, state and reason; refreshed with the tables."""
    with workspace.open(check=False) as opened:
        report = reporting.write_scan_report(opened)
    lines = [
        f"| {r['bucket'] or r['step']} | {r['state']} | {r['reason'] or ''} | {r['n_objects']} |"
        for r in report["rows"]
    ]
    table = "\n".join(["| source or step | state | reason | objects |", "|---|---|---|---|", *lines])
    return dg.MaterializeResult(metadata={"report": dg.MetadataValue.md(table), "key": report["key"]})


COLLECTION = [
    tables,
    *VECTOR_INDEXES,
    text_index,
    cluster_model,
    anomaly_baseline,
    taxonomy,
    judgement_tables,
    scan_report,
]
COLLECTION_KEYS = [key.to_user_string() for asset in COLLECTION for key in asset.keys]
