"""Answers as one picture: for notebooks, chats, reports.

Put here: laying out what an answer holds. Keep out: asking.
"""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from PIL import Image, ImageDraw

_MARGIN_PX, _LINE_PX = 8, 15
_PAPER, _INK, _GREY = "white", "black", "#666666"


def contact_sheet(moments: "pl.DataFrame", *, columns: int = 5, side_px: int = 200) -> "Image.Image":
    """Return one picture of all answers, best first, each with its object and place below.

    Parameters
    ----------
    moments : what ``Retriever.search(…, has_thumbnails=True)`` returned; what is only said is a grey field
    columns : pictures in a row
    side_px : width and height of the field of each picture
    """
    from PIL import Image, ImageDraw

    field_px = side_px + _MARGIN_PX
    n_rows = max(1, -(-moments.height // columns))
    size = (columns * field_px + _MARGIN_PX, n_rows * (field_px + 2 * _LINE_PX) + _MARGIN_PX)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(moments.iter_rows(named=True)):
        left = _MARGIN_PX + place % columns * field_px
        top = _MARGIN_PX + place // columns * (field_px + 2 * _LINE_PX)
        _paste(sheet, row["thumbnail_jpeg"], left, top, side_px)
        _write(draw, row, left, top + side_px + 2, side_px)
    return sheet


def _paste(sheet: "Image.Image", jpeg: bytes | None, left: int, top: int, side_px: int) -> None:
    from PIL import Image

    if jpeg is None:
        sheet.paste(_GREY, (left, top, left + side_px, top + side_px))
        return
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
        picture.thumbnail((side_px, side_px))
        sheet.paste(picture, (left + (side_px - picture.width) // 2, top + (side_px - picture.height) // 2))


def _write(draw: "ImageDraw.ImageDraw", row: dict[str, Any], left: int, top: int, width_px: int) -> None:
    name = f"{row['rank']}. {row['key'].rpartition('/')[2]}"
    for number, (text, colour) in enumerate(((name, _INK), (_place(row), _GREY))):
        draw.text((left, top + number * _LINE_PX), _fitting(draw, text, width_px), colour)


def _fitting(draw: "ImageDraw.ImageDraw", text: str, width_px: int) -> str:
    """Cut a text to a width; what the font has no letters for is shown by its number."""
    plain = text.encode("latin-1", "backslashreplace").decode("latin-1").replace("\n", " ")
    while plain and draw.textlength(plain) > width_px:
        plain = plain[:-1]
    return plain


def _place(row: dict[str, Any]) -> str:
    if row["page_number"] is not None:
        return f"page {row['page_number']}"
    return f"{row['start_s']:.1f}-{row['end_s']:.1f} s" if row["start_s"] is not None else ""
