"""``mm show``: all that is known of one object.

Put here: the form of its story. Keep out: the story, which ``flows.telling`` puts together.
"""

from pathlib import Path
from typing import Any

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import place, print_json, print_pairs, print_table, printable

_FIRST_ROWS = 5


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
    from mm_assets.flows.telling import read_story

    with open_books(config) as workspace:
        story = read_story(workspace, find_named(workspace, text)[0])
    if as_json:
        print_json(story)
    else:
        _print_story(story)


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
        is_gone = story["object"]["state"] != "live"
        none = "Nothing of it is published." if is_gone else "Nothing of it is published yet."
        click.echo(without if story["is_published"] else none)
        return
    click.echo()
    print_table(
        ("segment", "kind", "where"), [(s["segment_id"], s["segment_kind"], _where(s)) for s in story["segments"]]
    )
    for table, found in story["found"].items():
        _print_found(table, found)


def _print_found(table: str, found: list[dict[str, Any]]) -> None:
    from mm_assets.flows.telling import FOUND

    columns = FOUND[table]
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
