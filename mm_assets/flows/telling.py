"""All that is known of one object: what the ledger says, and what the tables hold.

Put here: putting the story together as plain values. Keep out: finding the object, printing and HTTP.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject
from mm_assets.retrieval import NothingPublishedError, open_tables

if TYPE_CHECKING:
    import duckdb

# Table → the columns that say what was found; place and ids come with each.
FOUND = {
    "detected_objects": ("label", "confidence"),
    "faces": ("face_id", "confidence"),
    "ocr_text": ("text", "confidence"),
    "transcripts": ("text", "confidence"),
    "media_quality": ("is_blurred", "is_dark", "is_blank", "is_silent", "is_frozen"),
    "tags": ("tag", "similarity"),
    "cluster_assignments": ("cluster_id", "confidence"),
    "anomaly_scores": ("anomaly_score", "is_anomaly"),
}


def read_story(workspace: Workspace, known: KnownObject) -> dict[str, Any]:
    """Return all that ledger and tables say of an object, as plain values."""
    version = known.version
    return {
        "object": {
            "object_id": known.object_id,
            "bucket": version.alias,
            "key": version.key,
            "etag": version.etag,
            "version_id": version.version_id,
            "partition_key": known.partition_key,
            "size_bytes": known.size_bytes,
            "state": known.state,
            "shard": known.shard,
        },
        "steps": [_step(workspace, row) for row in workspace.ledger.work.states(known.object_id)],
        **_published(workspace, known.object_id),
    }


def _step(workspace: Workspace, row: dict[str, Any]) -> dict[str, Any]:
    names = ("step", "recipe", "state", "reason", "error", "n_rows", "tries", "claims")
    return {name: row[name] for name in names} | {"is_current": workspace.recipes.get(row["step"]) == row["recipe"]}


def _published(workspace: Workspace, object_id: str) -> dict[str, Any]:
    """Return what the tables hold; empty while nothing is published."""
    try:
        connection = open_tables(workspace.lake, workspace.settings.cache)
    except NothingPublishedError:
        return {"is_published": False, "segments": [], "found": {}}
    with connection:
        views = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
        query = "SELECT count(*) FROM raw_objects WHERE object_id = ?"
        [(n,)] = connection.execute(query, [object_id]).fetchall() if "raw_objects" in views else [(0,)]
        segments = _rows(connection, "segments", ("segment_id", "segment_kind", "frame_s"), object_id)
        found = {
            table: rows
            for table, columns in FOUND.items()
            if table in views and (rows := _rows(connection, table, columns, object_id))
        }
    return {"is_published": n > 0, "segments": segments, "found": found}


def _rows(
    connection: "duckdb.DuckDBPyConnection", table: str, columns: Sequence[str], object_id: str
) -> list[dict[str, Any]]:
    names = ["start_s", "end_s", "page_number", *columns]
    query = f"SELECT {', '.join(names)} FROM {table} WHERE object_id = ? ORDER BY page_number, start_s, segment_id"  # noqa: S608  constants
    return [dict(zip(names, row, strict=True)) for row in connection.execute(query, [object_id]).fetchall()]
