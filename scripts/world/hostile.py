"""Files that are broken, mislabelled or meant to do harm, as bytes.

Put here: what an ingest of foreign files must refuse or pass over.
Keep out: files that are merely odd and must be accepted (demo).
"""

import io
import struct
import zipfile
import zlib

import numpy as np

BOMB_SIDE_PX = 30_000
HLS_PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
NOTES = b"Shopping list: two ideas, one plan.\nThis is no medium and must be passed over.\n"


def make_pixel_bomb(side_px: int = BOMB_SIDE_PX) -> bytes:
    """Give a valid 1-bit PNG of about 110 KB that decodes to gigabytes of RGB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side_px + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, body) for kind, body in chunks)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_concat_script(neighbour: str) -> bytes:
    """Give a playlist that makes FFmpeg open a neighbouring file."""
    return f"ffconcat version 1.0\nfile {neighbour}\n".encode()


def make_garbage_pdf(rng: np.random.Generator, n_bytes: int = 4000) -> bytes:
    """Give random bytes behind a PDF's first line."""
    return b"%PDF-1.7\n" + rng.bytes(n_bytes)


def make_archive() -> bytes:
    """Give a small zip file without the date of its making."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("notes.txt", (2020, 1, 1, 0, 0, 0)), NOTES)
    return buffer.getvalue()


def cut_in_half(data: bytes) -> bytes:
    """Give the first half: what an interrupted upload leaves."""
    return data[: len(data) // 2]
