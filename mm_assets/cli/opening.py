"""Settings → what a command works with.

Put here: opening with as little as the command needs. Keep out: printing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mm_assets.errors import ConfigError

if TYPE_CHECKING:
    from mm_assets.flows.workspace import Workspace
    from mm_assets.settings import Settings


def read_settings(config: Path | None, *, for_sources: bool = False) -> "Settings":
    """Read the settings for a command that works on ledger and lake; nothing is created.

    Parameters
    ----------
    for_sources : there is nothing to do without a source

    Raises
    ------
    ConfigError
        They are wrong, or there are none: a folder where nobody ran `mm init` is not taken for an empty lake.
    """
    from mm_assets.settings import find_config_file, load_settings

    file, settings = find_config_file(config), load_settings(config)
    if file is None and not settings.sources:
        msg = (
            "there is no settings file here (mm_assets.yaml) and no source is set: "
            "run `mm init`, or name a file with -c"
        )
        raise ConfigError(msg)
    if for_sources and not settings.sources:
        msg = f"no source is set in {file}: name a bucket or folder below `sources`"
        raise ConfigError(msg)
    return settings


@contextmanager
def open_books(config: Path | None) -> Iterator["Workspace"]:
    """Open the workspace for commands that only read the books: no store is tried, no model is run."""
    from mm_assets.resources.workspace import open_workspace

    settings = read_settings(config)
    # `auto` would import torch to ask for the device, which is in no recipe.
    models = settings.models.model_copy(update={"device": "cpu"})
    workspace = open_workspace(settings.model_copy(update={"models": models}), check=False)
    try:
        yield workspace
    finally:
        workspace.close()
