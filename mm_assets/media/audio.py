"""Sound: resampled to 16 kHz mono and cut in pauses into stretches that speech models can hear.

Put here: the chunker, which sees samples and times only, and the track that feeds it. Keep out: containers.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_assets.media.segments import Segment

SAMPLE_RATE_HZ = 16_000
HOP_S = 0.02
_HOP = int(HOP_S * SAMPLE_RATE_HZ)
# A stretch this quiet and this long becomes a segment of its own: media_quality sees it, speech models are spared it.
SILENCE_DBFS = -50.0
LONG_SILENCE_S = 5.0
_MARGIN_S = 0.2  # left at both ends of speech, so that soft first and last sounds stay
_MIN_CHUNK_S = 1.0
_PAUSE_S = 0.3  # a cut looks for the quietest stretch of this length
_EQUALLY_QUIET_DB = 3.0
# Timestamps jitter by a packet or so; a real hole shorter than a second is filled with silence, a longer one splits.
_JITTER_S = 0.1
_SPLITTING_GAP_S = 1.0

Samples = NDArray[np.int16]


def to_flac(samples: Samples) -> bytes:
    """Encode 16 kHz mono int16 samples, without loss."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class AudioTrack:
    """Decoded frames in, audio segments out.

    The segments follow each other without holes where the sound does, are never longer than ``limit_s`` and are cut
    in the quietest place of the second half of that, or around long silences. Memory: one chunk.
    """

    def __init__(self, limit_s: float) -> None:
        self._chunker = Chunker(limit_s)
        self._resampler: Any = None
        self._input: tuple[Any, ...] = ()
        self._ordinal = 0
        self._next_s: float | None = None
        self.end_s = 0.0

    def add(self, frame: Any, time_s: float) -> Iterator[Segment]:
        """Take one decoded frame that starts at ``time_s``."""
        layout = (frame.sample_rate, frame.format.name, frame.layout.name)
        if layout != self._input:
            yield from self._drain()
            self._resampler, self._input = _new_resampler(), layout
        yield from self._align(time_s)
        yield from self._take(self._resampler.resample(frame))

    def finish(self) -> Iterator[Segment]:
        """Return what is left."""
        yield from self._drain()
        yield from self._segments(self._chunker.finish())

    def _align(self, time_s: float) -> Iterator[Segment]:
        """Fill a small hole in the timestamps with silence; start anew after a large one."""
        gap_s = 0.0 if self._next_s is None else time_s - self._next_s
        if self._next_s is None or gap_s >= _SPLITTING_GAP_S:
            yield from self._drain()
            yield from self._segments(self._chunker.finish())
            self._chunker.start(max(time_s, 0.0))
            self._next_s = max(time_s, 0.0)
        elif gap_s > _JITTER_S:
            silence = np.zeros(round(gap_s * SAMPLE_RATE_HZ), np.int16)
            self._next_s += gap_s
            yield from self._segments(self._chunker.add(silence))

    def _drain(self) -> Iterator[Segment]:
        if self._resampler is not None:
            yield from self._take(self._resampler.resample(None))
            self._resampler, self._input = _new_resampler(), self._input

    def _take(self, frames: list[Any]) -> Iterator[Segment]:
        for frame in filter(None, frames):  # PyAV answers [None] when nothing had to be converted
            samples = frame.to_ndarray()[0]
            self._next_s = (self._next_s or 0.0) + len(samples) / SAMPLE_RATE_HZ
            yield from self._segments(self._chunker.add(samples))

    def _segments(self, chunks: Iterator[tuple[float, Samples]]) -> Iterator[Segment]:
        for start_s, samples in chunks:
            end_s = start_s + len(samples) / SAMPLE_RATE_HZ
            yield Segment("audio", self._ordinal, start_s=start_s, end_s=end_s, audio_flac=to_flac(samples))
            self._ordinal += 1
            self.end_s = max(self.end_s, end_s)


def _new_resampler() -> Any:
    import av

    return av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)


class Chunker:
    """Samples in, chunks out; holds at most ``limit_s`` and a second more."""

    def __init__(self, limit_s: float) -> None:
        self._limit = int(limit_s * SAMPLE_RATE_HZ)
        self._wanted = self._limit + int(_MIN_CHUNK_S * SAMPLE_RATE_HZ)  # so that no tail is shorter than that
        self._pieces: list[Samples] = []
        self._n_held = 0
        self._origin_s = 0.0
        self._n_done = 0

    def start(self, time_s: float) -> None:
        """Say when the next sample sounds; only while nothing is held."""
        self._origin_s, self._n_done = time_s, 0

    def add(self, samples: Samples) -> Iterator[tuple[float, Samples]]:
        """Take samples; yield chunks (start in seconds, samples) that are complete."""
        self._pieces.append(samples)
        self._n_held += len(samples)
        if self._n_held >= self._wanted:
            held = self._join()
            while len(held) >= self._wanted:
                cut = find_cut(held, self._limit)
                yield self._emit(held[:cut])
                held = held[cut:]
            self._pieces, self._n_held = [held.copy()], len(held)

    def finish(self) -> Iterator[tuple[float, Samples]]:
        """Yield the rest."""
        held = self._join()
        self._pieces, self._n_held = [], 0
        while len(held):
            cut = find_cut(held, self._limit)
            yield self._emit(held[:cut])
            held = held[cut:]

    def _join(self) -> Samples:
        return np.concatenate(self._pieces) if self._pieces else np.empty(0, np.int16)

    def _emit(self, samples: Samples) -> tuple[float, Samples]:
        start_s = self._origin_s + self._n_done / SAMPLE_RATE_HZ
        self._n_done += len(samples)
        return start_s, samples


def find_cut(samples: Samples, limit: int) -> int:
    """Return where the first chunk of these samples ends: 1 … min(limit, all of them).

    Long silences are cut out; else all where it fits; else the quietest pause in the second half of the limit.
    """
    levels = hop_levels(samples)
    if len(samples) > limit:
        limit = min(limit, len(samples) - int(_MIN_CHUNK_S * SAMPLE_RATE_HZ))
    silence = _first_long_silence(levels)
    if silence is not None:
        start, stop = silence
        if start > int((_MIN_CHUNK_S + _MARGIN_S) / HOP_S):
            speech_end = (start + int(_MARGIN_S / HOP_S)) * _HOP
            return speech_end if speech_end <= limit else _quietest(levels, limit)
        if stop < len(levels):
            return min((stop - int(_MARGIN_S / HOP_S)) * _HOP, limit)
    return len(samples) if len(samples) <= limit else _quietest(levels, limit)


def hop_levels(samples: Samples) -> NDArray[np.float64]:
    """Root mean square of each whole 20 ms, in dB below full scale (digital silence: -120)."""
    n_hops = len(samples) // _HOP
    frames = samples[: n_hops * _HOP].reshape(n_hops, _HOP).astype(np.float64) / 32_768.0
    power: NDArray[np.float64] = np.mean(frames**2, axis=1)
    return 10.0 * np.log10(np.maximum(power, 1e-12))


def _first_long_silence(levels: NDArray[np.float64]) -> tuple[int, int] | None:
    """First and last hop (exclusive) of the first long silence."""
    quiet = np.concatenate(([False], levels < SILENCE_DBFS, [False]))
    edges = np.flatnonzero(np.diff(quiet.astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if stop - start >= LONG_SILENCE_S / HOP_S:
            return int(start), int(stop)
    return None


def _quietest(levels: NDArray[np.float64], limit: int) -> int:
    """Middle of the quietest pause between half the limit and the limit; the latest of equally quiet ones."""
    window = max(1, int(_PAUSE_S / HOP_S))
    first, last = limit // 2 // _HOP, limit // _HOP
    smooth = np.convolve(levels, np.full(window, 1.0 / window), mode="valid")
    candidates = smooth[first : last - window + 1]
    latest = np.flatnonzero(candidates <= candidates.min() + _EQUALLY_QUIET_DB)[-1]
    return int(first + latest + window // 2) * _HOP
