"""Anti-aliased drawing primitives and the array types that the world is drawn with.

Put here: types and strokes that shapes, people and props have in common.
Keep out: what is drawn (shapes, people, props) and where it is placed (frames, layout).
"""

from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Image: TypeAlias = npt.NDArray[np.uint8]
"""RGB pixels, shape (height, width, 3), uint8."""
Points: TypeAlias = npt.NDArray[np.floating[Any]]
"""Polygon corners, shape (n, 2): x to the right, y downwards, in pixels."""
Colour: TypeAlias = npt.NDArray[Any] | tuple[int, ...]
"""Red, green and blue, 0…255."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

SUBPIXEL_BITS = 4
SUBPIXELS = 1 << SUBPIXEL_BITS


def to_scalar(colour: Colour) -> tuple[int, ...]:
    """Give the colour as the tuple of plain integers that OpenCV takes."""
    return tuple(int(value) for value in colour)


def to_subpixels(points: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Round pixel coordinates to sixteenths of a pixel."""
    return np.round(np.asarray(points) * SUBPIXELS).astype(np.int32)


def fill_polygon(image: Image, points: npt.ArrayLike, colour: Colour) -> None:
    """Fill a polygon in place."""
    cv2.fillPoly(image, [to_subpixels(points)], to_scalar(colour), cv2.LINE_AA, SUBPIXEL_BITS)


def fill_circle(image: Image, x: float, y: float, radius: float, colour: Colour) -> None:
    """Fill a circle in place; the centre is cut, not rounded, to sixteenths of a pixel."""
    stroke_circle(image, x, y, radius, colour, thickness=-1)


def stroke_circle(image: Image, x: float, y: float, radius: float, colour: Colour, thickness: int) -> None:
    """Draw a circle's line in place; a negative thickness fills it."""
    centre = (int(x * SUBPIXELS), int(y * SUBPIXELS))
    cv2.circle(image, centre, int(radius * SUBPIXELS), to_scalar(colour), thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def bounds_of(points: Points) -> Box:
    """Give the smallest upright box around the points."""
    x, y = points[:, 0], points[:, 1]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def jitter(rng: np.random.Generator, colour: Colour, amount: int = 14) -> npt.NDArray[np.int64]:
    """Move each channel by at most `amount`, within 0…255."""
    return np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255)
