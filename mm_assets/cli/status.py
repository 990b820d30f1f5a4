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
    """Show what is done, what waits, and why: sources with their calls, pauses and alarms, steps, failures, tables."""
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        state = read_status(workspace)
    if as_json:
        print_json(state)
    else:
        _print_status(state)


def read_status(workspace: "Workspace") -> dict[str, Any]:
    """Return the state of the whole as plain values."""
    from mm_assets.flows.metrics import failures_today
    from mm_assets.flows.refreshing import needs_refresh

    catalog = workspace.ledger.catalog
    published, counts = catalog.published(), _counts(workspace)
    return {
        "lake": workspace.lake.uri,
        "sources": [_source(workspace, source.alias) for source in workspace.settings.sources],
        "inbox": _inbox(workspace),
        "oldest_unprocessed_s": _age(workspace.ledger.meters.oldest_unprocessed_at()),
        "dead_letters": workspace.ledger.dead.depth(workspace.recipes),
        "watches": _watches(workspace),
        "n_refusals": workspace.ledger.objects.n_refusals(),
        "failures_today": dict(zip(("n_failed", "n_ended"), failures_today(workspace), strict=True)),
        "requests_today": _requests(workspace),
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
    return (
        dict(sorted(workspace.ledger.work.counts(recipes, list(workspace.sources)).items(), key=str)) if recipes else {}
    )


def _source(workspace: "Workspace", alias: str) -> dict[str, Any]:
    scan = workspace.ledger.objects.scan(alias)
    is_paused = (scan.paused_until or 0.0) > time.time()
    return {
        "source": alias,
        "uri": workspace.settings.source(alias).uri,
        "n_live": workspace.ledger.objects.n_live(alias),
        "listed_at": scan.finished_at,
        "alarm": scan.waiting_alarm,
        "is_deletion_confirmed": scan.deletions_confirmed,
        "events_alarm": scan.events_alarm,
        "paused_until": scan.paused_until if is_paused else None,
        "pause_reason": scan.pause_reason if is_paused else None,
        "n_list_calls_today": scan.n_calls,
        "max_list_calls_per_day": workspace.settings.source(alias).max_list_calls_per_day,
    }


def _inbox(workspace: "Workspace") -> dict[str, Any]:
    inbox = workspace.ledger.inbox
    return {"n_waiting": inbox.depth(), "oldest_s": _age(inbox.oldest_at())}


def _watches(workspace: "Workspace") -> dict[str, Any]:
    from mm_assets.flows.standing import why_stale

    book = workspace.ledger.watches
    counts, watches = book.counts(), book.all()
    numbers = {f"n_{state}": sum(of[state] for of in counts.values()) for state in ("waiting", "sent", "given_up")}
    stale = {watch.name: why for watch in watches if (why := why_stale(workspace, watch)) is not None}
    return {"n_watches": len(watches), **numbers, "stale": stale}


def _age(moment: float | None) -> float | None:
    return max(0.0, time.time() - moment) if moment is not None else None


def _requests(workspace: "Workspace") -> dict[str, int]:
    """Sum today's requests to stores by operation."""
    requests: dict[str, int] = {}
    for labels, n in workspace.ledger.meters.today("store_requests_total").items():
        operation = dict(labels)["operation"]
        requests[operation] = requests.get(operation, 0) + int(n)
    return dict(sorted(requests.items()))


def _print_status(state: dict[str, Any]) -> None:
    rows = [(s["source"], s["n_live"], _when(s["listed_at"]), _calls(s), s["uri"]) for s in state["sources"]]
    print_table(("source", "objects", "listed", "list calls today", "uri"), rows)
    if not state["sources"]:
        click.echo("No source is set: name a bucket or folder below `sources`.", err=True)
    for source in state["sources"]:
        _print_alarms(source)
    counts = {(s["step"], s["state"], s["reason"]): s["n_objects"] for s in state["steps"]}
    click.echo()
    print_table(("step", "done", "skipped", "dead", "waiting"), per_step(counts))
    reasons = [(s["step"], s["state"], s["reason"], s["n_objects"]) for s in state["steps"] if s["reason"]]
    if reasons:
        click.echo()
        print_table(("step", "state", "reason", "objects"), reasons)
    click.echo()
    _print_health(state)
    _print_published(state)


def _calls(source: dict[str, Any]) -> str:
    limit = source["max_list_calls_per_day"]
    return f"{source['n_list_calls_today']}" + (f" of {limit}" if limit is not None else "")


def _print_alarms(source: dict[str, Any]) -> None:
    for name in ("alarm", "events_alarm"):
        if source[name]:
            click.echo(f"ALARM: {printable(source[name])}")
    if source["is_deletion_confirmed"]:
        click.echo(f"{printable(source['source'])}: its deletions are confirmed; `mm ingest` removes what is gone.")
    if source["paused_until"]:
        until = _when(source["paused_until"])
        click.echo(f"PAUSED: {printable(source['source'])} until {until}: {printable(source['pause_reason'])}")


def _print_health(state: dict[str, Any]) -> None:
    dead, failures = state["dead_letters"], state["failures_today"]
    if state["oldest_unprocessed_s"] is not None:
        click.echo(f"The oldest unprocessed object was first seen {_span(state['oldest_unprocessed_s'])} ago.")
    if state["inbox"]["n_waiting"]:
        click.echo(
            f"Events waiting: {state['inbox']['n_waiting']}, the oldest for {_span(state['inbox']['oldest_s'])}."
        )
    if dead:
        by_reason = ", ".join(f"{n} {printable(reason)}" for reason, n in sorted(dead.items()))
        click.echo(f"Dead letters: {by_reason}. `mm dlq list` shows them.")
    _print_watches(state["watches"])
    if state["n_refusals"]:
        click.echo(f"Names that no key can hold: {state['n_refusals']}. `mm dlq list --step discovery` shows them.")
    if failures["n_ended"]:
        share = failures["n_failed"] / failures["n_ended"]
        click.echo(f"Failed today: {failures['n_failed']} of {failures['n_ended']} steps ({share:.1%}).")
    if state["requests_today"]:
        click.echo(
            "Requests today: " + ", ".join(f"{n} {printable(op)}" for op, n in state["requests_today"].items()) + "."
        )


def _print_watches(watches: dict[str, Any]) -> None:
    for name, why in watches["stale"].items():
        click.echo(f"Watch {printable(name)} sees nothing now: {printable(why)}.")
    if watches["n_waiting"] or watches["n_given_up"]:
        click.echo(
            f"Matches of watches: {watches['n_waiting']} to be told, {watches['n_given_up']} given up. "
            "`mm watch matches` shows them."
        )


def _span(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


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
