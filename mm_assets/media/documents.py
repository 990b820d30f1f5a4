"""Documents: each page as an image and its text layer.

Put here: what pypdfium2 does. Keep out: reading text from the image, which is an extractor.
"""

import math
import re
from pathlib import Path
from typing import Any

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.images import to_jpeg, to_thumbnail
from mm_assets.media.segments import MediaFacts, Segment, SegmentWriter

MAX_TEXT_BYTES = 1 << 20
# A page may claim to be 20 million points wide; text of ordinary pages stays legible far below this.
MAX_PAGE_PIXELS = 16_000_000
MAX_PAGE_SIDE_PX = 8_192
_POINTS_PER_INCH = 72
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff\ud800-\udfff]")


def decode_pdf(file: Path, limits: MediaLimits, out: SegmentWriter) -> MediaFacts:
    """Read the first ``max_pages`` pages.

    Raises
    ------
    ObjectError
        corrupt; unsupported where a password is needed.
    """
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(file) as document:
            n_pages = len(document)
            for number in range(min(n_pages, limits.max_pages)):
                out.add(_read_page(document, number, limits.page_dpi))
    except pypdfium2.PdfiumError as error:
        raise _to_object_error(error) from error
    if n_pages == 0:
        raise ObjectError(Reason.CORRUPT, "document has no pages")
    return MediaFacts("document", "pdf", n_pages=n_pages)


def _to_object_error(error: Exception) -> ObjectError:
    if "password" in str(error).lower() or "security" in str(error).lower():
        return ObjectError(Reason.UNSUPPORTED, "document is encrypted; store it without a password")
    return ObjectError(Reason.CORRUPT, f"document cannot be read: {error}")


def _read_page(document: Any, number: int, dpi: int) -> Segment:
    page = document[number]
    try:
        width_pt, height_pt = page.get_size()
        image = page.render(scale=_scale(width_pt, height_pt, dpi), rev_byteorder=True).to_pil().convert("RGB")
        text = _text_layer(page)
    finally:
        page.close()
    return Segment(
        "page",
        ordinal=number,
        page_number=number + 1,
        width_px=image.width,
        height_px=image.height,
        embedded_text=text,
        keyframe_jpeg=to_jpeg(image),
        thumbnail_jpeg=to_thumbnail(image),
    )


def _scale(width_pt: float, height_pt: float, dpi: int) -> float:
    """Pixels per point: by resolution, less where the page would come out larger than the limits."""
    width, height = max(width_pt, 1e-3), max(height_pt, 1e-3)
    by_area = math.sqrt(MAX_PAGE_PIXELS / (width * height))
    return min(dpi / _POINTS_PER_INCH, by_area, MAX_PAGE_SIDE_PX / max(width, height))


def _text_layer(page: Any) -> str | None:
    """Text of the page, lines ended by a newline, at most 1 MiB; None where it has none."""
    layer = page.get_textpage()
    try:
        raw = layer.get_text_range(0, min(layer.count_chars(), MAX_TEXT_BYTES))
    finally:
        layer.close()
    # pdfium marks a word broken at the line's end by U+0002 or U+FFFE.
    joined = re.sub(r"[\x02\ufffe]\r?\n?", "", raw).replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROLS.sub("", joined).strip()
    return text.encode()[:MAX_TEXT_BYTES].decode("utf-8", "ignore") or None
