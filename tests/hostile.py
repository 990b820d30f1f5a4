"""Keys and files that are meant to do harm: to paths, parsers, decoders, readers of reports.

Put here: drawing them, all small. Keep out: what must become of them, which tests say.
"""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from media_factory import Clip, write_clip
from world.hostile import cut_in_half, make_concat_script, make_garbage_pdf, make_pixel_bomb

KEYS = {
    "space": "k/a b.png",
    "plus": "k/a+b.png",
    "percent": "k/100%25.png",
    "percent_raw": "k/100%zz.png",
    "nfc": "k/caf\u00e9.png",
    "nfd": "k/cafe\u0301.png",
    "emoji": "k/\U0001f600.png",
    "newline": "k/a\nb.png",
    "tab": "k/a\tb.png",
    "control": "k/a\x01b.png",
    "escape": "k/\x1b[2J\x1b]0;owned\x07.png",
    "return": "k/a\rb.png",
    "dot_dot": "k/../../../../etc/canary.png",
    "dots": "../up.png",
    "dot": "k/./x.png",
    "leading_slash": "/etc/abs.png",
    "double_slash": "k//x.png",
    "folder_marker": "k/folder/",
    "quotes": "k/a'b\"c.png",
    "sql": "k/'); DROP TABLE objects; --.png",
    "markup": "k/<script>alert(1)</script>.png",
    "entity": "k/a&amp;b&lt;.png",
    "formula": 'k/=HYPERLINK("http:x")',
    "backslash": "k\\..\\win\\x.png",
    "colon": "k/a:b|c?.png",
    "hash": "k/a#b?c=d.png",
    "hive": "k/dt=2024-01-01/x.png",
    "hive_null": "k/dt=__HIVE_DEFAULT_PARTITION__/x.png",
    "tilde": "~root/x.png",
    "nul": "k/a\x00b.png",
    "segments_1024": "/".join(["s" * 204] * 4 + ["t" * 204]),
    "long_1025": "L" * 1_025,
    "utf8_1024": "/".join(["\u00e9" * 102] * 4 + ["\u00e9" * 102]),
    "segment_255": "k/" + "s" * 255,
    "segment_300": "k/" + "s" * 300,
    "star": "k/*.png",
    "glob": "k/[a-z]?**.png",
    "at": "k/a@b;c,d=e$f!.png",
    "shell": "k/$(touch canary)`id`.png",
    "nbsp": "k/\u00a0x.png",
    "right_to_left": "k/\u202egnp.exe",
    "noncharacter": "k/\ufffe.png",
    "dash": "-rf",
    "device": "NUL.txt",
    "protocol": "concat:k/a.png|k/b.png",
    "pattern": "k/%03d.png",
    "playlist": "k/x.m3u8",
    "temporary": ".mm_assets_tmp/x.png",
    "ranges": "a...b,c|d.png",
    "asset_job": "__ASSET_JOB",
    "surrogate": "k/\ud800.png",
}


def make_files(folder: Path, canary: Path, neighbour: str, url: str) -> dict[str, bytes]:
    """Draw the files.

    Parameters
    ----------
    folder : to work in
    canary : a local file that nobody may open
    neighbour : key of a good object beside them that none of them may reach
    url : where nobody may connect to
    """
    made = _playlists(canary, neighbour, url) | _documents(canary, url) | _pictures() | _sounds() | _archives(canary)
    return made | _films(folder, canary)


def _playlists(canary: Path, neighbour: str, url: str) -> dict[str, bytes]:
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{}\n#EXT-X-ENDLIST\n".format
    sdp = (
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {url.rpartition(':')[2]} RTP/AVP 96\n"
    )
    texts = {
        "hls_file.m3u8": hls(canary.as_uri()),
        "hls_file.mp4": hls(canary.as_uri()),
        "hls_http.m3u8": hls(f"{url}/x.ts"),
        "hls_http.mp4": hls(f"{url}/x.ts"),
        "hls_neighbour.m3u8": hls(neighbour),
        "hls_key.m3u8": hls(neighbour).replace("#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{url}/key"\n#EXTINF'),
        "concat_file.mp4": f"ffconcat version 1.0\nfile '{canary}'\n",
        "concat_http.mp4": f"ffconcat version 1.0\nfile '{url}/x.mp4'\n",
        "session.sdp": sdp,
        "session.mp4": sdp,
        "dash.mpd": f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{url}/</BaseURL></MPD>',
        "list.pls": f"[playlist]\nFile1={url}/x.mp3\nNumberOfEntries=1\n",
        "list.asx": f'<asx version="3.0"><entry><ref href="{url}/x.wmv"/></entry></asx>',
        "rtsp.mov": f"rtsptext\n{url.replace('http', 'rtsp')}/x\n",
        "smooth.ism": f'<SmoothStreamingMedia><StreamIndex Url="{url}"/></SmoothStreamingMedia>',
        "subtitle.ass": f"[Script Info]\nVideo File: {canary}\n",
    }
    found = {name: text.encode() for name, text in texts.items()}
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x00"  # what a decoder skips before it looks
    found |= {f"tagged_{n}.mp3": tag + found[n] for n in ("hls_http.m3u8", "concat_file.mp4", "session.sdp")}
    return found | {"concat_neighbour.mp4": make_concat_script(neighbour)}


def _documents(canary: Path, url: str) -> dict[str, bytes]:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 9))
    stream = zlib.compress(zlib.compress(b" " * 60_000_000, 9), 9)
    link = f"<</Type/Action/S/URI/URI({url}/pdf)>>"
    return {
        "entity.svg": f'<!DOCTYPE x [<!ENTITY e SYSTEM "{canary.as_uri()}">]><svg>&e;</svg>'.encode(),
        "link.svg": f'<svg xmlns:xlink="x"><image xlink:href="{url}/x.png"/></svg>'.encode(),
        "laughs.xml": f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><x>&l8;</x>'.encode(),
        "page.html": f'<img src="{url}/x"><iframe src="{canary.as_uri()}">'.encode(),
        "script.jpg": f"%!PS-Adobe-3.0 EPSF-3.0\n({canary}) (r) file 100 string readstring pop print\n".encode(),
        "garbage.pdf": make_garbage_pdf(np.random.default_rng(2)),
        "opens.pdf": _pdf(f"/OpenAction {link}", b"BT ET"),
        "script.pdf": _pdf(f"/OpenAction<</S/JavaScript/JS(app.launchURL\\('{url}'\\))>>", b"BT ET"),
        "outside.pdf": _pdf("", b"", f"/F({canary})"),
        "bomb.pdf": _pdf("", stream, "/Filter[/FlateDecode/FlateDecode]"),
        "wide.pdf": _pdf("", b"BT ET", box="0 0 20000000 20000000"),
        "circle.pdf": _pdf("", b"BT ET").replace(b"/Kids[3 0 R]", b"/Kids[2 0 R]"),
        "million.pdf": _pdf("", b"BT ET").replace(b"/Count 1", b"/Count 1000000"),
    }


def _pdf(catalog: str, stream: bytes, options: str = "", box: str = "0 0 200 200") -> bytes:
    objects = [
        f"<</Type/Catalog/Pages 2 0 R {catalog}>>".encode(),
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox[{box}]/Contents 4 0 R>>".encode(),
        f"<</Length {len(stream)}{options}>>stream\n".encode() + stream + b"\nendstream",
    ]
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = len(out)
    out += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out + f"trailer<</Size 5/Root 1 0 R>>\nstartxref\n{table}\n%%EOF\n".encode())


def _picture(suffix: str, **options: object) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(9).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, suffix, **options)
    return buffer.getvalue()


def _pictures() -> dict[str, bytes]:
    png, jpeg, gif, tiff, webp = (_picture(name) for name in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"))
    size = struct.pack(">II", 2**31 - 1, 1)
    frame = jpeg.index(b"\xff\xc0")
    return {
        "bomb.png": make_pixel_bomb(),
        "endless_row.png": png[:16] + size + png[24:],
        "cut.png": cut_in_half(png),
        "wrong_sum.png": png[:-8] + b"\0\0\0\0" + png[-4:],
        "half.jpg": cut_in_half(jpeg),
        "huge.jpg": jpeg[: frame + 5] + b"\xff\xdc\xff\xdc" + jpeg[frame + 9 :],
        "no_end.gif": gif[:-1] * 3,
        "zero.gif": gif[:6] + bytes(4) + gif[10:],
        "loop.tiff": tiff[:4] + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8) + tiff[14:],
        "beyond.tiff": tiff[:4] + struct.pack("<I", 2**32 - 16) + tiff[8:],
        "lying.webp": webp[:4] + struct.pack("<I", 2**32 - 1) + webp[8:],
        "text.jpg": b"\xff\xd8\xff\xe0 this is no picture",
        "empty.jpg": b"",
        "one_byte.png": b"\x89",
    }


def _sounds() -> dict[str, bytes]:
    head = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0"
    data = b"data\xff\xff\xff\xff" + bytes(64)
    formula = b"TIT2" + struct.pack(">I", 40) + b'\0\0\0=HYPERLINK("http://x")<script>1</script>'
    tag = b"ID3\x03\x00\x00\x00\x00\x00\x32" + formula.ljust(50, b"\0")
    return {
        "endless.wav": head + struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16) + data,
        "channels.wav": head + struct.pack("<HHIIHH", 1, 65_535, 16_000, 32_000, 2, 16) + data,
        "no_rate.wav": head + struct.pack("<HHIIHH", 1, 1, 0, 0, 0, 0) + data,
        "random.flac": b"fLaC" + np.random.default_rng(3).bytes(4_000),
        "random.ogg": b"OggS" + np.random.default_rng(4).bytes(4_000),
        "tag.mp3": tag + b"\xff\xfb\x90\x64" + bytes(413),
        "long_tag.mp3": b"ID3\x03\x00\x00\x7f\x7f\x7f\x7f" + bytes(200),
    }


def _archives(canary: Path) -> dict[str, bytes]:
    return {
        "slip.zip": _zip({"../../../../evil.txt": b"evil", "/abs.txt": b"evil"}),
        "bomb.zip": _zip({"zeros": bytes(20_000_000)}),
        "bomb.wav.gz": gzip.compress(bytes(20_000_000)),
        "links.tar": _tar(canary),
        "weights.pt": pickle.dumps(_Evil()),
        "program.mp4": b"\x7fELF" + bytes(200),
        "shell.png": b"#!/bin/sh\ntouch canary\n",
    }


class _Evil:
    """Would run a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        """Name what unpickling calls."""
        return exec, ("raise SystemExit('unpickled')",)


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _tar(canary: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(canary)
        archive.addfile(link)
    return buffer.getvalue()


def _films(folder: Path, canary: Path) -> dict[str, bytes]:
    mov = write_clip(folder / "good.mov", Clip(scenes=[0.4], width=64, height=48)).read_bytes()
    ts = write_clip(folder / "good.ts", Clip(scenes=[0.4], width=64, height=48)).read_bytes()
    mkv = write_clip(folder / "good.mkv", Clip(scenes=[0.4], width=64, height=48)).read_bytes()
    avi = write_clip(folder / "good.avi", Clip(scenes=[0.4], width=64, height=48), "avi").read_bytes()
    draw = np.random.default_rng(5)
    sizes = mov.index(b"stsz")
    return {
        "half.mov": cut_in_half(mov),
        "endless_atom.mov": b"\0\0\0\x01mdat" + b"\xff" * 8 + mov,
        "lying_sizes.mov": mov[: sizes + 8] + b"\xff" * 8 + mov[sizes + 16 :],
        "outside.mov": _with_reference(mov, str(canary)),
        "random.ts": b"".join(b"\x47" + draw.bytes(187) for _ in range(60)),
        "torn.ts": ts[:1_000] + ts[1_500:],
        "random.mkv": mkv[:60] + draw.bytes(3_000),
        "half.avi": cut_in_half(avi),
        "random.flv": b"FLV\x01\x05\0\0\0\x09" + draw.bytes(2_000),
        "random.mpg": b"\0\0\x01\xba" + draw.bytes(4_000),
        "random.asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + draw.bytes(2_000),
    }


def _with_reference(mov: bytes, path: str) -> bytes:
    """Let a QuickTime film say that its data lie in another file."""
    place = mov.index(b"dref")
    entry = b"alis\0\0\0\0" + path.encode()[:4].ljust(4, b"\0")
    return mov[: place + 16] + entry + mov[place + 16 + len(entry) :]
