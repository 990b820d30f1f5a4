"""The bank of spoken sentences that the speech model learns from, with the times of their tokens.

Put here: which sentences are spoken, and when each token of them is heard.
Keep out: the grammar and the synthesiser (world), windows of several sentences (speech_windows).
"""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from whisper.tokenizer import get_tokenizer
from world.speech import HELD_OUT_VOICES, VOICES, Utterance, sample_caption_sentence, sample_sentence, speak

Samples: TypeAlias = npt.NDArray[np.int16]
RATE_HZ = 16_000
N_GRAMMAR, N_CAPTIONS = 6000, 3000
N_TEST, N_TEST_OTHER_VOICES = 160, 80
_TEST_SEED = 777
_MISSING_S = 0.02
"""After the word before, where the synthesiser tells no onset."""


class TimedToken(NamedTuple):
    """A token and when it is heard, in seconds from the start of its sentence."""

    token: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class SpokenSentence:
    """A sentence, its tokens with times, and its sound: 16-bit samples, because thousands are kept."""

    text: str
    tokens: tuple[TimedToken, ...]
    samples: Samples

    @property
    def sound(self) -> npt.NDArray[np.float32]:
        """Give the samples as floats, −1…1."""
        return self.samples.astype(np.float32) / np.float32(32768)


class Bank(NamedTuple):
    """What is learnt, and two sets of sentences that are not: in known voices and in others."""

    train: list[SpokenSentence]
    test: list[SpokenSentence]
    test_other_voices: list[SpokenSentence]


@cache
def tokenizer() -> Any:
    """Give whisper's multilingual tokenizer, set to English transcription."""
    with warnings.catch_warnings():
        # whisper leaves its vocabulary's file open; what it read there stays cached.
        warnings.simplefilter("ignore", ResourceWarning)
        return get_tokenizer(multilingual=True, num_languages=99, language="en", task="transcribe")


def encode_text(text: str) -> list[int]:
    """Give the tokens of a sentence; a space goes before it, as whisper writes."""
    return list(tokenizer().encode(" " + text))


def speak_bank(seed: int, n_grammar: int = N_GRAMMAR, n_captions: int = N_CAPTIONS, n_test: int = N_TEST) -> Bank:
    """Speak the bank: sentences of the grammar, sentences about scenes, and held-out ones of both."""
    rng = np.random.default_rng(seed)
    texts = [sample_sentence(rng) for _ in range(n_grammar)]
    texts += [sample_caption_sentence(rng) for _ in range(n_captions)]
    train = [_keep(speak(text, rng)) for text in texts]
    known, test_rng = set(texts), np.random.default_rng(_TEST_SEED)
    test = _speak_unknown(test_rng, n_test, known, VOICES)
    other = _speak_unknown(test_rng, n_test * N_TEST_OTHER_VOICES // N_TEST, known, HELD_OUT_VOICES)
    return Bank(train, test, other)


def _speak_unknown(
    rng: np.random.Generator, count: int, known: set[str], voices: Sequence[str]
) -> list[SpokenSentence]:
    """Speak sentences that are not known yet; each becomes known."""
    spoken: list[SpokenSentence] = []
    while len(spoken) < count:
        text = sample_sentence(rng) if len(spoken) % 3 else sample_caption_sentence(rng)
        if text not in known:
            known.add(text)
            spoken.append(_keep(speak(text, rng, voices)))
    return spoken


def _keep(utterance: Utterance) -> SpokenSentence:
    samples = (utterance.samples * 32767).astype(np.int16)
    return SpokenSentence(utterance.text, time_tokens(utterance), samples)


def time_tokens(utterance: Utterance) -> tuple[TimedToken, ...]:
    """Give each token its part of its word's time; punctuation gets a moment around the end of the word before."""
    spans = [match.span() for match in re.finditer(r"[A-Za-z']+", utterance.text)]
    starts = _word_starts(utterance, spans)
    ends = [*starts[1:], utterance.duration_s]
    owners = _owning_words(utterance.text, spans)
    n_tokens, n_seen = Counter(word for _, word in owners), Counter[int | None]()
    timed: list[TimedToken] = []
    last_s = 0.0
    for token, word in owners:
        if word is None:
            timed.append(TimedToken(token, max(0.0, last_s - 0.06), last_s + 0.04))
            continue
        step = (ends[word] - starts[word]) / n_tokens[word]
        start_s = starts[word] + n_seen[word] * step
        n_seen[word] += 1
        last_s = start_s + step
        timed.append(TimedToken(token, start_s, last_s))
    return tuple(timed)


def _word_starts(utterance: Utterance, spans: Sequence[tuple[int, int]]) -> list[float]:
    """Give each word's onset; a word that the utterance does not tell of begins shortly after the one before."""
    told = list(utterance.words)
    starts: list[float] = []
    for first, end in spans:
        if told and told[0][0] == utterance.text[first:end]:
            starts.append(told.pop(0)[1])
        else:
            starts.append((starts[-1] if starts else 0.0) + _MISSING_S)
    return starts


def _owning_words(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int | None]]:
    """Give each token with the number of the word that it is part of, None for punctuation."""
    encoding = tokenizer().encoding
    position, owners = -1, []  # the space before the text is not part of it
    for token in encode_text(text):
        piece = encoding.decode_single_token_bytes(token)
        first = max(0, position + piece.startswith(b" "))
        words = [k for k, (start, end) in enumerate(spans) if start <= first < end]
        owners.append((token, words[0] if words else None))
        position += len(piece)
    return owners
