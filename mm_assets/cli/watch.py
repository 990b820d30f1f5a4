"""``mm watch``: standing queries, which tell when a new object matches.

Put here: the commands. Keep out: matching, telling, and what is refused, which are ``flows``'; following a bucket
(``watching``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.options import PICTURE, config_option, examples, json_option, once
from mm_assets.cli.output import place, print_json, print_table
from mm_assets.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from mm_assets.flows.workspace import Workspace
    from mm_assets.ledger import Watch


@click.group()
def watch() -> None:
    """Ask once and be told of every new object that matches, by a webhook or a command.

    A watch sees what is processed for the first time while it stands; for what is there already, ask `mm search`. Each
    object version matches a watch once, at its best place.
    """


@examples(
    'mm watch add fire --text "a house on fire" --threshold .28 --webhook https://example.org/hooks/fire',
    "mm watch add anna --face anna.jpg --threshold .5 --command 'tee -a matches.jsonl'",
    "mm watch add recall --said '\"product recall\" batter*' --webhook https://example.org/hooks/recall",
)
@watch.command()
@click.argument("name")
@once("--text", help="What looks like this text.")
@once("--image", type=PICTURE, help="What looks like a picture.")
@once("--face", type=PICTURE, help="Who is on a picture: its largest face.")
@once("--said", metavar="WORDS", help='All of these are spoken in one utterance; "a phrase" and begin* are understood.')
@once("--shown", metavar="WORDS", help="All of these stand on one screen or page, in the same way.")
@click.option(
    "--threshold", type=float, help="Cosine from which on a text, picture or face matches, -1…1; depends on the model."
)
@click.option("--webhook", metavar="URL", help="Where each match is posted as JSON, signed.")
@click.option(
    "--command", metavar="PROGRAM", help="Program with arguments that gets each match as JSON on its input; no shell."
)
@click.option(
    "--secret-file",
    type=click.File("r", encoding="utf-8", errors="surrogateescape"),
    help="File with the signature's secret; - for stdin. Default: one is made up.",
)
@config_option
def add(*, config: Path | None, secret_file: Any, **asked: Any) -> None:
    """Add a watch; new objects are put to it from the next batch on.

    The webhook's secret is printed once, here. docs/operations.md shows how a receiver checks the signature.
    """
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.subscribing import Wish, subscribe

    secret = secret_file.read().strip() if secret_file is not None else None
    with open_books(config) as workspace:
        added = subscribe(workspace, Wish(**asked, secret=secret))
    click.echo(f"Added. New objects are put to it from the next batch on; try it: mm watch test {added.name}", err=True)
    if added.secret is not None:
        click.echo(f"secret: {added.secret}")


@examples("mm watch list", "mm watch list --json | jq -r 'select(.stale) | .name'")
@watch.command("list")
@json_option
@config_option
def list_watches(*, as_json: bool, config: Path | None) -> None:
    """List the watches, what matched them, and which see nothing now and why. With --json: one document a line."""
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        rows = [_to_dict(workspace, found, counts) for found, counts in _with_counts(workspace)]
    if as_json:
        for row in rows:
            print_json(row)
        return
    columns = ("name", "kind", "question", "threshold", "n_matches", "n_waiting", "n_given_up", "to", "stale")
    print_table(columns, [[row[name] for name in columns] for row in rows])


def _with_counts(workspace: "Workspace") -> list[tuple["Watch", Mapping[str, int]]]:
    counts = workspace.ledger.watches.counts()
    return [(found, counts.get(found.name, {})) for found in workspace.ledger.watches.all()]


def _to_dict(workspace: "Workspace", found: "Watch", counts: Mapping[str, int]) -> dict[str, Any]:
    from mm_assets.flows.standing import why_stale

    return {
        "name": found.name,
        "kind": found.kind,
        "question": found.question,
        "threshold": found.threshold,
        "to": found.webhook or found.command,
        "created_at": found.created_at,
        "n_matches": sum(counts.values()),
        "n_waiting": counts.get("waiting", 0),
        "n_given_up": counts.get("given_up", 0),
        "stale": why_stale(workspace, found),
    }


@examples("mm watch matches", "mm watch matches fire --json | jq -r .object.key")
@watch.command()
@click.argument("name", required=False)
@json_option
@config_option
def matches(*, name: str | None, as_json: bool, config: Path | None) -> None:
    """List what matched, latest first, and whether it was told. With --json: one document a line, as it is told."""
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.delivering import to_notice

    with open_books(config) as workspace:
        if name is not None:
            _find(workspace, name)
        found = workspace.ledger.watches.matches(name)
    if as_json:
        for known in found:
            print_json(to_notice(known) | {"state": known.state, "tries": known.tries, "error": known.error})
        return
    columns = ("watch", "object", "where", "score", "state", "tries", "error")
    print_table(
        columns,
        [
            (
                known.watch,
                f"{known.bucket}/{known.key}",
                place(known.match.start_s, known.match.end_s, known.match.page_number),
                known.match.score,
                known.state,
                known.tries,
                known.error,
            )
            for known in found
        ],
    )


@examples("mm watch remove fire")
@watch.command()
@click.argument("name")
@config_option
def remove(*, name: str, config: Path | None) -> None:
    """Remove a watch with its picture and its matches; what waits to be told is not told any more."""
    from mm_assets.cli.opening import open_books

    with open_books(config) as workspace:
        n_matches = sum(workspace.ledger.watches.counts().get(name, {}).values())
        if not workspace.ledger.watches.remove(name):
            raise ConfigError(_unknown(name))
    click.echo(f"Removed; matches that went with it: {n_matches}.")


@examples("mm watch test fire")
@watch.command("test")
@click.argument("name")
@config_option
def send_test(*, name: str, config: Path | None) -> None:
    """Send a notice of a made-up match, with "is_test": true, to where the matches of a watch go."""
    from mm_assets.cli.opening import open_books
    from mm_assets.flows.delivering import tell, to_test_notice

    with open_books(config) as workspace:
        found = _find(workspace, name)
    outcome = tell(found, to_test_notice(found))
    if outcome.state != "sent":
        msg = f"the test was not taken: {outcome.error}"
        raise ServiceError(msg)
    click.echo("The test was taken.")


def _find(workspace: "Workspace", name: str) -> "Watch":
    found = workspace.ledger.watches.find(name)
    if found is None:
        raise ConfigError(_unknown(name))
    return found


def _unknown(name: str) -> str:
    return f"there is no watch {name!r}; `mm watch list` names all"
