"""Which steps there are, what each needs, and the recipe that names a result.

Put here: the graph of steps. Keep out: running them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mm_assets import segmentation
from mm_assets.errors import ConfigError
from mm_assets.extractors.base import Extractor
from mm_assets.identity import short_hash
from mm_assets.settings import Settings

DECODING_STEPS = ("raw_objects", "segments")
DECODING_CODE_VERSIONS = {
    "raw_objects": segmentation.RAW_OBJECTS_CODE_VERSION,
    "segments": segmentation.SEGMENTS_CODE_VERSION,
}


Extractors: TypeAlias = Mapping[str, Extractor | type[Extractor]]


def upstream(step: str, extractors: Extractors) -> tuple[str, ...]:
    """Return the steps whose results this one reads, of those that are made at all."""
    if step in DECODING_STEPS:
        return DECODING_STEPS[: DECODING_STEPS.index(step)]
    return tuple(need for need in extractors[step].reads if need in DECODING_STEPS or need in extractors)


def read_steps(step: str, extractors: Extractors) -> tuple[str, ...]:
    """Return the extractors' steps whose results this one reads: they are over before it is planned."""
    return tuple(need for need in upstream(step, extractors) if need not in DECODING_STEPS)


def with_upstream(steps: Iterable[str], extractors: Extractors) -> tuple[str, ...]:
    """Return the steps and the decoding that they need, needed ones first; what else they read is not added.

    Raises
    ------
    ConfigError
        Steps read each other in a circle.
    """
    asked, ordered = dict.fromkeys(steps), dict[str, None]()

    def add(step: str, readers: tuple[str, ...]) -> None:
        if step in readers:
            msg = f"these steps read each other in a circle: {', '.join(readers)}; correct their `reads`"
            raise ConfigError(msg)
        for need in upstream(step, extractors):
            if need in DECODING_STEPS or need in asked:
                add(need, (*readers, step))
        ordered[step] = None

    for step in asked:
        add(step, ())
    return tuple(ordered)


def waves(steps: Sequence[str], extractors: Extractors) -> list[tuple[str, ...]]:
    """Group steps by what one batch can run: first all that read only what decoding gives, then each reader by itself.

    A reader comes later than those whose results it reads; each waits for others, so none shares a batch.
    """
    by_depth = sorted((_depth(step, extractors), step) for step in steps if read_steps(step, extractors))
    first = tuple(step for step in steps if not read_steps(step, extractors))
    return [*([first] if first else []), *((step,) for _, step in by_depth)]


def _depth(step: str, extractors: Extractors) -> int:
    return max((1 + _depth(need, extractors) for need in read_steps(step, extractors)), default=0)


def build_recipes(settings: Settings, extractors: Mapping[str, Extractor]) -> dict[str, str]:
    """Return step → recipe: a hash of code version, parameters, weights and the recipes upstream.

    The object's identity is not in it; where results lie and how many at a time are computed is not in it either.
    """
    recipes: dict[str, str] = {}
    for step in with_upstream((*DECODING_STEPS, *extractors), extractors):
        above = [recipes[need] for need in upstream(step, extractors)]
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
