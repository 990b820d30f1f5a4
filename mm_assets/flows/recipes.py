"""Which steps there are, what each needs, and the recipe that names a result.

Put here: the graph of steps. Keep out: running them.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mm_assets import segmentation
from mm_assets.extractors.base import Extractor
from mm_assets.identity import short_hash
from mm_assets.settings import Settings

DECODING_STEPS = ("raw_objects", "segments")
DECODING_CODE_VERSIONS = {
    "raw_objects": segmentation.RAW_OBJECTS_CODE_VERSION,
    "segments": segmentation.SEGMENTS_CODE_VERSION,
}


def upstream(step: str) -> tuple[str, ...]:
    """Return the steps whose results this one reads; every extractor reads segments."""
    return {"raw_objects": (), "segments": ("raw_objects",)}.get(step, ("segments",))


def with_upstream(steps: Iterable[str]) -> tuple[str, ...]:
    """Return the steps and all they need, needed ones first."""
    ordered: dict[str, None] = {}
    for step in steps:
        ordered.update(dict.fromkeys(with_upstream(upstream(step))))
        ordered[step] = None
    return tuple(ordered)


def build_recipes(settings: Settings, extractors: Mapping[str, Extractor]) -> dict[str, str]:
    """Return step → recipe: a hash of code version, parameters, weights and the recipes upstream.

    The object's identity is not in it; where results lie and how many at a time are computed is not in it either.
    """
    recipes: dict[str, str] = {}
    for step in with_upstream((*DECODING_STEPS, *extractors)):
        above = [recipes[need] for need in upstream(step)]
        recipes[step] = short_hash(step, _ingredients(step, settings, extractors), *above)
    return recipes


def provenance(step: str, recipe: str, settings: Settings, extractors: Mapping[str, Extractor]) -> dict[str, Any]:
    """Return what stands in the metadata of each result file of a step."""
    return {"step": step, "recipe": recipe, **json.loads(_ingredients(step, settings, extractors))}


def _ingredients(step: str, settings: Settings, extractors: Mapping[str, Extractor]) -> str:
    if step in DECODING_STEPS:
        parts: dict[str, Any] = {
            "code_version": DECODING_CODE_VERSIONS[step],
            "params": segmentation.decode_params(settings.media),
        }
    else:
        extractor = extractors[step]
        card = extractor.card
        parts = {"code_version": extractor.code_version, "params": extractor.params}
        parts |= {"model": card.name, "revision": card.revision, "digest": card.digest, "extra": dict(card.extra)}
        parts |= {"input_side_px": card.input_side_px, "window_s": card.window_s}
    return json.dumps(parts, sort_keys=True, default=str)
