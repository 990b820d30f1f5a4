"""Pictures of faces for the detector: crowds, parts of composed frames, and much that is no face.

Put here: the mixture, and where the faces are.
Keep out: drawings (world), targets per cell and losses (face_detection), crops for the recogniser (face_recognition).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from world.clutter import add_clutter, draw_page
from world.crowds import draw_crowd
from world.frames import draw_frame, render_frame, sample_frame
from world.heads import Head
from world.pen import Box, Image
from world.people import CAST, Identity

Floats = npt.NDArray[np.float32]
SIDE_PX = 256
_MARGIN_PX = 3.0
_OVERHANG_PX = 4.0
"""By how much a face may reach over the edge and still count."""


@dataclass(frozen=True, slots=True)
class FacePicture:
    """A square of SIDE_PX, the boxes of its faces, shape (n, 4), and their landmarks, shape (n, 5, 2), in pixels."""

    image: Image
    boxes: Floats
    landmarks: Floats

    @classmethod
    def of(cls, image: Image, heads: Sequence[Head] = (), shift: tuple[int, int] = (0, 0)) -> "FacePicture":
        """Take the truth from heads, moved left and up by `shift`."""
        boxes = np.array([head.box for head in heads], np.float32).reshape(-1, 4)
        landmarks = np.array([head.landmarks for head in heads], np.float32).reshape(-1, 5, 2)
        offset = np.array(shift, np.float32)
        return cls(image, boxes - np.tile(offset, 2), landmarks - offset)


def draw_face_picture(rng: np.random.Generator, strangers: Sequence[Identity]) -> FacePicture:
    """Draw 45 % crowds, 40 % parts of frames, 8 % pages of text, 7 % frames without a person but with more text."""
    draw = rng.random()
    if draw < 0.45:
        return _draw_crowd(rng, strangers)
    if draw < 0.85:
        return _draw_part(rng, strangers)
    if draw < 0.93:
        return FacePicture.of(draw_page(rng, SIDE_PX, SIDE_PX))
    spec = replace(sample_frame(rng), person=None)
    return FacePicture.of(add_clutter(render_frame(spec, rng, width=SIDE_PX, height=SIDE_PX)[0], rng))


def _draw_crowd(rng: np.random.Generator, strangers: Sequence[Identity]) -> FacePicture:
    """Draw faces of very different sizes; half of the pictures get text."""
    largest = max(0.06, 0.032 * 10 ** rng.uniform(0, 0.9) * 1.6)
    image, heads = draw_crowd(rng, (SIDE_PX, SIDE_PX), strangers, (0.03, largest))
    if rng.random() < 0.5:
        image = add_clutter(image, rng, _kept_free(heads))
    return FacePicture.of(image, heads)


def _draw_part(rng: np.random.Generator, strangers: Sequence[Identity]) -> FacePicture:
    """Draw a composed frame larger than the square and cut the square out, around the face where there is one."""
    spec = sample_frame(rng)
    if spec.person is None and rng.random() < 0.5:
        spec = replace(spec, person=0)
    height = int(SIDE_PX * rng.uniform(0.9, 1.6))
    width = int(height * rng.uniform(1.0, 1.78))
    cast = (strangers[int(rng.integers(len(strangers)))],) * len(CAST) if rng.random() < 0.8 else CAST
    drawing = draw_frame(spec, rng, width=width, height=height, cast=cast)
    image = add_clutter(drawing.image, rng, _kept_free(drawing.heads)) if rng.random() < 0.3 else drawing.image
    picture = _cut(rng, image, drawing.heads)
    reach = [-_OVERHANG_PX, SIDE_PX + _OVERHANG_PX]
    if ((picture.boxes < reach[0]) | (picture.boxes > reach[1])).any():  # a face cut in two is neither face nor none
        return FacePicture.of(draw_page(rng, SIDE_PX, SIDE_PX))
    return picture


def _cut(rng: np.random.Generator, image: Image, heads: Sequence[Head]) -> FacePicture:
    height, width = image.shape[:2]
    below, right = max(0, SIDE_PX - height), max(0, SIDE_PX - width)
    padded = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT), np.uint8)
    box = heads[0].box if heads else None
    x = _pick_start(rng, width + right, None if box is None else (box[0], box[2]))
    y = _pick_start(rng, height + below, None if box is None else (box[1], box[3]))
    square = np.ascontiguousarray(padded[y : y + SIDE_PX, x : x + SIDE_PX])
    return FacePicture.of(square, heads, (x, y))


def _pick_start(rng: np.random.Generator, length: int, face: tuple[float, float] | None) -> int:
    """Pick where the square starts along one side, so that the face lies inside where it fits."""
    start = int(rng.integers(0, length - SIDE_PX + 1))
    if face is not None and face[1] - face[0] < SIDE_PX - 6:
        start = int(np.clip(start, face[1] - SIDE_PX + 2, face[0] - 2))
    return int(np.clip(start, 0, length - SIDE_PX))


def _kept_free(heads: Sequence[Head]) -> list[Box]:
    m = _MARGIN_PX
    return [(x0 - m, y0 - m, x1 + m, y1 + m) for x0, y0, x1, y1 in (head.box for head in heads)]
