"""``mm keys``: who may ask the server for what.

Put here: making, listing and revoking keys. Keep out: what each right lets through, which is the server's.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import print_json, print_table

if TYPE_CHECKING:
    from mm_assets.ledger.keys import ApiKey, KeyBook


@click.group()
def keys() -> None:
    """Make, list and revoke keys for the server of `mm serve`.

    Once there is a key, every request needs one. A key is sent as `Authorization: Bearer KEY`.
    """


@examples("mm keys add web --allow search --allow read", "mm keys add phone --allow upload --source my-bucket")
@keys.command()
@click.argument("name")
@click.option(
    "--allow",
    "rights",
    multiple=True,
    required=True,
    metavar="RIGHT",
    help="search; read: objects, thumbnails, tables, tasks, metrics; upload; events: push them. Several may be given.",
)
@click.option("--source", "sources", multiple=True, metavar="ALIAS", help="Only this source; default: all of them.")
@config_option
def add(name: str, *, rights: tuple[str, ...], sources: tuple[str, ...], config: Path | None) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    from mm_assets.cli.opening import read_settings

    settings = read_settings(config)
    for alias in sources:
        settings.source(alias)  # or it is a typing slip
    with _open_book(config) as book:
        key = book.add(name, rights, sources)
    click.echo("Keep it: it is not shown again.", err=True)
    click.echo(key)


@examples("mm keys list", "mm keys list --json | jq -r .name")
@keys.command("list")
@json_option
@config_option
def list_keys(*, as_json: bool, config: Path | None) -> None:
    """List all keys, those that were revoked among them. With --json: one document a line."""
    with _open_book(config) as book:
        found = [_to_dict(key) for key in book.all()]
    if as_json:
        for document in found:
            print_json(document)
        return
    print_table(("name", "id", "allows", "sources", "made", "revoked"), [_to_row(key) for key in found])


@examples("mm keys revoke phone")
@keys.command()
@click.argument("name")
@config_option
def revoke(name: str, *, config: Path | None) -> None:
    """Let the key called NAME be good no longer, from the next request on."""
    from mm_assets.errors import ConfigError

    with _open_book(config) as book:
        if not book.revoke(name):
            msg = f"no key that is good is called {name!r}; `mm keys list` shows them"
            raise ConfigError(msg)
    click.echo(f"Revoked {name}.")


@contextmanager
def _open_book(config: Path | None) -> "Iterator[KeyBook]":
    """Open the ledger alone: keys need no lake and no model."""
    from mm_assets.cli.opening import read_settings
    from mm_assets.ledger import Ledger

    ledger = Ledger(read_settings(config).ledger_location)
    try:
        yield ledger.keys
    finally:
        ledger.close()


def _to_dict(key: "ApiKey") -> dict[str, Any]:
    told = {"name": key.name, "key_id": key.key_id, "rights": key.rights, "sources": key.sources}
    return told | {"created_at": _at(key.created_at), "revoked_at": _at(key.revoked_at)}


def _to_row(key: dict[str, Any]) -> tuple[str | None, ...]:
    allows, sources = ", ".join(key["rights"]), ", ".join(key["sources"]) or "all"
    return key["name"], key["key_id"], allows, sources, key["created_at"], key["revoked_at"]


def _at(moment: float | None) -> str | None:
    return None if moment is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
