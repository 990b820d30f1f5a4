"""Models of open_clip, loaded once in a process for all extractors that use the same one.

Put here: card → loaded model, texts → vectors. Keep out: what is embedded, and tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from mm_assets.errors import ConfigError
from mm_assets.extractors.accelerator import map_batches, torch_device
from mm_assets.extractors.base import ModelCard, Placement
from mm_assets.extractors.weights import refuse_other_files

Vectors = npt.NDArray[np.float32]
_CONFIG = "open_clip_config.json"
_KNOWN_WORDS = 1 << 16  # whose tokens are counted once


@dataclass(eq=False)
class ClipModel:
    """A loaded model with its text side.

    Attributes
    ----------
    precision : fp32, or bf16 where the device computes in it
    """

    model: Any
    preprocess: Any
    tokenizer: Any
    device: Any
    precision: str

    def __post_init__(self) -> None:
        """Count the tokens of a word once."""
        self.count_tokens = lru_cache(_KNOWN_WORDS)(self._count_tokens)

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that the model reads, less its marks of begin and end."""
        return int(self.tokenizer.context_length) - 2

    def _count_tokens(self, text: str) -> int:
        if hasattr(self.tokenizer, "encode"):
            return len(self.tokenizer.encode(text))
        return len(self.tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_texts(self, texts: Sequence[str], batch_size: int, dim: int | None) -> Vectors:
        """Give unit vectors, shape (n, dim), of texts; what is beyond ``max_tokens`` is not read."""
        return stack(map_batches(self._encode_text_batch, texts, batch_size), dim)

    def _encode_text_batch(self, texts: list[str]) -> Vectors:
        import torch

        with torch.inference_mode():
            return to_unit(self.model.encode_text(self.tokenizer(texts).to(self.device)))


_loaded: WeakValueDictionary[tuple[str, ...], ClipModel] = WeakValueDictionary()


def load_clip(card: ModelCard, place: Placement, precision: str) -> ClipModel:
    """Load a model, or take the same one that is loaded already; its digests were checked by the caller.

    Raises
    ------
    ConfigError
        The card names neither a configuration nor an architecture.
    """
    device = torch_device(place)
    precision = precision if _has_bfloat16(device) else "fp32"
    key = (str(card.folder), card.digest, str(card.extra.get("architecture")), str(device), precision)
    found = _loaded.get(key)
    if found is None:
        found = _loaded[key] = _load(card, device, precision)
    return found


def _load(card: ModelCard, device: Any, precision: str) -> ClipModel:
    import open_clip

    name, pretrained = _source(card)
    model, _, preprocess = open_clip.create_model_and_transforms(
        name,
        pretrained,
        precision=precision,
        device=device,
        # Without it open_clip only logs that it found no weights and goes on with random ones.
        require_pretrained=True,
    )
    return ClipModel(model.eval(), preprocess, open_clip.get_tokenizer(name), device, precision)


def _source(card: ModelCard) -> tuple[str, str | None]:
    """Name and weights for open_clip's factory: a folder of ours, or one of its architectures and a file."""
    paths = [card.path(name) for name in card.files]
    configs = [path for path in paths if path.name == _CONFIG]
    if configs:
        refuse_other_files(configs[0].parent, paths)
        return f"local-dir:{configs[0].parent.absolute()}", None
    if "architecture" not in card.extra or len(paths) != 1:
        msg = f"card {card.name}: give {_CONFIG} beside the weights, or extra.architecture and one file"
        raise ConfigError(msg)
    return str(card.extra["architecture"]), str(paths[0].absolute())


def to_unit(features: Any) -> Vectors:
    """Normalise in fp32, so that the length is 1 to 1e-6 whatever the precision of the model."""
    vectors = features.float().cpu().numpy()
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def stack(vectors: list[Vectors], dim: int | None) -> Vectors:
    """Put vectors into one array, shape (n, dim), also none."""
    return np.stack(vectors) if vectors else np.empty((0, dim or 0), np.float32)


def _has_bfloat16(device: Any) -> bool:
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without the instructions bf16 is emulated and slower than fp32; torch's public capabilities name them.
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
