"""Video and sound files: opened by demuxer allow-list, read in one pass, times from timestamps.

Put here: what PyAV does with containers, and how damage is judged. Keep out: what is done with frames and samples.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.sniff import MediaType

# FFmpeg's demuxers by sniffed format. The list is the guard: playlists (hls, concat, sdp, dash …) can name other files
# and hosts, and protocol_whitelist alone does not stop them.
DEMUXERS = {
    "mp4": "mov,mp4,m4a,3gp,3g2,mj2",
    "mov": "mov,mp4,m4a,3gp,3g2,mj2",
    "m4a": "mov,mp4,m4a,3gp,3g2,mj2",
    "mkv": "matroska,webm",
    "webm": "matroska,webm",
    "avi": "avi",
    "mpegts": "mpegts",
    "mpeg": "mpeg",
    "asf": "asf",
    "flv": "flv",
    "wav": "wav",
    "flac": "flac",
    "mp3": "mp3,aac,flac",  # an ID3 tag may stand before any of these
    "aac": "aac",
    "ogg": "ogg",
}
MAX_STREAMS = 128
MAX_PACKETS = 20_000_000
DECODER_THREADS = 4
# Formats whose header says how long the media is; others are estimated by FFmpeg and prove nothing.
_DECLARING_FORMATS = frozenset({"mp4", "mov", "m4a", "mkv", "webm", "avi", "wav", "flac"})
_MISSING_S, _MISSING_FRAC = 1.0, 0.02
_BAD_FRAMES, _BAD_FRAC = 3, 0.01
_JUMP_BACK_S, _JUMP_AHEAD_S = 1, 10  # farther than streams are out of step, or silent, in ordinary files
_MICROSECONDS = 1_000_000


@dataclass(slots=True)
class Streams:
    """What is read of a container: its first video stream that is no cover art, and its first audio stream."""

    video: Any | None
    audio: Any | None

    def __iter__(self) -> Iterator[Any]:
        """Yield those that exist."""
        return (stream for stream in (self.video, self.audio) if stream is not None)


@dataclass(slots=True)
class Health:
    """Decoded and damaged frames of one stream; damage before the first good frame is a late entry, not damage."""

    n_good: int = 0
    n_bad: int = 0

    @property
    def is_damaged(self) -> bool:
        """True beyond a few bad frames or one in a hundred."""
        return self.n_bad > max(_BAD_FRAMES, _BAD_FRAC * self.n_good)

    def count(self, is_good: bool) -> None:
        """Count one frame or packet."""
        self.n_good += is_good
        self.n_bad += not is_good and self.n_good > 0


class Clock:
    """Keeps time going on where a broadcast file's time stamps start anew (pieces joined end to end, a 33-bit wrap).

    Such formats allow jumps (FFmpeg's AVFMT_TS_DISCONT); without this, all that follows a jump back would be lost.
    """

    def __init__(self, media_type: MediaType) -> None:
        self._can_jump = media_type.container in {"mpegts", "mpeg"}
        self._newest_s = Fraction(0)
        self._offsets_s: dict[int, Fraction] = {}  # by stream: at a joint, packets from before and after it are mixed
        self._last_s: dict[int, Fraction] = {}

    def correct(self, packet: Any) -> None:
        """Shift the packet's time stamps, in place."""
        if not self._can_jump or packet.dts is None:
            return
        index, stamp_s = packet.stream.index, packet.dts * packet.time_base
        offset_s = self._offset_s(index, stamp_s)
        self._offsets_s[index], self._last_s[index] = offset_s, stamp_s + offset_s
        ticks = round(offset_s / packet.time_base)
        packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks

    def _offset_s(self, index: int, stamp_s: Fraction) -> Fraction:
        """Return the stream's offset; at a jump the one that another stream took, so that both stay in step, or a new one."""
        last_s = self._last_s.get(index)
        for offset_s in (self._offsets_s.get(index, self._newest_s), self._newest_s):
            if last_s is None or -_JUMP_BACK_S < stamp_s + offset_s - last_s < _JUMP_AHEAD_S:
                return offset_s
        self._newest_s = (last_s or Fraction(0)) - stamp_s
        return self._newest_s


@contextmanager
def open_container(file: Path, media_type: MediaType, limits: MediaLimits) -> Iterator[Any]:
    """Open a file for reading.

    Raises
    ------
    ObjectError
        corrupt, also for all errors of FFmpeg while it is open; too_large by declared length or number of streams.
    """
    import av

    _check_riff_size(file)
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS[media_type.container]}
    try:
        with av.open(f"file:{file}", options=options) as container:
            _check_limits(container, limits)
            yield container
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise ObjectError(Reason.CORRUPT, f"{media_type.container} file cannot be read: {error.strerror}") from error


def _check_limits(container: Any, limits: MediaLimits) -> None:
    if len(container.streams) > MAX_STREAMS:
        msg = f"container has {len(container.streams)} streams; the limit is {MAX_STREAMS}"
        raise ObjectError(Reason.TOO_LARGE, msg)
    _check_duration((container.duration or 0) / _MICROSECONDS, limits)


def _check_duration(duration_s: float, limits: MediaLimits) -> None:
    if duration_s > limits.max_duration_s:
        msg = f"media lasts {duration_s:.0f} s; the limit is {limits.max_duration_s:.0f} s (media.max_duration_s)"
        raise ObjectError(Reason.TOO_LARGE, msg)


def choose_streams(container: Any, limits: MediaLimits) -> Streams:
    """Choose what to read, and set up its decoders.

    Raises
    ------
    ObjectError
        unsupported: nothing to read, or no decoder for it; too_large: pixels of a frame.
    """
    from av.stream import Disposition

    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    streams = Streams(next(iter(pictures), None), next(iter(container.streams.audio), None))
    if streams.video is None and streams.audio is None:
        raise ObjectError(Reason.UNSUPPORTED, "container holds neither pictures nor sound")
    for stream in streams:
        if stream.codec_context is None:
            raise ObjectError(Reason.UNSUPPORTED, f"no decoder for the {stream.type} stream")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = DECODER_THREADS
    if streams.video is not None:
        check_frame_size(streams.video.codec_context, limits)
        streams.video.codec_context.options = {"max_pixels": str(limits.max_video_pixels)}
    if streams.audio is not None and streams.audio.codec_context.name == "flac":
        streams.audio.codec_context.options = {"err_detect": "crccheck+explode"}  # its checksums are ignored otherwise
    return streams


def check_frame_size(shape: Any, limits: MediaLimits) -> None:
    """Raise too_large for a frame (or codec) with more pixels than ``max_video_pixels``."""
    if shape.width * shape.height > limits.max_video_pixels:
        msg = f"video frame is {shape.width}x{shape.height} px; the limit is {limits.max_video_pixels} px"
        raise ObjectError(Reason.TOO_LARGE, msg)


def read_frames(
    container: Any, streams: Streams, media_type: MediaType, limits: MediaLimits
) -> Iterator[tuple[Any, Any, float]]:
    """Yield (stream, decoded frame, seconds from the start of the media), in the order of the file.

    Raises
    ------
    ObjectError
        corrupt: too many frames are damaged, or no picture could be decoded; too_large: longer than allowed.
    """
    clock = Clock(media_type)
    health = {stream.index: Health() for stream in streams}
    origin_s = Fraction(container.start_time or 0, _MICROSECONDS)
    for packet in _packets(container, streams):
        clock.correct(packet)
        for frame in _decode(packet, health[packet.stream.index]):
            time_s = _time_s(frame, packet.stream, origin_s)
            if time_s is not None:
                _check_duration(time_s, limits)
                yield packet.stream, frame, time_s
    for stream in streams:
        _check_health(stream, health[stream.index])


def _packets(container: Any, streams: Streams) -> Iterator[Any]:
    import av

    packets = container.demux(*streams)
    for _ in range(MAX_PACKETS):
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.InvalidDataError:
            return  # the rest is unreadable; how much is missing is judged by the declared length
        except IndexError:
            return  # PyAV 18 after the last packet, when streams appeared on the way; ours are flushed by then
        yield packet
    raise ObjectError(Reason.TOO_LARGE, f"more than {MAX_PACKETS} packets")


def _decode(packet: Any, health: Health) -> list[Any]:
    import av

    try:
        frames: list[Any] = packet.decode()
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        health.count(is_good=False)
        return []
    for frame in frames:
        health.count(is_good=not frame.is_corrupt)
    return frames


def _time_s(frame: Any, stream: Any, origin_s: Fraction) -> float | None:
    stamp = frame.pts if frame.pts is not None else frame.dts
    return None if stamp is None else float(stamp * (frame.time_base or stream.time_base) - origin_s)


def _check_health(stream: Any, health: Health) -> None:
    if health.is_damaged or (health.n_bad and not health.n_good):
        msg = f"{stream.type} is damaged: {health.n_bad} frames of {health.n_bad + health.n_good} cannot be decoded"
        raise ObjectError(Reason.CORRUPT, msg)
    if stream.type == "video" and not health.n_good:
        raise ObjectError(Reason.CORRUPT, "no picture could be decoded")


def check_completeness(container: Any, streams: Streams, end_s: float, media_type: MediaType) -> None:
    """Raise corrupt when a file holds clearly less than its own header declares: it was cut off."""
    if media_type.container not in _DECLARING_FORMATS:
        return
    declared_s = max(_declared_s(container, streams), 0.0)
    if end_s < declared_s - max(_MISSING_S, _MISSING_FRAC * declared_s):
        msg = f"file is cut off: it holds {end_s:.1f} s of the {declared_s:.1f} s that its header declares"
        raise ObjectError(Reason.CORRUPT, msg)


def _declared_s(container: Any, streams: Streams) -> float:
    """Length by the header; 0 where that may be the length of streams that are not read (subtitles, second sound tracks)."""
    by_stream = [float(stream.duration * stream.time_base) for stream in streams if stream.duration]
    if by_stream:
        return max(by_stream)
    is_all_read = len(container.streams) == len(list(streams))
    # Matroska counts its duration from zero, also where the first frame comes later.
    return ((container.duration or 0) - (container.start_time or 0)) / _MICROSECONDS if is_all_read else 0.0


def _check_riff_size(file: Path) -> None:
    """Raise corrupt when a RIFF file (wav, avi) is shorter than its first chunk says; FFmpeg takes the file's end for it."""
    with file.open("rb") as stream:
        head = stream.read(8)
    declared = int.from_bytes(head[4:8], "little") + 8
    is_streamed = head[4:8] in {b"\x00" * 4, b"\xff" * 4}  # the writer could not go back to fill it in
    if head.startswith(b"RIFF") and not is_streamed and file.stat().st_size < declared * (1 - _MISSING_FRAC):
        msg = f"file is cut off: it holds {file.stat().st_size} of the {declared} bytes that its header declares"
        raise ObjectError(Reason.CORRUPT, msg)
