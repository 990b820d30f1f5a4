"""Limits of decoding: the part of the settings that the process knows in which hostile bytes are decoded.

Put here: what that process needs, which is started often; the rest of the settings takes a third of a second to import.
Keep out: the rest of the settings.
"""

from pydantic import BaseModel, ConfigDict, Field

MIB = 1 << 20


class Section(BaseModel):
    """A part of the settings; an unknown name is an error, so that a typing slip is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MediaLimits(Section):
    """What one object may cost while it is decoded, in its own guarded child process."""

    wall_s: float = Field(900, gt=0, description="wall-clock seconds for one object")
    cpu_s: int = Field(900, gt=0, description="CPU seconds for one object")
    memory_bytes: int = Field(
        2048 * MIB, gt=256 * MIB, description="address space of the child beyond the loaded libraries"
    )
    output_bytes: int = Field(2048 * MIB, gt=MIB, description="largest file the child may write")
    max_pixels: int = Field(100_000_000, gt=0, description="pixels of a still image")
    max_side_px: int = Field(32_768, gt=0, description="longest side of a still image")
    max_pages: int = Field(500, ge=1, description="pages read of a document")
    max_duration_s: float = Field(6 * 3600, gt=0, description="longest video or recording")
    max_video_pixels: int = Field(8_294_400 * 4, gt=0, description="pixels of one video frame")
    keyframe_every_s: float = Field(10.0, gt=0, description="long scenes get one keyframe each so many seconds")
    keyframe_side_px: int = Field(1280, ge=64, description="keyframes and images are scaled to fit; never enlarged")
    page_dpi: int = Field(150, ge=36, le=600, description="resolution of page images")
    audio_chunk_s: float = Field(30.0, gt=1, le=30, description="longest stretch of audio; Whisper hears 30 s")
