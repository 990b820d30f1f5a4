"""Where the shapes of a scene stand: positions and radii that make the scene's words true.

Put here: placing rules for one shape, several shapes and two shapes in a relation.
Keep out: drawing (shapes) and the room that people, props and text take away (frames).
"""

from typing import NamedTuple

import numpy as np

from world.shapes import ShapeScene

RADIUS_RANGES = {"small": (0.10, 0.15), "large": (0.30, 0.38), "": (0.12, 0.36)}
MAX_TRIES = 600
TRIES_BEFORE_SHRINKING = 60


class Place(NamedTuple):
    """The middle and the radius of a shape in pixels of the stage."""

    x: float
    y: float
    radius: float


def place_shapes(scene: ShapeScene, rng: np.random.Generator, width: float, height: float) -> list[Place]:
    """Place each shape of the scene on a stage of the given size."""
    if scene.kind == "one":
        return [_place_one(scene.size, rng, width, height)]
    if scene.kind == "count":
        return _place_several(scene.count, rng, width, height)
    across = scene.relation in ("left of", "right of")
    length, breadth = (width, height) if across else (height, width)
    pair = _place_pair(scene.relation, rng, length, breadth, min(width, height))
    if not across:
        pair = [Place(y, x, radius) for x, y, radius in pair]
    return pair if scene.relation in ("left of", "above") else pair[::-1]


def _place_one(size: str, rng: np.random.Generator, width: float, height: float) -> Place:
    # A draw for each size, used or not: the picture is then the same for all sizes but in the radius.
    fractions = {name: rng.uniform(*limits) for name, limits in RADIUS_RANGES.items()}
    radius = min(width, height) * fractions[size]
    return _place_anywhere(radius, rng, width, height)


def _place_anywhere(radius: float, rng: np.random.Generator, width: float, height: float) -> Place:
    margin = radius * 1.1
    return Place(rng.uniform(margin, width - margin), rng.uniform(margin, height - margin), radius)


def _place_several(count: int, rng: np.random.Generator, width: float, height: float) -> list[Place]:
    """Place shapes by rejection; start again with smaller ones when they do not fit."""
    radius = min(width, height) * rng.uniform(0.11, 0.16)
    places: list[Place] = []
    for attempt in range(MAX_TRIES):
        if len(places) == count:
            break
        place = _place_anywhere(radius, rng, width, height)
        if all(np.hypot(place.x - other.x, place.y - other.y) > 2.3 * radius for other in places):
            places.append(place)
        elif attempt % TRIES_BEFORE_SHRINKING == TRIES_BEFORE_SHRINKING - 1:
            places = []
            radius *= 0.92
    return places


def _place_pair(relation: str, rng: np.random.Generator, length: float, breadth: float, shortest: float) -> list[Place]:
    """Place two shapes one after the other along `length`, nearly level across `breadth`."""
    uniform = rng.uniform
    first, second = shortest * uniform(0.12, 0.21), shortest * uniform(0.12, 0.21)
    a, b = (second, first) if relation in ("right of", "below") else (first, second)
    along_a = uniform(a * 1.1, max(a * 1.1 + 1, length * 0.5 - a * 0.6))
    near, far = max(along_a + a + b + 2, length * 0.5), max(along_a + a + b + 3, length - b * 1.1)
    along_b = _keep_inside(uniform(near, far), b, length)
    level = uniform(max(a, b), max(max(a, b) + 1, breadth - max(a, b)))
    across_a = _keep_inside(level + uniform(-0.15, 0.15) * breadth, a, breadth)
    across_b = _keep_inside(level + uniform(-0.15, 0.15) * breadth, b, breadth)
    if along_b - along_a < (a + b) * 1.05:
        a, b = a * 0.7, b * 0.7
    return [Place(along_a, across_a, a), Place(along_b, across_b, b)]


def _keep_inside(value: float, radius: float, length: float) -> float:
    margin = radius * 1.1
    return float(np.clip(value, margin, max(margin, length - margin)))
