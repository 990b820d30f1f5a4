"""Check a collection of media against its truth by decoding every file.

Put here: checks that need no model: bytes, sizes, times of cuts, onset of speech, text layers, broken files.
Keep out: what a model recognises in the media.
"""

import argparse
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pypdfium2
from PIL import Image, ImageOps, UnidentifiedImageError
from world.truth import MediaObject, read_truth

MAX_PIXELS = 100_000_000
CUT_TOLERANCE_S = 0.002
ONSET_TOLERANCE_S = 0.1
"""Lossy codecs swallow the last breath of a sentence; onsets are within 0.03 s."""
LOUD = 0.02
CUT_DIFFERENCE = 12.0
"""Mean grey levels between two frames: far above grain and flicker, far below a cut."""
NO_PLAYLISTS = {"format_whitelist": "mov,matroska,webm,avi,mpegts,mp3,wav,flac,ogg"}
"""A playlist that calls itself a film must not make FFmpeg open other files."""
DECODE_ERRORS = (
    av.FFmpegError,
    OSError,
    UnidentifiedImageError,
    pypdfium2.PdfiumError,
    IndexError,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)


def check_image(path: Path, item: MediaObject) -> Iterator[str]:
    """Compare the upright size, and that the boxes lie inside it."""
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    if upright.size != (item.width_px, item.height_px):
        yield f"size {upright.size}, not {(item.width_px, item.height_px)}"
    for scene in item.scenes:
        for box in scene.label_boxes:
            if not (0 <= box.x0 < box.x1 <= upright.width and 0 <= box.y0 < box.y1 <= upright.height):
                yield f"box outside the picture: {box}"


def check_video(path: Path, item: MediaObject) -> Iterator[str]:
    """Compare the cuts that are seen with those that are told, then the sound."""
    size = read_upright_size(path)
    if size != (item.width_px, item.height_px):
        yield f"size {size}, not {(item.width_px, item.height_px)}"
    times_s, greys = read_greys(path)
    jumps = np.abs(np.diff(greys, axis=0)).mean(axis=(1, 2))
    seen = [times_s[k + 1] for k in np.flatnonzero(jumps > CUT_DIFFERENCE)]
    if len(seen) != len(item.cuts_s) or not np.allclose(seen, item.cuts_s, atol=CUT_TOLERANCE_S):
        yield f"cuts seen at {np.round(seen, 3).tolist()}, told {list(item.cuts_s)}"
    yield from check_sound(path, item)


def read_upright_size(path: Path) -> tuple[int, int]:
    """Give width and height as a player shows them."""
    with av.open(str(path), options=NO_PLAYLISTS) as container:
        frame = next(container.decode(video=0))
        is_turned = abs(frame.rotation) % 180 == 90
        return (frame.height, frame.width) if is_turned else (frame.width, frame.height)


def read_greys(path: Path) -> tuple[list[float], npt.NDArray[np.float32]]:
    """Decode to small grey frames with their times from the container's start."""
    with av.open(str(path), options=NO_PLAYLISTS) as container:
        start_s = (container.start_time or 0) / av.time_base
        times_s, greys = [], []
        for frame in container.decode(video=0):
            times_s.append((frame.time or 0.0) - start_s)
            greys.append(frame.reformat(160, 90, "rgb24").to_ndarray().reshape(90, -1).astype(np.float32))
    return times_s, np.stack(greys)


def check_sound(path: Path, item: MediaObject) -> Iterator[str]:
    """Compare the onset and the end of what is heard with the first and the last sentence."""
    heard = read_loud_times(path)
    if not item.speech:
        if len(heard):
            yield f"something is heard at {heard[0]:.2f} s"
        return
    for name, seen_s, told_s in (
        ("starts", heard[0], item.speech[0].start_s),
        ("ends", heard[-1], item.speech[-1].end_s),
    ):
        if abs(seen_s - told_s) > ONSET_TOLERANCE_S:
            yield f"speech {name} at {seen_s:.3f} s, told {told_s:.3f} s"


def read_loud_times(path: Path) -> npt.NDArray[np.float64]:
    """Give the times of all samples that are heard; none when the file has no sound."""
    loud: list[npt.NDArray[np.float64]] = []
    with av.open(str(path), options=NO_PLAYLISTS) as container:
        if not container.streams.audio:
            return np.zeros(0)
        start_s = (container.start_time or 0) / av.time_base
        resampler = av.AudioResampler("flt", "mono")
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                wave = np.abs(piece.to_ndarray()[0])
                loud.append((piece.time or 0.0) - start_s + np.flatnonzero(wave > LOUD) / piece.sample_rate)
    return np.concatenate(loud)


def check_document(path: Path, item: MediaObject) -> Iterator[str]:
    """Compare the text layer of each page, and that it renders."""
    with pypdfium2.PdfDocument(str(path)) as document:
        if len(document) != len(item.pages):
            yield f"{len(document)} pages, not {len(item.pages)}"
        for page, told in zip(document, item.pages, strict=False):
            text = page.get_textpage().get_text_bounded()
            if text.split() != told.embedded_text.split():
                yield f"page {told.page_number} says {text[:40]!r}"
            page.render(scale=0.2)


CHECKS: dict[str, Callable[[Path, MediaObject], Iterator[str]]] = {
    "image": check_image,
    "video": check_video,
    "audio": check_sound,
    "document": check_document,
}


def check_object(path: Path, item: MediaObject) -> list[str]:
    """Give what is wrong with an object."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != item.sha256:
        return ["the bytes are not those that the truth was told about"]
    if item.expect == "skipped":
        return []
    try:
        problems = list(CHECKS[item.media_kind](path, item))
    except DECODE_ERRORS as error:
        return [] if item.expect == "dead_letter" else [f"does not decode: {error!r}"]
    return problems if item.expect == "ok" else ["decodes, but should not"]


def main() -> int:
    """Check all objects; 1 when one of them is wrong."""
    parser = argparse.ArgumentParser(description="Check media against their truth by decoding them.")
    parser.add_argument("--media", type=Path, required=True, help="folder of the media")
    parser.add_argument("--truth", type=Path, help="default: truth.json beside the folder")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    truth = read_truth(options.truth or options.media.parent / "truth.json")
    n_wrong = 0
    for item in truth.objects:
        problems = check_object(options.media / item.key, item)
        n_wrong += bool(problems)
        for problem in problems:
            print(f"{item.key}: {problem}")
    told = {item.key for item in truth.objects}
    files = {path.relative_to(options.media).as_posix() for path in options.media.rglob("*") if path.is_file()}
    for key in sorted(told ^ files):
        print(f"{key}: {'no such file' if key in told else 'no truth'}")
    print(f"{len(truth.objects)} objects, {n_wrong} wrong")
    return int(bool(n_wrong) or told != files)


if __name__ == "__main__":
    sys.exit(main())
