"""``mm dlq``: what was given up, and every way back.

Put here: filters, and showing before acting. Keep out: the rules of when something is given up.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import counted, print_json, print_pairs, print_table, printable
from mm_assets.errors import ConfigError, Reason

if TYPE_CHECKING:
    from mm_assets.flows.workspace import Workspace
    from mm_assets.ledger.dead import DeadFilter, DeadLetter
    from mm_assets.ledger.objects import Refusal

_SHOWN_LETTERS = 20
_SHOWN_ERROR_CHARS = 120
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_BACK = re.compile(r"([0-9]{1,9})([smhd])")


def _to_moment(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """Read a time as ``90m``, ``36h``, ``7d`` before now, or as ISO 8601, UTC where it names no zone."""
    if text is None:
        return None
    if back := _BACK.fullmatch(text):
        return time.time() - float(back[1]) * _SECONDS[back[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"{text!r} is no time; write 90m, 36h, 7d or 2026-01-31T12:00"
        raise click.BadParameter(msg) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_FILTERS = (
    click.option("--reason", help="corrupt, unsupported, too_large, timeout, out_of_memory, crashed, crash_loop …"),
    click.option("--step", help="Step that was given up, e.g. segments or faces."),
    click.option("--prefix", help="What the key begins with."),
    click.option("--source", help="Alias of the source."),
    click.option(
        "--since", callback=_to_moment, metavar="TIME", help="Given up since: 90m, 36h, 7d, or 2026-01-31T12:00."
    ),
    click.option(
        "--skipped", is_flag=True, help="Instead of dead letters, what was left out: dropped, cancelled, too_large …"
    ),
)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group()
def dlq() -> None:
    """List, show, replay and drop dead letters.

    A dead letter is a step of an object that was given up: its fault was permanent (a corrupt file, say), or the
    allowed tries were used up. The rest of the object is done all the same. A step with a new recipe (another model, a
    mended program) tries by itself again; `mm dlq replay` asks for it under the same recipe.
    """


@examples("mm dlq list", "mm dlq list --reason timeout --since 7d --json | jq -r .key")
@dlq.command("list")
@_filters
@json_option
@config_option
def list_letters(*, as_json: bool, config: Path | None, **filters: Any) -> None:
    """List dead letters, and names in the sources that no key can hold. With --json: one document a line."""
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        letters = workspace.ledger.dead.letters(_asked(workspace, **filters))
        refusals = _refusals(workspace, filters)
    if as_json:
        for document in [*map(to_dict, letters), *map(_refusal_to_dict, refusals)]:
            print_json(document)
        return
    if filters["skipped"]:
        _print_letters(_by_object(letters), "Nothing was left out.", when="left out")
    else:
        _print_letters([*map(to_dict, letters), *map(_refusal_to_dict, refusals)])
    if letters and filters["skipped"]:
        click.echo("Want them after all: mm dlq replay --skipped --reason … (or OBJECT, or --all).")
    elif letters:
        click.echo(
            "Try again: mm dlq replay --reason … (or OBJECT, or --all). All that is known of one: mm dlq show OBJECT."
        )


@examples("mm dlq show films/garden.mp4")
@dlq.command()
@click.argument("text", metavar="OBJECT")
@json_option
@config_option
def show(text: str, *, as_json: bool, config: Path | None) -> None:
    """Show why steps of OBJECT were given up: reason, stage, error, tries, and the versions that tried.

    OBJECT is an object id, a key, alias/key, or a partition key of Dagster.
    """
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        [object_id] = _find(workspace, [text])
        stories = _read_stories(workspace, object_id)
        left_out = _by_object(workspace.ledger.dead.letters(_of(workspace, object_id, "skipped")))
    if as_json:
        print_json(stories)
        return
    if not stories:
        click.echo("Nothing of it was given up.")
    for story in stories:
        print_pairs({name: value for name, value in story.items() if not isinstance(value, dict)})
        for name in ("made_by", "versions"):
            click.echo(f"{name}: {printable(', '.join(_flat(story.get(name, {}))))}")
        click.echo()
    for document in left_out:
        click.echo(f"Left out of {printable(document['step'])}: {printable(document['reason'])}.")


@examples(
    "mm dlq replay --reason timeout && mm ingest",
    "mm dlq replay films/garden.mp4",
    "mm dlq replay --skipped --reason dropped",
)
@dlq.command()
@click.argument("objects", nargs=-1, metavar="[OBJECT]...")
@_filters
@click.option("--all", "everything", is_flag=True, help="Needed where nothing else narrows it.")
@config_option
def replay(*, objects: tuple[str, ...], everything: bool, config: Path | None, **filters: Any) -> None:
    """Want given-up steps again, with all their tries.

    Their records stay until the steps have ended. The next `mm ingest`, or the running sensor, does the work.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows import dead_letters

    with open_books(config) as workspace:
        letters = _chosen(workspace, objects, everything=everything, filters=filters)
        n = dead_letters.replay(workspace, letters)
    click.echo(f"{counted(n, 'step')} wanted again; run `mm ingest`." if n else "Nothing fits; nothing was changed.")


@examples("mm dlq drop --reason corrupt --prefix old/", "mm dlq drop --reason corrupt --prefix old/ --yes")
@dlq.command()
@click.argument("objects", nargs=-1, metavar="[OBJECT]...")
@_filters
@click.option("--all", "everything", is_flag=True, help="Needed where nothing else narrows it.")
@click.option("--yes", is_flag=True, help="Do it; without it, only show.")
@config_option
def drop(*, objects: tuple[str, ...], everything: bool, yes: bool, config: Path | None, **filters: Any) -> None:
    """Skip given-up steps for good and remove their records; shows first, acts on --yes.

    The way back is `mm dlq replay --skipped --reason dropped`.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows import dead_letters

    with open_books(config) as workspace:
        letters = _chosen(workspace, objects, everything=everything, filters=filters)
        n = dead_letters.drop(workspace, letters) if yes else 0
    if yes:
        click.echo(f"{counted(n, 'dead letter')} dropped.")
        return
    _print_letters([to_dict(letter) for letter in letters[:_SHOWN_LETTERS]])
    if letters:
        click.echo(f"{counted(len(letters), 'dead letter')} would be dropped; add --yes to do it.")


def _asked(workspace: "Workspace", objects: Sequence[str] = (), **filters: Any) -> "DeadFilter":
    from mm_assets.ledger.dead import DeadFilter

    _check_names(workspace, filters)
    return DeadFilter(
        step=filters["step"],
        reason=filters["reason"],
        prefix=filters["prefix"],
        alias=filters["source"],
        since=filters["since"],
        object_ids=_find(workspace, objects) if objects else None,
        recipes=workspace.recipes,
        state="skipped" if filters["skipped"] else "dead",
    )


def _check_names(workspace: "Workspace", filters: dict[str, Any]) -> None:
    """Raise ConfigError for a name that nothing has: a typing slip is not the same as no dead letters."""
    if filters["source"] is not None:
        workspace.settings.source(filters["source"])
    known = {"step": [*workspace.recipes, "discovery"]}
    known["reason"] = _reasons_of_skipped(workspace) if filters["skipped"] else [str(reason) for reason in Reason]
    for name, values in known.items():
        if filters[name] not in {None, *values}:
            msg = f"no {name} is called {filters[name]!r}; known: {', '.join(values) or 'none'}"
            raise ConfigError(msg)


def _reasons_of_skipped(workspace: "Workspace") -> list[str]:
    """Return the reasons for which anything was left out here, and those that are always known."""
    counts = workspace.ledger.work.counts(dict(workspace.recipes))
    found = {reason for _, state, reason in counts if state == "skipped" and reason}
    return sorted(found | {"dropped", "cancelled", str(Reason.TOO_LARGE), str(Reason.UNSUPPORTED)})


def _chosen(
    workspace: "Workspace", objects: Sequence[str], *, everything: bool, filters: dict[str, Any]
) -> "list[DeadLetter]":
    asked = _asked(workspace, objects, **filters)
    if not (asked.is_narrow or everything):
        msg = "name objects, narrow it (--reason, --step, --prefix, --source, --since), or say --all"
        raise ConfigError(msg)
    return workspace.ledger.dead.letters(asked)


def _find(workspace: "Workspace", texts: Sequence[str]) -> list[str]:
    """Return the ids of live versions, each named so that only one is meant."""
    ids = []
    for text in texts:
        found = [known for known in workspace.ledger.objects.find(text) if known.state == "live"]
        if len(found) != 1:
            how = "no live object is" if not found else "several objects are"
            msg = f"{how} known as {text!r}; give an object id, a key, alias/key or a partition key"
            raise ConfigError(msg)
        ids.append(found[0].object_id)
    return ids


def _refusals(workspace: "Workspace", filters: dict[str, Any]) -> "list[Refusal]":
    """Return the refused names that the filters leave; they have no step but discovery."""
    if filters["skipped"] or filters["step"] not in {None, "discovery"}:
        return []
    return [
        refusal
        for refusal in workspace.ledger.objects.refusals()
        if filters["source"] in {None, refusal.alias}
        and filters["reason"] in {None, refusal.reason}
        and refusal.shown_key.startswith(filters["prefix"] or "")
        and refusal.first_seen_at >= (filters["since"] or 0.0)
    ]


def to_dict(letter: "DeadLetter") -> dict[str, Any]:
    """Return a letter as plain values."""
    version = letter.known.version
    return {
        "object_id": letter.known.object_id,
        "source": version.alias,
        "key": version.key,
        "etag": version.etag,
        "size_bytes": letter.known.size_bytes,
        "step": letter.step,
        "recipe": letter.recipe,
        "state": letter.state,
        "reason": letter.reason,
        "error": letter.error,
        "tries": letter.tries,
        "claims": letter.claims,
        "replays": letter.replays,
        "first_seen_at": _utc(letter.first_seen_at),
        "died_at": _utc(letter.changed_at),
    }


def _refusal_to_dict(refusal: "Refusal") -> dict[str, Any]:
    return {
        "object_id": None,
        "source": refusal.alias,
        "key": refusal.shown_key,
        "step": "discovery",
        "state": "refused",
        "reason": refusal.reason,
        "error": refusal.error,
        "first_seen_at": _utc(refusal.first_seen_at),
        "died_at": _utc(refusal.first_seen_at),
    }


def _of(workspace: "Workspace", object_id: str, state: str) -> "DeadFilter":
    from mm_assets.ledger.dead import DeadFilter

    return DeadFilter(object_ids=[object_id], recipes=workspace.recipes, state=state)


def _by_object(letters: "Sequence[DeadLetter]") -> list[dict[str, Any]]:
    """Join the steps of an object that were left out for one reason."""
    joined: dict[tuple[str, str | None], dict[str, Any]] = {}
    for document in map(to_dict, letters):
        of = joined.setdefault((document["object_id"], document["reason"]), document | {"step": []})
        of["step"].append(document["step"])
    return [document | {"step": ", ".join(document["step"])} for document in joined.values()]


def _read_stories(workspace: "Workspace", object_id: str) -> list[dict[str, Any]]:
    """Return, for each dead step of an object, the ledger's row over the lake's record.

    Records without such a row follow: those steps are wanted again, and have not come to an end yet.
    """
    letters = workspace.ledger.dead.letters(_of(workspace, object_id, "dead"))
    records = {
        step: workspace.lake.read_dead_letter(object_id, step) for _, step, _ in workspace.lake.dead_letters(object_id)
    }
    stories = [(records.pop(letter.step, None) or {}) | to_dict(letter) for letter in letters]
    return stories + [{"state": "wanted again"} | record for record in records.values() if record]


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield names with their values, those of a part after the name of the part."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{name}.")
        elif value not in (None, ""):
            yield f"{within}{name} {value}"


def _print_letters(
    documents: Sequence[dict[str, Any]], nothing: str = "No dead letters.", when: str = "given up"
) -> None:
    if not documents:
        click.echo(nothing)
        return
    rows = [
        (f"{d['source']}/{d['key']}", d["step"], d["reason"], d.get("tries"), d["died_at"], _short(d["error"] or ""))
        for d in documents
    ]
    print_table(("object", "step", "reason", "tries", when, "error"), rows)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_ERROR_CHARS else f"{text[:_SHOWN_ERROR_CHARS]}…"


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
