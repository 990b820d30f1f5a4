"""What a file is, told from its first bytes and never from its name.

Put here: signatures of formats. Keep out: opening files, which only the guarded child does.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MediaKind = Literal["video", "audio", "image", "document"]


@dataclass(frozen=True, slots=True)
class MediaType:
    """A format that can be decoded.

    Attributes
    ----------
    kind : video | audio | image | document; a video container without pictures turns out as audio once it is opened
    container : the format's usual short name, e.g. mp4, mkv, jpeg, pdf
    """

    kind: MediaKind
    container: str


_AUDIO_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P "})
# ISO base media files that are still images or raw photographs: no decoder here reads them.
_STILL_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis", b"crx ", b"jxl "}
)
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"pnot"})
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_TIFF_MARKS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_TS_PACKETS = ((0, 188), (4, 192))  # plain transport stream; with the 4-byte time code of Blu-ray and cameras
_MP3_KBITS = {  # MPEG version 1 or 2, layer III; ISO/IEC 11172-3 table 3-B.2
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def sniff(head: bytes) -> MediaType | None:
    """Tell the format from the first bytes of a file (4,096 are enough).

    Returns
    -------
    None for all that is not decoded here: text, archives, playlists, SVG, raw photographs, HEIC …
    """
    for test in _TESTS:
        found = test(head)
        if found is not None:
            return found
    return None


def _fixed(head: bytes) -> MediaType | None:
    for signature, kind, container in _SIGNATURES:
        if head.startswith(signature):
            return MediaType(kind, container)
    return None


_SIGNATURES: tuple[tuple[bytes, MediaKind, str], ...] = (
    (b"\xff\xd8\xff", "image", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image", "png"),
    (b"GIF87a", "image", "gif"),
    (b"GIF89a", "image", "gif"),
    (b"fLaC", "audio", "flac"),
    (b"ID3", "audio", "mp3"),
    (b"FLV\x01", "video", "flv"),
    (b"\x00\x00\x01\xba", "video", "mpeg"),
    (_ASF_HEADER, "video", "asf"),
)


def _tiff(head: bytes) -> MediaType | None:
    is_canon_raw = head[8:10] == b"CR"
    return MediaType("image", "tiff") if head.startswith(_TIFF_MARKS) and not is_canon_raw else None


def _riff(head: bytes) -> MediaType | None:
    if head[:4] not in {b"RIFF", b"RF64"}:
        return None
    forms: dict[bytes, MediaType] = {
        b"WAVE": MediaType("audio", "wav"),
        b"AVI ": MediaType("video", "avi"),
        b"WEBP": MediaType("image", "webp"),
    }
    return forms.get(head[8:12])


def _iso_media(head: bytes) -> MediaType | None:
    atom, brand = head[4:8], head[8:12]
    if atom in _QUICKTIME_ATOMS:
        return MediaType("video", "mov")
    if atom != b"ftyp" or brand in _STILL_BRANDS:
        return None
    if brand in _AUDIO_BRANDS:
        return MediaType("audio", "m4a")
    return MediaType("video", "mov" if brand == b"qt  " else "mp4")


def _matroska(head: bytes) -> MediaType | None:
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    if b"webm" in head[:64]:
        return MediaType("video", "webm")
    return MediaType("video", "mkv") if b"matroska" in head[:64] else None


def _ogg(head: bytes) -> MediaType | None:
    if not head.startswith(b"OggS"):
        return None
    return MediaType("video" if b"\x80theora" in head else "audio", "ogg")


def _pdf(head: bytes) -> MediaType | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\x00\t\n\f\r ")
    return MediaType("document", "pdf") if re.match(rb"%PDF-\d", start) else None


def _transport_stream(head: bytes) -> MediaType | None:
    for first, step in _TS_PACKETS:
        marks = head[first : first + 3 * step : step]
        if marks == b"\x47\x47\x47":
            return MediaType("video", "mpegts")
    return None


def _adts(head: bytes) -> MediaType | None:
    """AAC frames: the sync word twice, as far apart as the first frame says."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return MediaType("audio", "aac") if length >= 7 and _repeats(head, length, 0xF6) else None


def _mp3(head: bytes) -> MediaType | None:
    """MPEG layer III without tags: the frame's header twice, as far apart as the first says."""
    length = _mp3_frame_bytes(head)
    return MediaType("audio", "mp3") if length and _repeats(head, length, 0xFE) else None


def _mp3_frame_bytes(head: bytes) -> int:
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, rate, kbits = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or rate == 3 or not 0 < kbits < 15:
        return 0
    per_frame = 144_000 if version == 3 else 72_000
    return per_frame * _MP3_KBITS[1 if version == 3 else 2][kbits] // _MP3_HZ[version][rate] + (head[2] >> 1 & 1)


def _repeats(head: bytes, length: int, mask: int) -> bool:
    following = head[length : length + 2]
    return len(following) == 2 and following[0] == 0xFF and following[1] & mask == head[1] & mask


_TESTS: tuple[Callable[[bytes], MediaType | None], ...] = (
    _fixed,
    _tiff,
    _riff,
    _iso_media,
    _matroska,
    _ogg,
    _pdf,
    _transport_stream,
    _adts,
    _mp3,
)
