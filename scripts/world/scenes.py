"""A supply of frames that no caption confuses: each scene's meaning and each caption is given once.

Put here: the choice of which frames a collection has.
Keep out: their drawing (frames).
"""

import numpy as np

from world.frames import FrameSpec, full_caption, sample_frame
from world.shapes import COLOURS, SceneKey, scene_key

MIN_BACKGROUND_DISTANCE = 110.0
"""Euclidean distance in RGB between the backgrounds of adjacent scenes."""


class SceneSupply:
    """Draws frames that differ in meaning from all frames drawn before."""

    def __init__(self) -> None:
        self._keys: set[SceneKey] = set()
        self._captions: set[str] = set()

    def draw(self, rng: np.random.Generator, *, unlike: str | None = None) -> FrameSpec:
        """Draw a frame; its background differs clearly from the colour `unlike`."""
        while True:
            spec = sample_frame(rng)
            key, caption = scene_key(spec.scene), full_caption(spec)
            if key in self._keys or caption in self._captions:
                continue
            if unlike is not None and _distance(spec.scene.background, unlike) < MIN_BACKGROUND_DISTANCE:
                continue
            self._keys.add(key)
            self._captions.add(caption)
            return spec


def _distance(first: str, second: str) -> float:
    return float(np.linalg.norm(np.subtract(COLOURS[first], COLOURS[second])))
