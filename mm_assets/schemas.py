"""Every table: its columns, types, units and keys. One dictionary gives the Parquet schema, the asset check and docs.

Put here: declarations of tables. Keep out: reading and writing them, which the lake does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from mm_assets.errors import SchemaError

VECTOR = pa.list_(pa.float32())  # placeholder: the model's card gives the dimension, see Table.arrow_schema
WORDS_ON_SCREEN = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            ("confidence", pa.float32()),
            ("box_x0_px", pa.float32()),
            ("box_y0_px", pa.float32()),
            ("box_x1_px", pa.float32()),
            ("box_y1_px", pa.float32()),
        ]
    )
)
WORDS_SPOKEN = pa.list_(
    pa.struct([("text", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64()), ("confidence", pa.float32())])
)
UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Column:
    """One column: name, Arrow type, meaning with unit and range, and whether it may be null."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes
    ----------
    key : columns that together are unique
    private : columns kept in results for later steps and left out of the published table (they are large)
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    private: frozenset[str] = frozenset()

    def arrow_schema(self, dim: int | None = None) -> pa.Schema:
        """Return the schema of a result file; ``dim`` is the length of ``vector`` where the table has one."""
        return _schema(self, self.columns, dim)

    def published_schema(self, dim: int | None = None) -> pa.Schema:
        """Return the schema of the table that analysts read."""
        return _schema(self, tuple(c for c in self.columns if c.name not in self.private), dim)

    @property
    def has_vector(self) -> bool:
        """True when each row is a point in a vector space."""
        return any(column.type is VECTOR for column in self.columns)


def _schema(table: Table, columns: tuple[Column, ...], dim: int | None) -> pa.Schema:
    if table.has_vector and dim is None:
        raise SchemaError(table.name, "the vector's dimension", "none given")
    return pa.schema(
        [
            pa.field(c.name, pa.list_(pa.float32(), dim) if c.type is VECTOR else c.type, nullable=c.nullable)
            for c in columns
        ]
    )


def check_schema(name: str, expected: pa.Schema, actual: pa.Schema) -> None:
    """Raise SchemaError unless names, order and types agree (metadata and nullability marks may differ)."""
    if [(f.name, f.type) for f in expected] != [(f.name, f.type) for f in actual]:
        raise SchemaError(name, [f"{f.name} {f.type}" for f in expected], [f"{f.name} {f.type}" for f in actual])


_OBJECT = (
    Column("object_id", pa.string(), "id of the object version: hash of alias, key and ETag"),
    Column("bucket", pa.string(), "alias of the source, by default its bucket's name"),
    Column("key", pa.string(), "key of the object, as it is in the source"),
    Column("etag", pa.string(), "ETag without quotes; opaque"),
)
_SEGMENT = (*_OBJECT, Column("segment_id", pa.string(), "the scene, image, page or stretch of audio this was found in"))
_PLACE = (
    Column("start_s", pa.float64(), "start, seconds from the start of the media; null for images and pages", True),
    Column("end_s", pa.float64(), "end, seconds from the start of the media; null for images and pages", True),
    Column("page_number", pa.int32(), "page, from 1; null for other media", True),
)
_BOX = (
    Column("box_x0_px", pa.float32(), "left edge in the segment's image"),
    Column("box_y0_px", pa.float32(), "top edge in the segment's image"),
    Column("box_x1_px", pa.float32(), "right edge in the segment's image"),
    Column("box_y1_px", pa.float32(), "bottom edge in the segment's image"),
)
_RECIPE = (Column("recipe", pa.string(), "hash of all that determined this row except the object"),)
_GENERATION = (Column("generation", pa.string(), "the frozen build this judgement was made against"),)

_TABLES = (
    Table(
        "raw_objects",
        "One row per object version that was read, also when it could not be decoded.",
        (
            *_OBJECT,
            Column("version_id", pa.string(), "version id where the source is keyed by it", True),
            Column("media_kind", pa.string(), "video | image | audio | document | unsupported, by content"),
            Column("container_kind", pa.string(), "format found in the bytes, e.g. mp4, jpeg, pdf", True),
            Column("size_bytes", pa.int64(), "size in the source"),
            Column("modified_at", UTC, "time of modification as the source tells it"),
            Column("sha256", pa.string(), "SHA-256 of the bytes; null when reading stopped early", True),
            Column("width_px", pa.int32(), "width as shown (after rotation)", True),
            Column("height_px", pa.int32(), "height as shown (after rotation)", True),
            Column("duration_s", pa.float64(), "length of video or audio", True),
            Column("n_pages", pa.int32(), "pages of a document", True),
            Column("has_audio", pa.bool_(), "whether there is a sound track", True),
            *_RECIPE,
        ),
        ("object_id",),
    ),
    Table(
        "segments",
        "One row per scene (with its keyframe), image, page or stretch of audio.",
        (
            *_SEGMENT,
            Column("segment_kind", pa.string(), "scene | image | page | audio"),
            Column("ordinal", pa.int32(), "place among the object's segments of this kind, from 0"),
            Column("scene_number", pa.int32(), "scene, from 0; long scenes are several segments of one scene", True),
            *_PLACE,
            Column("frame_s", pa.float64(), "time of the keyframe", True),
            Column("width_px", pa.int32(), "width of the stored image", True),
            Column("height_px", pa.int32(), "height of the stored image", True),
            Column("motion_frac", pa.float32(), "mean change of brightness between frames, 0…1", True),
            Column("embedded_text", pa.string(), "text layer of a PDF page", True),
            Column("keyframe_jpeg", pa.binary(), "the image, upright, JPEG", True),
            Column("thumbnail_jpeg", pa.binary(), "the image within 320 x 320 pixels, JPEG", True),
            Column("audio_flac", pa.binary(), "the sound, 16 kHz mono FLAC", True),
            *_RECIPE,
        ),
        ("segment_id",),
        frozenset({"keyframe_jpeg", "thumbnail_jpeg", "audio_flac"}),
    ),
    Table(
        "visual_embeddings",
        "One row per segment with an image: its unit vector in the visual space (shared with text queries).",
        (*_SEGMENT, *_PLACE, Column("vector", VECTOR, "unit length"), *_RECIPE),
        ("segment_id",),
    ),
    Table(
        "detected_objects",
        "One row per thing detected in a segment's image.",
        (
            *_SEGMENT,
            Column("detection_id", pa.string(), "id of this detection"),
            *_PLACE,
            Column("label", pa.string(), "class of the detector"),
            Column("confidence", pa.float32(), "0…1, higher is surer"),
            *_BOX,
            *_RECIPE,
        ),
        ("detection_id",),
    ),
    Table(
        "faces",
        "One row per face in a segment's image, with its unit vector in the face space.",
        (
            *_SEGMENT,
            Column("face_id", pa.string(), "id of this face in this image; not of a person"),
            *_PLACE,
            Column("confidence", pa.float32(), "0…1, higher is surer"),
            *_BOX,
            Column("landmarks_px", pa.list_(pa.float32(), 10), "x, y of left eye, right eye, nose, mouth corners"),
            Column("vector", VECTOR, "unit length"),
            *_RECIPE,
        ),
        ("face_id",),
    ),
    Table(
        "ocr_text",
        "One row per line of text read from a segment's image; a PDF's text layer is in segments.embedded_text.",
        (
            *_SEGMENT,
            Column("line_id", pa.string(), "id of this line"),
            *_PLACE,
            Column("text", pa.string(), "the line"),
            Column("confidence", pa.float32(), "mean of its words, 0…1"),
            *_BOX,
            Column("words", WORDS_ON_SCREEN, "words with confidence and box"),
            *_RECIPE,
        ),
        ("line_id",),
    ),
    Table(
        "transcripts",
        "One row per utterance heard in the sound track.",
        (
            *_SEGMENT,
            Column("utterance_id", pa.string(), "id of this utterance"),
            *_PLACE,
            Column("text", pa.string(), "what was said"),
            Column("language", pa.string(), "language code"),
            Column("confidence", pa.float32(), "mean probability of its tokens, 0…1"),
            Column("no_speech_frac", pa.float32(), "probability that nobody speaks, 0…1"),
            Column("words", WORDS_SPOKEN, "words with start, end (seconds of the media) and confidence"),
            *_RECIPE,
        ),
        ("utterance_id",),
    ),
    Table(
        "media_quality",
        "One row per segment: measures of quality and what follows from them.",
        (
            *_SEGMENT,
            *_PLACE,
            Column("sharpness", pa.float32(), "variance of the Laplacian of the luma, higher is sharper", True),
            Column("brightness_frac", pa.float32(), "mean luma, 0 black … 1 white", True),
            Column("contrast_frac", pa.float32(), "standard deviation of the luma, 0…0.5", True),
            Column("loudness_dbfs", pa.float32(), "root mean square of the sound, dB below full scale", True),
            Column("is_blurred", pa.bool_(), "sharpness below the limit while there is contrast", True),
            Column("is_dark", pa.bool_(), "brightness below the limit", True),
            Column("is_blank", pa.bool_(), "contrast below the limit", True),
            Column("is_silent", pa.bool_(), "loudness below the limit", True),
            Column("is_frozen", pa.bool_(), "a scene of some length in which nothing moves at all", True),
            *_RECIPE,
        ),
        ("segment_id",),
    ),
    Table(
        "text_embeddings",
        "One row per piece of what is said, shown on screen or written on a page: its unit vector in the text space.",
        (
            *_SEGMENT,
            Column("piece_id", pa.string(), "id of this piece: that of its text, and its place in it"),
            Column("text_id", pa.string(), "utterance_id, line_id of the first line of an image, or of a text layer"),
            *_PLACE,
            Column("kind", pa.string(), "said | shown"),
            Column("text", pa.string(), "the piece: whole words, as many as the model reads at once"),
            Column("vector", VECTOR, "unit length"),
            *_RECIPE,
        ),
        ("piece_id",),
    ),
    Table(
        "indexed_vectors",
        "One row per vector that search can find, and in which generation of the index.",
        (
            *_SEGMENT,
            Column("space", pa.string(), "visual | face | text"),
            Column("item_id", pa.string(), "segment_id, face_id in the face space, piece_id in the text space"),
            Column(
                "vector_id",
                pa.int64(),
                "id of the row in the index; its `rows.arrow` gives the number by which FAISS holds it",
            ),
            *_GENERATION,
        ),
        ("space", "item_id"),
    ),
    Table(
        "tags",
        "One row per tag of a segment, from the visual space and the taxonomy's prompts.",
        (
            *_SEGMENT,
            *_PLACE,
            Column("tag", pa.string(), "name in the taxonomy"),
            Column("tag_group", pa.string(), "group in the taxonomy"),
            Column("similarity", pa.float32(), "cosine of image and prompt, -1…1"),
            *_GENERATION,
        ),
        ("segment_id", "tag_group", "tag"),
    ),
    Table(
        "cluster_assignments",
        "One row per segment with an image: its cluster in the frozen cluster model.",
        (
            *_SEGMENT,
            *_PLACE,
            Column("space", pa.string(), "visual"),
            Column("cluster_id", pa.string(), "cluster in this generation; null for noise", True),
            Column("confidence", pa.float32(), "strength of membership, 0…1; 0 for noise"),
            *_GENERATION,
        ),
        ("space", "segment_id"),
    ),
    Table(
        "anomaly_scores",
        "One row per segment with an image: how strange it is against the frozen baseline.",
        (
            *_SEGMENT,
            *_PLACE,
            Column("space", pa.string(), "visual"),
            Column("distance", pa.float32(), "cosine distance to the k-th neighbour in the baseline, 0…2"),
            Column("anomaly_score", pa.float32(), "share of the baseline that is less strange, 0…1, higher stranger"),
            Column("is_anomaly", pa.bool_(), "score above the limit of the settings"),
            *_GENERATION,
        ),
        ("space", "segment_id"),
    ),
    Table(
        "step_states",
        "One row per live object version and step: done, or why not. The dead letters are here too.",
        (
            *_OBJECT,
            Column("step", pa.string(), "the step"),
            Column("state", pa.string(), "done | skipped | dead | pending"),
            Column("reason", pa.string(), "why it was skipped or given up", True),
            Column("error", pa.string(), "what was found", True),
            Column("n_rows", pa.int64(), "rows of the result", True),
            *_RECIPE,
        ),
        ("object_id", "step"),
    ),
)
TABLES: Mapping[str, Table] = {table.name: table for table in _TABLES}
STEP_TABLES = (
    "raw_objects",
    "segments",
    "visual_embeddings",
    "detected_objects",
    "faces",
    "ocr_text",
    "transcripts",
    "media_quality",
    "text_embeddings",
)
JUDGEMENT_TABLES = ("indexed_vectors", "tags", "cluster_assignments", "anomaly_scores")
