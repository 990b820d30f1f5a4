"""Moments → the rows that a person or a page reads: place, reason, snippet, tags, picture, link.

Put here: what one answer shows. Keep out: which moments are answered, and in which order.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.lake import Lake, RangeFile
from mm_assets.retrieval.fusing import Evidence, Fused
from mm_assets.texts import Term, mark_words, places_of

_BOX = ("box_x0_px", "box_y0_px", "box_x1_px", "box_y1_px")
_OBJECT = ("bucket", "key", "etag")
_THREADS = 8
SIGNAL = pa.struct([("signal", pa.string()), ("rank", pa.int64()), ("score", pa.float64())])
SCHEMA = pa.schema(
    [
        ("rank", pa.int64()),
        ("score", pa.float64()),
        *((name, pa.string()) for name in (*_OBJECT, "object_id", "segment_id")),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("page_number", pa.int32()),
        ("box_px", pa.list_(pa.float32())),
        ("why", pa.string()),
        ("snippet", pa.string()),
        ("signals", pa.list_(SIGNAL)),
        ("link", pa.string()),
        ("thumbnail_jpeg", pa.binary()),
    ]
)
Link = Callable[[str, str], str]  # alias, key → address, without the place in the object


@dataclass(frozen=True)
class Pictures:
    """What people see of segments, from the results of ``segments``.

    Attributes
    ----------
    recipe : of the published ``segments``
    """

    lake: Lake
    recipe: str

    def of(self, moments: Sequence[Fused]) -> list[bytes | None]:
        """Return a small JPEG for each moment; None where it has no keyframe, or the lake no longer has it."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(lambda moment: self.thumbnail(moment.object_id, moment.segment_id), moments))

    def thumbnail(self, object_id: str, segment_id: str) -> bytes | None:
        """Return the small picture of a segment, a JPEG within 320 x 320 pixels."""
        return self._read(object_id, segment_id, "thumbnail_jpeg")

    def keyframe(self, object_id: str, segment_id: str) -> bytes | None:
        """Return the picture of a segment as the models saw it, a JPEG."""
        return self._read(object_id, segment_id, "keyframe_jpeg")

    def _read(self, object_id: str, segment_id: str, column: str) -> bytes | None:
        key = self.lake.result_key("segments", self.recipe, object_id)
        try:
            with RangeFile(self.lake.store, key) as file:
                # No thread of Arrow is to hold the file, as in ``lake.read_parquet``; of demo films, 920 requests, not 880.
                return _read_picture(pq.ParquetFile(file, pre_buffer=False), segment_id, column)
        except ObjectNotFoundError:
            return None


def _read_picture(file: pq.ParquetFile, segment_id: str, column: str) -> bytes | None:
    """Read what the groups of rows hold that may have a segment; a film has many more."""
    for group in range(file.num_row_groups):
        if not _may_hold(file.metadata.row_group(group), segment_id):
            continue
        if column not in file.schema_arrow.names:  # made before there were thumbnails, and about to be made again
            return None
        rows = file.read_row_group(group, ["segment_id", column], use_threads=False)
        place = pc.index(rows["segment_id"], segment_id).as_py()
        if place >= 0:
            picture: bytes | None = rows[column][place].as_py()
            return picture
    return None


def _may_hold(group: pq.RowGroupMetaData, segment_id: str) -> bool:
    """Whether the footer leaves it open that a segment is in a group of rows; True where it says nothing."""
    columns = (group.column(n) for n in range(group.num_columns))
    known = next((column.statistics for column in columns if column.path_in_schema == "segment_id"), None)
    return known is None or not known.has_min_max or bool(known.min <= segment_id <= known.max)


def to_rows(moments: Sequence[Fused], link: Link | None, pictures: Pictures | None) -> pa.Table:
    """Return one row per moment, in their order, in ``SCHEMA``; without links and pictures where None is given."""
    rows = [_row(rank, moment, link) for rank, moment in enumerate(moments, 1)]
    for row, picture in zip(rows, pictures.of(moments) if pictures else (), strict=False):
        row["thumbnail_jpeg"] = picture
    return pa.Table.from_pylist(rows, SCHEMA)


def _row(rank: int, moment: Fused, link: Link | None) -> dict[str, Any]:
    best = moment.evidence[0]
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | {name: best.row[name] for name in _OBJECT}
    row |= {name: getattr(moment, name) for name in ("object_id", "segment_id", "start_s", "end_s", "page_number")}
    for evidence in moment.evidence:
        row |= {name: value for name, value in _details(evidence).items() if value is not None}
    row |= {"rank": rank, "score": moment.score, "why": "; ".join(_reason(evidence) for evidence in moment.evidence)}
    row["signals"] = [{"signal": e.ranked.name, "rank": e.place, "score": e.score} for e in moment.evidence]
    if link is not None:
        row["link"] = link(row["bucket"], row["key"]) + fragment(row["start_s"], row["page_number"])
    return row


def fragment(start_s: float | None, page_number: int | None) -> str:
    """Return the place in an object as browsers understand it: media fragments (W3C), pages of PDF (RFC 8118)."""
    if page_number is not None:
        return f"#page={page_number}"
    return f"#t={start_s:.2f}" if start_s is not None else ""


def _reason(evidence: Evidence) -> str:
    return f"{evidence.ranked.name} ({evidence.score:.2f})"


def _details(evidence: Evidence) -> dict[str, Any]:
    """Return what only this signal knows: the box of a face, the words and when or where they are."""
    if not evidence.ranked.terms:
        box, text = [evidence.row[name] for name in _BOX], evidence.row["text"]
        return {"box_px": box if None not in box else None, "snippet": mark_words(text, ()) if text else None}
    details: dict[str, Any] = {"snippet": mark_words(evidence.row["text"], evidence.ranked.terms)}
    pieces = evidence.row.elements("pieces")
    start, end = _matching(pieces, evidence.ranked.terms)
    if start == end:
        return details
    start_s = pieces.field("start_s")[start].as_py()
    if start_s is not None:
        return details | {"start_s": start_s, "end_s": pieces.field("end_s")[end - 1].as_py()}
    box = [pieces.field(name)[start].as_py() for name in _BOX]
    return details | ({"box_px": box} if None not in box else {})


def _matching(pieces: pa.StructArray, terms: Sequence[Term]) -> tuple[int, int]:
    """Return from where to where the shortest run of words is, or the line, that has most of what was asked for."""
    found = places_of(terms, pieces.field("text").to_pylist())
    if not any(found):
        return 0, 0
    if pieces.field("start_s")[0].is_valid:
        return _shortest_run(found)
    line = max(range(len(found)), key=lambda place: len(found[place]))
    return line, line + 1


def _shortest_run(found: Sequence[set[int]]) -> tuple[int, int]:
    """Return from where to where all of what is found anywhere is found."""
    wanted = set[int]().union(*found)
    runs = []
    for start in (place for place, words in enumerate(found) if words):
        seen: set[int] = set()
        for end, words in enumerate(found[start:], start + 1):
            seen |= words
            if seen == wanted:
                runs.append((start, end))
                break
    return min(runs, key=lambda run: run[1] - run[0])
