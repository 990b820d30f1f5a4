"""Pictures of people and of loose things, placed by lot: what detectors are trained on beside composed frames.

Put here: crowds of heads, heaps of shapes, props and heads, and where each is.
Keep out: frames with a caption (frames), grounds (backdrops), labels in a trainer's own format.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from world.backdrops import paint_blobs, paint_gradient, spoil_picture
from world.frames import CLASSES
from world.heads import Head, Pose, draw_person
from world.pen import Box, Colour, Image
from world.people import Identity, sample_identity
from world.props import PROPS, draw_prop
from world.shapes import COLOURS, SHAPES, draw_shape, shape_bounds
from world.truth import LabelBox

Painter: TypeAlias = Callable[[np.random.Generator, int, int], Image]
MIN_CONTRAST = 45
"""Of one channel between a thing and its ground, 0…255."""
_FIRST_STRANGER = 10_000


class _Spot(NamedTuple):
    x: float
    y: float
    size: float


def make_strangers(count: int, first_seed: int = _FIRST_STRANGER) -> tuple[Identity, ...]:
    """Draw people who are not of the cast; each has a seed of its own, so any range of them can be had again."""
    return tuple(sample_identity(np.random.default_rng(first_seed + number)) for number in range(count))


def sample_loose_pose(rng: np.random.Generator, *, tilt: float = 0.12, blinking: float = 0.1) -> Pose:
    """Draw a pose that varies more than those of composed frames."""
    rotation, yaw = rng.normal(0, tilt), rng.uniform(-0.8, 0.8)
    smile = rng.uniform(-0.08, 0.16)
    return Pose(rotation, yaw, smile, bool(rng.random() < blinking), bool(rng.random() < 0.8))


def draw_crowd(
    rng: np.random.Generator,
    size_px: tuple[int, int],
    people: Sequence[Identity],
    heights: tuple[float, float],
    *,
    most: int = 4,
    paint: Painter = paint_blobs,
) -> tuple[Image, list[Head]]:
    """Draw up to `most` people who do not touch.

    Parameters
    ----------
    size_px : height and width
    heights : least and greatest half height of a face, as fractions of the picture's height
    paint : gives the ground
    """
    height, width = size_px
    image = paint(rng, height, width)
    heads: list[Head] = []
    for _ in range(int(rng.integers(0, most + 1))):
        spot = _find_place(rng, size_px, heights, [head.box for head in heads])
        if spot is not None:
            who = people[int(rng.integers(len(people)))]
            heads.append(draw_person(image, who, *spot, sample_loose_pose(rng)))
    return spoil_picture(image, rng), heads


def _find_place(
    rng: np.random.Generator, size_px: tuple[int, int], heights: tuple[float, float], taken: Sequence[Box]
) -> _Spot | None:
    """Find a place whose head and shoulders touch no other face; None after twenty tries."""
    height, width = size_px
    for _ in range(20):
        h = rng.uniform(*heights) * height
        x, y = rng.uniform(h, width - h), rng.uniform(1.2 * h, height - h * 0.9)
        if all(_is_apart(x, y, h, box) for box in taken):
            return _Spot(x, y, h)
    return None


def _is_apart(x: float, y: float, h: float, box: Box) -> bool:
    x0, y0, x1, y1 = box
    is_beside = abs(x - (x0 + x1) / 2) > 1.3 * h + (x1 - x0) * 0.65
    return is_beside or abs(y - (y0 + y1) / 2) > 1.5 * h + (y1 - y0) * 0.7


def draw_heap(
    rng: np.random.Generator, height: int, width: int, people: Sequence[Identity]
) -> tuple[Image, list[LabelBox]]:
    """Draw one to six loose things of any of the detector's classes on a gradient."""
    image = paint_gradient(rng, height, width)
    boxes: list[LabelBox] = []
    taken: list[_Spot] = []
    for _ in range(int(rng.integers(1, 7))):
        label = CLASSES[int(rng.integers(len(CLASSES)))]
        spot = _find_spot(rng, height, width, taken)
        colour = np.clip(tuple(COLOURS.values())[rng.integers(len(COLOURS))] + rng.integers(-20, 21, 3), 0, 255)
        if spot is None or np.abs(colour - image[int(spot.y), int(spot.x)].astype(int)).max() < MIN_CONTRAST:
            continue
        taken.append(spot)
        box = _draw_thing(image, rng, label, spot, colour, people[int(rng.integers(len(people)))])
        boxes.append(LabelBox(label, *map(float, np.clip(box, 0, [width, height, width, height]))))
    return spoil_picture(image, rng), boxes


def _find_spot(rng: np.random.Generator, height: int, width: int, taken: Sequence[_Spot]) -> _Spot | None:
    size = min(height, width) * rng.uniform(0.05, 0.2)
    for _ in range(15):
        x, y = rng.uniform(size * 1.2, width - size * 1.2), rng.uniform(size * 1.4, height - size * 1.4)
        if all(abs(x - o.x) > (size + o.size) * 1.15 or abs(y - o.y) > (size + o.size) * 1.2 for o in taken):
            return _Spot(x, y, size)
    return None


def _draw_thing(image: Image, rng: np.random.Generator, label: str, spot: _Spot, colour: Colour, who: Identity) -> Box:
    if label in PROPS:
        return draw_prop(image, label, *spot, colour, rng)
    if label in SHAPES:
        rotation = rng.uniform(-0.35, 0.35)
        draw_shape(image, label, colour, *spot, rotation)
        return shape_bounds(label, *spot, rotation)
    pose = Pose(rng.normal(0, 0.1), rng.uniform(-0.8, 0.8), rng.uniform(-0.08, 0.16), has_shirt=False)
    return draw_person(image, who, spot.x, spot.y, spot.size * 0.8, pose).box
