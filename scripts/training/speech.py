"""Train the speech model of the demo pack: `python -m training.speech --out DIR`.

Put here: losses, the learner and the command line.
Keep out: sentences (speech_bank), windows (speech_windows), architecture and files (speech_model).

Text alone teaches so small a model nothing in minutes. Two things that the synthesiser knows do: the word at each
frame, told by a head on the encoder that the exported model does not have, and where each token is heard, towards
which the attention of the decoder's last layer is guided (after Tachibana et al. 2018). That layer is also the one
that openai-whisper reads word times from.
"""

import math
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone knows
from torch import nn

from training.archives import random_state, restore_random_state
from training.options import add_steps, make_parser, set_up
from training.session import Budget, cosine, group_by_decay, run_session, set_rate
from training.speech_bank import N_CAPTIONS, N_GRAMMAR, N_TEST, Bank, speak_bank
from training.speech_model import (
    DIMENSIONS,
    N_STAMPS,
    CompactVocabulary,
    build_model,
    decode_tokens,
    encode_sound,
    export_model,
    load_weights,
)
from training.speech_windows import FRAME_HZ, Batch, WindowSource, move_stamps

FILE_NAME, SENTENCES_NAME = "whisper.pt", "sentences.txt"
WARM_UP_STEPS = 150
STAMP_SPREAD = ((0, 0.5), (-1, 0.17), (1, 0.17), (-2, 0.08), (2, 0.08))
"""Timestamps 20 ms beside the right one are nearly right."""
NEAR_STAMPS = 5


class Shape(NamedTuple):
    """Length and number of the windows of a batch."""

    seconds: int
    size: int


LONG = ((0.45, Shape(30, 4)), (0.25, Shape(16, 6)), (0.30, Shape(8, 12)))
"""Shares of windows; whisper decodes 30 s, shorter ones are cheaper."""
START = ((0.60, Shape(4, 24)), (0.40, Shape(8, 12)))
MIDDLE = ((0.20, Shape(4, 24)), (0.55, Shape(8, 12)), (0.25, Shape(16, 6)))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between a real run and one that only tries the program."""

    n_grammar: int = N_GRAMMAR
    n_captions: int = N_CAPTIONS
    n_test: int = N_TEST
    rate: float = 1.5e-3
    plan: tuple[tuple[float, Shape], ...] | None = None
    tests: tuple[Shape, ...] = (Shape(8, 16), Shape(30, 12))


class SpeechLearner:
    """The model, the head that names words, and their optimiser."""

    name = "speech"

    def __init__(self, recipe: Recipe, seed: int, init: Path | None = None) -> None:
        self._recipe, self._is_new = recipe, init is None
        self._rng = np.random.default_rng(seed)
        self._bank = speak_bank(seed, recipe.n_grammar, recipe.n_captions, recipe.n_test)
        self._vocabulary = CompactVocabulary([sentence for part in self._bank for sentence in part])
        self.model = build_model(self._vocabulary)
        if init is not None:
            load_weights(self.model, self._vocabulary, init)
        self._word_head = nn.Linear(DIMENSIONS.n_audio_state, self._vocabulary.n_words + 1)
        self._source = WindowSource(self._bank.train, self._vocabulary, self._rng)
        self._tests = _draw_tests(self._bank, self._vocabulary, recipe.tests)
        self._parameters = [*self.model.parameters(), *self._word_head.parameters()]
        groups = group_by_decay(self._parameters, 0.02)
        self._optimiser = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))
        self._n_steps = 0

    def step(self, progress: float) -> Mapping[str, float]:
        """Take one step on windows of one length."""
        warm_up = min(1.0, (self._n_steps + 1) / WARM_UP_STEPS)
        set_rate(self._optimiser, self._recipe.rate * warm_up * cosine(progress, floor=0.03))
        losses = self._losses(*self._draw(progress))
        # A new model learns words first, and to write them later.
        word_weight = 1.1 - progress if self._is_new else 0.4
        total = losses["token"] + word_weight * (losses["word"] + 0.6 * losses["attention"])
        self._optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        self._n_steps += 1
        return {"loss": total.item()} | {name: loss.item() for name, loss in losses.items()}

    def _draw(self, progress: float) -> tuple[Batch, int]:
        """Draw a batch and the position at which its windows are to lie, in frames."""
        seconds, size = self._pick_shape(progress)
        batch = self._source.draw_batch(seconds, size)
        last = DIMENSIONS.n_audio_ctx - seconds * FRAME_HZ
        if last == 0 or self._rng.random() >= 0.6:
            return batch, 0
        offset = int(self._rng.integers(0, last))
        return move_stamps(batch, offset, self._vocabulary.first_stamp), offset

    def _pick_shape(self, progress: float) -> Shape:
        """Begin with short windows where the model is new."""
        plan = LONG if not self._is_new or progress >= 0.6 else START if progress < 0.35 else MIDDLE
        options = self._recipe.plan or plan
        return options[int(self._rng.choice(len(options), p=[share for share, _ in options]))][1]

    def _losses(self, batch: Batch, offset: int) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            encoded = encode_sound(self.model, batch.mels, offset)
            logits, attention = decode_tokens(self.model, batch.given, encoded)
            named = self._word_head(encoded)
        scores = self._log_probabilities(logits, batch.wanted)
        return {
            "token": token_loss(scores, batch.wanted[batch.wanted >= 0], self._vocabulary.first_stamp),
            "word": word_loss(named, batch.words),
            "attention": attention_loss(attention, batch.is_heard),
        }

    def _log_probabilities(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Give those of the learnt tokens; row 0 counts as often as there are tokens that share it."""
        shared = torch.zeros(logits.shape[-1])
        shared[0] = math.log(self._vocabulary.n_shared)
        return F.log_softmax(logits.float() + shared, -1)[wanted >= 0]

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Share of right tokens, and of timestamps within 0.1 s, in sentences that training does not see."""
        self.model.eval()
        figures: dict[str, float] = {}
        for shape, batch in zip(self._recipe.tests, self._tests, strict=True):
            logits, _ = decode_tokens(self.model, batch.given, encode_sound(self.model, batch.mels))
            best = self._log_probabilities(logits, batch.wanted).argmax(1)
            wanted = batch.wanted[batch.wanted >= 0]
            is_stamp = wanted >= self._vocabulary.first_stamp
            figures[f"tokens_{shape.seconds}s_frac"] = _mean((best == wanted)[~is_stamp])
            figures[f"timestamps_{shape.seconds}s_frac"] = _mean(((best - wanted).abs() <= NEAR_STAMPS)[is_stamp])
        self.model.train()
        return figures

    def state(self) -> dict[str, Any]:
        """Give weights, optimiser and random generators; the bank is spoken again from the seed."""
        return {
            "model": self.model.state_dict(),
            "word_head": self._word_head.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "random": random_state(self._rng),
            "n_steps": self._n_steps,
            "is_new": self._is_new,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self.model.load_state_dict(state["model"])
        self._word_head.load_state_dict(state["word_head"])
        self._optimiser.load_state_dict(state["optimiser"])
        restore_random_state(self._rng, state["random"])
        self._n_steps, self._is_new = state["n_steps"], state["is_new"]

    def export(self, folder: Path) -> list[Path]:
        """Write the model, and the sentences it has learnt, which evaluation media must not have."""
        export_model(self.model, self._vocabulary, folder / FILE_NAME)
        texts = sorted({sentence.text for sentence in self._bank.train})
        (folder / SENTENCES_NAME).write_text("\n".join(texts) + "\n", encoding="utf-8")
        return [folder / FILE_NAME, folder / SENTENCES_NAME]


def _draw_tests(bank: Bank, vocabulary: CompactVocabulary, shapes: tuple[Shape, ...]) -> list[Batch]:
    source = WindowSource(bank.test, vocabulary, np.random.default_rng(5))
    return [source.draw_batch(*shape) for shape in shapes]


def _mean(values: torch.Tensor) -> float:
    return values.float().mean().item() if len(values) else 0.0


def token_loss(scores: torch.Tensor, wanted: torch.Tensor, first_stamp: int) -> torch.Tensor:
    """Cross-entropy of the tokens (n,), spread over the neighbours of a timestamp; `scores` (n, vocabulary) are logs."""
    is_stamp = wanted >= first_stamp
    text = -scores[~is_stamp].gather(1, wanted[~is_stamp][:, None])[:, 0]
    stamp_scores, stamps = scores[is_stamp], wanted[is_stamp]
    spread = torch.zeros(len(stamps))
    for distance, weight in STAMP_SPREAD:
        neighbours = (stamps + distance).clamp(first_stamp, first_stamp + N_STAMPS - 1)
        spread = spread - weight * stamp_scores.gather(1, neighbours[:, None])[:, 0]
    return torch.cat([text, spread]).mean()


def word_loss(named: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the word at each frame (n, frames); silence, which is most of it, weighs little."""
    flat = words.flatten()
    losses = F.cross_entropy(named.float().flatten(0, 1), flat, ignore_index=-100, reduction="none")
    weights = torch.where(flat > 0, 1.0, 0.15) * (flat >= 0)
    return (losses * weights).sum() / weights.sum()


def attention_loss(attention: torch.Tensor, is_heard: torch.Tensor) -> torch.Tensor:
    """Minus the log of the share of attention (n, heads, tokens, frames) that lies where the token is heard."""
    inside = (attention * is_heard[:, None]).sum(-1)
    has_place = is_heard.any(-1)
    if not has_place.any():  # a batch of silence
        return torch.zeros(())
    return -(inside + 1e-4).log().mean(1)[has_place].mean()


def parse_arguments(arguments: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = make_parser("Train the speech model on sentences that espeak-ng speaks (needs libespeak-ng1).", minutes=40)
    add_steps(parser)
    parser.add_argument("--rate", type=float, help="learning rate; default: 1.5e-3, with --init 1.2e-3")
    options = parser.parse_args(arguments)
    options.rate = options.rate or (1.5e-3 if options.init is None else 1.2e-3)
    return options


def main(arguments: list[str] | None = None, recipe: Recipe | None = None) -> int:
    """Train; 130 when stopped by Ctrl-C."""
    options = parse_arguments(arguments)
    set_up(options.threads, options.seed)
    learner = SpeechLearner(recipe or Recipe(rate=options.rate), options.seed, options.init)
    budget = Budget(options.minutes, options.steps)
    return run_session(learner, budget, options.out, is_resumed=options.resume)


if __name__ == "__main__":
    sys.exit(main())
