"""Films: composed frames shown for some seconds each, hard cuts at known frames, sentences about what is seen.

Put here: how scenes follow each other in time, what is said over them, and the truth about the finished file.
Keep out: what one frame holds (frames), codecs and containers (encoding).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from world import encoding
from world.encoding import CLOCK_HZ, AudioCodec, TimedFrame, VideoCodec
from world.frames import HEIGHT_PX, WIDTH_PX, FrameSpec, render_frame
from world.pen import Image
from world.scenes import SceneSupply
from world.soundtracks import MIN_PAUSE_S, Soundtrack
from world.speech import VOICES, SentenceSupply, Utterance, narrate_frame, speak
from world.truth import MediaObject, SceneTruth

MIN_SCENE_S, MAX_SCENE_S = 2.0, 6.0
SPOKEN_FRAC = 0.75
N_GRAINS = 8
GRAIN_SIGMA = 1.2
FLICKER = 1.5
"""Grain and flicker in grey levels: what a camera adds, far below any difference between two scenes."""
VARIABLE_TICKS = (3000, 3000, 3750, 6000, 9000)
"""Frame durations of a film with a variable rate: 30, 24, 15 and 10 frames a second."""
MAX_TRIES = 50


@dataclass(frozen=True, slots=True)
class FilmRecipe:
    """How a film is made; `dark_scene` is the number of a scene that is black, still and only heard.

    A rotated film needs a height that 32 divides: x264 reads the unused end of each row, whose content is
    what memory held before, and then two runs give different bytes.
    """

    n_scenes: int
    fps: int = 25
    video: VideoCodec = encoding.H264
    audio: AudioCodec | None = encoding.AAC
    container_options: dict[str, str] = field(default_factory=dict)
    has_variable_rate: bool = False
    is_rotated: bool = False
    height_px: int = HEIGHT_PX
    video_delay_s: float = 0.0
    dark_scene: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Shot:
    image: Image
    truth: SceneTruth
    ticks: list[int]
    is_still: bool


def make_film(
    path: Path,
    key: str,
    recipe: FilmRecipe,
    rng: np.random.Generator,
    scenes: SceneSupply,
    sentences: SentenceSupply,
) -> MediaObject:
    """Write a film and tell the truth about it, with the times that the finished container states."""
    track = Soundtrack()
    shots = _plan_shots(recipe, rng, scenes, sentences, track)
    end_tick = shots[-1].ticks[-1] + CLOCK_HZ // recipe.fps
    samples = track.to_samples(end_tick / CLOCK_HZ)
    sound = (recipe.audio, samples) if recipe.audio else None
    frames = _play(shots, recipe, rng)
    encoding.write_film(path, frames, recipe.video, recipe.fps, sound, recipe.container_options)
    if recipe.is_rotated:
        encoding.mark_rotated(path)
    return _tell_truth(path, key, recipe, shots, track, end_tick)


def _plan_shots(
    recipe: FilmRecipe,
    rng: np.random.Generator,
    scenes: SceneSupply,
    sentences: SentenceSupply,
    track: Soundtrack,
) -> list[_Shot]:
    narrator = (VOICES[int(rng.integers(len(VOICES)))],)
    shots: list[_Shot] = []
    tick = round(recipe.video_delay_s * CLOCK_HZ)
    background = None
    for number in range(1, recipe.n_scenes + 1):
        is_dark = number == recipe.dark_scene
        spec = None if is_dark else scenes.draw(rng, unlike=background)
        utterances = _narrate(spec, rng, sentences, narrator, number) if recipe.audio else []
        duration_s = _lay_on_track(utterances, track, tick / CLOCK_HZ, rng)
        ticks = _frame_ticks(tick, duration_s, recipe, rng)
        image, truth = render_frame(spec, rng, height=recipe.height_px) if spec else (_black(recipe), SceneTruth(""))
        shots.append(_Shot(image, truth, ticks[:-1], is_dark))
        tick, background = ticks[-1], spec.scene.background if spec else "black"
    return shots


def _black(recipe: FilmRecipe) -> Image:
    return np.zeros((recipe.height_px, WIDTH_PX, 3), np.uint8)


def _narrate(
    spec: FrameSpec | None,
    rng: np.random.Generator,
    sentences: SentenceSupply,
    voices: tuple[str, ...],
    scene_number: int,
) -> list[Utterance]:
    """Say something true about the frame, or anything over a dark scene, or nothing."""
    if spec is None:
        return [speak(sentences.draw(), rng, voices) for _ in range(2)]
    if rng.random() >= SPOKEN_FRAC:
        return []
    for _ in range(MAX_TRIES):
        text = narrate_frame(spec, rng, scene_number)
        if sentences.take(text):
            return [speak(text, rng, voices)]
    return []


def _lay_on_track(utterances: list[Utterance], track: Soundtrack, start_s: float, rng: np.random.Generator) -> float:
    """Put the utterances on the track and give the scene's duration, long enough for them."""
    time_s = start_s + rng.uniform(0.3, 0.5)
    for utterance in utterances:
        track.add(time_s, utterance)
        time_s = track.end_s + rng.uniform(MIN_PAUSE_S, 0.6)
    if not utterances:
        return float(rng.uniform(MIN_SCENE_S, 3.5))
    return float(np.clip(time_s - start_s, MIN_SCENE_S, MAX_SCENE_S))


def _frame_ticks(first: int, duration_s: float, recipe: FilmRecipe, rng: np.random.Generator) -> list[int]:
    """Give the ticks of a scene's frames and, last, the tick at which the next scene begins."""
    ticks = [first]
    while ticks[-1] < first + duration_s * CLOCK_HZ:
        variable = VARIABLE_TICKS[rng.integers(len(VARIABLE_TICKS))] if recipe.has_variable_rate else 0
        ticks.append(ticks[-1] + (variable or CLOCK_HZ // recipe.fps))
    return ticks


def _play(shots: list[_Shot], recipe: FilmRecipe, rng: np.random.Generator) -> Iterator[TimedFrame]:
    """Show each shot's drawing with grain and flicker; a dark shot without."""
    grains = [_grain(rng, recipe.height_px) for _ in range(N_GRAINS)]
    number = 0
    for shot in shots:
        for tick in shot.ticks:
            image = shot.image if shot.is_still else _flicker(shot.image, grains[number % N_GRAINS], number)
            yield TimedFrame(np.ascontiguousarray(np.rot90(image)) if recipe.is_rotated else image, tick)
            number += 1


def _grain(rng: np.random.Generator, height: int) -> npt.NDArray[np.int16]:
    return np.round(rng.normal(0, GRAIN_SIGMA, (height, WIDTH_PX, 3))).astype(np.int16)


def _flicker(image: Image, grain: npt.NDArray[np.int16], number: int) -> Image:
    level = round(FLICKER * float(np.sin(number * 0.7)))
    return np.clip(image + (grain + np.int16(level)), 0, 255).astype(np.uint8)


def _tell_truth(
    path: Path, key: str, recipe: FilmRecipe, shots: list[_Shot], track: Soundtrack, end_tick: int
) -> MediaObject:
    """Take the times from the finished file: containers move their start."""
    times_s = encoding.read_frame_times(path)
    n_frames = sum(len(shot.ticks) for shot in shots)
    if len(times_s) != n_frames:
        message = f"{key}: {n_frames} frames written, {len(times_s)} found in the file"
        raise RuntimeError(message)
    shift_s = times_s[0] - shots[0].ticks[0] / CLOCK_HZ
    numbers = np.cumsum([0, *(len(shot.ticks) for shot in shots)])
    starts = [times_s[n] for n in numbers[:-1]]
    ends = [*starts[1:], end_tick / CLOCK_HZ + shift_s]
    scenes = tuple(
        replace(shot.truth, start_s=start, end_s=end) for shot, start, end in zip(shots, starts, ends, strict=True)
    )
    return MediaObject(
        key,
        "video",
        note=recipe.note,
        width_px=WIDTH_PX,
        height_px=recipe.height_px,
        duration_s=encoding.read_duration(path),
        scenes=scenes,
        cuts_s=tuple(starts[1:]),
        speech=track.to_truth(shift_s),
        quality=("frozen",) if recipe.dark_scene else (),
    )
