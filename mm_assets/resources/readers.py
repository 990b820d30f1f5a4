"""Settings → the lake, and search over it, for those who only read: no ledger, no source, no Dagster run.

Put here: opening for notebooks and the command line. Keep out: questions and answers, which are ``retrieval``'s.
"""

from pathlib import Path
from typing import Any

from mm_assets.extractors.packs import load_pack
from mm_assets.extractors.registry import build_extractor, choose_placement
from mm_assets.flows.recipes import build_recipes
from mm_assets.lake import Lake
from mm_assets.resources.s3 import open_store
from mm_assets.retrieval import Retriever
from mm_assets.settings import Settings

_STEP = "visual_embeddings"


def cache_folder(settings: Settings) -> Path:
    """Return the folder for copies of a lake in a bucket."""
    return settings.state / "cache"


def open_lake(settings: Settings) -> Lake:
    """Open the lake alone; opens no connection yet."""
    return Lake(open_store(settings.lake, create=True))


def open_retriever(settings: Settings) -> Retriever:
    """Open search over the lake; the visual model is loaded at the first question.

    Raises
    ------
    ConfigError
        The model's weights are missing; names the command that fetches them.
    """
    pack = load_pack(settings.models, settings.models_folder)
    encoder: Any = build_extractor(_STEP, pack, None, choose_placement(settings.models))  # encodes texts too
    recipe = build_recipes(settings, {_STEP: encoder})[_STEP]
    return Retriever(open_lake(settings), encoder, recipe=recipe, cache=cache_folder(settings))
