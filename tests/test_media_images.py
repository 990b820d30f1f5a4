"""Still images: upright, opaque, scaled to fit; damaged ones and bombs are refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_factory import draw_frame, write_image
from PIL import Image

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.decode import decode_file
from mm_assets.media.segments import MediaFacts, SegmentWriter, read_segments

PICTURE = draw_frame(1, 0.0, 640, 400)


def decode(file: Path, **limits: Any) -> tuple[MediaFacts, np.ndarray[Any, Any]]:
    """Decode in this process; returns facts and pixels as stored."""
    out = file.with_name("segments.arrow")
    with SegmentWriter(out) as writer:
        facts = decode_file(file, MediaLimits(**limits), writer)
    (row,) = (row for batch in read_segments(out) for row in batch.to_pylist())
    pixels = np.asarray(Image.open(io.BytesIO(row["keyframe_jpeg"])))
    assert pixels.shape == (row["height_px"], row["width_px"], 3)
    return facts, pixels


def refused(file: Path, **limits: Any) -> Reason:
    """Return the reason for which a file is refused."""
    with pytest.raises(ObjectError) as caught:
        decode(file, **limits)
    assert str(file) not in caught.value.message
    return caught.value.reason


@pytest.mark.parametrize(
    ("size", "small"), [((640, 400), (320, 200)), ((300, 4), (300, 4)), ((1_000, 3), (320, 1)), ((1, 1), (1, 1))]
)
def test_a_thumbnail_shows_the_same_smaller(tmp_path: Path, size: tuple[int, int], small: tuple[int, int]) -> None:
    """Within 320 pixels a side and never enlarged, also of rules and spacers; the keyframe stays as it is."""
    image = Image.fromarray(PICTURE).resize(size)
    write_image(tmp_path / "a.png", np.asarray(image))
    with SegmentWriter(tmp_path / "segments") as writer:
        decode_file(tmp_path / "a.png", MediaLimits(), writer)
    [row] = [row for batch in read_segments(tmp_path / "segments") for row in batch.to_pylist()]
    shown, keyframe = (
        Image.open(io.BytesIO(row[name]), formats=["JPEG"]) for name in ("thumbnail_jpeg", "keyframe_jpeg")
    )
    assert (shown.size, keyframe.size) == (small, size)
    is_thin = min(size) < 8  # and then mostly what JPEG makes of its colours
    assert_alike(np.asarray(shown), np.asarray(image.resize(small, Image.Resampling.LANCZOS)), 50.0 if is_thin else 8.0)


def assert_alike(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], tolerance: float = 4.0) -> None:
    """Mean absolute difference, of 255."""
    assert left.shape == right.shape
    assert np.abs(left.astype(int) - right.astype(int)).mean() < tolerance


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_image_is_kept(tmp_path: Path, suffix: str) -> None:
    """Each format comes back as the picture it was."""
    facts, pixels = decode(write_image(tmp_path / f"a.{suffix}", PICTURE))
    assert (facts.media_kind, facts.width_px, facts.height_px) == ("image", 640, 400)
    assert_alike(pixels, PICTURE)


@pytest.mark.parametrize(
    ("orientation", "as_stored"),
    [
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: np.rot90(p, 2)),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, 1)),
        (7, lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
        (8, lambda p: np.rot90(p, -1)),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_image_is_upright(tmp_path: Path, orientation: int, as_stored: Any, suffix: str) -> None:
    """All eight EXIF orientations are applied, also to width and height, and the mark does not stay behind."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = write_image(tmp_path / f"a.{suffix}", np.ascontiguousarray(as_stored(PICTURE)), exif=exif)
    facts, pixels = decode(file)
    assert (facts.width_px, facts.height_px) == (640, 400)
    assert_alike(pixels, PICTURE)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_upright_image_lies_on_white(tmp_path: Path, mode: str) -> None:
    """What is see-through is white, not black, and orientation is applied to such images too."""
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    rgba[:100] = 0
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.ascontiguousarray(rgba[::-1, ::-1])).convert(mode).save(tmp_path / "a.png", exif=exif)
    _, pixels = decode(tmp_path / "a.png")
    assert (pixels[:90] > 245).all()
    assert_alike(pixels[110:], PICTURE[110:], tolerance=20 if mode == "P" else 4)


def test_sixteen_bit_grey_is_not_clipped(tmp_path: Path) -> None:
    """A ramp over the whole 16-bit range stays a ramp."""
    ramp = np.tile(np.linspace(0, 65_535, 256).astype(np.uint16), (32, 1))
    _, pixels = decode(write_image(tmp_path / "a.png", ramp))
    assert_alike(pixels[:, :, 0], np.tile(np.arange(256), (32, 1)))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    """Pictures from print come out in colour."""
    Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert_alike(decode(tmp_path / "a.jpg")[1], PICTURE, tolerance=6)


def test_image_is_scaled_to_fit_and_never_enlarged(tmp_path: Path) -> None:
    """The longest side is at most the setting; facts keep the size of the original."""
    file = write_image(tmp_path / "a.jpg", PICTURE)
    facts, pixels = decode(file, keyframe_side_px=320)
    assert pixels.shape == (200, 320, 3)
    assert facts.width_px == 640
    assert decode(file, keyframe_side_px=5_000)[1].shape == (400, 640, 3)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    """Of an animated GIF the first frame is read, whatever follows."""
    frames = [Image.fromarray(np.full((40, 60, 3), value, np.uint8)) for value in (200, 20, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert_alike(decode(tmp_path / "a.gif")[1], np.full((40, 60, 3), 200))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {}),
        ("b.jpg", {"progressive": True}),
        ("a.png", {}),
        ("a.webp", {}),
        ("b.webp", {"lossless": True}),
        ("a.gif", {}),
        ("a.tif", {}),
        ("b.tif", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_image_that_is_cut_off_is_corrupt(tmp_path: Path, name: str, options: dict[str, Any], share: float) -> None:
    """No half-grey picture: what is not whole is refused."""
    grain = np.random.default_rng(0).integers(0, 30, PICTURE.shape)
    whole = write_image(tmp_path / name, (PICTURE // 2 + grain).astype(np.uint8), **options).read_bytes()
    (tmp_path / "part.bin").write_bytes(whole[: int(len(whole) * share)])
    assert refused(tmp_path / "part.bin") is Reason.CORRUPT


def png_claiming(width: int, height: int) -> bytes:
    """Return a one-bit PNG of any claimed size whose data are a few compressed zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\x00" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 12_000), (40_000, 1), (2**31 - 1, 1)])
def test_decompression_bomb_is_too_large(tmp_path: Path, size: tuple[int, int]) -> None:
    """Pixels and sides are checked before anything is unpacked."""
    (tmp_path / "a.bin").write_bytes(png_claiming(*size))
    assert refused(tmp_path / "a.bin") is Reason.TOO_LARGE


def test_image_of_another_format_than_its_first_bytes_say_is_corrupt(tmp_path: Path) -> None:
    """Pillow is asked for the sniffed format alone, so that no other of its readers sees the bytes."""
    (tmp_path / "a.bin").write_bytes(b"\xff\xd8\xff\xe0" + b"%!PS-Adobe-3.0 EPSF-3.0\n" * 50)
    assert refused(tmp_path / "a.bin") is Reason.CORRUPT


def test_empty_object_is_corrupt(tmp_path: Path) -> None:
    """Zero bytes are no image and no crash."""
    (tmp_path / "a.bin").write_bytes(b"")
    assert refused(tmp_path / "a.bin") is Reason.CORRUPT
