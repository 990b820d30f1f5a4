"""One pass over a video or sound file: scenes, keyframes and sound together.

Put here: how streams and tracks are joined. Keep out: containers, cuts and chunks, which have modules of their own.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.audio import AudioTrack
from mm_assets.media.container import (
    Streams,
    check_completeness,
    check_frame_size,
    choose_streams,
    open_container,
    read_frames,
)
from mm_assets.media.scenes import PictureTrack
from mm_assets.media.segments import MediaFacts, Segment, SegmentWriter
from mm_assets.media.sniff import MediaType

_USUAL_RATE = Fraction(25)


def decode_timed(file: Path, media_type: MediaType, limits: MediaLimits, out: SegmentWriter) -> MediaFacts:
    """Decode once; scenes and audio segments are written as they are complete.

    Raises
    ------
    ObjectError
        corrupt, unsupported or too_large.
    """
    with open_container(file, media_type, limits) as container:
        streams = choose_streams(container, limits)
        pictures, sound = _tracks(streams, limits)
        for segment in _segments(container, (streams, media_type), (pictures, sound), limits):
            out.add(segment)
        end_s = max(pictures.end_s, sound.end_s)
        check_completeness(container, streams, end_s, media_type)
    if end_s <= 0:
        raise ObjectError(Reason.CORRUPT, "nothing could be decoded")
    width, height = pictures.shown_size or (None, None)
    return MediaFacts(
        "audio" if streams.video is None else "video",
        media_type.container,
        width_px=width,
        height_px=height,
        duration_s=end_s,
        has_audio=sound.end_s > 0,
    )


def _tracks(streams: Streams, limits: MediaLimits) -> tuple[PictureTrack, AudioTrack]:
    rate = streams.video and (streams.video.average_rate or streams.video.guessed_rate)
    pictures = PictureTrack(limits.keyframe_every_s, limits.keyframe_side_px, Fraction(rate or _USUAL_RATE))
    return pictures, AudioTrack(limits.audio_chunk_s)


def _segments(
    container: Any, source: tuple[Streams, MediaType], tracks: tuple[PictureTrack, AudioTrack], limits: MediaLimits
) -> Iterator[Segment]:
    (streams, media_type), (pictures, sound) = source, tracks
    for stream, frame, time_s in read_frames(container, streams, media_type, limits):
        if stream.type == "video":
            check_frame_size(frame, limits)
            yield from pictures.add(frame, time_s)
        else:
            yield from sound.add(frame, time_s)
    yield from pictures.finish()
    yield from sound.finish()
