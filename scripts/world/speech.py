"""What is said in the demo: a small grammar, sentences that are true of a frame, and their spoken form.

Put here: the words that the speech model knows, sentences made of them, utterances with word onsets.
Keep out: the synthesiser's binding (espeak) and the placing of utterances on a track (soundtracks).
"""

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from world.espeak import Delivery, sample_rate_hz, synthesize
from world.frames import FrameSpec
from world.people import CAST_NAMES
from world.shapes import COUNTS, PLURALS, RELATIONS, SHAPES, with_article

SPEECH_RATE_HZ = 16_000
LOUD_SAMPLE = 200
"""Samples below this at both ends of an utterance are cut off."""
PEAK = 0.7

SPOKEN_COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
ALL_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "black", "cyan")
THINGS = ("circle", "square", "triangle", "star", "ball", "box", "cat", "dog", "car", "house", "tree", "bird")
THING_PLURALS = {thing: thing + "s" for thing in THINGS} | {"box": "boxes"}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SCENE_NUMBERS = ("one", *NUMBERS)
DIRECTIONS = ("left", "right", "up", "down")
MANNERS = ("slowly", "quickly", "again")
MOVES = ("moves", "turns", "goes", "jumps")
ACTIONS = ("opens", "closes", "finds", "takes", "sees", "holds")
ORDERS = ("open", "close", "find", "take")
PLACES = ("on", "under", "near", "behind")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

VOICES = (
    "en-us",
    "en-us+f3",
    "en-gb+m4",
    "en-gb+f2",
    "en-us+m7",
    "en-gb-x-rp+f4",
    "en-us+f1",
    "en-gb+m1",
    "en-us+m5",
    "en-gb-x-rp+m6",
    "en-us+m1",
    "en-us+f4",
)
"""The voices that the speech model was trained on."""
HELD_OUT_VOICES = ("en-us+m2", "en-gb-scotland+f5")


class _Chooser:
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]


def _as_sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


def sample_sentence(rng: np.random.Generator) -> str:
    """Draw a sentence about people, things and days."""
    pick = _Chooser(rng)
    kind = rng.integers(10)
    if kind < 2:
        text = f"the {pick(SPOKEN_COLOURS)} {pick(THINGS)} {pick(MOVES)} {pick(DIRECTIONS)}"
        text += f" {pick(MANNERS)}" if rng.random() < 0.4 else ""
    elif kind == 2:
        text = f"{pick(CAST_NAMES)} {pick(ACTIONS)} {pick(NUMBERS)} {pick(SPOKEN_COLOURS)}"
        text += f" {THING_PLURALS[pick(THINGS)]}"
    elif kind == 3:
        text = f"{pick(CAST_NAMES)} {pick(ACTIONS)} the {pick(SPOKEN_COLOURS)} {pick(THINGS)}"
    elif kind == 4:
        colour = pick([c for c in SPOKEN_COLOURS if c != "orange"])
        text = f"there is a {colour} {pick(THINGS)} {pick(PLACES)} the {pick(THINGS)}"
    elif kind == 5:
        text = f"there are {pick(NUMBERS)} {THING_PLURALS[pick(THINGS)]} {pick(PLACES)} the"
        text += f" {pick(SPOKEN_COLOURS)} {pick(THINGS)}"
    elif kind in (6, 7):
        text = _sample_greeting(pick) if kind == 6 else _sample_announcement(pick)
    elif kind == 8:
        text = f"please {pick(ORDERS)} the {pick(SPOKEN_COLOURS)} {pick(THINGS)}"
    else:
        return _as_sentence(f"where is the {pick(SPOKEN_COLOURS)} {pick(THINGS)}", "?")
    return _as_sentence(text)


def _sample_greeting(pick: _Chooser) -> str:
    options = [
        f"hello, my name is {pick(CAST_NAMES)}",
        f"good morning {pick(CAST_NAMES)}",
        f"thank you and goodbye {pick(CAST_NAMES)}",
        f"this is {pick(CAST_NAMES)} and this is {pick(CAST_NAMES)}",
    ]
    return pick(options)


def _sample_announcement(pick: _Chooser) -> str:
    options = [
        f"welcome to scene {pick(SCENE_NUMBERS)}",
        f"this is the end of scene {pick(SCENE_NUMBERS)}",
        f"today is {pick(DAYS)}",
        f"we will meet again on {pick(DAYS)}",
    ]
    return pick(options)


def sample_caption_sentence(rng: np.random.Generator) -> str:
    """Draw a sentence about shapes, true or not."""
    pick = _Chooser(rng)

    def thing() -> str:
        return f"{pick(ALL_COLOURS)} {pick(SHAPES)}"

    kind = rng.integers(9)
    if kind < 2:
        text = f"{with_article(thing())} {pick(RELATIONS)} {with_article(thing())}"
    elif kind == 2:
        text = f"there is {with_article(thing())} on {with_article(pick(ALL_COLOURS))} background"
    elif kind == 3:
        text = f"scene {pick(SCENE_NUMBERS)} shows {with_article(thing())}"
    elif kind == 4:
        shape = pick(SHAPES)
        text = f"{pick(NUMBERS[:4])} {pick(ALL_COLOURS)} {PLURALS[shape]}"
        text += f" on {with_article(pick(ALL_COLOURS))} background"
    elif kind == 6:
        text = f"now the {thing()} is {pick(RELATIONS)} the {thing()}"
    else:
        text = _sample_company(pick, int(kind))
    return _as_sentence(text)


def _sample_company(pick: _Chooser, kind: int) -> str:
    if kind == 5:
        return f"we see {pick(CAST_NAMES)} and {with_article(f'{pick(ALL_COLOURS)} {pick(SHAPES)}')}"
    if kind == 7:
        return f"{pick(CAST_NAMES)} has {with_article(f'{pick(ALL_COLOURS)} {pick(SHAPES)}')}"
    thing = f"{pick(ALL_COLOURS)} {pick(['car', 'house', 'tree', *SHAPES])}"
    return f"the {thing} is next to {pick(CAST_NAMES)}"


def narrate_frame(spec: FrameSpec, rng: np.random.Generator, scene_number: int) -> str:
    """Draw a sentence that is true of the frame, in forms that the speech model knows: it has no sizes, for one."""
    scene = spec.scene
    things = [with_article(" ".join(pair)) for pair in scene.objects]
    background = f"on {with_article(scene.background)} background"
    options = []
    if scene.kind == "one":
        options += [f"there is {things[0]} {background}"]
    if scene.kind == "two":
        first, second = (" ".join(pair) for pair in scene.objects)
        options += [f"now the {first} is {scene.relation} the {second}"]
        options += [f"{things[0]} {scene.relation} {things[1]}"]
    if scene.kind == "count":
        colour, shape = scene.objects[0]
        options += [f"{COUNTS[scene.count]} {colour} {PLURALS[shape]} {background}"]
    elif scene_number <= len(SCENE_NUMBERS):
        options += [f"scene {SCENE_NUMBERS[scene_number - 1]} shows {things[0]}"]
    if spec.name is not None:
        options += [
            f"hello, my name is {spec.name}",
            f"we see {spec.name} and {things[0]}",
            f"good morning {spec.name}",
        ]
    return _as_sentence(_Chooser(rng)(options))


@dataclass(frozen=True, slots=True)
class Utterance:
    """A spoken sentence: samples −1…1, shape (n,), at `SPEECH_RATE_HZ`, and the onsets of its words."""

    text: str
    voice: str
    samples: npt.NDArray[np.float32]
    words: tuple[tuple[str, float], ...]

    @property
    def duration_s(self) -> float:
        """Give the length in seconds."""
        return len(self.samples) / SPEECH_RATE_HZ


def speak(text: str, rng: np.random.Generator, voices: Sequence[str] = VOICES) -> Utterance:
    """Speak a sentence with a voice, speed and pitch drawn as in the speech model's training."""
    voice = voices[int(rng.integers(len(voices)))]
    rate, pitch, pitch_range = (
        int(rng.integers(130, 195)),
        int(rng.integers(35, 66)),
        int(rng.integers(30, 70)),
    )
    wave, events = synthesize(text, Delivery(voice, rate, pitch, pitch_range))
    is_loud = np.abs(wave) > LOUD_SAMPLE
    first, last = int(np.argmax(is_loud)), len(wave) - int(np.argmax(is_loud[::-1]))
    samples = np.asarray(resample_poly(wave[first:last].astype(np.float32), 320, 441), np.float32)
    samples *= PEAK / max(1.0, float(np.abs(samples).max()))
    onsets = {event.position: max(0, event.sample - first) / sample_rate_hz() for event in events}
    matches = re.finditer(r"[A-Za-z']+", text)
    words = tuple((match.group(), onsets[match.start()]) for match in matches if match.start() in onsets)
    return Utterance(text, voice, samples, words)


class SentenceSupply:
    """Draws sentences of the grammar that it has not given before and that are not excluded."""

    def __init__(self, rng: np.random.Generator, excluded: Container[str] = ()) -> None:
        self._rng = rng
        self._excluded = excluded
        self._given: set[str] = set()

    def draw(self) -> str:
        """Draw a new sentence, of either part of the grammar in equal shares."""
        while True:
            source = sample_sentence if self._rng.random() < 0.5 else sample_caption_sentence
            text = source(self._rng)
            if self.take(text):
                return text

    def take(self, text: str) -> bool:
        """Say whether the sentence is new, and remember it."""
        if text in self._given or text in self._excluded:
            return False
        self._given.add(text)
        return True
