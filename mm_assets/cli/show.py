"""``mm show``: all that is known of one object.

Put here: finding the object and telling its story. Keep out: changing anything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import place, print_json, print_pairs, print_table, printable
from mm_assets.errors import ConfigError

if TYPE_CHECKING:
    import duckdb

    from mm_assets.flows.workspace import Workspace
    from mm_assets.ledger import KnownObject

_FIRST_ROWS = 5
# Table → the columns that say what was found; place and ids come with each.
_FOUND = {
    "detected_objects": ("label", "confidence"),
    "faces": ("face_id", "confidence"),
    "ocr_text": ("text", "confidence"),
    "transcripts": ("text", "confidence"),
    "media_quality": ("is_blurred", "is_dark", "is_blank", "is_silent", "is_frozen"),
    "tags": ("tag", "similarity"),
    "cluster_assignments": ("cluster_id", "confidence"),
    "anomaly_scores": ("anomaly_score", "is_anomaly"),
}


@examples("mm show films/garden.mp4", "mm show 0f3a…c2 --json | jq .steps")
@click.command()
@click.argument("text", metavar="OBJECT")
@json_option
@config_option
def show(text: str, *, as_json: bool, config: Path | None) -> None:
    """Show all that is known of one OBJECT.

    OBJECT is an object id, a key, alias/key, or a partition key of Dagster.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.removing import find_named

    with open_books(config) as workspace:
        story = read_story(workspace, find_named(workspace, text)[0])
    if as_json:
        print_json(story)
    else:
        _print_story(story)


def read_story(workspace: "Workspace", known: "KnownObject") -> dict[str, Any]:
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


def _step(workspace: "Workspace", row: dict[str, Any]) -> dict[str, Any]:
    names = ("step", "recipe", "state", "reason", "error", "n_rows", "tries", "claims")
    return {name: row[name] for name in names} | {"is_current": workspace.recipes.get(row["step"]) == row["recipe"]}


def _published(workspace: "Workspace", object_id: str) -> dict[str, Any]:
    """Return what the tables hold; empty while nothing is published."""
    from mm_assets.retrieval import open_tables

    try:
        connection = open_tables(workspace.lake, workspace.settings.cache)
    except ConfigError:
        return {"is_published": False, "segments": [], "found": {}}
    with connection:
        views = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
        query = "SELECT count(*) FROM raw_objects WHERE object_id = ?"
        [(n,)] = connection.execute(query, [object_id]).fetchall() if "raw_objects" in views else [(0,)]
        segments = _rows(connection, "segments", ("segment_id", "segment_kind", "frame_s"), object_id)
        found = {
            table: rows
            for table, columns in _FOUND.items()
            if table in views and (rows := _rows(connection, table, columns, object_id))
        }
    return {"is_published": n > 0, "segments": segments, "found": found}


def _rows(
    connection: "duckdb.DuckDBPyConnection", table: str, columns: Sequence[str], object_id: str
) -> list[dict[str, Any]]:
    names = ["start_s", "end_s", "page_number", *columns]
    query = f"SELECT {', '.join(names)} FROM {table} WHERE object_id = ? ORDER BY page_number, start_s, segment_id"  # noqa: S608  constants
    return [dict(zip(names, row, strict=True)) for row in connection.execute(query, [object_id]).fetchall()]


def _print_story(story: dict[str, Any]) -> None:
    print_pairs(story["object"])
    click.echo()
    rows = [
        (
            s["step"],
            s["state"],
            s["n_rows"],
            s["reason"],
            s["error"],
            "" if s["is_current"] else f"recipe {s['recipe']}",
        )
        for s in story["steps"]
    ]
    print_table(("step", "state", "rows", "reason", "error", "older recipe"), rows)
    if not story["segments"]:
        without = "It is in the tables, without segments: nothing of it was decoded."
        click.echo(without if story["is_published"] else "Nothing of it is published yet.")
        return
    click.echo()
    print_table(
        ("segment", "kind", "where"), [(s["segment_id"], s["segment_kind"], _where(s)) for s in story["segments"]]
    )
    for table, found in story["found"].items():
        _print_found(table, found)


def _print_found(table: str, found: list[dict[str, Any]]) -> None:
    columns = _FOUND[table]
    rows = [row for row in found if table != "media_quality" or any(row[name] for name in columns)]
    click.echo(f"\n{table}: {len(found)} rows" + (f", first {_FIRST_ROWS}" if len(rows) > _FIRST_ROWS else ""))
    for row in rows[:_FIRST_ROWS]:
        click.echo("  " + "\t".join([_where(row), *(_named(name, row[name]) for name in columns)]))


def _named(name: str, value: object) -> str:
    """Write truths by their name, other values as they are."""
    if name == "cluster_id" and value is None:
        return "no cluster"
    if isinstance(value, bool):
        return name.removeprefix("is_") if value else ""
    return printable(value)


def _where(row: dict[str, Any]) -> str:
    return place(row["start_s"], row["end_s"], row["page_number"])
