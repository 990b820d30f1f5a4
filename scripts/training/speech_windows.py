"""Windows of sound with several sentences, as whisper sees them, and all that training knows about them.

Put here: the mixing of sentences, noise and silence, the token sequences, where each token is heard, batches.
Keep out: the sentences themselves (speech_bank), the model (speech_model), losses and the loop (speech).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone knows
from whisper.audio import log_mel_spectrogram

from training.speech_bank import RATE_HZ, SpokenSentence, encode_text, tokenizer
from training.speech_model import CompactVocabulary

N_MELS = 80
MEL_HZ, FRAME_HZ, STAMP_HZ = 100, 50, 50
"""Frames a second of the spectrogram, of the encoder's output, and of timestamps."""
IGNORED = -100
LAST_STAMP = 1500


class Span(NamedTuple):
    """A place in the token sequence and the seconds of sound that its token comes from."""

    place: int
    start_s: float
    end_s: float


@dataclass(slots=True)
class Window:
    """One window.

    Attributes
    ----------
    mel : float32, shape (80, 100 a second)
    tokens : compact numbers, start of transcript to end of text, perhaps with a prompt before
    n_given : how many of the tokens are given and not learnt
    words : the word at each frame of the encoder's output, 0 none, −100 not known; shape (50 a second,)
    spans : which sound the learnt tokens come from
    """

    mel: torch.Tensor
    tokens: list[int]
    n_given: int
    words: npt.NDArray[np.int64]
    spans: list[Span]


@dataclass(slots=True)
class _Track:
    """Sentences placed on a window; `cut_at` is the sample at which the last one begins that the window cuts off."""

    sound: npt.NDArray[np.float32]
    placed: list[tuple[float, float, SpokenSentence]] = field(default_factory=list)
    cut_at: int | None = None
    n_filled: int = 0


class Batch(NamedTuple):
    """Windows as tensors: spectrograms, given and wanted tokens, words per frame, and where to look (n, token, frame)."""

    mels: torch.Tensor
    given: torch.Tensor
    wanted: torch.Tensor
    words: torch.Tensor
    is_heard: torch.Tensor


class WindowSource:
    """Mixes windows from a bank; the order of draws is part of the recipe."""

    def __init__(self, bank: Sequence[SpokenSentence], vocabulary: CompactVocabulary, rng: np.random.Generator) -> None:
        self._bank, self._vocabulary, self._rng = bank, vocabulary, rng

    def draw_batch(self, seconds: int, size: int) -> Batch:
        """Mix `size` windows of the same length."""
        windows = [self.draw_window(seconds) for _ in range(size)]
        n_tokens = max(len(window.tokens) for window in windows) - 1
        given = torch.full((size, n_tokens), self._vocabulary.number(tokenizer().eot))
        wanted = torch.full((size, n_tokens), IGNORED)
        is_heard = torch.zeros(size, n_tokens, seconds * FRAME_HZ, dtype=torch.bool)
        for row, window in enumerate(windows):
            n, first = len(window.tokens) - 1, window.n_given - 1
            given[row, :n] = torch.tensor(window.tokens[:-1])
            wanted[row, first:n] = torch.tensor(window.tokens[window.n_given :])
            for span in window.spans:
                start = max(0, int(span.start_s * FRAME_HZ) - 1)
                end = max(int(span.start_s * FRAME_HZ) + 2, int(np.ceil(span.end_s * FRAME_HZ)) + 1)
                is_heard[row, span.place, start:end] = True
        mels = torch.stack([window.mel for window in windows])
        words = torch.from_numpy(np.stack([window.words for window in windows]))
        return Batch(mels, given, wanted, words, is_heard)

    def draw_window(self, seconds: int) -> Window:
        """Mix one window; one in twenty-five has no speech."""
        is_silent = self._rng.random() < 0.04
        track = self._mix_silence(seconds) if is_silent else self._mix_sentences(seconds)
        mel = self._hear(track, seconds)
        if not track.placed and track.cut_at is None:
            tokens = self._vocabulary.numbers([tokenizer().sot, tokenizer().no_speech])
            return Window(mel, tokens, 1, np.zeros(seconds * FRAME_HZ, np.int64), [])
        return self._write(track, mel, seconds)

    def _pick(self) -> SpokenSentence:
        return self._bank[int(self._rng.integers(len(self._bank)))]

    def _mix_silence(self, seconds: int) -> _Track:
        n_filled = seconds * RATE_HZ if self._rng.random() < 0.5 else int(self._rng.uniform(1, seconds) * RATE_HZ)
        return _Track(np.zeros(seconds * RATE_HZ, np.float32), n_filled=n_filled)

    def _mix_sentences(self, seconds: int) -> _Track:
        """Place sentences one after the other, as many as drawn or as fit; a full window may cut the last one off."""
        rng, track = self._rng, _Track(np.zeros(seconds * RATE_HZ, np.float32))
        latest = 0.8 if rng.random() < 0.65 else min(0.5 * seconds, 7)
        at = int(rng.uniform(0, latest) * RATE_HZ)
        is_full = rng.random() >= 0.6
        most = np.inf if is_full else 1 + rng.integers(0, max(1, int(seconds / 2.6)))
        while len(track.placed) < most:
            sentence = self._pick()
            if at + len(sentence.samples) > len(track.sound):
                if is_full and seconds >= 15 and len(track.sound) - at > RATE_HZ // 4 and track.placed:
                    self._cut_off(track, sentence, at)
                break
            at = self._place(track, sentence, at)
        if track.cut_at is None:
            end_s = track.placed[-1][1] if track.placed else 1.0
            track.n_filled = min(len(track.sound), int((end_s + rng.uniform(0, 1.5)) * RATE_HZ))
        return track

    def _place(self, track: _Track, sentence: SpokenSentence, at: int) -> int:
        """Place a sentence and give where the next may begin."""
        end = at + len(sentence.samples)
        track.sound[at:end] += sentence.sound * self._rng.uniform(0.4, 1.2)
        track.placed.append((at / RATE_HZ, end / RATE_HZ, sentence))
        pause_s = self._rng.uniform(0.15, 1.2) if self._rng.random() < 0.85 else self._rng.uniform(1, 4)
        return end + int(pause_s * RATE_HZ)

    @staticmethod
    def _cut_off(track: _Track, sentence: SpokenSentence, at: int) -> None:
        track.sound[at:] += sentence.sound[: len(track.sound) - at]
        track.cut_at, track.n_filled = at, len(track.sound)

    def _hear(self, track: _Track, seconds: int) -> torch.Tensor:
        """Add noise, change the loudness, and give the spectrogram with zeros behind the end of the sound."""
        rng, n = self._rng, track.n_filled
        if rng.random() < 0.6:
            track.sound[:n] += rng.normal(0, 10 ** rng.uniform(-4.5, -2), n)
        sound = np.clip(track.sound * 10 ** rng.uniform(-0.5, 0.3), -1, 1).astype(np.float32)
        # whisper pads the sound with silence before its spectrogram, and the spectrogram with zeros.
        padded = np.concatenate([sound[:n], np.zeros(RATE_HZ, np.float32)])
        mel = log_mel_spectrogram(padded, N_MELS)[:, : n * MEL_HZ // RATE_HZ]
        return F.pad(mel, (0, seconds * MEL_HZ - mel.shape[1]))

    def _write(self, track: _Track, mel: torch.Tensor, seconds: int) -> Window:
        """Write the tokens of a window with speech: with timestamps mostly, with a prompt in a third."""
        names, words = tokenizer(), np.zeros(seconds * FRAME_HZ, np.int64)
        heard = self._transcribe(track, words)
        head = list(names.sot_sequence)
        if self._rng.random() < 0.2 and track.cut_at is None:  # the form in which whisper aligns words
            head.append(names.no_timestamps)
            heard = [item for item in heard if item[0] < names.timestamp_begin]
        prompt = self._draw_prompt() if self._rng.random() < 0.35 else []
        given = prompt + head
        tokens = self._vocabulary.numbers([*given, *(token for token, _, _ in heard), names.eot])
        spans = [Span(len(given) - 1 + k, start_s, end_s) for k, (_, start_s, end_s) in enumerate(heard)]
        return Window(mel, tokens, len(prompt) + 1, words, spans)

    def _draw_prompt(self) -> list[int]:
        texts = [self._pick().text for _ in range(self._rng.integers(1, 4))]
        return [tokenizer().sot_prev, *(token for text in texts for token in encode_text(text))]

    def _transcribe(self, track: _Track, words: npt.NDArray[np.int64]) -> list[tuple[int, float, float]]:
        """Give all tokens with timestamps and the seconds they come from, and fill in the word at each frame."""
        heard: list[tuple[int, float, float]] = []
        for start_s, end_s, sentence in track.placed:
            heard.append((stamp(start_s), start_s - 0.02, start_s + 0.1))
            for token, first_s, last_s in sentence.tokens:
                a, b = start_s + first_s, start_s + last_s
                heard.append((token, a, b))
                words[int(a * FRAME_HZ) : int(np.ceil(b * FRAME_HZ))] = self._vocabulary.word_number(token)
            heard.append((stamp(end_s), end_s - 0.1, end_s + 0.04))
        if track.cut_at is not None:
            cut_s = track.cut_at / RATE_HZ
            heard.append((stamp(cut_s), cut_s - 0.02, cut_s + 0.1))
            words[int(cut_s * FRAME_HZ) :] = IGNORED
        return heard


def stamp(seconds: float) -> int:
    """Give the token of a timestamp."""
    return int(tokenizer().timestamp_begin) + min(LAST_STAMP, round(seconds * STAMP_HZ))


def move_stamps(batch: Batch, offset: int, first_stamp: int) -> Batch:
    """Give the batch as if its windows lay `offset` timestamps later: cheap windows then train all timestamps."""
    given, wanted = (
        torch.where(tokens >= first_stamp, tokens + offset, tokens) for tokens in (batch.given, batch.wanted)
    )
    return batch._replace(given=given, wanted=wanted)
