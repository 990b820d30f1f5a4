"""Pixels and samples into containers, and the clock of the container that came out.

Put here: PyAV, codec options, timestamps.
Keep out: what is seen and heard (films, soundtracks) and files that are broken on purpose (hostile).
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from scipy.signal import resample_poly

from world.pen import Image
from world.speech import SPEECH_RATE_HZ

CLOCK_HZ = 90_000
"""Frames carry their time in ticks of this clock; every usual frame rate divides it."""
CHUNK_SAMPLES = 1024
SOUND_LEAD_S = 0.2
"""Sound is written this far ahead of the pictures."""
BIT_EXACT = {"fflags": "+bitexact"}
"""Keeps random identifiers and version strings out of the files."""

X264 = {"crf": "26", "preset": "faster", "threads": "1"}
VP9 = {"crf": "36", "deadline": "realtime", "cpu-used": "6", "threads": "1"}


@dataclass(frozen=True, slots=True)
class VideoCodec:
    """An encoder with its options; `bit_rate` 0 leaves the rate to the options."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    bit_rate: int = 0


@dataclass(frozen=True, slots=True)
class AudioCodec:
    """An encoder with its sample rate."""

    name: str
    rate_hz: int = 48_000
    bit_rate: int = 48_000


H264 = VideoCodec("libx264", X264)
AAC = AudioCodec("aac")
OPUS = AudioCodec("libopus", bit_rate=32_000)
MP3 = AudioCodec("libmp3lame")


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """An RGB frame and the tick at which it is shown."""

    image: Image
    tick: int


def write_film(
    path: Path,
    frames: Iterable[TimedFrame],
    video: VideoCodec,
    fps: int,
    sound: tuple[AudioCodec, npt.NDArray[np.float32]] | None = None,
    container_options: dict[str, str] | None = None,
) -> None:
    """Write frames and mono samples at `SPEECH_RATE_HZ` into the container that the path's suffix names."""
    with av.open(str(path), "w", options=BIT_EXACT | (container_options or {})) as container:
        frames = iter(frames)
        first = next(frames)
        picture_track = _add_picture_track(container, video, fps, first.image)
        sound_track = _SoundTrack(container, *sound) if sound else None
        for frame in chain([first], frames):
            if sound_track is not None:
                sound_track.write_until(frame.tick / CLOCK_HZ + SOUND_LEAD_S)
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
            picture.pts, picture.time_base = frame.tick, Fraction(1, CLOCK_HZ)
            container.mux(picture_track.encode(picture))
        container.mux(picture_track.encode(None))
        if sound_track is not None:
            sound_track.finish()


def _add_picture_track(container: OutputContainer, video: VideoCodec, fps: int, image: Image) -> VideoStream:
    """Add the track with its final size: the first packet of any track opens the encoders of all."""
    track = cast(VideoStream, container.add_stream(video.name, rate=fps, options=video.options))
    track.height, track.width = image.shape[:2]
    track.pix_fmt = "yuv420p"
    # MPEG-4 part 2 has a clock of 16 bits: it counts frames, the others count ticks.
    track.codec_context.time_base = Fraction(1, fps if video.bit_rate else CLOCK_HZ)
    if video.bit_rate:
        track.bit_rate = video.bit_rate
    return track


class _SoundTrack:
    """Encodes samples piece by piece, so that sound and pictures lie side by side in the file."""

    def __init__(self, container: OutputContainer, codec: AudioCodec, samples: npt.NDArray[np.float32]) -> None:
        self._container = container
        self._track = cast(AudioStream, container.add_stream(codec.name, rate=codec.rate_hz, layout="mono"))
        if codec.bit_rate:
            self._track.bit_rate = codec.bit_rate
        self._rate_hz = codec.rate_hz
        context = self._track.codec_context
        self._resampler = AudioResampler(context.format, "mono", codec.rate_hz, frame_size=context.frame_size or None)
        self._samples = _resample(samples, codec.rate_hz)
        self._position = 0

    def write_until(self, end_s: float) -> None:
        end = min(len(self._samples), int(end_s * self._rate_hz))
        while self._position < end:
            piece = self._samples[self._position : self._position + CHUNK_SAMPLES]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece[None]), format="flt", layout="mono")
            frame.sample_rate, frame.pts = self._rate_hz, self._position
            frame.time_base = Fraction(1, self._rate_hz)
            self._encode(frame)
            self._position += len(piece)

    def _encode(self, frame: av.AudioFrame | None) -> None:
        for ready in self._resampler.resample(frame):
            self._container.mux(self._track.encode(ready))

    def finish(self) -> None:
        self.write_until(len(self._samples) / self._rate_hz + 1.0)
        self._encode(None)
        self._container.mux(self._track.encode(None))


def _resample(samples: npt.NDArray[np.float32], rate_hz: int) -> npt.NDArray[np.float32]:
    if rate_hz == SPEECH_RATE_HZ:
        return samples
    ratio = Fraction(rate_hz, SPEECH_RATE_HZ)
    return np.asarray(resample_poly(samples, ratio.numerator, ratio.denominator), np.float32)


def write_recording(path: Path, samples: npt.NDArray[np.float32], codec: AudioCodec) -> None:
    """Write mono samples at `SPEECH_RATE_HZ` into the container that the path's suffix names."""
    with av.open(str(path), "w", options=BIT_EXACT) as container:
        _SoundTrack(container, codec, samples).finish()


def read_frame_times(path: Path) -> list[float]:
    """Give the presentation time of each video frame in seconds from the container's start, without decoding."""
    with av.open(str(path)) as container:
        start_s = (container.start_time or 0) / av.time_base
        stream = container.streams.video[0]
        tick_s = stream.time_base or Fraction(1, CLOCK_HZ)
        return sorted(float(pts * tick_s) - start_s for pts in _packet_times(container, stream))


def _packet_times(container: av.container.InputContainer, stream: VideoStream) -> Iterator[int]:
    for packet in container.demux(stream):
        if packet.pts is not None:
            yield packet.pts
        elif packet.dts is not None:  # AVI knows decoding times only
            yield packet.dts


def read_duration(path: Path) -> float:
    """Give the duration that the container states, in seconds."""
    with av.open(str(path)) as container:
        return (container.duration or 0) / av.time_base


def mark_rotated(path: Path) -> None:
    """Write a display matrix into an MP4: players turn the picture 90° clockwise."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    matrix = header + 40 + (12 if data[header] == 1 else 0)  # version 1 has 64-bit times
    height = struct.unpack_from(">I", data, matrix + 40)[0]
    one = 1 << 16
    struct.pack_into(">9i", data, matrix, 0, one, 0, -one, 0, 0, height, 0, 1 << 30)
    path.write_bytes(bytes(data))
