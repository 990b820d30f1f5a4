"""Labelled pictures for the object detector, written in the form that ultralytics reads.

Put here: the mixture of pictures, their labels, and the folder of a data set.
Keep out: drawings (world) and training (objects).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import yaml
from world.backdrops import paint_gradient
from world.clutter import add_clutter, draw_page
from world.crowds import draw_crowd, draw_heap, make_strangers
from world.frames import CLASSES, render_frame, sample_frame
from world.pen import Image
from world.people import CAST, Identity
from world.truth import LabelBox

Boxes: TypeAlias = Sequence[LabelBox]
SHORT_PX, LONG_PX = 180, 320
SQUARE_PX = 160
CLUTTER_SHARE = 0.35
_MARGIN_PX = 2.0


class LabelledPicture(NamedTuple):
    """A picture and all things of the detector's classes in it."""

    image: Image
    boxes: Boxes


class PictureSource:
    """Draws labelled pictures; all that looks like a class has a label, and text never has one."""

    def __init__(self, rng: np.random.Generator, n_strangers: int = 2000) -> None:
        self._rng = rng
        self._strangers = make_strangers(n_strangers)

    def draw_square(self) -> LabelledPicture:
        """Draw loose things in a small square: what a detector learns from quickest, and what fails in real frames."""
        return LabelledPicture(*draw_heap(self._rng, SQUARE_PX, SQUARE_PX, self._strangers))

    def draw_mixed(self) -> LabelledPicture:
        """Draw 55 % composed frames, 25 % loose things, 10 % crowds, 10 % pages; a third of all get text."""
        draw = self._rng.random()
        if draw >= 0.90:
            return self._draw_page()
        height = SHORT_PX if self._rng.random() < 0.75 else LONG_PX
        if draw < 0.55:
            picture = self._draw_composed(height)
        elif draw < 0.80:
            picture = LabelledPicture(*draw_heap(self._rng, height, LONG_PX, self._strangers))
        else:
            picture = self._draw_crowd(height)
        return self._clutter(picture) if self._rng.random() < CLUTTER_SHARE else picture

    def _draw_page(self) -> LabelledPicture:
        height, width = (320, 226) if self._rng.random() < 0.5 else (SHORT_PX, LONG_PX)
        return LabelledPicture(draw_page(self._rng, height, width), ())

    def _draw_composed(self, height: int) -> LabelledPicture:
        spec = sample_frame(self._rng)
        image, truth = render_frame(spec, self._rng, width=LONG_PX, height=height, cast=self._pick_cast())
        return LabelledPicture(image, truth.label_boxes)

    def _pick_cast(self) -> tuple[Identity, ...]:
        if self._rng.random() >= 0.8:
            return CAST
        return (self._strangers[int(self._rng.integers(len(self._strangers)))],) * len(CAST)

    def _draw_crowd(self, height: int) -> LabelledPicture:
        """Draw people on a gradient: blobs would be shapes without a label."""
        image, heads = draw_crowd(
            self._rng, (height, LONG_PX), self._strangers, (0.08, 0.3), most=3, paint=paint_gradient
        )
        limits = [LONG_PX, height, LONG_PX, height]
        return LabelledPicture(image, [LabelBox("person", *map(float, np.clip(h.box, 0, limits))) for h in heads])

    def _clutter(self, picture: LabelledPicture) -> LabelledPicture:
        m = _MARGIN_PX
        keep_free = [(box.x0 - m, box.y0 - m, box.x1 + m, box.y1 + m) for box in picture.boxes]
        return LabelledPicture(add_clutter(picture.image, self._rng, keep_free), picture.boxes)


def write_data_set(folder: Path, draw: Callable[[], LabelledPicture], n_train: int, n_validation: int) -> Path:
    """Write pictures and labels, and give the path of the file that describes them."""
    for split, count in (("train", n_train), ("val", n_validation)):
        images, labels = folder / "images" / split, folder / "labels" / split
        for each in (images, labels):
            each.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture = draw()
            cv2.imwrite(str(images / f"{number:05d}.png"), picture.image[:, :, ::-1])
            (labels / f"{number:05d}.txt").write_text(to_label_text(picture), encoding="ascii")
    names = dict(enumerate(CLASSES))
    description = {"path": str(folder.absolute()), "train": "images/train", "val": "images/val", "names": names}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    return path


def to_label_text(picture: LabelledPicture) -> str:
    """Give one line per box: class, middle, width and height as fractions of the picture."""
    height, width = picture.image.shape[:2]
    lines = (
        f"{CLASSES.index(box.label)} {(box.x0 + box.x1) / 2 / width:.5f} {(box.y0 + box.y1) / 2 / height:.5f}"
        f" {(box.x1 - box.x0) / width:.5f} {(box.y1 - box.y0) / height:.5f}"
        for box in picture.boxes
    )
    return "\n".join(lines)
