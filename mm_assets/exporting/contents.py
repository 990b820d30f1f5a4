"""What is exported: the rows behind a published index, as search sees them, a bounded number at a time.

Put here: generation and condition → rows. Keep out: where they go.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mm_assets.errors import ConfigError
from mm_assets.identity import short_hash
from mm_assets.indexing import read_part
from mm_assets.lake import PROVENANCE, Lake, read_provenance
from mm_assets.mirror import drop_copies, local_files
from mm_assets.retrieval.answers import Link, fragment
from mm_assets.retrieval.tables import segments_where
from mm_assets.spaces import SPACES, WORDS, Space

EXPORTED: Mapping[str, Space] = {**SPACES, WORDS.name: WORDS}
ROWS_PER_BATCH = 16_384  # 34 MB of vectors of 512 dimensions
_PLACE = {
    **dict.fromkeys(("object_id", "bucket", "key", "etag", "segment_id"), pa.string()),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "page_number": pa.int32(),
}
Report = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class _Chosen:
    """Rows of a part, mapped and not read, and which of them are wanted; None for all."""

    rows: pa.Table
    mask: pa.BooleanArray | None

    def __len__(self) -> int:
        return int(self.rows.num_rows if self.mask is None else self.mask.true_count)

    def pieces(self) -> Iterator[pa.Table]:
        for start in range(0, self.rows.num_rows, ROWS_PER_BATCH):
            piece = self.rows.slice(start, ROWS_PER_BATCH)
            yield piece if self.mask is None else piece.filter(self.mask.slice(start, ROWS_PER_BATCH))


class Contents:
    """Rows of one space, each with its vector or, for words, its text.

    Attributes
    ----------
    facts : what they are of, JSON types only: ``index`` (which lake and space), ``generation`` (with a condition, also
        what it chose: two exports of one generation have the same items), ``where``, ``recipes``, and ``made_by``, the
        model as the results tell it
    schema : of the batches; the facts are in its metadata
    n_rows : all of them
    """

    def __init__(
        self, space: Space, dim: int, parts: Sequence[_Chosen], facts: Mapping[str, Any], link: Link, report: Report
    ) -> None:
        self.facts = dict(facts)
        self.n_rows = sum(map(len, parts))
        value = (
            {"kind": pa.string(), "text": pa.string()} if space == WORDS else {"vector": pa.list_(pa.float32(), dim)}
        )
        columns = {"item_id": pa.string(), **_PLACE, "link": pa.string(), **value}
        self.schema = pa.schema(columns, metadata={PROVENANCE: json.dumps(self.facts, default=str)})
        self._item_column, self._parts = space.item_column, list(parts)
        self._link, self._report = lru_cache(maxsize=1_024)(link), report

    @property
    def has_vectors(self) -> bool:
        """False for words."""
        return "vector" in self.schema.names

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, once; each part is let go of when its last row was read, so that memory stays flat."""
        n_done = 0
        for rows in _gather(self._pieces(), ROWS_PER_BATCH):
            yield self._to_batch(rows)
            n_done += rows.num_rows
            self._report(n_done, self.n_rows)

    def _pieces(self) -> Iterator[pa.Table]:
        while self._parts:
            yield from self._parts.pop(0).pieces()

    def _to_batch(self, rows: pa.Table) -> pa.RecordBatch:
        places = (rows[name].to_pylist() for name in ("bucket", "key", "start_s", "page_number"))
        links = [
            self._link(alias, key) + fragment(start_s, page) for alias, key, start_s, page in zip(*places, strict=True)
        ]
        made = {"item_id": rows[self._item_column], "link": pa.array(links, pa.string())}
        columns = [made[name] if name in made else rows[name] for name in self.schema.names]
        [batch] = pa.table(columns, schema=self.schema).combine_chunks().to_batches()
        return batch


def open_contents(
    lake: Lake, space: Space, *, cache: Path, link: Link, where: str = "", report: Report = lambda *_: None
) -> Contents:
    """Open what is published of a space; a generation that is replaced from now on is still read to its end.

    Parameters
    ----------
    cache : folder for copies of a lake in a bucket
    link : alias and key → address of an object
    where : SQL condition on the columns of ``moments``; '' for all

    Raises
    ------
    ConfigError
        Nothing is indexed yet, or the condition is none.
    ObjectNotFoundError, SchemaError
        A file is missing or damaged: the generation was removed this moment, or `mm verify` finds out.
    """
    manifest = lake.current_generation(space.generation_name)
    if manifest is None:
        msg = f"nothing is indexed for {space.name} yet; run `mm ingest`"
        raise ConfigError(msg)
    keys = lake.generation_keys(manifest)
    drop_copies(lake, f"{space.generation_name}/", cache, keep=keys)
    parts = [read_part(file) for file in local_files(lake, keys[: len(manifest["parts"])], cache)]
    segments = segments_where(lake, cache, where) if where else None
    chosen = [_Chosen(part, None if segments is None else _is_in(part, segments)) for part in parts]
    facts = _facts(lake, space, manifest, parts)
    if segments is not None:
        facts["generation"] += f"-{short_hash(*sorted(segments.to_pylist()))}"
    return Contents(space, manifest["dim"], chosen, facts | {"where": where}, link, report)


def _is_in(part: pa.Table, segments: pa.Array) -> pa.BooleanArray:
    return pc.is_in(part["segment_id"], value_set=segments).combine_chunks()


def _facts(lake: Lake, space: Space, manifest: Mapping[str, Any], parts: Sequence[pa.Table]) -> dict[str, Any]:
    known = {name: manifest[name] for name in ("generation", "recipes")}
    return {"index": f"{lake.lake_id()}/{space.name}", **known, "made_by": _made_by(lake, space, manifest, parts)}


def _made_by(lake: Lake, space: Space, manifest: Mapping[str, Any], parts: Sequence[pa.Table]) -> dict[str, Any]:
    """Return the provenance of the vectors' model from one of the results; nothing for words, which are of several."""
    if space == WORDS or not manifest["n_rows"]:
        return {}
    of_first = [(recipe, parts[0]["object_id"][0].as_py()) for recipe in manifest["recipes"]]
    results = lake.read_results(space.table, of_first, ["object_id"])
    return next((read_provenance(result.schema) for result in results if result is not None), {})


def _gather(pieces: Iterable[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """Join pieces until there are so many rows: a condition may leave few of each."""
    waiting: list[pa.Table] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(of.num_rows for of in waiting) >= n_rows:
            yield pa.concat_tables(waiting)
            waiting = []
    rest = [piece for piece in waiting if piece.num_rows]
    if rest:
        yield pa.concat_tables(rest)
