"""The speech model: openai-whisper's own class, small, and its file in openai-whisper's format.

Put here: architecture, the compact vocabulary, passes that show the attention, import and export of weights.
Keep out: data (speech_bank, speech_windows), losses and the loop (speech).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone knows
from torch import nn
from whisper.model import ModelDimensions, MultiHeadAttention, Whisper, sinusoids

from training.archives import save_deflated, to_full, to_half
from training.speech_bank import SpokenSentence, encode_text, tokenizer

DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=128,
    n_audio_head=4,
    n_audio_layer=2,
    n_vocab=51_865,
    n_text_ctx=448,
    n_text_state=128,
    n_text_head=4,
    n_text_layer=2,
)
"""Fewer audio positions or another vocabulary would not run in openai-whisper."""
N_STAMPS = 1501
_TABLE = "decoder.token_embedding.weight"


class CompactVocabulary:
    """The tokens that training uses, numbered from 1; number 0 stands for all others, which share one row."""

    def __init__(self, sentences: Iterable[SpokenSentence]) -> None:
        names = tokenizer()
        special = {*names.sot_sequence, names.eot, names.sot_prev, names.no_speech, names.no_timestamps}
        words = {token for sentence in sentences for token in encode_text(sentence.text)}
        stamps = range(names.timestamp_begin, names.timestamp_begin + N_STAMPS)
        self.tokens = sorted(special | words | set(stamps))
        self._numbers = {token: number for number, token in enumerate(self.tokens, 1)}
        self._word_numbers = {token: number for number, token in enumerate(sorted(words), 1)}
        self.first_stamp = self._numbers[names.timestamp_begin]

    def __len__(self) -> int:
        """Give the rows of the compact table."""
        return len(self.tokens) + 1

    @property
    def n_words(self) -> int:
        """Tokens of text, without special ones and timestamps."""
        return len(self._word_numbers)

    @property
    def n_shared(self) -> int:
        """Tokens that share row 0."""
        return int(DIMENSIONS.n_vocab) - len(self.tokens)

    def number(self, token: int) -> int:
        """Give the compact number of a token that training uses."""
        return self._numbers[token]

    def numbers(self, tokens: Sequence[int]) -> list[int]:
        """Give the compact numbers of tokens."""
        return [self._numbers[token] for token in tokens]

    def word_number(self, token: int) -> int:
        """Give the number of a token of text among those, from 1."""
        return self._word_numbers[token]

    def spread(self, table: torch.Tensor) -> torch.Tensor:
        """Give the full table."""
        rows = torch.zeros(DIMENSIONS.n_vocab, dtype=torch.long)
        rows[self.tokens] = torch.arange(1, len(self))
        return table[rows]

    def gather(self, table: torch.Tensor) -> torch.Tensor:
        """Give the compact table of a full one; tokens that were not used there start near row 0."""
        unused = next(token for token in range(DIMENSIONS.n_vocab) if token not in self._numbers)
        compact = torch.cat([table[unused : unused + 1], table[self.tokens]])
        is_new = (compact == compact[0]).all(1)
        is_new[0] = False
        compact[is_new] += 0.05 * torch.randn(int(is_new.sum()), table.shape[1])
        return compact


def build_model(vocabulary: CompactVocabulary) -> Whisper:
    """Build the model with the compact table; timestamps begin as sinusoids, so that neighbours are alike."""
    state = DIMENSIONS.n_text_state
    model = Whisper(replace(DIMENSIONS, n_vocab=len(vocabulary)))
    table = model.decoder.token_embedding.weight
    nn.init.normal_(table, std=0.05)
    nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    waves = sinusoids(N_STAMPS, state)
    with torch.no_grad():
        first = vocabulary.first_stamp
        table[first : first + N_STAMPS] = waves / waves.norm(dim=1, keepdim=True) * 0.05 * math.sqrt(state)
    return model


def load_weights(model: Whisper, vocabulary: CompactVocabulary, path: Path) -> None:
    """Load what `export_model` wrote."""
    weights = to_full(torch.load(path, weights_only=True)["model_state_dict"])
    weights[_TABLE] = vocabulary.gather(weights[_TABLE])
    model.load_state_dict(weights)


def export_model(model: Whisper, vocabulary: CompactVocabulary, path: Path) -> None:
    """Write the file that `whisper.load_model` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = dict(model.state_dict())
    weights[_TABLE] = vocabulary.spread(weights[_TABLE])
    save_deflated({"dims": asdict(DIMENSIONS), "model_state_dict": to_half(weights)}, path)


def encode_sound(model: Whisper, mels: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """Run the encoder on windows of any length that begin at position `offset`, shape (n, frames, state)."""
    encoder = model.encoder
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mels)))).permute(0, 2, 1)
    x = (x + encoder.positional_embedding[offset : offset + x.shape[1]]).to(x.dtype)
    for block in encoder.blocks:
        x = block(x)
    encoded: torch.Tensor = encoder.ln_post(x)
    return encoded


def decode_tokens(model: Whisper, given: torch.Tensor, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the decoder: logits (n, tokens, vocabulary), and where its last layer looks (n, heads, tokens, frames)."""
    decoder = model.decoder
    x = decoder.token_embedding(given) + decoder.positional_embedding[: given.shape[1]]
    weights = torch.empty(0)
    for block in decoder.blocks:
        x = x + block.attn(block.attn_ln(x), mask=decoder.mask)[0]
        looked, weights = _attend(block.cross_attn, block.cross_attn_ln(x), encoded)
        x = x + looked
        x = x + block.mlp(block.mlp_ln(x))
    logits: torch.Tensor = decoder.ln(x) @ decoder.token_embedding.weight.t()
    return logits, weights


def _attend(attention: MultiHeadAttention, x: torch.Tensor, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what whisper's attention does; its own fused form gives no weights."""
    n, length, state = x.shape

    def split(y: torch.Tensor) -> torch.Tensor:
        return y.view(n, -1, attention.n_head, state // attention.n_head).permute(0, 2, 1, 3)

    query, key, value = split(attention.query(x)), split(attention.key(encoded)), split(attention.value(encoded))
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = scores.float().softmax(-1)
    mixed = (weights.to(value.dtype) @ value).permute(0, 2, 1, 3).reshape(n, length, state)
    return attention.out(mixed), weights
