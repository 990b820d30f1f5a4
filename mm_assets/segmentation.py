"""From what decoding brought to rows of ``raw_objects`` and ``segments``: ids, place, provenance.

Put here: naming of segments and what of the settings goes into the recipe. Keep out: decoding, stores, writing.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from mm_assets.identity import ObjectVersion, segment_id
from mm_assets.limits import MediaLimits
from mm_assets.media import scenes
from mm_assets.media.guard import DecodedMedia
from mm_assets.media.segments import MediaFacts, read_segments
from mm_assets.schemas import TABLES

# Raised by hand whenever the rows that follow from the same bytes change.
RAW_OBJECTS_CODE_VERSION = "1"
SEGMENTS_CODE_VERSION = "2"
_SHAPING_LIMITS = ("keyframe_every_s", "keyframe_side_px", "page_dpi", "max_pages", "audio_chunk_s")


def decode_params(limits: MediaLimits) -> dict[str, Any]:
    """Return what shapes the segments, for the recipe.

    Limits that only decide whether an object is decoded at all are left out: they change no row.
    """
    return {
        **{name: getattr(limits, name) for name in _SHAPING_LIMITS},
        "adaptive_threshold": scenes.ADAPTIVE_THRESHOLD,
        "black_level": scenes.BLACK_LEVEL,
        "min_content_val": scenes.MIN_CONTENT_VAL,
        "window_frames": scenes.WINDOW_FRAMES,
        "min_scene_s": scenes.MIN_SCENE_S,
    }


def raw_object_row(
    version: ObjectVersion,
    *,
    size_bytes: int,
    modified_at: datetime,
    sha256: str | None,
    media_kind: str,
    facts: MediaFacts | None,
    recipe: str,
) -> pa.Table:
    """Return one row of ``raw_objects``.

    Parameters
    ----------
    sha256 : None where reading stopped after the first bytes
    media_kind : as sniffed, or ``unsupported``; ``facts`` win where they are known
    facts : None where the object was not or could not be decoded
    """
    known = facts.to_dict() if facts else {"media_kind": media_kind}
    row = {
        **_object_columns(version),
        "version_id": version.version_id or None,
        "size_bytes": size_bytes,
        "modified_at": modified_at,
        "sha256": sha256,
        "recipe": recipe,
        **known,
    }
    return pa.Table.from_pylist([row], schema=TABLES["raw_objects"].arrow_schema())


def segment_batches(version: ObjectVersion, decoded: DecodedMedia, recipe: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of ``segments``, in the order of decoding, a few megabytes at a time.

    Raises
    ------
    ObjectError
        crashed: what the decoder left is not valid.
    """
    schema = TABLES["segments"].arrow_schema()
    for batch in read_segments(decoded.segments):
        constant = {**_object_columns(version), "recipe": recipe}
        columns = {name: pa.repeat(pa.scalar(value), batch.num_rows) for name, value in constant.items()}
        columns["segment_id"] = _segment_ids(version.object_id, batch)
        columns.update(zip(batch.schema.names, batch.columns, strict=True))
        yield pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _object_columns(version: ObjectVersion) -> dict[str, str]:
    return {"object_id": version.object_id, "bucket": version.alias, "key": version.key, "etag": version.etag}


def _segment_ids(object_id: str, batch: pa.RecordBatch) -> pa.Array:
    kinds, ordinals = batch.column("segment_kind").to_pylist(), batch.column("ordinal").to_pylist()
    return pa.array(
        [segment_id(object_id, kind, ordinal) for kind, ordinal in zip(kinds, ordinals, strict=True)], pa.string()
    )
