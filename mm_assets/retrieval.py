"""A question → ranked moments: which object, from when to when (or which page), how similar, and why.

Put here: queries over indexes and published tables. Keep out: building them, and any Dagster.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mm_assets.errors import ConfigError
from mm_assets.identity import vector_id
from mm_assets.indexing import VectorIndex
from mm_assets.lake import Lake
from mm_assets.mirror import drop_copies, local_copy

if TYPE_CHECKING:
    import duckdb

_INDEX = "indexes/visual"
_PLACE = (
    "object_id", "bucket", "key", "etag", "segment_id", "segment_kind", "start_s", "end_s", "page_number", "frame_s"
)  # fmt: skip


class Encoder(Protocol):
    """A model whose texts and images share one space."""

    def load(self) -> None:
        """Load the weights."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, d) unit vectors."""
        ...

    def encode_images(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Return (n, d) unit vectors of RGB images."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """One answer.

    Attributes
    ----------
    start_s, end_s : seconds from the start of the media; None for images and pages
    page_number : from 1; None for other media
    similarity : cosine of question and keyframe, -1…1
    why : the signal that found it, in words
    tags : what the taxonomy says of it
    """

    object_id: str
    bucket: str
    key: str
    etag: str
    segment_id: str
    segment_kind: str
    start_s: float | None
    end_s: float | None
    page_number: int | None
    frame_s: float | None
    similarity: float
    why: str
    tags: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Retriever:
    """Answers questions from the lake alone: tables, index and the encoder that made the vectors.

    Parameters
    ----------
    cache : folder for copies of a lake in a bucket
    recipe : of ``encoder``'s step; an index made by another recipe is refused, never mixed
    """

    def __init__(self, lake: Lake, encoder: Encoder, *, recipe: str, cache: Path) -> None:
        self._lake = lake
        self._encoder = encoder
        self._recipe = recipe
        self._cache = cache
        self._index: VectorIndex | None = None

    def search_text(self, text: str, *, limit: int = 10, where: str | None = None) -> list[Moment]:
        """Return the moments whose keyframe is most similar to a text."""
        self._encoder.load()
        return self._search(self._encoder.encode_texts([text]), f"looks like {text!r}", limit, where)

    def search_image(self, image: Path, *, limit: int = 10, where: str | None = None) -> list[Moment]:
        """Return the moments whose keyframe is most similar to a picture."""
        self._encoder.load()
        vector = self._encoder.encode_images([_read_image(image)])
        return self._search(vector, f"looks like {image.name}", limit, where)

    def _search(self, query: npt.NDArray[np.float32], why: str, limit: int, where: str | None) -> list[Moment]:
        index = self._open_index()
        with open_tables(self._lake, self._cache) as connection:
            allowed = _allowed(connection, where) if where else None
            similarity, ids = index.search(query, limit, allowed)
            found = {int(item): float(value) for item, value in zip(ids[0], similarity[0], strict=True) if item >= 0}
            return _moments(connection, found, why)

    def _open_index(self) -> VectorIndex:
        if self._index is None:
            manifest = self._lake.current_generation(_INDEX)
            if manifest is None:
                msg = "nothing is indexed yet; run `mm ingest`"
                raise ConfigError(msg)
            if self._recipe not in manifest["recipes"] and manifest["n_rows"]:
                msg = "the index was made by another model than the one in the settings; run `mm ingest` to rebuild it"
                raise ConfigError(msg)
            generation = str(manifest["generation"])
            folder = local_copy(self._lake, f"{_INDEX}/{generation}/", self._cache)
            drop_copies(self._lake, f"{_INDEX}/", self._cache, keep=generation)
            self._index = VectorIndex.from_bytes((folder / "index.faiss").read_bytes(), manifest["parameters"])
        return self._index


def open_tables(lake: Lake, cache: Path) -> "duckdb.DuckDBPyConnection":
    """Open DuckDB with one view for each published table, and ``moments`` for ``--where``.

    Raises
    ------
    ConfigError
        Nothing is published yet.
    """
    import duckdb

    folder = local_copy(lake, "tables/", cache)
    tables = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not tables:
        msg = f"no tables in {lake.uri} yet; run `mm ingest`"
        raise ConfigError(msg)
    connection = duckdb.connect()
    connection.execute("SET autoinstall_known_extensions = false; SET TimeZone = 'UTC'")
    for table in tables:
        files = str(folder / table / "**" / "*.parquet").replace("'", "''")
        source = f"read_parquet('{files}', hive_partitioning = true)"
        connection.execute(f'CREATE VIEW "{table}" AS SELECT * FROM {source}')  # noqa: S608  names of our own folders
    if {"segments", "raw_objects"} <= set(tables):
        connection.execute(
            "CREATE VIEW moments AS SELECT segments.*, media_kind, container_kind, size_bytes, modified_at, duration_s, "
            "n_pages, has_audio FROM segments JOIN raw_objects USING (object_id)"
        )
    if "step_states" in tables:
        connection.execute("CREATE VIEW dead_letters AS SELECT * FROM step_states WHERE state = 'dead'")
    return connection


def _allowed(connection: "duckdb.DuckDBPyConnection", where: str) -> npt.NDArray[np.int64]:
    """Return the ids of the segments that pass a condition on ``moments``."""
    import duckdb

    try:
        rows = connection.execute(f"SELECT segment_id FROM moments WHERE ({where})").fetchall()  # noqa: S608  the user's own SQL, on their own files
    except duckdb.Error as error:
        columns = ", ".join(row[0] for row in connection.execute("DESCRIBE moments").fetchall())
        msg = f"--where {where!r} is not a condition on the columns {columns}: {error}"
        raise ConfigError(msg) from error
    return np.array([vector_id(row[0]) for row in rows], np.int64)


def _moments(connection: "duckdb.DuckDBPyConnection", found: dict[int, float], why: str) -> list[Moment]:
    ids = pa.table({"vector_id": pa.array(list(found), pa.int64())})
    connection.register("found", ids)
    place = f"SELECT vector_id, {', '.join(_PLACE)} FROM found JOIN indexed_vectors USING (vector_id)"  # noqa: S608  constants
    joined = f"{place} JOIN segments USING (object_id, bucket, key, etag, segment_id) WHERE space = 'visual'"
    rows = connection.execute(joined).fetchall()
    tags: dict[str, list[str]] = {}
    query = "SELECT segment_id, tag FROM found JOIN indexed_vectors USING (vector_id) JOIN tags USING (segment_id)"
    for segment, tag in connection.execute(f"{query} ORDER BY similarity DESC").fetchall():
        tags.setdefault(segment, []).append(tag)
    moments = []
    for row in rows:
        score, own_tags = found[row[0]], tuple(tags.get(row[5], ()))
        moments.append(
            Moment(
                **dict(zip(_PLACE, row[1:], strict=True)), similarity=score, why=f"{why} ({score:.2f})", tags=own_tags
            )
        )
    return sorted(moments, key=lambda moment: (-moment.similarity, moment.segment_id))


def _read_image(path: Path) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "GIF", "TIFF")) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        msg = f"{path} cannot be read as an image: {error}"
        raise ConfigError(msg) from error
