"""What is said and shown, as one table of texts: the rows behind the text index.

Put here: rows of transcripts, OCR and text layers → texts with the place of each word or line. Keep out: searching them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from mm_assets.identity import item_id

SAID, SHOWN = "said", "shown"
_BOX = ("box_x0_px", "box_y0_px", "box_x1_px", "box_y1_px")
PIECES = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            *((name, pa.float32()) for name in _BOX),
        ]
    )
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("text_id", "object_id", "bucket", "key", "etag", "segment_id")),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("page_number", pa.int32()),
        ("kind", pa.string()),
        ("text", pa.string()),
        ("pieces", PIECES),
    ]
)
_SEGMENT = ("object_id", "bucket", "key", "etag", "segment_id", "start_s", "end_s", "page_number")
SEGMENT_COLUMNS = (*_SEGMENT, "embedded_text")  # what is read of ``segments``
_TEXT_LAYER = 1_000_000  # among the items of a segment, after all lines


def texts_of(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return the texts of a shard, in the order of the tables' rows.

    An utterance is a text (``said``), its words are the pieces; all lines read from a segment's image are one text
    (``shown``), so that a phrase may run over lines; so is the text layer of a page.

    Parameters
    ----------
    tables : rows of ``transcripts``, ``ocr_text`` and ``segments``, as published; each may be absent
    """
    readers = {"transcripts": _said, "ocr_text": _shown, "segments": _layers}
    rows = [row for name, read in readers.items() if name in tables for row in read(tables[name])]
    return pa.Table.from_pylist(rows, SCHEMA)


def _said(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for row in rows.select([*_SEGMENT, "utterance_id", "text", "words"]).to_pylist():
        pieces = [{name: word[name] for name in ("text", "start_s", "end_s")} for word in row["words"]]
        yield _text(row, row["utterance_id"], SAID, row["text"], pieces)


def _shown(rows: pa.Table) -> Iterator[dict[str, Any]]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows.select([*_SEGMENT, "line_id", "text", *_BOX]).to_pylist():
        lines.setdefault(row["segment_id"], []).append(row)
    for of_segment in lines.values():
        pieces = [{name: line[name] for name in ("text", *_BOX)} for line in of_segment]
        text = "\n".join(line["text"] for line in of_segment)
        yield _text(of_segment[0], of_segment[0]["line_id"], SHOWN, text, pieces)


def _layers(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for row in rows.select(list(SEGMENT_COLUMNS)).to_pylist():
        if row["embedded_text"]:
            yield _text(row, item_id(row["segment_id"], _TEXT_LAYER), SHOWN, row["embedded_text"], [])


def _text(row: Mapping[str, Any], text_id: str, kind: str, text: str, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: row[name] for name in _SEGMENT} | {"text_id": text_id, "kind": kind, "text": text, "pieces": pieces}
