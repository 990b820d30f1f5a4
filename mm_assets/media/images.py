"""Still images: opened by explicit format, upright, opaque, scaled to fit.

Put here: what Pillow does. Keep out: OpenCV on raw bytes (a 109 KB PNG cost it 5.2 GB), frames of videos.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.segments import MediaFacts, Segment, SegmentWriter

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_QUALITY = 92
_THUMBNAIL_QUALITY = 80
_THUMBNAIL_PX = 320  # the longer side
_FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tiff": "TIFF"}
_SWAPPED_ORIENTATIONS = frozenset({5, 6, 7, 8})  # EXIF 2.32, tag 0x0112: rows and columns change places
_ORIENTATION_TAG = 0x0112


def decode_image(file: Path, container: str, limits: MediaLimits, out: SegmentWriter) -> MediaFacts:
    """Read one still image, or the first frame of an animated one.

    Raises
    ------
    ObjectError
        corrupt (also when only the end is missing), or too_large by pixels or side.
    """
    with _open(file, container, limits) as image:
        width, height = _shown_size(image)
        upright = _upright(image, limits.keyframe_side_px)
    out.add(
        Segment(
            "image",
            ordinal=0,
            width_px=upright.width,
            height_px=upright.height,
            keyframe_jpeg=to_jpeg(upright),
            thumbnail_jpeg=to_thumbnail(upright),
        )
    )
    return MediaFacts("image", container, width_px=width, height_px=height)


def to_jpeg(image: "Image") -> bytes:
    """Encode an RGB image as it is stored: colour at full resolution, because detectors and OCR read it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def to_thumbnail(image: "Image") -> bytes:
    """Encode an RGB image for people to look through many: small, and fetched without the large one."""
    small = image.copy()
    _shrink(small, _THUMBNAIL_PX)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()


@contextmanager
def _open(file: Path, container: str, limits: MediaLimits) -> "Iterator[Image]":
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata; damaged pixels are errors
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=[_FORMATS[container]]) as image:
                if max(image.size) > limits.max_side_px:
                    msg = f"image is {image.width}x{image.height} px; the limit is {limits.max_side_px} px a side"
                    raise ObjectError(Reason.TOO_LARGE, msg)
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        msg = f"image has more than {limits.max_pixels} pixels (media.max_pixels)"
        raise ObjectError(Reason.TOO_LARGE, msg) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError) as error:
        # Pillow's plugins raise all of these on damaged files; it has no class of its own for them.
        detail = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        msg = f"{container} image cannot be read whole: {detail}"
        raise ObjectError(Reason.CORRUPT, msg) from error


def _shown_size(image: "Image") -> tuple[int, int]:
    is_swapped = image.getexif().get(_ORIENTATION_TAG) in _SWAPPED_ORIENTATIONS
    return (image.height, image.width) if is_swapped else (image.width, image.height)


def _upright(image: "Image", side_px: int) -> "Image":
    from PIL import ImageOps

    if image.mode not in {"RGB", "L", "CMYK", "YCbCr"}:
        image = _opaque(image)
    _shrink(image, side_px)
    return ImageOps.exif_transpose(image).convert("RGB")


def _shrink(image: "Image", side_px: int) -> None:
    """Scale in place to fit a square of ``side_px``, never enlarging; JPEGs are read at reduced size where that is enough."""
    from PIL import Image

    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _opaque(image: "Image") -> "Image":
    """Return 8-bit colour over white; keeps the EXIF orientation."""
    from PIL import Image

    exif = image.getexif()
    if image.mode.startswith(("I", "F")):
        flat = Image.fromarray(_to_8_bit(np.asarray(image)))
    else:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(rgba, mask=rgba.getchannel("A"))
    flat.info["exif"] = exif.tobytes()
    return flat


def _to_8_bit(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """16-bit greys by their upper byte; 32-bit and float ones, which have no fixed white, from least to greatest."""
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    scaled: np.ndarray[Any, Any] = (finite - low) * (255.0 / max(high - low, 1e-12))
    return scaled.astype(np.uint8)
