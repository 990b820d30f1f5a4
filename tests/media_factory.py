"""Small media whose truth is known: clips with planted cuts, sound with planted pauses, pages, pictures.

Put here: generators for tests of any module. Keep out: assertions, and the demo media, which ``scripts`` draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Samples = NDArray[np.int16]

RATE_HZ = 16_000
_TICKS = 90_000  # divides all usual frame rates; the clock of MPEG
_FAST_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "23"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "1M"},
}


def draw_frame(seed: int, time_s: float, width: int = 320, height: int = 180) -> Pixels:
    """Return one RGB frame of a scene: a textured ground and a shape that moves slowly over it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 226, (6, 8, 3)).astype(np.float64)
    rows = np.arange(height) * 6 // height
    columns = np.arange(width) * 8 // width
    image = coarse[rows][:, columns]
    x, y = int((0.1 + 0.1 * time_s) % 0.8 * width), height // 3
    image[y : y + height // 4, x : x + width // 6] = rng.integers(0, 256, 3)
    return image.astype(np.uint8)


@dataclass(frozen=True)
class Clip:
    """A video to write.

    Attributes
    ----------
    scenes : seconds of each scene; scene n is drawn with seed n
    times_s : time of each frame for variable frame rate; None spaces them evenly
    rotation_deg : display matrix, counterclockwise
    start_s : time stamp of the first frame; ``audio_start_s`` of the first sample
    audio : 16 kHz mono samples
    """

    scenes: Sequence[float]
    fps: int = 25
    width: int = 320
    height: int = 180
    times_s: Sequence[float] | None = None
    rotation_deg: int = 0
    start_s: float = 0.0
    audio: Samples | None = None
    audio_start_s: float = 0.0
    codec: str = "libx264"
    first_seed: int = 0

    @property
    def frame_times_s(self) -> list[float]:
        """Time of each frame from the first scene's start."""
        if self.times_s is not None:
            return list(self.times_s)
        return [n / self.fps for n in range(round(sum(self.scenes) * self.fps))]

    def scene_of(self, time_s: float) -> int:
        """Return the number of the scene that is on at this time."""
        return int(np.searchsorted(np.cumsum(self.scenes)[:-1], time_s + 1e-6, side="right"))

    @property
    def cuts_s(self) -> list[float]:
        """Time of the first frame of each scene but the first, from the first scene's start."""
        times, numbers = self.frame_times_s, [self.scene_of(t) for t in self.frame_times_s]
        return [t for t, before, here in zip(times[1:], numbers, numbers[1:], strict=False) if here != before]


def write_clip(path: Path, clip: Clip, container: str | None = None) -> Path:
    """Encode a clip; ``container`` names FFmpeg's muxer where the suffix does not."""
    import av

    with av.open(str(path), "w", format=container) as out:
        video = out.add_stream(clip.codec, rate=clip.fps)
        video.width, video.height, video.pix_fmt = clip.width, clip.height, "yuv420p"
        clock = Fraction(1, _TICKS if clip.times_s is not None else clip.fps)
        video.codec_context.time_base = clock
        video.options = _FAST_OPTIONS.get(clip.codec, {})
        if clip.rotation_deg:
            video.set_display_rotation(clip.rotation_deg)
        sound = out.add_stream("aac", rate=RATE_HZ, layout="mono") if clip.audio is not None else None
        for time_s in clip.frame_times_s:
            pixels = draw_frame(clip.first_seed + clip.scene_of(time_s), time_s, clip.width, clip.height)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = round((clip.start_s + time_s) / clock), clock
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None and clip.audio is not None:
            _encode_sound(out, sound, clip.audio, clip.audio_start_s)
    return path


def _encode_sound(out: Any, stream: Any, samples: Samples, start_s: float) -> None:
    import av

    for first in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, first : first + 1024], "s16", "mono")
        frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
        frame.pts = round(start_s * RATE_HZ) + first
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> Samples:
    """Return sound as loud as speech: noise whose loudness swells four times a second."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_s)
    return (rng.standard_normal(len(time_s)) * swell * level * 32_767).clip(-32_767, 32_767).astype(np.int16)


def silence(seconds: float) -> Samples:
    """Return digital silence."""
    return np.zeros(int(seconds * RATE_HZ), np.int16)


def write_sound(path: Path, samples: Samples, rate_hz: int = RATE_HZ) -> Path:
    """Write a sound file; the suffix gives the format (wav, flac, ogg, mp3)."""
    import soundfile

    soundfile.write(path, samples, rate_hz)
    return path


def write_image(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    """Write an image by Pillow; the suffix gives the format, ``options`` go to ``save``."""
    from PIL import Image

    Image.fromarray(pixels).save(path, **options)
    return path


def write_pdf(path: Path, pages: Sequence[str], size_pt: tuple[float, float] = (595, 842)) -> Path:
    """Write a PDF with a text layer, one text a page."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), pagesize=size_pt)
    for text in pages:
        canvas.setFont("Helvetica", 24)
        for number, line in enumerate(text.splitlines()):
            canvas.drawString(72, size_pt[1] - 100 - 40 * number, line)
        canvas.showPage()
    canvas.save()
    return path
