"""Which class fills which step: ours by a literal mapping, users' by entry points ``mm_assets.extractors``.

Put here: finding and building extractors; this is the only module that imports them, and only when asked for one.
Keep out: anything about a model.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mm_assets.errors import ConfigError
from mm_assets.extractors.base import Extractor, ModelCard, Placement
from mm_assets.extractors.packs import Pack
from mm_assets.settings import ModelSettings

GROUP = "mm_assets.extractors"
EXTRACTORS: Mapping[str, str] = {
    "visual_embeddings": "mm_assets.extractors.open_clip:OpenClipExtractor",
    "detected_objects": "mm_assets.extractors.ultralytics:UltralyticsExtractor",
    "faces": "mm_assets.extractors.insightface:InsightfaceExtractor",
    "ocr_text": "mm_assets.extractors.tesseract:TesseractExtractor",
    "transcripts": "mm_assets.extractors.whisper:WhisperExtractor",
    "media_quality": "mm_assets.extractors.quality:QualityExtractor",
    "text_embeddings": "mm_assets.extractors.text_embeddings:TextEmbeddingExtractor",
}


def known_steps() -> tuple[str, ...]:
    """List the steps that an extractor fills: ours first, then users', by name."""
    return (*EXTRACTORS, *sorted(_plug_ins()))


def extractor_class(step: str) -> type[Extractor]:
    """Class of a step, imported now; its model library is not.

    Raises
    ------
    ConfigError
        No such step, or the plug-in cannot be imported, or fills another step than it is registered for.
    """
    if step in EXTRACTORS:
        module, _, name = EXTRACTORS[step].partition(":")
        found: type[Extractor] = getattr(import_module(module), name)
        return found
    point = _plug_ins().get(step)
    if point is None:
        msg = f"no extractor fills {step!r}; known: {', '.join(known_steps())}"
        raise ConfigError(msg)
    return _load_plug_in(step, point)


def build_extractor(
    step: str, pack: Pack, params: Mapping[str, Any] | None = None, placement: Placement | None = None
) -> Extractor:
    """Extractor of a step with the pack's card, not loaded yet; raises ConfigError for unknown steps and parameters.

    A plug-in without a card in the pack gets one that names its class and version: it brings its own weights.
    """
    kind = extractor_class(step)
    unknown = sorted(set(params or {}) - set(kind.defaults))
    if unknown:
        msg = f"{step} has no parameters {', '.join(unknown)}; known: {', '.join(kind.defaults) or 'none'}"
        raise ConfigError(msg)
    card = pack.cards.get(step) or pack.cards.get(kind.model_of)
    if card is None:
        if step in EXTRACTORS:
            msg = f"pack {pack.name} has no model for {step}; choose another pack or drop the step from `steps`"
            raise ConfigError(msg)
        card = ModelCard(kind.__name__, kind.code_version, kind.__module__, "unknown", Path())
    return kind(card, params, placement)


def choose_placement(models: ModelSettings) -> Placement:
    """Device, threads and batch size from the settings; torch is asked only when the device is ``auto``."""
    return Placement(_device(models.device), models.threads, models.batch_size)


def _device(choice: str) -> str:
    if choice != "auto":
        return choice
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in EXTRACTORS}


def _load_plug_in(step: str, point: EntryPoint) -> type[Extractor]:
    try:
        kind = point.load()
    except (ImportError, AttributeError) as error:
        msg = f"extractor {point.value} for {step} cannot be imported: {error}"
        raise ConfigError(msg) from error
    if not (isinstance(kind, type) and issubclass(kind, Extractor)) or kind.step != step:
        msg = f"{point.value} must be an Extractor whose `step` is {step!r}, as its entry point says"
        raise ConfigError(msg)
    return kind
