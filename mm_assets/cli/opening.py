"""Settings → what a command works with.

Put here: opening with as little as the command needs. Keep out: printing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_assets.flows.workspace import Workspace
    from mm_assets.lake import Lake
    from mm_assets.retrieval import Retriever
    from mm_assets.settings import Settings


def cache_folder(settings: "Settings") -> Path:
    """Return the folder for copies of a lake in a bucket."""
    return settings.state / "cache"


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


def open_lake(settings: "Settings") -> "Lake":
    """Open the lake alone, for reading."""
    from mm_assets.lake import Lake
    from mm_assets.resources.s3 import open_store

    return Lake(open_store(settings.lake, create=True))


def open_retriever(settings: "Settings") -> "Retriever":
    """Open search over the lake: needs the lake and the visual model's weights, no ledger and no source."""
    from mm_assets.extractors.packs import load_pack
    from mm_assets.extractors.registry import build_extractor, choose_placement
    from mm_assets.flows.recipes import build_recipes
    from mm_assets.retrieval import Retriever

    step = "visual_embeddings"
    pack = load_pack(settings.models, settings.models_folder)
    encoder: Any = build_extractor(step, pack, None, choose_placement(settings.models))  # encodes texts too
    recipe = build_recipes(settings, {step: encoder})[step]
    return Retriever(open_lake(settings), encoder, recipe=recipe, cache=cache_folder(settings))
