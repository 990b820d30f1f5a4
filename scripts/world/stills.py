"""Still pictures: file formats, orientation tags, changed copies, defects and things unlike the rest.

Put here: how a finished picture is written, changed or spoiled, and how its truth changes with it.
Keep out: what a composed frame shows (frames) and files that are broken on purpose (hostile).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags
from PIL import Image as Pictures

from world.pen import Image
from world.truth import LabelBox, PersonBox, SceneTruth

Orientation: TypeAlias = Literal[1, 3, 6]
FORMAT_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 88},
    "PNG": {"optimize": True},
    "WEBP": {"quality": 82},
    "GIF": {},
    "TIFF": {"compression": "tiff_lzw"},
}
_QUARTER_TURNS_TO_STORE: dict[Orientation, int] = {1: 0, 3: 2, 6: 1}


def write_still(path: Path, image: Image, kind: str, orientation: Orientation = 1, **options: Any) -> None:
    """Write a picture; with an orientation tag the pixels lie turned, so that a reader of the tag sees it upright."""
    picture = Pictures.fromarray(np.ascontiguousarray(np.rot90(image, _QUARTER_TURNS_TO_STORE[orientation])))
    chosen = FORMAT_OPTIONS[kind] | options
    if orientation != 1:
        exif = Pictures.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        chosen |= {"exif": exif}
    picture.save(path, kind, **chosen)


def resize_still(image: Image, truth: SceneTruth, factor: float) -> tuple[Image, SceneTruth]:
    """Scale a picture and its boxes."""
    smaller = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, np.uint8), _map_boxes(truth, lambda x, y: (x * factor, y * factor))


def crop_still(image: Image, truth: SceneTruth, fraction: float) -> tuple[Image, SceneTruth]:
    """Cut the same fraction off all sides and make it a little brighter."""
    height, width = image.shape[:2]
    dx, dy = round(width * fraction), round(height * fraction)
    cropped = brighten_still(image[dy : height - dy, dx : width - dx], 8)
    right, bottom = width - 2 * dx, height - 2 * dy
    return cropped, _map_boxes(truth, lambda x, y: (min(max(x - dx, 0.0), right), min(max(y - dy, 0.0), bottom)))


def brighten_still(image: Image, level: int) -> Image:
    """Add a level to all channels."""
    return np.clip(image.astype(np.int16) + level, 0, 255).astype(np.uint8)


def _map_boxes(truth: SceneTruth, move: Callable[[float, float], tuple[float, float]]) -> SceneTruth:
    labels = tuple(LabelBox(b.label, *move(b.x0, b.y0), *move(b.x1, b.y1)) for b in truth.label_boxes)
    people = tuple(PersonBox(b.name, *move(b.x0, b.y0), *move(b.x1, b.y1)) for b in truth.people)
    return replace(truth, label_boxes=labels, people=people)


def turn_upside_down(image: Image, truth: SceneTruth) -> tuple[Image, SceneTruth]:
    """Turn the pixels themselves, without a tag; what is left and above becomes right and below."""
    height, width = image.shape[:2]
    labels = tuple(
        LabelBox(b.label, width - b.x1, height - b.y1, width - b.x0, height - b.y0) for b in truth.label_boxes
    )
    people = tuple(PersonBox(b.name, width - b.x1, height - b.y1, width - b.x0, height - b.y0) for b in truth.people)
    return np.ascontiguousarray(np.rot90(image, 2)), replace(truth, label_boxes=labels, people=people)


def blur_still(image: Image) -> Image:
    """Blur so much that shapes become clouds."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 22), np.uint8)


def darken_still(image: Image) -> Image:
    """Leave a twentieth of the light."""
    return (image * 0.05).astype(np.uint8)


def paint_noise(rng: np.random.Generator, width: int, height: int) -> Image:
    """Give pixels without any structure."""
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def paint_gradient(width: int, height: int) -> Image:
    """Give a smooth gradient through many colours."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [127 + 127 * np.sin(6 * (x * a + y * b)) for a, b in ((1, 0.3), (0.4, 1), (-0.8, 0.7))]
    return np.stack(channels, 2).astype(np.uint8)


def paint_plasma(rng: np.random.Generator, width: int, height: int, n_octaves: int = 7) -> Image:
    """Give a cloud: noise of many sizes, added up."""
    total: npt.NDArray[np.float64] = np.zeros((height, width, 3))
    for octave in range(1, n_octaves + 1):
        coarse = rng.normal(0, 1, (2**octave + 1, 2**octave + 1, 3))
        cloud = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        total += np.asarray(cloud, np.float64) / 1.6**octave
    spread = (total - total.min()) / (total.max() - total.min())
    return np.asarray(spread * 255, np.uint8)


def paint_blank(width: int, height: int) -> Image:
    """Give one grey."""
    return np.full((height, width, 3), 128, np.uint8)
