"""One composed frame: a scene of shapes, perhaps with a person, a prop, a caption bar and a title.

Put here: what a frame may hold, its captions, and its drawing together with all truths about it.
Keep out: drawings of single things (shapes, heads, props, lettering) and anything that moves (films).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from world import shapes
from world.heads import Head, Pose, draw_person
from world.layout import place_shapes
from world.lettering import BLACK_ON_WHITE, WHITE_ON_BLACK, write_text
from world.pen import Box, Image, jitter
from world.people import CAST, CAST_NAMES, Identity
from world.props import PROPS, draw_prop
from world.truth import LabelBox, PersonBox, SceneTruth

WIDTH_PX, HEIGHT_PX = 640, 360
CLASSES = (*shapes.SHAPES, "person", *PROPS)
"""The detector's classes, in the order of its labels."""
BAR_TOP_FRAC, BAR_TEXT_FRAC, TITLE_BOTTOM_FRAC = 0.83, 0.88, 0.14
FILLER_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "bright",
    "stars",
    "shine",
    "above",
    "quiet",
    "village",
]


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What a frame holds; `person` is an index into the cast."""

    scene: shapes.ShapeScene
    person: int | None = None
    prop: str | None = None
    bar: str | None = None
    title: str | None = None

    @property
    def name(self) -> str | None:
        """Give the name of the person."""
        return None if self.person is None else CAST_NAMES[self.person]


def sample_frame(rng: np.random.Generator, *, held_out: bool = False) -> FrameSpec:
    """Draw a frame's content: 45 % have a person, 25 % a prop, 60 % a bar, 20 % a title."""
    scene = shapes.sample_scene(rng, held_out=held_out)
    person = int(rng.integers(len(CAST))) if rng.random() < 0.45 else None
    prop = PROPS[rng.integers(len(PROPS))] if rng.random() < 0.25 else None
    bar = _sample_bar(FrameSpec(scene, person), rng) if rng.random() < 0.6 else None
    title = f"Scene {int(rng.integers(1, 20))}" if rng.random() < 0.2 else None
    return FrameSpec(scene, person, prop, bar, title)


def _sample_bar(spec: FrameSpec, rng: np.random.Generator) -> str:
    if rng.random() < 0.6:
        return plain_sentence(spec, rng)
    picks = rng.integers(0, len(FILLER_WORDS), rng.integers(3, 7))
    return " ".join(FILLER_WORDS[k] for k in picks).capitalize()


def plain_sentence(spec: FrameSpec, rng: np.random.Generator) -> str:
    """Give a true sentence about the shapes, with the background or the name in half of the cases each."""
    text = shapes.describe_scene(spec.scene, with_background=bool(rng.random() < 0.5))
    if spec.name is not None and rng.random() < 0.5:
        text += f" and {spec.name}"
    return text[0].upper() + text[1:] + "."


def full_caption(spec: FrameSpec) -> str:
    """Give the canonical caption: shapes, background, person, prop."""
    text = shapes.describe_scene(spec.scene, with_background=True)
    extras = ["a person"] * (spec.person is not None) + [f"a {spec.prop}"] * (spec.prop is not None)
    return text + (" with " + " and ".join(extras) if extras else "")


class Drawing(NamedTuple):
    """A drawn frame, its truth, and the heads in the order of the truth's people."""

    image: Image
    truth: SceneTruth
    heads: tuple[Head, ...]


@dataclass(slots=True)
class _Stage:
    """The part of the canvas that is still free, and what has been drawn so far."""

    image: Image
    left: float
    top: float
    right: float
    bottom: float
    boxes: list[tuple[str, Box]]
    people: list[tuple[str, Head]]


def render_frame(
    spec: FrameSpec,
    rng: np.random.Generator,
    *,
    width: int = WIDTH_PX,
    height: int = HEIGHT_PX,
    is_noisy: bool = True,
    cast: Sequence[Identity] = CAST,
) -> tuple[Image, SceneTruth]:
    """Draw a frame and give its truth; `is_noisy` adds the blur, grain and JPEG marks that models must bear."""
    drawing = draw_frame(spec, rng, width=width, height=height, is_noisy=is_noisy, cast=cast)
    return drawing.image, drawing.truth


def draw_frame(
    spec: FrameSpec,
    rng: np.random.Generator,
    *,
    width: int = WIDTH_PX,
    height: int = HEIGHT_PX,
    is_noisy: bool = True,
    cast: Sequence[Identity] = CAST,
) -> Drawing:
    """Draw as `render_frame` does and give the landmarks of the heads too."""
    image = _paint_background(spec.scene.background, rng, width, height)
    bottom = height * (BAR_TOP_FRAC if spec.bar else 1.0)
    stage = _Stage(image, 0.0, height * TITLE_BOTTOM_FRAC if spec.title else 0.0, float(width), bottom, [], [])
    if spec.person is not None:
        _put_person(stage, cast[spec.person], CAST_NAMES[spec.person], rng)
    if spec.prop:
        _put_prop(stage, spec.prop, rng)
    _put_shapes(stage, spec.scene, rng)
    texts = _put_texts(stage, spec, rng)
    noisy = _spoil(image, rng) if is_noisy else image
    return Drawing(noisy, _tell_truth(stage, full_caption(spec), texts), tuple(head for _, head in stage.people))


def _tell_truth(stage: _Stage, caption: str, texts: list[str]) -> SceneTruth:
    height, width = stage.image.shape[:2]
    limits = [width, height, width, height]
    boxes = tuple(LabelBox(label, *map(float, np.clip(box, 0, limits))) for label, box in stage.boxes)
    people = tuple(PersonBox(name, *map(float, np.clip(head.box, 0, limits))) for name, head in stage.people)
    return SceneTruth(caption, boxes, people, tuple(texts))


def _paint_background(name: str, rng: np.random.Generator, width: int, height: int) -> Image:
    """Fill with the colour; half of the frames get a gentle gradient of light."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = jitter(rng, shapes.COLOURS[name])
    if rng.random() >= 0.5:
        return image
    across = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-18, 18)
    down = np.linspace(-1, 1, height)[:, None, None] * rng.uniform(-18, 18)
    return np.ascontiguousarray(np.clip(image + across + down, 0, 255).astype(np.uint8))


def _put_person(stage: _Stage, who: Identity, name: str, rng: np.random.Generator) -> None:
    """Put a person at the left or the right edge and take that side from the stage."""
    width, room = stage.image.shape[1], stage.bottom - stage.top
    half_height = room * rng.uniform(0.17, 0.26)
    reach = min(half_height * 2.75, width * 0.42)
    is_left = rng.random() < 0.5
    x = rng.uniform(reach * 0.5, reach * 0.62)
    x = x if is_left else width - x
    lowest = max(1.36 * half_height, room - 1.6 * half_height)
    y = stage.top + rng.uniform(1.35 * half_height, lowest)
    head = _draw_on_stage(stage, who, x, y, half_height, rng)
    stage.boxes.append(("person", head.box))
    stage.people.append((name, head))
    if is_left:
        stage.left = min(x + reach * 0.5, width * 0.45)
    else:
        stage.right = max(x - reach * 0.5, width * 0.55)


def _draw_on_stage(
    stage: _Stage, who: Identity, x: float, y: float, half_height: float, rng: np.random.Generator
) -> Head:
    """Draw within the stage's rows, so that a shirt does not run under the bar."""
    top = int(stage.top)
    pose = _sample_pose(rng)
    head = draw_person(stage.image[top : int(stage.bottom)], who, x, y - top, half_height, pose)
    x0, y0, x1, y1 = head.box
    return Head((x0, y0 + top, x1, y1 + top), head.landmarks + np.array([0, top], np.float32))


def _sample_pose(rng: np.random.Generator) -> Pose:
    rotation, yaw = rng.normal(0, 0.1), rng.uniform(-0.7, 0.7)
    is_blinking, has_shirt = bool(rng.random() < 0.05), bool(rng.random() < 0.7)
    return Pose(rotation, yaw, rng.uniform(-0.08, 0.16), is_blinking, has_shirt)


def _put_prop(stage: _Stage, prop: str, rng: np.random.Generator) -> None:
    """Put a prop at a free edge, in a colour that stands out, and take that side from the stage."""
    size = (stage.bottom - stage.top) * rng.uniform(0.10, 0.16)
    is_wide = stage.right - stage.left > stage.image.shape[1] * 0.7
    is_left = rng.random() < 0.5 if is_wide else stage.left == 0
    x = stage.left + size * 1.15 if is_left else stage.right - size * 1.15
    y = rng.uniform(stage.top + size * 1.2, stage.bottom - size * 1.3)
    colour = jitter(rng, tuple(shapes.COLOURS.values())[rng.integers(len(shapes.COLOURS))])
    if np.abs(colour - stage.image[int(y), int(x)].astype(int)).max() < 60:
        colour = 255 - colour
    stage.boxes.append((prop, draw_prop(stage.image, prop, x, y, size, colour, rng)))
    if is_left:
        stage.left += 2.4 * size
    else:
        stage.right -= 2.4 * size


def _put_shapes(stage: _Stage, scene: shapes.ShapeScene, rng: np.random.Generator) -> None:
    objects = scene.objects * scene.count
    places = place_shapes(scene, rng, stage.right - stage.left, stage.bottom - stage.top)
    for (colour, shape), place in zip(objects, places, strict=True):
        x, y = place.x + stage.left, place.y + stage.top
        rotation = rng.uniform(-0.2, 0.2)
        shapes.draw_shape(stage.image, shape, jitter(rng, shapes.COLOURS[colour]), x, y, place.radius, rotation)
        stage.boxes.append((shape, shapes.shape_bounds(shape, x, y, place.radius, rotation)))


def _put_texts(stage: _Stage, spec: FrameSpec, rng: np.random.Generator) -> list[str]:
    image, height = stage.image, stage.image.shape[0]
    if spec.bar:
        _put_bar(stage, spec.bar, rng)
    if spec.title:
        left, top = image.shape[1] * 0.03, height * 0.03
        write_text(image, spec.title, left, top, height * 0.07, BLACK_ON_WHITE, is_bar=False)
    return [text for text in (spec.bar, spec.title) if text]


def _put_bar(stage: _Stage, text: str, rng: np.random.Generator) -> None:
    height, width = stage.image.shape[:2]
    inks = WHITE_ON_BLACK if rng.random() < 0.7 else BLACK_ON_WHITE
    size_px, x, y = height * rng.uniform(0.055, 0.07), width * rng.uniform(0.03, 0.1), height * BAR_TEXT_FRAC
    write_text(stage.image, text, x, y, size_px, inks, is_bar=True)
    corner = (width, int(y - size_px * 0.35))
    cv2.rectangle(stage.image, (0, int(stage.bottom)), corner, inks.ground, -1)


def _spoil(image: Image, rng: np.random.Generator) -> Image:
    """Blur, add grain, compress: each in a quarter to a third of the frames."""
    if rng.random() < 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0), np.uint8)
    if rng.random() < 0.3:
        grain = rng.normal(0, rng.uniform(2, 7), image.shape)
        image = np.clip(image.astype(np.int16) + grain, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 95))]
        jpeg = cv2.imencode(".jpg", image, quality)[1]
        image = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
    return image
