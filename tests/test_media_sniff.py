"""Formats are told by content alone."""

from pathlib import Path

import numpy as np
import pytest
from media_factory import Clip, noise, write_clip, write_image, write_pdf, write_sound

from mm_assets.media.sniff import MediaType, sniff

_PIXELS = np.full((20, 30, 3), 90, np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.mp4", "libx264", "mp4"),
        ("a.mov", "libx264", "mov"),
        ("a.mkv", "libx264", "mkv"),
        ("a.webm", "libvpx", "webm"),
        ("a.avi", "mpeg4", "avi"),
        ("a.ts", "libx264", "mpegts"),
        ("a.flv", "libx264", "flv"),
    ],
)
def test_sniff_knows_video(tmp_path: Path, name: str, codec: str, container: str) -> None:
    """Each container that is decoded is recognised from what FFmpeg writes."""
    file = write_clip(tmp_path / name, Clip([0.4], codec=codec))
    assert sniff(file.read_bytes()[:4096]) == MediaType("video", container)


@pytest.mark.parametrize("container", ["wav", "flac", "ogg", "mp3"])
def test_sniff_knows_sound(tmp_path: Path, container: str) -> None:
    """Each sound format is recognised; the MP3 has no tag and is told by two frame headers."""
    file = write_sound(tmp_path / f"a.{container}", noise(1))
    assert sniff(file.read_bytes()[:4096]) == MediaType("audio", container)


@pytest.mark.parametrize(
    ("suffix", "container"), [("jpg", "jpeg"), ("png", "png"), ("webp", "webp"), ("gif", "gif"), ("tif", "tiff")]
)
def test_sniff_knows_images(tmp_path: Path, suffix: str, container: str) -> None:
    """Each image format is recognised."""
    file = write_image(tmp_path / f"a.{suffix}", _PIXELS)
    assert sniff(file.read_bytes()[:4096]) == MediaType("image", container)


def test_sniff_knows_pdf(tmp_path: Path) -> None:
    """A PDF is recognised, also after a byte order mark."""
    head = write_pdf(tmp_path / "a.pdf", ["x"]).read_bytes()[:4096]
    assert sniff(head) == sniff(b"\xef\xbb\xbf\n" + head) == MediaType("document", "pdf")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x00" * 4096,
        b"plain text about %PDF-1.7 and RIFF",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile secret.mp4\n",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><MPD/>",
        b"PK\x03\x04" + b"\x00" * 100,
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00",
        b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00",
        b"II*\x00\x10\x00\x00\x00CR\x02\x00",
        b"\xff\xfb\x90\x00" + b"\x01" * 2000,
        b"\x80\x04\x95pickle",
    ],
)
def test_sniff_declines_the_rest(head: bytes) -> None:
    """Text, playlists, archives, scripts, raw photographs and noise are unsupported."""
    assert sniff(head) is None


def test_sniff_tells_sound_in_mp4_by_its_brand() -> None:
    """M4A is audio before it is opened."""
    assert sniff(b"\x00\x00\x00\x1cftypM4A \x00\x00\x02\x00") == MediaType("audio", "m4a")
