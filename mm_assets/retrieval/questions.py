"""What can be asked, and what is refused before anything is opened.

Put here: the question and its limits. Keep out: answering it.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mm_assets.errors import ConfigError

MAX_ANSWERS = 1_000
MAX_CHARS = 2_000
_MAX_NAMES = 16
_SIGNALS_OF = {
    "text": ("visual", "text", "words"),
    "image": ("visual",),
    "like": ("visual",),
    "face": ("face",),
    "said": ("words",),
    "shown": ("words",),
    "seen": ("names",),
}
_COSINES = ("visual", "face", "text")
SIGNALS = (*_COSINES, "words", "names")
# Of the others 1. A text that means the question comes after the picture that shows it; figures are at ``signals._NEAR``.
DEFAULT_WEIGHTS: Mapping[str, float] = {"text": 0.9}
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
_MAX_PIXELS = 100_000_000

RgbImage = npt.NDArray[np.uint8]
Picture = Path | str | bytes  # a file, or the bytes of one


@dataclass(frozen=True, slots=True)
class Question:
    """One question; each part that is given adds a signal, and answers that several signals name come first.

    Attributes
    ----------
    text : what is to be seen, or is said or shown in these words or others
    image, face : pictures, as files or as the bytes of one: what looks like it; who is on it
    like : id of a segment that answers should look like
    said, shown : words that are spoken, or stand on screen or page: any of them, the more the better; an answer has every
        "phrase in quotes"; begin* may go on
    seen : names of classes that were detected, and of tags, separated by commas; in either case of letters
    where : SQL condition on the columns of ``moments``
    spaces : signals to use, of visual, face, text, words, names, or their names in one text; all that the question has
        when empty
    weights : signal → weight of its ranks, 0 to leave it out; 1 by default, less for text (``DEFAULT_WEIGHTS``)
    k : answers at most, 1…1,000
    group_by : ``object`` for one answer for each object; None for moments
    diversify : 0…1, how much an answer may lose for looking like a better one (maximal marginal relevance)
    collapse : leave out near-duplicates of better answers
    threshold : cosine, -1…1, from which on pictures, faces and meanings count as alike; words and names have none. What is
        usual depends on the model: ``score`` of an answer's signals shows it
    """

    text: str = ""
    image: Picture | None = None
    face: Picture | None = None
    like: str = ""
    said: str = ""
    shown: str = ""
    seen: str = ""
    where: str = ""
    spaces: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    k: int = 10
    group_by: str | None = None
    diversify: float = 0.0
    collapse: bool = False
    threshold: float = -1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        self._read()
        self._check_signals()
        if not any((self.text, self.image, self.face, self.like, self.said, self.shown, self.names)):
            msg = "nothing is asked; give a text, words that are said or shown, a name, a picture, a face, or a segment"
            raise ConfigError(msg)
        if self.where and not self.where.strip():
            msg = "where is empty"
            raise ConfigError(msg)
        if len(self.names) > _MAX_NAMES:
            msg = f"seen has {len(self.names)} names, {_MAX_NAMES} at most"
            raise ConfigError(msg)
        self._check_numbers()
        if self.group_by not in {None, "object"}:
            msg = f"answers can be grouped by 'object', not by {self.group_by!r}"
            raise ConfigError(msg)

    def _read(self) -> None:
        """Bring what is given in several forms into one."""
        texts = {name: _clean(name, getattr(self, name)) for name in ("text", "said", "shown", "seen", "like")}
        spaces = self.spaces.replace(",", " ").split() if isinstance(self.spaces, str) else self.spaces
        for name in ("image", "face"):
            if getattr(self, name) is not None and not getattr(self, name):
                msg = f"{name} is empty"
                raise ConfigError(msg)
        for name, value in {**texts, "spaces": tuple(spaces)}.items():
            object.__setattr__(self, name, value)

    def _check_signals(self) -> None:
        wrong = [name for name in (*self.spaces, *self.weights) if name not in SIGNALS]
        if wrong:
            msg = f"unknown signal {wrong[0]!r}; there are {', '.join(SIGNALS)}"
            raise ConfigError(msg)
        if any(weight < 0 for weight in self.weights.values()):
            msg = "no weight may be below 0"
            raise ConfigError(msg)
        for part, signals in _SIGNALS_OF.items():
            if getattr(self, part) and not any(map(self.uses, signals)):
                msg = f"{part} is asked, and spaces and weights leave no signal that would answer it: {', '.join(signals)}"
                raise ConfigError(msg)

    def _check_numbers(self) -> None:
        if self.k < 1:
            msg = f"k must be at least 1, not {self.k}"
            raise ConfigError(msg)
        if not 0 <= self.diversify <= 1:
            msg = f"diversify is between 0 and 1, not {self.diversify:g}"
            raise ConfigError(msg)
        if not -1 <= self.threshold <= 1:
            msg = f"threshold is a cosine, -1…1, not {self.threshold:g}"
            raise ConfigError(msg)
        if self.threshold > -1 and not self._asks_for_likeness():
            msg = "words and names have no threshold; it is for pictures, faces and meanings"
            raise ConfigError(msg)

    def _asks_for_likeness(self) -> bool:
        """Whether a signal takes part whose scores are cosines."""
        asked = [signals for part, signals in _SIGNALS_OF.items() if getattr(self, part)]
        return any(signal in _COSINES and self.uses(signal) for signals in asked for signal in signals)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of ``seen``, each once."""
        names = (name.strip() for name in self.seen.split(","))
        return tuple(dict.fromkeys(name for name in names if name))

    def uses(self, signal: str) -> bool:
        """Whether a signal is wanted."""
        return (not self.spaces or signal in self.spaces) and self.weight(signal) > 0

    def weight(self, signal: str) -> float:
        """Return the weight of a signal's ranks."""
        return self.weights.get(signal, DEFAULT_WEIGHTS.get(signal, 1.0))


def _clean(name: str, text: str) -> str:
    if not isinstance(text, str):
        msg = f"{name} is a text, not {type(text).__name__}"
        raise ConfigError(msg)
    plain = _CONTROLS.sub(" ", text).strip()
    if len(plain) > MAX_CHARS:
        msg = f"{name} has {len(plain)} characters, {MAX_CHARS} at most; ask for what matters in it"
        raise ConfigError(msg)
    if text and not plain:
        msg = f"{name} is empty"
        raise ConfigError(msg)
    return plain


def name_of(picture: Picture) -> str:
    """Return what messages call a picture."""
    return str(picture) if isinstance(picture, str | Path) else "the picture"


def read_picture(picture: Picture) -> RgbImage:
    """Read a query picture, upright; raises ConfigError where it is none, or has over 100 million pixels."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(picture if isinstance(picture, str | Path) else io.BytesIO(picture), formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                msg = f"{name_of(picture)} has {image.width} × {image.height} pixels, {_MAX_PIXELS:,} at most"
                raise ConfigError(msg)
            upright: Any = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"  # which names an object of Python's
        msg = f"{name_of(picture)} cannot be read as a picture{why}; give a JPEG, PNG, WebP, GIF or TIFF file"
        raise ConfigError(msg) from error
