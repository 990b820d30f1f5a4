"""Settings → what a command works with.

Put here: opening with as little as the command needs. Keep out: printing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_assets.flows.workspace import Workspace


@contextmanager
def open_books(config: Path | None) -> Iterator["Workspace"]:
    """Open the workspace for commands that only read the books: no store is tried, no model is run."""
    from mm_assets.resources.workspace import open_workspace
    from mm_assets.settings import load_settings

    settings = load_settings(config)
    # `auto` would import torch to ask for the device, which is in no recipe.
    models = settings.models.model_copy(update={"device": "cpu"})
    workspace = open_workspace(settings.model_copy(update={"models": models}), check=False)
    try:
        yield workspace
    finally:
        workspace.close()
