"""transcripts: what is said when in stretches of sound, by openai-whisper.

Put here: loading and calling whisper. Keep out: cutting of sound tracks, which segmentation does.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from mm_assets.extractors.accelerator import map_batches, torch_device
from mm_assets.extractors.base import Extractor, item_ids
from mm_assets.extractors.inputs import SAMPLE_RATE_HZ, Sound, column_of, loudness_dbfs, read_sound

_FRAMES_PER_S = 100  # of the mel spectrogram
_HOP_SAMPLES = SAMPLE_RATE_HZ // _FRAMES_PER_S
_WINDOW_FRAMES = 3_000
_TIMESTAMP_S = 0.02  # between two timestamp tokens
_FRAME_S = 0.1  # for finding the first sound
_LEAD_S = 0.3
_SHORTEST_S = 0.1  # no word is shorter


@dataclass(frozen=True)
class _Utterance:
    """One utterance; times in seconds from the start of its segment."""

    start_s: float
    end_s: float
    text: str
    language: str
    confidence: float
    no_speech: float
    words: list[dict[str, Any]]


@dataclass(frozen=True)
class _Window:
    """30 s of one segment's mel spectrogram (bands × frames), from frame ``seek``."""

    row: int
    sound: Sound
    mel: Any
    seek: int

    @property
    def n_frames(self) -> int:
        """Frames that hold sound; the rest of the window is padding."""
        return min(_WINDOW_FRAMES, int(self.mel.shape[-1]) - self.seek)


class WhisperExtractor(Extractor):
    """Utterances in the order of time; batches give the same text as single calls, times within 0.02 s.

    Windows of several segments are decoded together (``transcribe`` takes one at a time: four times as slow).
    Each is decoded greedily and without the text before it, which makes errors of one window feed the next.
    Windows whose text repeats itself or is improbable are decoded once more by beam search; the library's own fall-back
    draws at random, so that two runs would differ. Utterance times are those of the decoder; word times come from
    its attention and leave the utterances' own times alone, because they are .3 s off at the starts.

    Sources: Radford et al. 2022, section 4.5, for the limits of a failed window; openai-whisper 20250625.
    """

    step = "transcripts"
    code_version = "1"
    packages = ("torch", "whisper")
    takes = frozenset({"audio"})
    columns = ("audio_flac",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "language": None,  # None: heard from the first window
        "has_words": True,
        "silence_dbfs": -60.0,  # 16-bit noise lies below -90, whispering across a room above -50
        "max_compression_ratio": 2.4,  # the paper's limit of text that repeats itself
        "min_log_probability": -1.0,  # the paper's limit of text that is guessed
        "max_no_speech": 0.6,
        "beam_size": 5,
    }

    def _load(self) -> None:
        import whisper
        from whisper.tokenizer import get_tokenizer

        self._device = torch_device(self.place)
        (file,) = self.card.files
        # A bare model name would be downloaded.
        self._model = whisper.load_model(str(self.card.path(file).absolute()), device=self._device).eval()
        self._has_fp16 = self._device.type == "cuda"
        with warnings.catch_warnings():
            # whisper leaves its vocabulary's file open; what it read there stays cached.
            warnings.simplefilter("ignore", ResourceWarning)
            get_tokenizer(self._model.is_multilingual, num_languages=self._model.num_languages)

    def _extract(self, segments: pa.Table) -> pa.Table:
        sounds = [read_sound(flac) for flac in column_of(segments, "audio_flac")]
        found = self._transcribe(sounds)
        owners = [row for row, utterances in enumerate(found) for _ in utterances]
        every = [utterance for utterances in found for utterance in utterances]
        starts = segments.column("start_s").to_pylist()
        offsets = [float(starts[row] or 0.0) for row in owners]
        return self._rows(segments, owners, _columns(segments, owners, every, offsets))

    def _transcribe(self, sounds: list[Sound]) -> list[list[_Utterance]]:
        """Decode windows in rounds: a window that ends in the middle of an utterance asks for another from there."""
        found: list[list[_Utterance]] = [[] for _ in sounds]
        wanted = [self._window(row, sound, self._mel(sound), 0) for row, sound in enumerate(sounds)]
        while windows := [window for window in wanted if window is not None]:
            results = map_batches(self._decode, windows, self.place.batch_size)
            wanted = []
            for window, result in zip(windows, results, strict=True):
                spoken, n_frames = self._read(window, result)
                found[window.row].extend(spoken)
                wanted.append(self._window(window.row, window.sound, window.mel, window.seek + n_frames))
        return found

    def _mel(self, sound: Sound) -> Any:
        from whisper.audio import log_mel_spectrogram

        return log_mel_spectrogram(sound, self._model.dims.n_mels)

    def _window(self, row: int, sound: Sound, mel: Any, seek: int) -> _Window | None:
        """Window from shortly before the next sound, None when the rest is silent.

        The decoder puts the first utterance into its first second, so leading silence would move it.
        """
        rest = sound[seek * _HOP_SAMPLES :]
        limit_dbfs = self.params["silence_dbfs"]
        if len(rest) < _SHORTEST_S * SAMPLE_RATE_HZ or loudness_dbfs(rest) < limit_dbfs:
            return None
        lead_s = max(0.0, _first_sound_s(rest, limit_dbfs) - _LEAD_S)
        return _Window(row, sound, mel, seek + int(lead_s * _FRAMES_PER_S))

    def _decode(self, windows: list[_Window]) -> list[Any]:
        results = self._run(windows, beam_size=None)
        for k, result in enumerate(results):
            if self._has_failed(result):  # whisper's beam search decodes one window at a time
                (results[k],) = self._run([windows[k]], beam_size=self.params["beam_size"])
        return results

    def _run(self, windows: list[_Window], beam_size: int | None) -> list[Any]:
        import torch
        from whisper.decoding import DecodingOptions, decode

        mels = torch.stack([_padded(window) for window in windows]).to(self._device)
        options = DecodingOptions(language=self.params["language"], beam_size=beam_size, fp16=self._has_fp16)
        results: list[Any] = decode(self._model, mels.half() if self._has_fp16 else mels, options)
        return results

    def _has_failed(self, result: Any) -> bool:
        is_repeating = result.compression_ratio > self.params["max_compression_ratio"]
        is_guessed = result.avg_logprob < self.params["min_log_probability"]
        return (is_repeating or is_guessed) and not self._is_speechless(result)

    def _is_speechless(self, result: Any) -> bool:
        is_guessed = result.avg_logprob < self.params["min_log_probability"]
        return bool(result.no_speech_prob > self.params["max_no_speech"] and is_guessed)

    def _read(self, window: _Window, result: Any) -> tuple[list[_Utterance], int]:
        """Utterances of a decoded window, and how many of its frames they settle."""
        if self._is_speechless(result):
            return [], window.n_frames
        tokenizer = self._tokenizer(result.language)
        spans, n_frames = split_tokens(result.tokens, tokenizer.timestamp_begin, window.n_frames)
        pieces = [_piece(window, tokenizer, *span) for span in spans]
        pieces = [piece for piece in pieces if piece["text"].strip() and piece["end"] > piece["start"]]
        words = self._words(window, tokenizer, pieces)
        return [_utterance(piece, result, said) for piece, said in zip(pieces, words, strict=True)], n_frames

    def _tokenizer(self, language: str) -> Any:
        from whisper.tokenizer import get_tokenizer

        model = self._model
        return get_tokenizer(model.is_multilingual, num_languages=model.num_languages, language=language)

    def _words(self, window: _Window, tokenizer: Any, pieces: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Words of each piece, from a copy because ``add_word_timestamps`` moves the pieces' own times."""
        from whisper.timing import add_word_timestamps

        if not self.params["has_words"] or not pieces:
            return [[] for _ in pieces]
        copies = deepcopy(pieces)
        mel = _padded(window).to(self._device)
        with _kept_threads():
            add_word_timestamps(
                segments=copies,
                model=self._model,
                tokenizer=tokenizer,
                mel=mel.half() if self._has_fp16 else mel,
                num_frames=window.n_frames,
                last_speech_timestamp=window.seek / _FRAMES_PER_S,
            )
        return [copy["words"] for copy in copies]


@contextmanager
def _kept_threads() -> Iterator[None]:
    """Give torch its threads back: numba, which whisper aligns words with, sets them to its own number.

    With one core for two threads the decoder of the next window then took five times as long (2026-11).
    """
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def split_tokens(
    tokens: list[int], timestamp_begin: int, n_frames: int
) -> tuple[list[tuple[list[int], float, float]], int]:
    """Cut the tokens of a window at pairs of timestamps.

    Whisper writes ``<|0.4|> text <|2.1|><|2.6|> text <|4.0|>``: a pair of timestamps closes one utterance and opens the
    next. A window that ends with text, or with a pair, holds an utterance that goes on in the next window.

    Returns
    -------
    (tokens, start, end) of each utterance, seconds from the start of the window, and the frames that they settle.
    """
    is_stamp = [token >= timestamp_begin for token in tokens]
    cuts = [k for k in range(1, len(tokens)) if is_stamp[k] and is_stamp[k - 1]]
    ends_closed = is_stamp[-2:] == [False, True]
    if not cuts:
        return _single_span(tokens, timestamp_begin, n_frames), n_frames
    if ends_closed:
        cuts.append(len(tokens))
    spans = []
    for start, stop in zip([0, *cuts], cuts, strict=False):
        start_s, end_s = (_TIMESTAMP_S * (tokens[k] - timestamp_begin) for k in (start, stop - 1))
        spans.append((tokens[start:stop], start_s, end_s))
    settled = round(spans[-1][2] * _FRAMES_PER_S)
    # Nothing settled would decode the same window for ever.
    return spans, n_frames if ends_closed or settled <= 0 else min(settled, n_frames)


def _single_span(tokens: list[int], timestamp_begin: int, n_frames: int) -> list[tuple[list[int], float, float]]:
    stamps = [token - timestamp_begin for token in tokens if token >= timestamp_begin]
    start_s = stamps[0] * _TIMESTAMP_S if stamps else 0.0
    end_s = stamps[-1] * _TIMESTAMP_S if len(stamps) > 1 else n_frames / _FRAMES_PER_S
    return [(tokens, start_s, end_s)] if tokens else []


def _piece(window: _Window, tokenizer: Any, tokens: list[int], start_s: float, end_s: float) -> dict[str, Any]:
    """One utterance in the form that whisper's own word timing takes; seconds of the segment."""
    offset_s = window.seek / _FRAMES_PER_S
    return {
        "seek": window.seek,
        "start": offset_s + start_s,
        "end": offset_s + min(end_s, window.n_frames / _FRAMES_PER_S),
        "text": tokenizer.decode([token for token in tokens if token < tokenizer.eot]),
        "tokens": tokens,
    }


def _utterance(piece: dict[str, Any], result: Any, words: list[dict[str, Any]]) -> _Utterance:
    return _Utterance(
        start_s=piece["start"],
        end_s=piece["end"],
        text=piece["text"].strip(),
        language=result.language,
        confidence=min(1.0, math.exp(result.avg_logprob)),
        no_speech=result.no_speech_prob,
        words=words,
    )


def _padded(window: _Window) -> Any:
    """Pad the window's frames as whisper's own windows are."""
    from whisper.audio import pad_or_trim

    return pad_or_trim(window.mel[:, window.seek : window.seek + _WINDOW_FRAMES], _WINDOW_FRAMES)


def _first_sound_s(sound: Sound, silence_dbfs: float) -> float:
    """Seconds until the first 0.1 s that are louder than silence."""
    n = int(_FRAME_S * SAMPLE_RATE_HZ)
    loud = [loudness_dbfs(sound[k : k + n]) >= silence_dbfs for k in range(0, len(sound), n)]
    return float(np.argmax(loud)) * _FRAME_S


def _columns(
    segments: pa.Table, owners: list[int], every: list[_Utterance], offsets: list[float]
) -> dict[str, list[Any]]:
    placed = list(zip(every, offsets, strict=True))
    return {
        "utterance_id": item_ids(segments, owners),
        "start_s": [offset + each.start_s for each, offset in placed],
        "end_s": [offset + each.end_s for each, offset in placed],
        "text": [each.text for each in every],
        "language": [each.language for each in every],
        "confidence": [each.confidence for each in every],
        "no_speech_frac": [each.no_speech for each in every],
        "words": [list(_placed_words(each, offset)) for each, offset in placed],
    }


def _placed_words(utterance: _Utterance, offset_s: float) -> Iterator[dict[str, Any]]:
    """Words in seconds of the media, kept inside their utterance: attention smears words over the pauses beside them."""
    for word in utterance.words:
        start_s, end_s = (min(max(word[key], utterance.start_s), utterance.end_s) for key in ("start", "end"))
        yield {
            "text": word["word"].strip(),
            "start_s": offset_s + start_s,
            "end_s": offset_s + end_s,
            "confidence": float(word["probability"]),
        }
