"""PDF documents: pages of sentences with a text layer, scanned pages without one, pages with a picture.

Put here: pages and the truth about what is written on them.
Keep out: the sentences themselves (speech) and text that nobody should find (clutter).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw
from reportlab.lib.pagesizes import A4  # type: ignore[import-untyped]  # reportlab ships no types
from reportlab.lib.utils import ImageReader  # type: ignore[import-untyped]
from reportlab.pdfgen.canvas import Canvas  # type: ignore[import-untyped]

from world.lettering import load_font
from world.pen import Image
from world.truth import PageTruth

PageStyle: TypeAlias = Literal["typed", "scanned"]
SCAN_SIZE_PX = (1240, 1754)
"""A4 at 150 dots an inch."""
SCAN_TEXT_PX, SCAN_MARGIN_PX, SCAN_GRAIN = 30, 130, 4.0
TYPED_TEXT_PT, TYPED_MARGIN_PT = 13, 62
LINE_SPACING = 1.7


@dataclass(frozen=True, slots=True)
class Page:
    """The lines of a page, top to bottom, and a picture below them."""

    style: PageStyle
    lines: tuple[str, ...]
    picture: Image | None = None
    picture_texts: tuple[str, ...] = ()


def write_document(path: Path, pages: Sequence[Page], rng: np.random.Generator) -> tuple[PageTruth, ...]:
    """Write a PDF without dates and identifiers, and tell what its pages say."""
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    truths = []
    for number, page in enumerate(pages, 1):
        if page.style == "typed":
            _type_page(canvas, page)
        else:
            _put_picture(canvas, _scan_page(page, rng), 0, 0, *A4)
        canvas.showPage()
        embedded = "\n".join(page.lines) if page.style == "typed" else ""
        truths.append(PageTruth(number, (*page.lines, *page.picture_texts), embedded))
    canvas.save()
    return tuple(truths)


def _type_page(canvas: Any, page: Page) -> None:
    canvas.setFont("Helvetica", TYPED_TEXT_PT)
    y = A4[1] - TYPED_MARGIN_PT
    for line in page.lines:
        y -= TYPED_TEXT_PT * LINE_SPACING
        canvas.drawString(TYPED_MARGIN_PT, y, line)
    if page.picture is not None:
        height, width = page.picture.shape[:2]
        shown_width = A4[0] - 2 * TYPED_MARGIN_PT
        shown_height = shown_width * height / width
        picture = Pictures.fromarray(page.picture)
        _put_picture(canvas, picture, TYPED_MARGIN_PT, y - 24 - shown_height, shown_width, shown_height)


def _put_picture(canvas: Any, picture: Pictures.Image, x: float, y: float, width: float, height: float) -> None:
    jpeg = BytesIO()
    picture.save(jpeg, "JPEG", quality=60)
    jpeg.seek(0)
    canvas.drawImage(ImageReader(jpeg), x, y, width, height)


def _scan_page(page: Page, rng: np.random.Generator) -> Pictures.Image:
    """Draw the page as a scanner would see it: grey paper, a little grain, no text layer."""
    paper = Pictures.new("L", SCAN_SIZE_PX, 246)
    draw, font = ImageDraw.Draw(paper), load_font(SCAN_TEXT_PX)
    y = float(SCAN_MARGIN_PX)
    for line in page.lines:
        draw.text((SCAN_MARGIN_PX, y), line, 20, font)
        y += SCAN_TEXT_PX * LINE_SPACING
    if page.picture is not None:
        paper.paste(Pictures.fromarray(page.picture).convert("L"), (SCAN_MARGIN_PX, int(y) + 40))
    grain = rng.normal(0, SCAN_GRAIN, SCAN_SIZE_PX[::-1])
    return Pictures.fromarray(np.clip(np.asarray(paper) + grain, 0, 255).astype(np.uint8))
