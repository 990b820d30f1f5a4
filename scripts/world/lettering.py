"""Text drawn on a frame: a caption bar at the bottom, a title at the top.

Put here: fonts and the drawing of text that belongs to a frame.
Keep out: what the text says (frames), text that distracts (clutter), pages (documents).
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from world.pen import Image

FONT_FOLDER = "/usr/share/fonts/truetype/dejavu"
"""Where Debian's package fonts-dejavu-core puts its files; the models were trained on these fonts."""
MIN_TEXT_PX = 9


@cache
def load_font(size_px: int, name: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """Load a font of the DejaVu family."""
    return ImageFont.truetype(f"{FONT_FOLDER}/{name}.ttf", size_px)


class Inks(NamedTuple):
    """The colour of the letters and of the ground behind them."""

    letters: tuple[int, int, int]
    ground: tuple[int, int, int]


WHITE_ON_BLACK = Inks((255, 255, 255), (0, 0, 0))
BLACK_ON_WHITE = Inks((0, 0, 0), (255, 255, 255))


def write_text(image: Image, text: str, x: float, y: float, size_px: float, inks: Inks, *, is_bar: bool) -> None:
    """Write in place, smaller where the text does not fit; a bar fills the frame down to its bottom."""
    height, width = image.shape[:2]
    picture = Pictures.fromarray(image)
    draw = ImageDraw.Draw(picture)
    font = load_font(max(7, int(size_px)))
    box = draw.textbbox((x, y), text, font)
    while box[2] > width - 4 and size_px > MIN_TEXT_PX:
        size_px *= 0.93
        font = load_font(int(size_px))
        box = draw.textbbox((x, y), text, font)
    ground = (0, y - size_px * 0.35, width, height) if is_bar else (box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4)
    draw.rectangle(ground, fill=inks.ground)
    draw.text((x, y), text, inks.letters, font)
    image[:] = np.asarray(picture)
