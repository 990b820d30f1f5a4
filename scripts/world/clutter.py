"""Text that distracts: bars, titles, naked words, blocks, whole pages, in many fonts and of no meaning.

Put here: text that no caption speaks of, and pages that show nothing but text.
Keep out: text that belongs to a frame (lettering) and pages that can be searched (documents).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from world.lettering import FONT_FOLDER, load_font
from world.pen import Box, Image

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "while",
    "seven",
    "bright",
    "stars",
    "shine",
    "above",
    "quiet",
    "village",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "triangle",
    "Scene",
    "1",
    "2",
    "3",
    "10",
    "2026",
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "left",
    "right",
    "of",
    "is",
    "a",
    "an",
    "and",
    "background",
    "invoice",
    "total",
    "page",
    "number",
    "figure",
    "table",
]
GLYPHS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?()%&-"
PLAIN_INKS = ((255, 255, 255), (0, 0, 0), (20, 20, 20), (240, 240, 240))


def add_clutter(image: Image, rng: np.random.Generator, keep_free: Sequence[Box] = ()) -> Image:
    """Give a copy with one to three texts that touch none of the boxes in `keep_free`."""
    picture = Pictures.fromarray(image)
    for _ in range(int(rng.integers(1, 4))):
        _add_one(picture, rng, keep_free)
    return np.array(picture)


def draw_page(rng: np.random.Generator, height: int, width: int) -> Image:
    """Draw a page of meaningless text: light paper or a dark slide, lines of words, sometimes a rule."""
    is_dark = rng.random() < 0.2
    paper = rng.integers(0, 50, 3) if is_dark else rng.integers(225, 256, 3)
    picture = Pictures.new("RGB", (width, height), tuple(int(v) for v in paper))
    draw = ImageDraw.Draw(picture)
    size_px = height * 10 ** rng.uniform(-1.8, -1.2)
    y, x = height * rng.uniform(0.03, 0.12), width * rng.uniform(0.04, 0.12)
    font = _pick_font(rng, size_px)
    while y < height * 0.95:
        if rng.random() < 0.08:
            y += size_px * 2
            font = _pick_font(rng, size_px * rng.uniform(0.8, 1.8))
        line = ""
        while draw.textlength(line, font) < width - 2.2 * x and rng.random() < 0.97:
            line += " " + _pick_words(rng, 1)
        draw.text((x, y), line, (235,) * 3 if is_dark else (int(rng.integers(0, 70)),) * 3, font)
        y += size_px * 1.5
    if rng.random() < 0.3:
        draw.line((x, height * 0.2, width - x, height * 0.2), fill=(128, 128, 128), width=1)
    return np.array(picture)


def _add_one(picture: Pictures.Image, rng: np.random.Generator, keep_free: Sequence[Box]) -> None:
    kind = rng.random()
    size_px = picture.height * 10 ** rng.uniform(-1.6, -0.9)
    font = _pick_font(rng, size_px)
    text = _pick_words(rng, int(rng.integers(1, 7)))
    if kind < 0.45:
        _add_bar(picture, rng, text, font, size_px, keep_free)
    else:
        n_lines = int(rng.integers(1, 5)) if kind > 0.85 else 1
        block = "\n".join(_pick_words(rng, int(rng.integers(1, 6))) for _ in range(n_lines))
        _add_block(picture, rng, block, font, size_px, keep_free)


def _add_bar(
    picture: Pictures.Image,
    rng: np.random.Generator,
    text: str,
    font: ImageFont.FreeTypeFont,
    size_px: float,
    keep_free: Sequence[Box],
) -> None:
    draw = ImageDraw.Draw(picture)
    height = size_px * rng.uniform(1.4, 2.2)
    y = 0.0 if rng.random() < 0.2 else picture.height - height
    box = (0.0, y, float(picture.width), y + height)
    if _touches(box, keep_free):
        return
    draw.rectangle(box, fill=_pick_ink(rng))
    corner = (picture.width * rng.uniform(0.01, 0.3), y + (height - size_px) / 2 - size_px * 0.1)
    draw.text(corner, text, _pick_ink(rng), font)


def _add_block(
    picture: Pictures.Image,
    rng: np.random.Generator,
    text: str,
    font: ImageFont.FreeTypeFont,
    size_px: float,
    keep_free: Sequence[Box],
) -> None:
    draw = ImageDraw.Draw(picture)
    corner = (rng.uniform(0, picture.width * 0.7), rng.uniform(0, picture.height * 0.9))
    box = draw.multiline_textbbox(corner, text, font)
    if _touches(box, keep_free):
        return
    if rng.random() < 0.6:
        dx, dy = size_px * 0.3, size_px * 0.2
        draw.rectangle((box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy), fill=_pick_ink(rng))
    draw.multiline_text(corner, text, _pick_ink(rng), font)


def _touches(box: Box, others: Sequence[Box]) -> bool:
    return any(
        min(box[2], other[2]) > max(box[0], other[0]) and min(box[3], other[3]) > max(box[1], other[1])
        for other in others
    )


@cache
def _font_names() -> tuple[str, ...]:
    names = sorted(path.name for path in Path(FONT_FOLDER).glob("DejaVu*.ttf"))
    return tuple(name.removesuffix(".ttf") for name in names if "Math" not in name)


def _pick_font(rng: np.random.Generator, size_px: float) -> ImageFont.FreeTypeFont:
    names = _font_names()
    return load_font(int(max(6, size_px)), names[int(rng.integers(len(names)))])


def _pick_ink(rng: np.random.Generator) -> tuple[int, ...]:
    if rng.random() < 0.4:
        return tuple(int(value) for value in rng.integers(0, 256, 3))
    return PLAIN_INKS[int(rng.integers(len(PLAIN_INKS)))]


def _pick_words(rng: np.random.Generator, n: int) -> str:
    return " ".join(_pick_word(rng) for _ in range(n))


def _pick_word(rng: np.random.Generator) -> str:
    if rng.random() < 0.6:
        return WORDS[int(rng.integers(len(WORDS)))]
    return "".join(GLYPHS[int(k)] for k in rng.integers(0, len(GLYPHS), int(rng.integers(1, 9))))
