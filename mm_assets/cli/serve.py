"""``mm serve``: answer questions, receive events, take uploads, give metrics.

Put here: starting the server and saying what is on. Keep out: the server.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_assets.cli.options import config_option, examples

if TYPE_CHECKING:
    from mm_assets.server.access import Guard
    from mm_assets.settings import Settings


@examples("mm serve", "mm serve --port 0", "MM_ASSETS_SERVE__API_KEYS='[\"…\"]' mm serve --host 0.0.0.0")
@click.command()
@click.option("--host", metavar="ADDRESS", help="Address to listen on. Default: serve.host, which is 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; 0 takes a free one. Default: serve.port.")
@config_option
def serve(*, host: str | None, port: int | None, config: Path | None) -> None:
    """Answer questions, receive events of buckets, take uploads, show tasks and metrics; until Ctrl-C or SIGTERM.

    TLS is the business of what stands before it. An address beyond this machine needs a key: mm keys add.
    """
    from mm_assets.cli.ingest import ended_by_sigterm
    from mm_assets.cli.opening import read_settings

    settings = read_settings(config)
    try:
        with ended_by_sigterm():
            _serve(settings, host or settings.serve.host, settings.serve.port if port is None else port, config)
    except KeyboardInterrupt:  # before it listened
        pass
    click.echo("Stopped; what was accepted is in the ledger.")


def _serve(settings: "Settings", host: str, port: int, config: Path | None) -> None:
    from mm_assets.cli.opening import open_books
    from mm_assets.server.access import Guard, check_address
    from mm_assets.server.app import build_app
    from mm_assets.server.running import listen, run

    click.echo("Starting.", err=True)
    with open_books(config) as workspace:
        guard = Guard(workspace)
        check_address(host, has_keys=guard.has_keys)
        with listen(host, port) as listening:
            _say_what_is_on(settings, guard, f"http://{_address(listening.getsockname())}")
            run(build_app(workspace), listening)


def _address(name: tuple[str, int]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say_what_is_on(settings: "Settings", guard: "Guard", url: str) -> None:
    from mm_assets.server.receivers import receivers_on

    click.echo(f"Listening on {url}")
    for path, is_on in receivers_on(settings.events, guard).items():
        click.echo(f"  POST {path:<16} {'on' if is_on else 'off: no secret is set'}")
    uploads = (
        ", ".join(source.alias for source in settings.sources if source.uploads) or "no source has `uploads: true`"
    )
    click.echo(f"  POST /objects/…       {uploads if guard.is_given('upload') else 'off: no key allows upload'}")
    click.echo(f"  POST /search          {_who(guard, 'search')}")
    click.echo(f"  GET  /tables, …       {_who(guard, 'read')}")
    click.echo("  GET  /docs, /healthz  for everybody; /docs has all routes")


def _who(guard: "Guard", right: str) -> str:
    """Say who has a right."""
    if not guard.has_keys:
        return "for this machine alone, without a key: mm keys add"
    return "for keys that allow it" if guard.is_given(right) else f"off: no key allows {right}"
