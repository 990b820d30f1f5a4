"""Options that several commands share.

Put here: click decorators. Keep out: what one command alone takes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

AnyCommand = TypeVar("AnyCommand", bound=click.Command)
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
PICTURE = click.Path(exists=True, dir_okay=False, path_type=Path)


def examples(*lines: str) -> Callable[[AnyCommand], AnyCommand]:
    """End a command's help with examples of its use; put above ``@click.command()``."""

    def decorate(command: AnyCommand) -> AnyCommand:
        # The mark keeps click from filling the lines into a paragraph.
        command.epilog = "\n".join(
            ["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)]
        )
        return command

    return decorate


def not_blank(_ctx: click.Context, param: click.Parameter, text: str | None) -> str:
    """Tell what was not given from what is empty, a variable of a script that was not set, say."""
    if text is not None and not text.strip():
        msg = "it is empty"
        raise click.BadParameter(msg, param=param)
    return text or ""


def once(*names: str, **settings: Any) -> Callable[[AnyFunction], AnyFunction]:
    """Take an option one time at most; of several click would use the last and say nothing. A text not given is empty."""
    return click.option(*names, multiple=True, callback=_only, **settings)


def _only(context: click.Context, param: click.Parameter, given: tuple[Any, ...]) -> Any:
    if len(given) > 1:
        msg = f"it is given {len(given)} times; give it once"
        raise click.BadParameter(msg, param=param)
    value = given[0] if given else None
    return not_blank(context, param, value) if param.type is click.STRING else value


config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Settings file. Default: $MM_ASSETS_CONFIG, then ./mm_assets.yaml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
where_option = once("--where", metavar="SQL", help="Condition on `moments` (see `mm sql 'DESCRIBE moments'`).")
