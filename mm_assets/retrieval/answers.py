"""Moments → the rows that a person or a page reads: place, reason, snippet, tags, picture, link.

Put here: what one answer shows. Keep out: which moments are answered, and in which order.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.lake import Lake, RangeFile
from mm_assets.retrieval.fusing import Evidence, Fused
from mm_assets.texts import mark_words, words_of

_BOX = ("box_x0_px", "box_y0_px", "box_x1_px", "box_y1_px")
_OBJECT = ("bucket", "key", "etag")
_THREADS = 8
_THUMBNAIL_PX = 320
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
    """Keyframes, from the results of ``segments``.

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

    def thumbnail(self, object_id: str, segment_id: str, side_px: int = _THUMBNAIL_PX) -> bytes | None:
        """Return the keyframe of a segment as a JPEG whose longer side is ``side_px`` at most."""
        key = self.lake.result_key("segments", self.recipe, object_id)
        try:
            with RangeFile(self.lake.store, key) as file:
                found = _read_keyframe(pq.ParquetFile(file), segment_id)
        except ObjectNotFoundError:
            return None
        return _shrink(found, side_px) if found else None


def _read_keyframe(file: pq.ParquetFile, segment_id: str) -> bytes | None:
    """Read the group of rows that has a segment, and the ids of those that may have it; a film has many more."""
    for group in range(file.num_row_groups):
        if not _may_hold(file.metadata.row_group(group), segment_id):
            continue
        place = pc.index(file.read_row_group(group, ["segment_id"])["segment_id"], segment_id).as_py()
        if place >= 0:
            picture: bytes | None = file.read_row_group(group, ["keyframe_jpeg"])["keyframe_jpeg"][place].as_py()
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
    known = _values(best, _OBJECT)
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | known
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
    box = list(_values(evidence, _BOX).values())
    if not evidence.ranked.terms:
        text = _values(evidence, ("text",))["text"]
        return {"box_px": box if None not in box else None, "snippet": mark_words(text, ()) if text else None}
    known = _values(evidence, ("text", "pieces"))
    pieces = _matching(known["pieces"], {word for term in evidence.ranked.terms for word in term.words})
    details: dict[str, Any] = {"snippet": mark_words(known["text"], evidence.ranked.terms)}
    if pieces and pieces[0]["start_s"] is not None:
        details |= {"start_s": pieces[0]["start_s"], "end_s": pieces[-1]["end_s"]}
    elif pieces and pieces[0][_BOX[0]] is not None:
        details["box_px"] = [pieces[0][name] for name in _BOX]
    return details


def _matching(pieces: Sequence[Mapping[str, Any]], asked: set[str]) -> list[Mapping[str, Any]]:
    """Return the shortest run of words, or the line, that has most of what was asked for."""
    counts = [len(asked & set(words_of(piece["text"]))) for piece in pieces]
    if not any(counts):
        return []
    if pieces[0]["start_s"] is None:
        return [pieces[counts.index(max(counts))]]
    return list(_shortest_run(pieces, asked))


def _shortest_run(pieces: Sequence[Mapping[str, Any]], asked: set[str]) -> Sequence[Mapping[str, Any]]:
    said = [set(words_of(piece["text"])) & asked for piece in pieces]
    wanted = set().union(*said)
    best: tuple[int, int] | None = None
    for start in (place for place, words in enumerate(said) if words):
        seen: set[str] = set()
        for end in range(start, len(said)):
            seen |= said[end]
            if seen == wanted:
                if best is None or end - start < best[1] - best[0]:
                    best = start, end
                break
    return pieces[best[0] : best[1] + 1] if best else ()


def _values(evidence: Evidence, columns: Sequence[str]) -> dict[str, Any]:
    place = evidence.place - 1
    found = evidence.ranked.rows.values(evidence.ranked.ids[place : place + 1], columns)
    return {name: values[0] for name, values in found.items()}


def _shrink(jpeg: bytes, side_px: int) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        image.draft("RGB", (side_px, side_px))
        image.thumbnail((side_px, side_px))
        sink = io.BytesIO()
        image.convert("RGB").save(sink, "JPEG", quality=80)
        return sink.getvalue()
