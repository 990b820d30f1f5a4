"""Batches for the text-image model: frames, two captions each, and what is seen in which part of a frame.

Put here: the choice of frames with their hard variants, their drawing at training size, labels per frame and cell.
Keep out: captions (captions), the model and its losses (clip).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from world.crowds import make_strangers
from world.frames import FrameSpec, render_frame, sample_frame
from world.pen import Image
from world.people import CAST, Identity
from world.props import PROPS
from world.shapes import COLOURS, SHAPES, SceneKey, ShapeScene, sample_scene, scene_key
from world.truth import SceneTruth
from world.variants import swap_shapes, vary_scene

from training.captions import extras_of, full_claim, partial_claim

Floats = npt.NDArray[np.float32]
SIDE_PX = 96
GRIDS = (SIDE_PX // 8, SIDE_PX // 16)
"""Cells a side of the maps of layer 2 and layer 3, which learn what is seen where."""
EXTRAS = ("person", *PROPS)
_COLOUR_NAMES = tuple(COLOURS)
_PAIRS_END = len(COLOURS) * len(SHAPES)
_SHAPES_END = _PAIRS_END + len(SHAPES)
_BACKGROUNDS_END = _SHAPES_END + len(COLOURS)
_EXTRAS_END = _BACKGROUNDS_END + len(EXTRAS)
N_ATTRIBUTES = _EXTRAS_END + 7
"""Coloured shapes, shapes, backgrounds, extras, five kinds of scene, two sizes."""
N_CELL_CLASSES = len(SHAPES) + len(COLOURS) + len(EXTRAS)
COMPOSED_SHARE = 0.55
"""The rest are scenes of shapes alone: frames of the demo need the first, clean words the second."""


class Labelled(NamedTuple):
    """A frame at training size and the labels of its cells, one (class, row, column) array per grid."""

    pixels: Image
    cells: tuple[Floats, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """`n` frames and 2 n captions: the full ones, then the partial ones.

    Attributes
    ----------
    pixels : uint8, shape (n, SIDE_PX, SIDE_PX, 3)
    texts : the captions
    is_true : bool, shape (2 n, n): whether a caption is true of a frame
    attributes : 0 or 1, shape (n, N_ATTRIBUTES)
    cells : 0 or 1, shape (n, N_CELL_CLASSES, grid, grid), one array per grid
    """

    pixels: Image
    texts: list[str]
    is_true: npt.NDArray[np.bool_]
    attributes: Floats
    cells: tuple[Floats, ...]


class FrameSource:
    """Draws frames and batches; the order of draws is part of the recipe."""

    def __init__(self, rng: np.random.Generator, n_strangers: int = 400) -> None:
        self.rng = rng
        self._strangers = make_strangers(n_strangers, first_seed=20_000)

    def draw_batch(self, size: int) -> Batch:
        """Draw a batch of frames that all differ in meaning, many of them in one thing only."""
        specs = self._draw_specs(size)
        frames = [self._draw_frame(spec) for spec in specs]
        claims = [full_claim(spec, self.rng) for spec in specs] + [partial_claim(spec, self.rng) for spec in specs]
        return Batch(
            np.stack([frame.pixels for frame in frames]),
            [claim.text for claim in claims],
            np.array([[claim.holds(spec) for spec in specs] for claim in claims]),
            np.stack([attributes_of(spec) for spec in specs]),
            tuple(np.stack([frame.cells[k] for frame in frames]) for k in range(len(GRIDS))),
        )

    def _draw_specs(self, size: int) -> list[FrameSpec]:
        found: dict[SceneKey, FrameSpec] = {}
        while len(found) < size:
            spec = sample_training_frame(self.rng)
            for scene in (spec.scene, *self._vary(spec.scene)):
                found.setdefault(scene_key(scene), replace(spec, scene=scene))
        return list(found.values())[:size]

    def _vary(self, scene: ShapeScene) -> list[ShapeScene]:
        scenes = vary_scene(scene, self.rng) if self.rng.random() < 0.45 else []
        return scenes + (swap_shapes(scene, self.rng) if self.rng.random() < 0.6 else [])

    def _draw_frame(self, spec: FrameSpec) -> Labelled:
        is_plain = spec == FrameSpec(spec.scene)
        height = SIDE_PX if is_plain else int(self.rng.integers(110, 150))
        width = int(height * self.rng.uniform(*(1.0, 1.8) if is_plain else (1.3, 1.85)))
        image, truth = render_frame(spec, self.rng, height=height, width=width, cast=self._pick_cast())
        return Labelled(shrink(image), tuple(cells_of(spec, truth, image.shape, grid) for grid in GRIDS))

    def _pick_cast(self) -> tuple[Identity, ...]:
        """Seven in ten frames show a stranger, so that a person is not the cast of five."""
        if self.rng.random() >= 0.7:
            return CAST
        return (self._strangers[int(self.rng.integers(len(self._strangers)))],) * len(CAST)


def sample_training_frame(rng: np.random.Generator) -> FrameSpec:
    """Draw a composed frame or a scene of shapes alone."""
    return sample_frame(rng) if rng.random() < COMPOSED_SHARE else FrameSpec(sample_scene(rng))


def shrink(image: Image) -> Image:
    """Squash to the model's square, as `resize_mode` squash does."""
    return np.asarray(cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8)


def attributes_of(spec: FrameSpec) -> Floats:
    """Give what is true of the frame as a whole, shape (N_ATTRIBUTES,)."""
    labels, scene = np.zeros(N_ATTRIBUTES, np.float32), spec.scene
    for colour, shape in scene.objects:
        labels[_COLOUR_NAMES.index(colour) * len(SHAPES) + SHAPES.index(shape)] = 1
        labels[_PAIRS_END + SHAPES.index(shape)] = 1
    labels[_SHAPES_END + _COLOUR_NAMES.index(scene.background)] = 1
    for extra in extras_of(spec):
        labels[_BACKGROUNDS_END + EXTRAS.index(extra)] = 1
    labels[_EXTRAS_END + {"one": 0, "two": 1, "count": scene.count}[scene.kind]] = 1
    if scene.size:
        labels[_EXTRAS_END + 5 + (scene.size == "large")] = 1
    return labels


def cells_of(spec: FrameSpec, truth: SceneTruth, shape: tuple[int, ...], grid: int) -> Floats:
    """Give which shapes, colours and extras are seen in which cell, shape (N_CELL_CLASSES, grid, grid)."""
    labels = np.zeros((N_CELL_CLASSES, grid, grid), np.float32)
    scale = np.array([grid / shape[1], grid / shape[0]] * 2)
    pairs = iter(spec.scene.objects * spec.scene.count)
    for box in truth.label_boxes:
        rows, columns = _covered_cells(np.array([box.x0, box.y0, box.x1, box.y1]) * scale, grid)
        if box.label in EXTRAS:
            labels[len(SHAPES) + len(COLOURS) + EXTRAS.index(box.label), rows, columns] = 1
        else:
            colour, name = next(pairs)  # the truth tells shapes in the order of the scene
            labels[SHAPES.index(name), rows, columns] = 1
            labels[len(SHAPES) + _COLOUR_NAMES.index(colour), rows, columns] = 1
    return labels


def _covered_cells(box: npt.NDArray[Any], grid: int) -> tuple[slice, slice]:
    """Give the rows and columns of the middle 60 % of a box in units of cells: its rim is mostly background."""
    middle = (box[:2] + box[2:]) / 2
    low, high = middle + (box[:2] - middle) * 0.6, middle + (box[2:] - middle) * 0.6
    first = np.clip(np.minimum(low, middle), 0, grid - 1).astype(int)
    last = np.clip(np.maximum(high - 0.35, middle), 0, grid - 1).astype(int)
    return slice(first[1], last[1] + 1), slice(first[0], last[0] + 1)
