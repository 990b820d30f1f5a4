"""``mm``, the command line: each command in a module of its own.

Put here: the group, and how errors, Ctrl-C and closed pipes end a command. Keep out: work, which lies below; and any
import that ``mm --help`` would wait for.

Exit codes: 0 done · 1 a run, a check or a service failed · 2 wrong usage or settings · 130 interrupted.
"""

from errno import ENOSPC
from pathlib import Path
from typing import IO, Any

import click

from mm_assets.cli import (
    deletions,
    demo,
    dlq,
    doctor,
    erase,
    evaluate,
    export,
    gc,
    ingest,
    init,
    keys,
    models,
    rebuild_ledger,
    search,
    serve,
    show,
    sql,
    status,
    verify,
    watch,
)
from mm_assets.cli.options import config_option, examples
from mm_assets.errors import ConfigError, MmAssetsError

_INTERRUPTED = """
Interrupted. Nothing is lost: what was finished is kept, and work that was under way was given back.
Run the same command again to go on."""


class _Failure(click.ClickException):
    """An error of ours as click shows it: one message on stderr."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(f"mm: {self.format_message()}", file=file, err=file is None)


class _WrongSettings(_Failure):
    exit_code = 2


class _Group(click.Group):
    """A group whose commands end in one of four ways, never in a stack trace for what we raised on purpose."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except MmAssetsError as error:
            kind = _WrongSettings if isinstance(error, ConfigError) else _Failure
            raise kind(str(error)) from error
        except (FileNotFoundError, NotADirectoryError, PermissionError, FileExistsError) as error:
            if not error.filename:
                raise
            msg = f"{error.filename}: {error.strerror}; correct the path, or the rights to it"
            raise _WrongSettings(msg) from error
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            msg = f"{error.strerror}: {error.filename or 'where this writes to'}; make room, and run the same command again"
            raise _Failure(msg) from error
        except KeyboardInterrupt:
            click.echo(_INTERRUPTED, err=True)
            raise click.exceptions.Exit(130) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """List in the order of use, not of the alphabet."""
        return list(self.commands)


@examples(
    "mm demo                          see it work on media that come along",
    "mm init --source s3://my-bucket --lake s3://my-results/mm",
    "mm doctor                        is everything in place?",
    "mm ingest                        do all that is to do",
    'mm search "a red car at night"   and ask',
)
@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mm-assets", prog_name="mm")
@config_option
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Turn a bucket of media into searchable tables in your own bucket."""
    if config is not None:
        context.default_map = _with_config(main, str(config))


def _with_config(group: click.Group, config: str) -> dict[str, Any]:
    """Return the default of every command below a group whose settings file was named before the command."""
    return {
        name: _with_config(command, config) if isinstance(command, click.Group) else {"config": config}
        for name, command in group.commands.items()
    }


_COMMANDS = (
    init.init,
    doctor.doctor,
    ingest.ingest,
    status.status,
    search.search,
    evaluate.evaluate,
    sql.sql,
    show.show,
    export.export,
    models.models,
    serve.serve,
    keys.keys,
    watch.watch,
    dlq.dlq,
    deletions.deletions,
    erase.erase,
    verify.verify,
    gc.gc,
    rebuild_ledger.rebuild_ledger,
    demo.demo,
)
for _command in _COMMANDS:
    main.add_command(_command)
