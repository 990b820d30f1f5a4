"""Cars, houses and trees: three things that are neither a shape nor a person.

Put here: drawings of props and their boxes.
Keep out: where a prop stands in a frame (frames).
"""

from collections.abc import Sequence

import numpy as np

from world.pen import Box, Colour, Image, fill_circle, fill_polygon

PROPS = ("car", "house", "tree")


def draw_prop(
    image: Image, prop: str, x: float, y: float, size: float, colour: Colour, rng: np.random.Generator
) -> Box:
    """Draw a prop of half-width `size` in place and give its box; a tree has its own colour."""
    if prop == "car":
        return _draw_car(image, x, y, size, colour)
    if prop == "house":
        return _draw_house(image, x, y, size, colour, rng)
    return _draw_tree(image, x, y, size, rng)


def _fill(image: Image, x: float, y: float, s: float, corners: Sequence[Sequence[float]], colour: Colour) -> None:
    fill_polygon(image, [[x + s * dx, y + s * dy] for dx, dy in corners], colour)


def _draw_car(image: Image, x: float, y: float, s: float, colour: Colour) -> Box:
    body: list[list[float]] = [
        [-1, 0],
        [-0.95, -0.3],
        [-0.5, -0.35],
        [-0.3, -0.7],
        [0.35, -0.7],
        [0.6, -0.33],
        [1, -0.25],
        [1, 0],
    ]
    _fill(image, x, y, s, body, colour)
    _fill(image, x, y, s, [[-0.38, -0.36], [-0.24, -0.62], [0.3, -0.62], [0.47, -0.36]], (200, 230, 245))
    for wheel in (-0.55, 0.55):
        fill_circle(image, x + wheel * s, y, s * 0.22, (25, 25, 25))
        fill_circle(image, x + wheel * s, y, s * 0.1, (170, 170, 170))
    return x - s, y - s * 0.7, x + s, y + s * 0.22


def _draw_house(image: Image, x: float, y: float, s: float, colour: Colour, rng: np.random.Generator) -> Box:
    _fill(image, x, y, s, [[-0.8, 1], [-0.8, -0.1], [0.8, -0.1], [0.8, 1]], colour)
    roof = (150, 60, 40) if rng.random() < 0.5 else (70, 70, 90)
    _fill(image, x, y, s, [[-1, -0.1], [0, -1], [1, -0.1]], roof)
    _fill(image, x, y, s, [[-0.15, 1], [-0.15, 0.4], [0.2, 0.4], [0.2, 1]], (90, 55, 30))
    _fill(image, x, y, s, [[-0.6, 0.5], [-0.6, 0.15], [-0.3, 0.15], [-0.3, 0.5]], (220, 230, 120))
    return x - s, y - s, x + s, y + s


def _draw_tree(image: Image, x: float, y: float, s: float, rng: np.random.Generator) -> Box:
    _fill(image, x, y, s, [[-0.12, 1], [-0.12, 0], [0.12, 0], [0.12, 1]], (110, 70, 40))
    green = (40 + int(rng.integers(0, 40)), 120 + int(rng.integers(0, 60)), 50)
    if rng.random() < 0.5:
        _fill(image, x, y, s, [[-0.6, 0.4], [0, -1], [0.6, 0.4]], green)
        return x - s * 0.6, y - s, x + s * 0.6, y + s
    for dx, dy in ((-0.25, 0.0), (0.25, 0.0), (0.0, -0.4)):
        fill_circle(image, x + dx * s, y + dy * s, s * 0.42, green)
    return x - s * 0.67, y - s * 0.82, x + s * 0.67, y + s
