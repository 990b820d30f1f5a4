"""The text-image model: open_clip's own class with a small ResNet, and its files in open_clip's format.

Put here: architecture, the compact vocabulary that training uses, import and export of weights.
Keep out: data (pairs), losses and the loop (clip).
"""

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from training.archives import Weights, save_deflated, to_full, to_half, write_whole
from training.captions import full_claim, partial_claim
from training.pairs import SIDE_PX, sample_training_frame

N_VOCABULARY = 49_408
CONTEXT = 24
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": SIDE_PX,
        "layers": [1, 1, 1, 1],
        "width": 16,
        "head_width": 32,
        "patch_size": None,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": N_VOCABULARY,
        "width": 128,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESSING: dict[str, Any] = {
    "size": SIDE_PX,
    "mode": "RGB",
    "mean": MEAN,
    "std": STD,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_pytorch_model.bin"
_TABLE = "token_embedding.weight"
_N_SURVEYED = 16_000
"""Scenes whose captions are read for the vocabulary: about 75 words, each of which occurs hundreds of times."""


class Vocabulary:
    """The tokens that captions use, numbered from 1; number 0 stands for all others.

    open_clip pools the text at the greatest number, so the end of text must stay the greatest.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._tokenizer = SimpleTokenizer(context_length=CONTEXT)
        ends = {self._tokenizer.sot_token_id, self._tokenizer.eot_token_id}
        self.tokens = sorted(ends.union(*(self._tokenizer.encode(word) for word in words)))
        self._numbers = {token: number for number, token in enumerate(self.tokens, 1)}
        self._known: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Give the rows of the compact table."""
        return len(self.tokens) + 1

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Give the texts' numbers, shape (n, CONTEXT), zeros behind the end."""
        rows = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            if text not in self._known:
                self._known[text] = self._encode_one(text)
            numbers = self._known[text]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def _encode_one(self, text: str) -> list[int]:
        tokens = [self._tokenizer.sot_token_id, *self._tokenizer.encode(text)][: CONTEXT - 1]
        return [self._numbers[token] for token in (*tokens, self._tokenizer.eot_token_id)]

    def spread(self, table: torch.Tensor) -> torch.Tensor:
        """Give the full table: tokens that no caption uses all have row 0."""
        numbers = torch.zeros(N_VOCABULARY, dtype=torch.long)
        numbers[self.tokens] = torch.arange(1, len(self))
        return table[numbers]

    def gather(self, table: torch.Tensor) -> torch.Tensor:
        """Give the compact table of a full one; tokens that were not used there start near row 0."""
        unused = next(token for token in range(N_VOCABULARY) if token not in self._numbers)
        compact = torch.cat([table[unused : unused + 1], table[self.tokens]])
        is_new = (compact == compact[0]).all(1)
        is_new[0] = False
        compact[is_new] += 0.02 * torch.randn(int(is_new.sum()), table.shape[1])
        return compact


def survey_words(n_scenes: int = _N_SURVEYED) -> list[str]:
    """Collect the words of captions, the same ones every time."""
    rng = np.random.default_rng(1)
    words: set[str] = set()
    for _ in range(n_scenes):
        spec = sample_training_frame(rng)
        words.update(full_claim(spec, rng).text.split(), partial_claim(spec, rng).text.split())
    return sorted(words)


def build_model(vocabulary: Vocabulary) -> CLIP:
    """Build the model with the compact table."""
    config = deepcopy(MODEL)
    config["text_cfg"]["vocab_size"] = len(vocabulary)
    return CLIP(**config).to(memory_format=torch.channels_last)


def load_weights(model: CLIP, vocabulary: Vocabulary, path: Path) -> None:
    """Load what `export_model` wrote, or the folder of it."""
    file = path / WEIGHTS_NAME if path.is_dir() else path
    weights: Weights = to_full(torch.load(file, weights_only=True))
    weights[_TABLE] = vocabulary.gather(weights[_TABLE])
    model.load_state_dict(weights)


def export_model(model: CLIP, vocabulary: Vocabulary, folder: Path) -> list[Path]:
    """Write configuration and weights, which open_clip loads by the name ``local-dir:<folder>``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(model.state_dict())
    weights[_TABLE] = vocabulary.spread(weights[_TABLE])
    save_deflated(to_half(weights), folder / WEIGHTS_NAME)
    config = json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}, indent=1)
    with write_whole(folder / CONFIG_NAME) as part:
        part.write_text(config, encoding="utf-8")
    return [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
