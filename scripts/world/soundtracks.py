"""Sound: utterances laid on a track with pauses between them, and the truth about when each begins.

Put here: tracks of mono samples and what is said on them.
Keep out: the words (speech), codecs and containers (encoding).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from world.speech import SPEECH_RATE_HZ, VOICES, SentenceSupply, Utterance, speak
from world.truth import SpeechTruth, WordTruth

MIN_PAUSE_S = 0.4


class Soundtrack:
    """Utterances at known seconds; they never overlap."""

    def __init__(self) -> None:
        self._parts: list[tuple[float, Utterance]] = []

    @property
    def end_s(self) -> float:
        """Give the end of the last utterance, 0 when there is none."""
        if not self._parts:
            return 0.0
        start_s, utterance = self._parts[-1]
        return start_s + utterance.duration_s

    def add(self, start_s: float, utterance: Utterance) -> None:
        """Put an utterance on the track."""
        if self._parts and start_s < self.end_s + MIN_PAUSE_S - 1e-6:
            message = f"{utterance.text!r} at {start_s:.2f} s leaves no pause after {self.end_s:.2f} s"
            raise ValueError(message)
        self._parts.append((start_s, utterance))

    def to_samples(self, duration_s: float) -> npt.NDArray[np.float32]:
        """Give the track as mono samples −1…1 at `SPEECH_RATE_HZ`."""
        samples = np.zeros(round(duration_s * SPEECH_RATE_HZ), np.float32)
        for start_s, utterance in self._parts:
            first = round(start_s * SPEECH_RATE_HZ)
            samples[first : first + len(utterance.samples)] += utterance.samples
        return samples

    def to_truth(self, shift_s: float = 0.0) -> tuple[SpeechTruth, ...]:
        """Give what is said when, moved by the shift that a container adds."""
        return tuple(_tell(start_s + shift_s, utterance) for start_s, utterance in self._parts)


def _tell(start_s: float, utterance: Utterance) -> SpeechTruth:
    words = tuple(WordTruth(word, start_s + onset_s) for word, onset_s in utterance.words)
    return SpeechTruth(start_s, start_s + utterance.duration_s, utterance.text, words)


def record_sentences(
    rng: np.random.Generator, supply: SentenceSupply, duration_s: float, voices: Sequence[str] = VOICES
) -> Soundtrack:
    """Fill a track with new sentences and pauses; each sentence has a voice of its own."""
    track = Soundtrack()
    start_s = rng.uniform(0.2, 0.8)
    while True:
        utterance = speak(supply.draw(), rng, voices)
        if start_s + utterance.duration_s > duration_s - 0.3:
            return track
        track.add(start_s, utterance)
        start_s = track.end_s + rng.uniform(MIN_PAUSE_S, 1.2)
