"""What decoding yields: facts about the object and a stream of segments, as they cross the process border.

Put here: the values, their Arrow schema, writing and reading the stream. Keep out: decoding, and ids (``segmentation``).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from mm_assets.errors import ObjectError, Reason
from mm_assets.media.sniff import MediaKind
from mm_assets.schemas import TABLES

SEGMENT_KINDS = ("scene", "image", "page", "audio")
# What only the parent knows, and what the child decides; the child's part is the table's middle.
_PARENT_COLUMNS = frozenset({"object_id", "bucket", "key", "etag", "segment_id", "recipe"})
SEGMENT_SCHEMA = pa.schema([f for f in TABLES["segments"].arrow_schema() if f.name not in _PARENT_COLUMNS])
_JPEG_BEGIN, _MAX_THUMBNAIL_BYTES = b"\xff\xd8\xff", 400_000
BATCH_ROWS = 64
BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What opening the object told about it.

    Attributes
    ----------
    media_kind : video | audio | image | document, after opening
    container_kind : format, e.g. mp4
    width_px, height_px : after rotation; pixels that are not square stay as they are coded
    duration_s : end of the last frame or sample, from the start of the media
    n_pages : all pages of a document, also beyond those that are read
    has_audio : whether there is a sound track that could be decoded
    """

    media_kind: MediaKind
    container_kind: str
    width_px: int | None = None
    height_px: int | None = None
    duration_s: float | None = None
    n_pages: int | None = None
    has_audio: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Segment:
    """One scene, image, page or stretch of audio; fields and units as in the table ``segments``."""

    segment_kind: str
    ordinal: int
    scene_number: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    page_number: int | None = None
    frame_s: float | None = None
    width_px: int | None = None
    height_px: int | None = None
    motion_frac: float | None = None
    embedded_text: str | None = None
    keyframe_jpeg: bytes | None = None
    thumbnail_jpeg: bytes | None = None
    audio_flac: bytes | None = None

    @property
    def n_bytes(self) -> int:
        """Size of what dominates: image, sound and text."""
        parts = (self.keyframe_jpeg, self.thumbnail_jpeg, self.audio_flac, self.embedded_text)
        return sum(len(part) for part in parts if part)


_FIELDS = tuple(field.name for field in fields(Segment))


class SegmentWriter:
    """Segments into an Arrow IPC stream, batch by batch, so that memory stays flat however long the media is."""

    def __init__(self, file: Path) -> None:
        self._stream = pa.ipc.new_stream(str(file), SEGMENT_SCHEMA)
        self._waiting: list[Segment] = []
        self._waiting_bytes = 0

    def add(self, segment: Segment) -> None:
        """Append one segment."""
        self._waiting.append(segment)
        self._waiting_bytes += segment.n_bytes
        if len(self._waiting) >= BATCH_ROWS or self._waiting_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        columns = {name: [getattr(segment, name) for segment in self._waiting] for name in _FIELDS}
        self._stream.write_batch(pa.record_batch(columns, schema=SEGMENT_SCHEMA))
        self._waiting, self._waiting_bytes = [], 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what waits, unless an error ended the decoding, and the end mark."""
        if kind is None and self._waiting:
            self._flush()
        self._stream.close()


def read_segments(file: Path) -> Iterator[pa.RecordBatch]:
    """Read a stream back, batch by batch, columns as ``SEGMENT_SCHEMA``.

    Raises
    ------
    ObjectError
        crashed: the stream is not whole, of another schema, or inconsistent. Its writer is not trusted.
    """
    try:
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
            if stream.schema != SEGMENT_SCHEMA:
                msg = "another schema"
                raise pa.ArrowInvalid(msg)
            for batch in stream:
                _check_batch(batch)
                yield batch
    except pa.ArrowException as error:
        raise ObjectError(Reason.CRASHED, f"the decoder left segments that are not valid: {error}") from error


def _check_batch(batch: pa.RecordBatch) -> None:
    batch.validate(full=True)
    unknown = set(batch.column("segment_kind").to_pylist()) - set(SEGMENT_KINDS)
    if unknown or batch.column("ordinal").null_count:
        msg = f"unknown kinds {unknown} or no ordinal"
        raise pa.ArrowInvalid(msg)
    for thumbnail in batch.column("thumbnail_jpeg").drop_null().to_pylist():
        if not thumbnail.startswith(_JPEG_BEGIN) or len(thumbnail) > _MAX_THUMBNAIL_BYTES:
            msg = "a thumbnail that is no small JPEG"
            raise pa.ArrowInvalid(msg)
