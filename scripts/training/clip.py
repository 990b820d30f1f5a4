"""Train the text-image model of the demo pack: `python -m training.clip --out DIR`.

Put here: the losses, the learner and the command line.
Keep out: architecture and files (clip_model), frames and labels (pairs), captions (captions).

Learns from scenes that differ in one thing, with full and partial captions and the exact knowledge of which captions
are true of which frames. What the shapes needed most are labels per cell on the maps of layers 2 and 3, by heads that
the exported model does not have.
"""

import math
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone knows
from open_clip.model import CLIP
from torch import nn
from world.frames import FrameSpec, full_caption, render_frame, sample_frame
from world.pen import Image
from world.shapes import SHAPES, SceneKey, describe_scene, sample_scene, scene_key

from training.archives import random_state, restore_random_state
from training.clip_model import MEAN, STD, Vocabulary, build_model, export_model, load_weights, survey_words
from training.options import add_steps, make_parser, set_up
from training.pairs import N_ATTRIBUTES, N_CELL_CLASSES, Batch, FrameSource, shrink
from training.session import Budget, cosine, group_by_decay, run_session, set_rate

MAX_SCALE = 60.0
"""Of cosines before the softmax."""
WARM_UP_STEPS = 60
_FAR = -1e4


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between a real run and one that only tries the program."""

    batch: int = 192
    gallery: int = 400
    rate: float = 1e-3


class Heads(nn.Module):
    """What is seen in the frame as a whole and in each cell of two maps; only training has these."""

    def __init__(self, dim: int, channels: tuple[int, int]) -> None:
        super().__init__()
        self.whole = nn.Linear(dim, N_ATTRIBUTES)
        self.cells = nn.ModuleList(nn.Conv2d(n, N_CELL_CLASSES, 1) for n in channels)
        for head in self.cells:
            nn.init.constant_(head.bias, -3.0)  # type: ignore[arg-type]  # few cells hold anything


class ClipLearner:
    """The model, its heads and its optimiser."""

    name = "clip"

    def __init__(self, recipe: Recipe, seed: int, init: Path | None = None) -> None:
        self._recipe = recipe
        self._rng = np.random.default_rng(seed)
        self._source = FrameSource(self._rng)
        self._vocabulary = Vocabulary(survey_words())
        self.model: CLIP = build_model(self._vocabulary)
        if init is not None:
            load_weights(self.model, self._vocabulary, init)
        self._heads = Heads(128, (128, 256))
        self._parameters = [*self.model.parameters(), *self._heads.parameters()]
        groups = group_by_decay(self._parameters, 0.1)
        self._optimiser = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))
        self._galleries = [Gallery.draw(recipe.gallery, is_composed=flag) for flag in (False, True)]
        self._n_steps = 0

    def step(self, progress: float) -> Mapping[str, float]:
        """Take one step; the heads weigh most at the beginning."""
        warm_up = min(1.0, (self._n_steps + 1) / WARM_UP_STEPS)
        set_rate(self._optimiser, self._recipe.rate * warm_up * cosine(progress))
        losses = self._losses(self._source.draw_batch(self._recipe.batch))
        fade = 1 - progress
        total = losses["full"] + 0.7 * losses["partial"] + 0.3 * losses["partial_by_frame"]
        total = total + (3 * fade + 0.3) * losses["attributes"] + (6 * fade + 1) * losses["cells"]
        self._optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(MAX_SCALE))
        self._n_steps += 1
        return {"loss": total.item()} | {name: loss.item() for name, loss in losses.items()}

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        visual = self.model.visual
        with torch.autocast("cpu", torch.bfloat16):
            fine = visual.layer2(visual.layer1(visual.stem(to_input(batch.pixels))))
            coarse = visual.layer3(fine)
            pooled = visual.attnpool(visual.layer4(coarse))
            texts = self.model.encode_text(self._vocabulary.encode(batch.texts), normalize=True)
            seen = self._heads.whole(pooled)
            maps = [head(map_) for head, map_ in zip(self._heads.cells, (fine, coarse), strict=True)]
        frames = F.normalize(pooled.float(), dim=-1)
        scores = self.model.logit_scale.exp() * frames @ texts.float().T
        is_true, n = torch.from_numpy(batch.is_true), len(batch.pixels)
        return {
            "full": full_loss(scores[:, :n], is_true[:n]),
            "partial": partial_loss(scores[:, n:].T, is_true[n:]),
            "partial_by_frame": partial_loss(scores[:, n:], is_true[n:].T),
            "attributes": rare_label_loss(seen, torch.from_numpy(batch.attributes), 4.0),
            "cells": sum_losses(maps, batch),
        }

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Recall@1 of captions and accuracy of the eight shapes, on scenes alone and on composed frames."""
        self.model.eval()
        figures: dict[str, float] = {}
        for gallery, kind in zip(self._galleries, ("plain", "composed"), strict=True):
            figures |= {f"{name}_{kind}_frac": value for name, value in gallery.measure(self._encode).items()}
        self.model.train()
        return figures

    def _encode(self, pixels: Image | None, texts: list[str]) -> torch.Tensor:
        encoded: torch.Tensor = (
            self.model.encode_text(self._vocabulary.encode(texts), normalize=True)
            if pixels is None
            else self.model.encode_image(to_input(pixels), normalize=True)
        )
        return encoded

    def state(self) -> dict[str, Any]:
        """Give weights, optimiser and random generators."""
        return {
            "model": self.model.state_dict(),
            "heads": self._heads.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "random": random_state(self._rng),
            "n_steps": self._n_steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self.model.load_state_dict(state["model"])
        self._heads.load_state_dict(state["heads"])
        self._optimiser.load_state_dict(state["optimiser"])
        restore_random_state(self._rng, state["random"])
        self._n_steps = state["n_steps"]

    def export(self, folder: Path) -> list[Path]:
        """Write the files that open_clip loads, without the heads."""
        return export_model(self.model, self._vocabulary, folder)


def to_input(pixels: Image) -> torch.Tensor:
    """Give RGB bytes as the model's input, shape (n, 3, side, side)."""
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((floats - mean) / std).contiguous(memory_format=torch.channels_last)


def full_loss(scores: torch.Tensor, is_true: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways; other frames that a caption is true of are no rivals.

    Parameters
    ----------
    scores : shape (frames, captions), right pairs on the diagonal
    is_true : shape (captions, frames)
    """
    labels = torch.arange(len(scores))
    ignored = is_true & ~torch.eye(len(scores), dtype=torch.bool)
    by_frame = F.cross_entropy(scores.masked_fill(ignored.T, _FAR), labels)
    return (by_frame + F.cross_entropy(scores.T.masked_fill(ignored, _FAR), labels)) / 2


def partial_loss(scores: torch.Tensor, is_true: torch.Tensor) -> torch.Tensor:
    """Contrast each true pair with the false ones of its row alone; rows without a true pair add nothing.

    Parameters
    ----------
    scores, is_true : of the same shape
    """
    rivals = torch.logsumexp(scores.masked_fill(is_true, _FAR), 1, keepdim=True)
    losses = (torch.logaddexp(scores, rivals) - scores) * is_true
    return (losses.sum(1) / is_true.sum(1).clamp(min=1)).mean()


def rare_label_loss(scores: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
    """Binary cross-entropy that weighs what is there more than what is not."""
    return F.binary_cross_entropy_with_logits(scores.float(), labels, pos_weight=torch.tensor(weight))


def sum_losses(maps: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Add the losses of the cells of all maps."""
    losses = [
        rare_label_loss(scores, torch.from_numpy(labels), 6.0) for scores, labels in zip(maps, batch.cells, strict=True)
    ]
    return torch.stack(losses).sum()


@dataclass(frozen=True, slots=True)
class Gallery:
    """Frames that all differ in meaning, at training size, for measuring."""

    specs: list[FrameSpec]
    pixels: Image
    captions: list[str]

    @classmethod
    def draw(cls, size: int, *, is_composed: bool) -> "Gallery":
        """Draw the same gallery every time."""
        rng = np.random.default_rng(301 if is_composed else 300)
        found: dict[SceneKey, FrameSpec] = {}
        while len(found) < size:
            spec = sample_frame(rng) if is_composed else FrameSpec(sample_scene(rng))
            found.setdefault(scene_key(spec.scene), spec)
        specs = list(found.values())
        height, width = (360, 640) if is_composed else (180, 320)
        pixels = [shrink(render_frame(spec, rng, width=width, height=height)[0]) for spec in specs]
        captions = [
            full_caption(spec) if is_composed else describe_scene(spec.scene, with_background=True) for spec in specs
        ]
        return cls(specs, np.stack(pixels), captions)

    def measure(self, encode: Any) -> dict[str, float]:
        """Give the share of captions that find their frame first, and of shapes that are named rightly."""
        frames = encode(self.pixels, [])
        best = (encode(None, self.captions) @ frames.T).argmax(1)
        lone = [k for k, spec in enumerate(self.specs) if spec.scene.kind != "two"]
        named = (encode(None, [f"a {shape}" for shape in SHAPES]) @ frames[lone].T).argmax(0)
        right = [self.specs[k].scene.objects[0][1] == SHAPES[int(i)] for k, i in zip(lone, named, strict=True)]
        recall = (best == torch.arange(len(best))).float().mean().item()
        return {"recall_at_1": recall, "shape_accuracy": float(np.mean(right))}


def parse_arguments(arguments: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = make_parser("Train the text-image model on drawn scenes and their captions.", minutes=30)
    add_steps(parser)
    parser.add_argument("--rate", type=float, help="learning rate; default: 1e-3, with --init 5e-4")
    options = parser.parse_args(arguments)
    options.rate = options.rate or (1e-3 if options.init is None else 5e-4)
    return options


def main(arguments: list[str] | None = None, recipe: Recipe | None = None) -> int:
    """Train; 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    set_up(options.threads, options.seed)
    learner = ClipLearner(recipe or Recipe(rate=options.rate), options.seed, options.init)
    budget = Budget(options.minutes, options.steps)
    return run_session(learner, budget, options.out, is_resumed=options.resume)


if __name__ == "__main__":
    sys.exit(main())
