"""Grounds to draw on that are no scene, and what spoils a picture on its way: for training only.

Put here: gradients, heaps of meaningless blobs, blur, grain, light and JPEG marks stronger than a frame's own.
Keep out: backgrounds that a caption speaks of (frames) and text (clutter).
"""

from typing import TypeAlias

import cv2
import numpy as np

from world.pen import Image, to_scalar
from world.people import SKINS

Ink: TypeAlias = tuple[int, ...]


def paint_gradient(rng: np.random.Generator, height: int, width: int) -> Image:
    """Paint a gradient between two colours: a ground that no detector may learn anything from."""
    first, second = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    across = np.linspace(0, 1, width)[None, :, None] * rng.uniform(0, 1)
    down = np.linspace(0, 1, height)[:, None, None] * rng.uniform(0, 1)
    share = (across + down) / 2
    return np.ascontiguousarray(np.clip(first * (1 - share) + second * share, 0, 255).astype(np.uint8))


def paint_blobs(rng: np.random.Generator, height: int, width: int) -> Image:
    """Paint up to eight blobs on a gradient, some in colours of skin.

    For faces only: circles and squares without a label would teach a detector of shapes to overlook them.
    """
    image = paint_gradient(rng, height, width)
    for _ in range(int(rng.integers(0, 9))):
        is_skin = rng.random() >= 0.6
        ink = to_scalar(SKINS[rng.integers(len(SKINS))] if is_skin else rng.integers(0, 256, 3))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        _add_blob(image, rng, (x, y), rng.uniform(0.03, 0.22) * min(height, width), ink)
    return image


def _add_blob(image: Image, rng: np.random.Generator, centre: tuple[float, float], radius: float, ink: Ink) -> None:
    (x, y), kind = centre, rng.integers(4)
    middle = (int(x), int(y))
    if kind == 0:
        cv2.circle(image, middle, int(radius), ink, -1, cv2.LINE_AA)
    elif kind == 1:
        corner = (int(x - radius), int(y - radius * rng.uniform(0.4, 1)))
        cv2.rectangle(image, corner, (int(x + radius), int(y + radius)), ink, -1)
    elif kind == 2:
        axes = (int(radius), int(radius * rng.uniform(0.5, 1.3)))
        cv2.ellipse(image, middle, axes, rng.uniform(0, 180), 0, 360, ink, -1, cv2.LINE_AA)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
        corners = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).astype(np.int32)
        cv2.fillPoly(image, [corners], ink, cv2.LINE_AA)


def spoil_picture(image: Image, rng: np.random.Generator) -> Image:
    """Give a copy with other light, and with blur, grain and JPEG marks in about half of the cases each."""
    if rng.random() < 0.4:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 1.2)), np.uint8)
    light = image.astype(np.float32) * rng.uniform(0.7, 1.2) + rng.uniform(-15, 15)
    if rng.random() < 0.5:
        light += rng.normal(0, rng.uniform(1, 8), image.shape)
    image = np.clip(light, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 95))]
        image = np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR), np.uint8)
    return image
