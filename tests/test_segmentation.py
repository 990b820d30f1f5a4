"""Rows of ``raw_objects`` and ``segments``: exact schema, ids, place, provenance."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from media_factory import Clip, noise, write_clip

from mm_assets.errors import ObjectError, Reason
from mm_assets.identity import ObjectVersion
from mm_assets.limits import MediaLimits
from mm_assets.media.guard import DecodedMedia
from mm_assets.media.segments import MediaFacts, Segment, SegmentWriter
from mm_assets.media.sniff import MediaType
from mm_assets.media.video import decode_timed
from mm_assets.media.worker import Ending
from mm_assets.schemas import TABLES
from mm_assets.segmentation import decode_params, raw_object_row, segment_batches

VERSION = ObjectVersion("bucket", "films/é ../a.mp4", "abc-3")
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENDING = Ending(0, None, is_timeout=False, max_rss_bytes=0, cpu_s=0, wall_s=0)


@pytest.fixture
def decoded(tmp_path: Path) -> DecodedMedia:
    """Two scenes and a stretch of sound."""
    file = write_clip(tmp_path / "a.mp4", Clip([1, 1], audio=noise(2)))
    with SegmentWriter(tmp_path / "segments.arrow") as out:
        facts = decode_timed(file, MediaType("video", "mp4"), MediaLimits(), out)
    return DecodedMedia(facts, tmp_path / "segments.arrow", ENDING)


def test_segment_rows_have_the_tables_schema_and_ids(decoded: DecodedMedia) -> None:
    """Every row carries object, place and recipe; ids follow from kind and ordinal; times and images are unchanged."""
    table = pa.Table.from_batches(list(segment_batches(VERSION, decoded, "r1")))
    assert table.schema == TABLES["segments"].arrow_schema()
    rows = table.to_pylist()
    assert {(r["object_id"], r["bucket"], r["key"], r["etag"], r["recipe"]) for r in rows} == {
        (VERSION.object_id, "bucket", "films/é ../a.mp4", "abc-3", "r1")
    }
    assert {r["segment_id"] for r in rows} == {
        f"{VERSION.object_id}-{end}" for end in ("s000000", "s000001", "a000000")
    }
    assert all(r["keyframe_jpeg"] for r in rows if r["segment_kind"] == "scene")
    assert all(r["audio_flac"] for r in rows if r["segment_kind"] == "audio")


def test_segment_ids_do_not_depend_on_the_recipe(decoded: DecodedMedia) -> None:
    """An id comes from content and place, so that results of two recipes can be compared row by row."""
    ids = [
        [i for batch in segment_batches(VERSION, decoded, recipe) for i in batch.column("segment_id").to_pylist()]
        for recipe in ("r1", "r2")
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])


def test_null_where_no_null_is_promised_is_refused(tmp_path: Path) -> None:
    """A child that leaves out what every segment has does not get its rows into the table."""
    with SegmentWriter(tmp_path / "segments.arrow") as out:
        out.add(Segment("scene", None))  # type: ignore[arg-type]
    decoded = DecodedMedia(MediaFacts("video", "mp4"), tmp_path / "segments.arrow", ENDING)
    with pytest.raises(ObjectError) as caught:
        list(segment_batches(VERSION, decoded, "r1"))
    assert caught.value.reason is Reason.CRASHED


@pytest.mark.parametrize("version", [VERSION, ObjectVersion("bucket", "a", "b", "v7")])
def test_raw_object_row_has_the_tables_schema(version: ObjectVersion) -> None:
    """What was found stands beside what the source said."""
    facts = MediaFacts("video", "mp4", width_px=640, height_px=360, duration_s=2.5, has_audio=True)
    table = raw_object_row(
        version, size_bytes=9, modified_at=WHEN, sha256="00ff", media_kind="video", facts=facts, recipe="r1"
    )
    assert table.schema == TABLES["raw_objects"].arrow_schema()
    (row,) = table.to_pylist()
    assert row["version_id"] == (version.version_id or None)
    assert (row["object_id"], row["modified_at"], row["size_bytes"]) == (version.object_id, WHEN, 9)
    assert (row["container_kind"], row["width_px"], row["duration_s"], row["n_pages"]) == ("mp4", 640, 2.5, None)


def test_raw_object_row_of_what_could_not_be_decoded() -> None:
    """An object that was read and not understood has its row too."""
    (row,) = raw_object_row(
        VERSION, size_bytes=9, modified_at=WHEN, sha256=None, media_kind="unsupported", facts=None, recipe="r1"
    ).to_pylist()
    assert (row["media_kind"], row["container_kind"], row["sha256"]) == ("unsupported", None, None)


def test_recipe_follows_what_shapes_segments_and_nothing_else() -> None:
    """Raising a memory limit does not recompute a bucket; another keyframe size does."""
    usual = decode_params(MediaLimits())
    assert decode_params(MediaLimits(wall_s=5, memory_bytes=1 << 30)) == usual
    for change in (
        {"keyframe_every_s": 5},
        {"keyframe_side_px": 640},
        {"page_dpi": 72},
        {"max_pages": 3},
        {"audio_chunk_s": 20},
    ):
        assert decode_params(MediaLimits(**change)) != usual
