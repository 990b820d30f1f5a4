"""``mm status``: what there is, what is done, what waits and why.

Put here: reading the books. Keep out: changing them.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.ingest import per_step
from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from mm_assets.flows.workspace import Workspace


@examples("mm status", "mm status --json | jq '.steps[] | select(.state == \"dead\")'")
@click.command()
@json_option
@config_option
def status(*, as_json: bool, config: Path | None) -> None:
    """Show what is done, what waits, and why."""
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        state = read_status(workspace)
    if as_json:
        print_json(state)
    else:
        _print_status(state)


def read_status(workspace: "Workspace") -> dict[str, Any]:
    """Return the state of the whole as plain values."""
    from mm_assets.flows.refreshing import needs_refresh

    catalog = workspace.ledger.catalog
    published, counts = catalog.published(), _counts(workspace)
    return {
        "lake": workspace.lake.uri,
        "sources": [_source(workspace, source.alias) for source in workspace.settings.sources],
        "steps": [{"step": s, "state": t, "reason": r, "n_objects": n} for (s, t, r), n in counts.items()],
        "recipes": [
            {"step": step, "recipe": recipe, "published": published.get(step)}
            for step, recipe in workspace.recipes.items()
        ],
        "is_stale": needs_refresh(workspace),
        "last_published_at": catalog.last_published_at() or None,
        "generations": [
            {"name": name, "generation": manifest["generation"], "n_rows": manifest["n_rows"]}
            for name, manifest in sorted(catalog.generations().items())
        ],
    }


def _counts(workspace: "Workspace") -> dict[tuple[str, str, str | None], int]:
    recipes = dict(workspace.recipes)
    return dict(sorted(workspace.ledger.work.counts(recipes).items(), key=str)) if recipes else {}


def _source(workspace: "Workspace", alias: str) -> dict[str, Any]:
    scan = workspace.ledger.objects.scan(alias)
    return {
        "source": alias,
        "uri": workspace.settings.source(alias).uri,
        "n_live": workspace.ledger.objects.n_live(alias),
        "listed_at": scan.finished_at,
        "alarm": scan.alarm,
    }


def _print_status(state: dict[str, Any]) -> None:
    rows = [(s["source"], s["n_live"], _when(s["listed_at"]), s["uri"]) for s in state["sources"]]
    print_table(("source", "objects", "listed", "uri"), rows)
    for source in state["sources"]:
        if source["alarm"]:
            click.echo(f"ALARM: {printable(source['alarm'])}")
    counts = {(s["step"], s["state"], s["reason"]): s["n_objects"] for s in state["steps"]}
    click.echo()
    print_table(("step", "done", "skipped", "dead", "waiting"), per_step(counts))
    reasons = [(s["step"], s["state"], s["reason"], s["n_objects"]) for s in state["steps"] if s["reason"]]
    if reasons:
        click.echo()
        print_table(("step", "state", "reason", "objects"), reasons)
    click.echo()
    _print_published(state)


def _print_published(state: dict[str, Any]) -> None:
    changed = [recipe["step"] for recipe in state["recipes"] if recipe["published"] not in {None, recipe["recipe"]}]
    if state["last_published_at"] is None:
        click.echo("Nothing is published yet; run `mm ingest`.")
        return
    print_table(
        ("generation of", "id", "rows"), [(g["name"], g["generation"], g["n_rows"]) for g in state["generations"]]
    )
    lag = "they lag behind; run `mm ingest`" if state["is_stale"] else "up to date"
    click.echo(f"Tables in {state['lake'].rstrip('/')}/tables/ of {_when(state['last_published_at'])}: {lag}.")
    if changed:
        click.echo(
            f"A new recipe is being filled for {', '.join(changed)}; the tables show the old one until it is complete."
        )


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(moment)) if moment else "never"
