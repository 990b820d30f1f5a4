"""ocr_text: lines of text in keyframes and pages, by the tesseract program through pytesseract.

Put here: preparing pictures for tesseract and reading its answer. Keep out: text layers of PDFs, which ``media`` reads.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from mm_assets.errors import ConfigError, ObjectError, Reason
from mm_assets.extractors.base import Extractor, item_ids
from mm_assets.extractors.inputs import column_of, read_image
from mm_assets.extractors.offline import one_thread_per_child

_BOX = ("box_x0_px", "box_y0_px", "box_x1_px", "box_y1_px")
_HELP = "install it, e.g. with `apt-get install tesseract-ocr tesseract-ocr-eng`, or drop ocr_text from `steps`"
_FRAME_HEIGHT_PX = 720  # letters of captions then have the 20 to 30 px that tesseract was trained on
_PAGE_HEIGHT_PX = 1_700  # a page of A4 at 150 dpi
_MAX_ENLARGEMENT = 4
_LIGHT_LUMA, _DARK_LUMA = 200, 60
_SHARED_HEIGHT = 0.6  # of the lower of two lines that are one
_PAGE_MODE, _BLOCK_MODE = 3, 6  # tesseract's --psm: find the layout; one block of lines


@dataclass(frozen=True)
class _Word:
    """One word; corners in pixels of the stored image, confidence 0…1, and the line that tesseract put it into."""

    text: str
    confidence: float
    box: tuple[float, float, float, float]
    line: tuple[int, ...]


class TesseractExtractor(Extractor):
    """Lines of words per picture; pictures are read one by one, so batches change nothing.

    Frames are enlarged and split into two masks, the light and the dark pixels, since captions are the one or the
    other on any ground: .99 of the words of our captions against .21 on the picture as it is. Pages, and images that
    are large and mostly white, are read as pages.
    """

    step = "ocr_text"
    code_version = "2"
    packages = ("pytesseract",)
    takes = frozenset({"scene", "image", "page"})
    columns = ("segment_kind", "keyframe_jpeg")
    gpu = False
    defaults: ClassVar[Mapping[str, Any]] = {
        "language": "eng",
        "min_confidence": 0.6,  # tesseract's guesses at shapes and noise stay below
        "min_frame_letters": 2,  # of its longest word: lines of single letters on a frame are circles and crosses
        "page_light_frac": 0.6,  # an image with so many light pixels …
        "page_side_px": 900,  # … and so long a side is read as a page
        "timeout_s": 120.0,
    }

    def check(self) -> None:
        """Look for the program and its languages as well."""
        super().check()
        self.load()  # light: asks the program for its version

    def _load(self) -> None:
        import pytesseract

        try:
            version = pytesseract.get_tesseract_version()
            languages = pytesseract.get_languages()
        except pytesseract.TesseractNotFoundError as error:
            msg = f"the program tesseract is not installed; {_HELP}"
            raise ConfigError(msg) from error
        if str(version.major) != self.card.revision:
            msg = f"tesseract {version} is installed, the pack's card says {self.card.revision}; install that, or "
            raise ConfigError(msg + "write the installed major version into the card, which asks for a new recipe")
        missing = sorted(set(self.params["language"].split("+")) - set(languages))
        if missing:
            msg = f"tesseract has no data for {', '.join(missing)}; {_HELP}"
            raise ConfigError(msg)

    def _extract(self, segments: pa.Table) -> pa.Table:
        jobs = zip(segments.column("segment_kind").to_pylist(), column_of(segments, "keyframe_jpeg"), strict=True)
        workers = self.place.threads or os.cpu_count() or 1
        with one_thread_per_child(), ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda job: self._read_lines(*job), jobs))
        owners = [row for row, lines in enumerate(found) for _ in lines]
        every = [line for lines in found for line in lines]
        boxes = [_around(line) for line in every]
        values: dict[str, Any] = {name: [box[k] for box in boxes] for k, name in enumerate(_BOX)}
        values["line_id"] = item_ids(segments, owners)
        values["text"] = [" ".join(word.text for word in line) for line in every]
        values["confidence"] = [sum(word.confidence for word in line) / len(line) for line in every]
        values["words"] = [[_row(word) for word in line] for line in every]
        return self._rows(segments, owners, values)

    def _read_lines(self, kind: str, jpeg: bytes | None) -> list[list[_Word]]:
        luma = Image.fromarray(read_image(jpeg)).convert("L")
        if kind == "page" or (kind == "image" and self._is_page(luma)):
            larger, factor = _enlarge(luma, _PAGE_HEIGHT_PX)
            return _to_lines(self._words(larger, factor, _PAGE_MODE, 0))
        larger, factor = _enlarge(luma, _FRAME_HEIGHT_PX)
        words = [
            word
            for number, mask in enumerate(_masks(larger))
            for word in self._words(mask, factor, _BLOCK_MODE, number)
        ]
        lines = [line for line in join_rows(_to_lines(without_repeats(words))) if self._is_text(line)]
        return sorted(lines, key=lambda line: _around(line)[1])

    def _is_text(self, line: list[_Word]) -> bool:
        longest = max(sum(map(str.isalnum, word.text)) for word in line)
        return longest >= int(self.params["min_frame_letters"])

    def _is_page(self, luma: Image.Image) -> bool:
        light = float(np.mean(np.asarray(luma) > _LIGHT_LUMA))
        return bool(max(luma.size) >= self.params["page_side_px"] and light >= self.params["page_light_frac"])

    def _words(self, picture: Image.Image, factor: float, mode: int, number: int) -> list[_Word]:
        """Words of one picture whose confidence suffices; ``number`` tells the lines of several pictures apart."""
        data = self._call(picture, mode)
        lines = zip(data["block_num"], data["par_num"], data["line_num"], strict=True)
        boxes = zip(data["left"], data["top"], data["width"], data["height"], strict=True)
        every = zip(data["text"], data["conf"], boxes, lines, strict=True)
        return [
            _Word(text.strip(), float(conf) / 100, _corners(box, factor), (number, *line))
            for text, conf, box, line in every
            if float(conf) / 100 >= self.params["min_confidence"] and any(map(str.isalnum, text))
        ]

    def _call(self, picture: Image.Image, mode: int) -> dict[str, list[Any]]:
        import pytesseract

        try:
            data: dict[str, list[Any]] = pytesseract.image_to_data(
                picture,
                lang=self.params["language"],
                config=f"--psm {mode}",
                output_type=pytesseract.Output.DICT,
                timeout=self.params["timeout_s"],
            )
        except pytesseract.TesseractError as error:
            raise ObjectError(Reason.MODEL_ERROR, f"tesseract failed: {error.message}") from error
        except RuntimeError as error:  # how pytesseract tells that it killed tesseract after the timeout
            raise ObjectError(Reason.TIMEOUT, f"tesseract took over {self.params['timeout_s']} s") from error
        return data


def _enlarge(luma: Image.Image, height_px: int) -> tuple[Image.Image, float]:
    """Enlarge towards a height; never reduce, which would lose small letters."""
    factor = min(_MAX_ENLARGEMENT, max(1, round(height_px / luma.height)))
    size = (luma.width * factor, luma.height * factor)
    return (luma.resize(size, Image.Resampling.BICUBIC) if factor > 1 else luma), factor


def _masks(luma: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Light pixels and dark pixels, each black on white, as print is."""
    pixels = np.asarray(luma)
    light, dark = pixels > _LIGHT_LUMA, pixels < _DARK_LUMA
    return Image.fromarray(np.where(light, 0, 255).astype(np.uint8)), Image.fromarray(
        np.where(dark, 0, 255).astype(np.uint8)
    )


def without_repeats(words: Iterable[_Word]) -> list[_Word]:
    """Drop words that overlap a surer one by over .4 of the smaller box: both masks may show the same word."""
    kept: list[_Word] = []
    for word in sorted(words, key=lambda word: -word.confidence):
        if all(_overlap(word.box, other.box) <= 0.4 for other in kept):
            kept.append(word)
    return kept


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Shared area as a share of the smaller box."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller if smaller > 0 else 0.0


def _to_lines(words: list[_Word]) -> list[list[_Word]]:
    """Words by tesseract's lines, each from left to right."""
    ordered = sorted(words, key=lambda word: (word.line, word.box[0]))
    return [list(line) for _, line in groupby(ordered, key=lambda word: word.line)]


def join_rows(lines: Sequence[list[_Word]]) -> list[list[_Word]]:
    """Join what both masks show of one line: each has the words that it showed more surely."""
    joined: list[list[_Word]] = []
    for line in lines:
        mask = line[0].line[0]
        rest = next((row for row in joined if row[0].line[0] != mask and _is_one_row(row, line)), None)
        if rest is None:
            joined.append(line)
        else:
            rest[:] = sorted([*rest, *line], key=lambda word: word.box[0])
    return joined


def _is_one_row(one: list[_Word], other: list[_Word]) -> bool:
    """Whether two lines stand at the same height, not farther apart than they are high."""
    a, b = _around(one), _around(other)
    lower = min(a[3] - a[1], b[3] - b[1])
    shared, gap = min(a[3], b[3]) - max(a[1], b[1]), max(a[0], b[0]) - min(a[2], b[2])
    return shared > _SHARED_HEIGHT * lower and gap <= lower


def _corners(box: tuple[int, int, int, int], factor: float) -> tuple[float, float, float, float]:
    left, top, width, height = box
    return left / factor, top / factor, (left + width) / factor, (top + height) / factor


def _around(line: list[_Word]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = zip(*(word.box for word in line), strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _row(word: _Word) -> dict[str, Any]:
    return {"text": word.text, "confidence": word.confidence, **dict(zip(_BOX, word.box, strict=True))}
