"""The stored pictures and sounds of segments as arrays.

Put here: decoding of our own JPEG and FLAC columns. Keep out: media of strangers, which ``media`` opens in a child.
"""

import io
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from mm_assets.errors import ObjectError, Reason

RgbImage: TypeAlias = npt.NDArray[np.uint8]
"""Shape (height, width, 3), red first."""
Sound: TypeAlias = npt.NDArray[np.float32]
"""Shape (n,), mono, -1…1."""
SAMPLE_RATE_HZ = 16_000
QUIETEST_DBFS = -120.0


def read_image(jpeg: bytes | None) -> RgbImage:
    """Decode one stored keyframe; raises ObjectError(corrupt), which a retry cannot help."""
    if jpeg is None:
        raise ObjectError(Reason.CORRUPT, "the segment holds no image")
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ObjectError(Reason.CORRUPT, f"the stored keyframe is not a readable JPEG: {error}") from error


def read_sound(flac: bytes | None) -> Sound:
    """Decode one stored stretch of sound; raises ObjectError(corrupt), which a retry cannot help."""
    import soundfile

    if flac is None:
        raise ObjectError(Reason.CORRUPT, "the segment holds no sound")
    try:
        samples, rate_hz = soundfile.read(io.BytesIO(flac), dtype="float32")
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise ObjectError(Reason.CORRUPT, f"the stored sound is not readable FLAC: {error}") from error
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1:
        found = f"{rate_hz} Hz, {samples.ndim} dimensions"
        raise ObjectError(Reason.CORRUPT, f"the stored sound must be mono at {SAMPLE_RATE_HZ} Hz, found {found}")
    return np.asarray(samples, np.float32)


def column_of(segments: pa.Table, name: str) -> list[bytes | None]:
    """Give the bytes of one column, in order."""
    values: list[bytes | None] = segments.column(name).to_pylist()
    return values


def loudness_dbfs(samples: Sound) -> float:
    """Root mean square in dB below full scale; -120 for digital silence and for no samples at all."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if samples.size else 0.0
    return max(QUIETEST_DBFS, 10.0 * float(np.log10(power))) if power > 0 else QUIETEST_DBFS


def to_bgr(images: Sequence[RgbImage]) -> list[RgbImage]:
    """Blue first, contiguous: ultralytics and insightface take arrays in OpenCV's order."""
    return [np.ascontiguousarray(image[:, :, ::-1]) for image in images]
