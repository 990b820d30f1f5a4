"""The speech synthesiser espeak-ng, called in this process through its C library.

Put here: the binding to libespeak-ng.so.1 and nothing else.
Keep out: what is said and by whom (speech).
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

LIBRARY = "libespeak-ng.so.1"
"""Debian's package libespeak-ng1."""
_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_LIST_END, _WORD = 0, 1


class WordEvent(NamedTuple):
    """A word of the text: its first character, its length, and the sample at which it begins."""

    position: int
    length: int
    sample: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """How something is said: voice, words a minute, pitch and pitch range 0…100."""

    voice: str
    rate: int
    pitch: int
    pitch_range: int


class _Identifier(ctypes.Union):
    _fields_: ClassVar = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The one synthesiser of this process: the library keeps its state in globals."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self.sample_rate_hz = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0))
        self._chunks: list[npt.NDArray[np.int16]] = []
        self._events: list[WordEvent] = []
        self._callback = _Callback(self._receive)  # kept: the library holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave: Any, n_samples: int, events: Any) -> int:
        if wave and n_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (n_samples,)).copy())
        index = 0
        while (event := events[index]).type != _LIST_END:
            if event.type == _WORD:
                self._events.append(WordEvent(event.text_position - 1, event.length, event.sample))
            index += 1
        return 0

    def say(self, text: str, delivery: Delivery) -> tuple[npt.NDArray[np.int16], list[WordEvent]]:
        self._chunks, self._events = [], []
        self._library.espeak_SetVoiceByName(delivery.voice.encode())
        for parameter, value in (
            (_RATE, delivery.rate),
            (_PITCH, delivery.pitch),
            (_RANGE, delivery.pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 0, 0, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._chunks), self._events


@cache
def _engine() -> _Engine:
    return _Engine()


def sample_rate_hz() -> int:
    """Give the rate of what `synthesize` returns; 22050 in all known versions."""
    return _engine().sample_rate_hz


def synthesize(text: str, delivery: Delivery) -> tuple[npt.NDArray[np.int16], list[WordEvent]]:
    """Speak the text: the wave, shape (n,), and its words.

    The same sequence of calls in a fresh process gives the same samples; a call by itself does not, because the
    library carries some state from one text to the next (a few milliseconds of difference in length).
    """
    return _engine().say(text, delivery)
