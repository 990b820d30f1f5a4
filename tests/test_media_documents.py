"""Documents: pages as images with their text, within limits."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_factory import write_pdf
from PIL import Image

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.decode import decode_file
from mm_assets.media.documents import MAX_PAGE_PIXELS, MAX_TEXT_BYTES
from mm_assets.media.segments import MediaFacts, SegmentWriter, read_segments

TEXTS = ["first page\nof three", "", "Grüße, third page"]


def decode(file: Path, **limits: Any) -> tuple[MediaFacts, list[dict[str, Any]]]:
    """Decode in this process; returns facts and rows."""
    out = file.with_name("segments.arrow")
    with SegmentWriter(out) as writer:
        facts = decode_file(file, MediaLimits(**limits), writer)
    return facts, [row for batch in read_segments(out) for row in batch.to_pylist()]


def raw_pdf(content: bytes, media_box: str = "0 0 595 842") -> bytes:
    """Return a one-page PDF with a Flate-packed content stream, written by hand."""
    packed = zlib.compress(content, 9)
    stream = f"<</Length {len(packed)}/Filter/FlateDecode>>stream\n".encode() + packed + b"\nendstream"
    font = "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    page = f"<</Type/Page/Parent 2 0 R/MediaBox[{media_box}]/Contents 4 0 R/Resources<</Font<</F1 {font}>>>>>>"
    bodies = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page.encode(), stream]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(out))
        out += f"{number} 0 obj".encode() + body + b"endobj\n"
    table = b"".join(f"{place:010d} 00000 n \n".encode() for place in places)
    head = f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n".encode()
    return out + head + table + f"trailer<</Size 5/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF".encode()


def test_pages_have_image_and_text(tmp_path: Path) -> None:
    """One segment a page, in order: A4 at 150 dpi, black on white, with its text layer; none where there is none."""
    facts, rows = decode(write_pdf(tmp_path / "a.pdf", TEXTS))
    assert (facts.media_kind, facts.n_pages) == ("document", 3)
    assert [r["page_number"] for r in rows] == [1, 2, 3]
    assert [r["embedded_text"] for r in rows] == ["first page\nof three", None, "Grüße, third page"]
    assert [(r["width_px"], r["height_px"]) for r in rows] == [(1240, 1755)] * 3
    ink = [float(np.mean(np.asarray(Image.open(io.BytesIO(r["keyframe_jpeg"]))) < 100)) for r in rows]
    assert [Image.open(io.BytesIO(r["thumbnail_jpeg"])).size for r in rows] == [(226, 320)] * 3
    assert ink[0] > 0.001
    assert ink[1] == 0.0


def test_pages_beyond_the_limit_are_left_out_and_counted(tmp_path: Path) -> None:
    """``n_pages`` tells all pages; the first ``max_pages`` are read."""
    facts, rows = decode(write_pdf(tmp_path / "a.pdf", ["x"] * 7), max_pages=2)
    assert (facts.n_pages, len(rows)) == (7, 2)


@pytest.mark.parametrize("box", ["0 0 20000000 20000000", "0 0 14400 10", "0 0 0 0"])
def test_page_size_is_clamped(tmp_path: Path, box: str) -> None:
    """A page that claims kilometres is rendered small instead of filling memory."""
    (tmp_path / "a.bin").write_bytes(raw_pdf(b"", box))
    _, (row,) = decode(tmp_path / "a.bin")
    assert 0 < row["width_px"] * row["height_px"] <= MAX_PAGE_PIXELS * 1.01
    assert max(row["width_px"], row["height_px"]) <= 8_193


def test_text_layer_is_capped(tmp_path: Path) -> None:
    """A small file with megabytes of text gives one mebibyte."""
    lines = [f"BT /F1 1 Tf 10 {5 * n} Td ({'spam ' * 2_000}) Tj ET\n".encode() for n in range(150)]
    (tmp_path / "a.bin").write_bytes(raw_pdf(b"".join(lines)))
    assert (tmp_path / "a.bin").stat().st_size < 100_000
    _, (row,) = decode(tmp_path / "a.bin")
    assert MAX_TEXT_BYTES * 0.9 < len(row["embedded_text"].encode()) <= MAX_TEXT_BYTES


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_document_that_is_cut_off_is_corrupt(tmp_path: Path, share: float) -> None:
    """A document whose end is missing is refused."""
    whole = write_pdf(tmp_path / "a.pdf", TEXTS).read_bytes()
    (tmp_path / "part.bin").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ObjectError) as caught:
        decode(tmp_path / "part.bin")
    assert caught.value.reason is Reason.CORRUPT


def test_encrypted_document_is_unsupported(tmp_path: Path) -> None:
    """A password cannot be guessed; the message says what to do."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"), encrypt="secret")
    canvas.drawString(72, 72, "x")
    canvas.save()
    with pytest.raises(ObjectError, match="password") as caught:
        decode(tmp_path / "a.pdf")
    assert caught.value.reason is Reason.UNSUPPORTED
