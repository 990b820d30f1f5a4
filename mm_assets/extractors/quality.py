"""media_quality: sharpness, light, contrast and loudness of segments, and the faults that follow from them.

Put here: measures that need no model. Keep out: beauty, and anything about content.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from mm_assets.extractors.base import Extractor
from mm_assets.extractors.inputs import RgbImage, column_of, loudness_dbfs, read_image, read_sound

_MEASURES = ("sharpness", "brightness_frac", "contrast_frac", "loudness_dbfs")
_FLAGS = ("is_blurred", "is_dark", "is_blank", "is_silent", "is_frozen")


class QualityExtractor(Extractor):
    """One row per segment, exact and the same in any batch; null where the segment has no picture or no sound."""

    step = "media_quality"
    code_version = "1"
    takes = frozenset({"scene", "image", "page", "audio"})
    columns = ("segment_kind", "motion_frac", "keyframe_jpeg", "audio_flac")
    gpu = False
    defaults: ClassVar[Mapping[str, Any]] = {
        "min_sharpness": 6.0,  # drawn frames have 7 to 2,300 (95 % over 22); after a Gaussian blur of 2.5 px at most 5
        "min_brightness_frac": 0.06,  # 15 of 255; night scenes and black slides with something on them lie above
        "min_contrast_frac": 0.02,  # of a flat picture only grain and compression are left, 5 of 255 steps
        "min_loudness_dbfs": -60.0,  # the same limit below which transcripts are not tried
        "max_frozen_motion_frac": 5e-5,  # a thing of 20 × 20 px that moves by one pixel in 640 × 360 makes more
        "min_frozen_s": 2.0,  # shorter stills are cuts and titles
    }

    def _load(self) -> None:
        """Nothing to load."""

    def _extract(self, segments: pa.Table) -> pa.Table:
        kinds = segments.column("segment_kind").to_pylist()
        jpegs, flacs = column_of(segments, "keyframe_jpeg"), column_of(segments, "audio_flac")
        durations = _durations(segments)
        motions = segments.column("motion_frac").to_pylist()
        rows = [
            {**self._see(kind, jpeg), **self._hear(kind, flac), "is_frozen": self._is_frozen(kind, duration_s, motion)}
            for kind, jpeg, flac, duration_s, motion in zip(kinds, jpegs, flacs, durations, motions, strict=True)
        ]
        values = {name: [row[name] for row in rows] for name in (*_MEASURES, *_FLAGS)}
        return self._rows(segments, list(range(segments.num_rows)), values)

    def _see(self, kind: str, jpeg: bytes | None) -> Mapping[str, Any]:
        if kind == "audio":
            return dict.fromkeys(("sharpness", "brightness_frac", "contrast_frac", "is_blurred", "is_dark", "is_blank"))
        luma = luma_of(read_image(jpeg))
        sharpness, brightness, contrast = sharpness_of(luma), float(luma.mean()) / 255, float(luma.std()) / 255
        is_blank = contrast < self.params["min_contrast_frac"]
        return {
            "sharpness": sharpness,
            "brightness_frac": brightness,
            "contrast_frac": contrast,
            "is_blank": is_blank,
            "is_dark": brightness < self.params["min_brightness_frac"],
            "is_blurred": not is_blank and sharpness < self.params["min_sharpness"],
        }

    def _hear(self, kind: str, flac: bytes | None) -> Mapping[str, Any]:
        if kind != "audio":
            return {"loudness_dbfs": None, "is_silent": None}
        loudness = loudness_dbfs(read_sound(flac))
        return {"loudness_dbfs": loudness, "is_silent": loudness < self.params["min_loudness_dbfs"]}

    def _is_frozen(self, kind: str, duration_s: float | None, motion: float | None) -> bool | None:
        if kind != "scene" or duration_s is None or motion is None:
            return None
        is_long = duration_s >= self.params["min_frozen_s"]
        return bool(is_long and motion <= self.params["max_frozen_motion_frac"])


def luma_of(image: RgbImage) -> npt.NDArray[np.float32]:
    """Luma 0…255 after ITU-R BT.601, shape (height, width)."""
    return np.asarray(Image.fromarray(image).convert("L"), np.float32)


def sharpness_of(luma: npt.NDArray[np.float32]) -> float:
    """Variance of the Laplacian (four neighbours), 0 for pictures under 3 × 3 px.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """
    if min(luma.shape) < 3:
        return 0.0
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(np.var(around - 4 * luma[1:-1, 1:-1]))


def _durations(segments: pa.Table) -> list[float | None]:
    pairs = zip(segments.column("start_s").to_pylist(), segments.column("end_s").to_pylist(), strict=True)
    return [None if start is None or end is None else end - start for start, end in pairs]
