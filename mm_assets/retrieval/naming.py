"""What was detected and tagged, by its name.

Put here: names → rows of the published ``detected_objects`` and ``tags``. Keep out: conditions, which narrow and do not
rank.
"""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mm_assets.indexing import Part, Rows
from mm_assets.lake import Lake
from mm_assets.retrieval.questions import Question
from mm_assets.retrieval.signals import Ranked
from mm_assets.retrieval.tables import limited, open_tables
from mm_assets.vectors import as_vector_ids

if TYPE_CHECKING:
    import duckdb

_ROW = "object_id, bucket, key, etag, segment_id, start_s, end_s, page_number"
_SCORE = "score"
# Table → what an answer says, the columns of a name and of how sure it is, and where in the picture it is.
_NAMED = {
    "detected_objects": ("shows", "label", "confidence", ", box_x0_px, box_y0_px, box_x1_px, box_y1_px"),
    "tags": ("is tagged", "tag", "similarity", ""),
}


class NameSignal:
    """Segments in which something of a name was detected, or that are tagged with it."""

    def __init__(self, lake: Lake, cache: Path) -> None:
        self._lake, self._cache = lake, cache

    def rank(self, question: Question, n: int, within: pa.Array | None) -> tuple[list[Ranked], list[str]]:
        """Rank the segments of each name by the confidence of the detection, and by the similarity of the tag.

        Returns
        -------
        what is found, and what there is to say of names that nothing has
        """
        found: list[Ranked] = []
        with open_tables(self._lake, self._cache) as connection, limited(connection, "seen"):
            passes = "TRUE"
            if within is not None:
                connection.register("within", pa.table({"segment_id": within}))
                passes = "segment_id IN (SELECT segment_id FROM within)"
            there = {row[0] for row in connection.execute("SHOW TABLES").fetchall()}.intersection(_NAMED)
            queries = {_NAMED[table][0]: _best(table, passes) for table in sorted(there)}
            unknown = []
            for name in question.names:
                of_name = [
                    _ranked(f"{what} {name}", rows)
                    for what, query in queries.items()
                    if (rows := connection.sql(query, params=[name, n]).to_arrow_table()).num_rows
                ]
                found += of_name
                unknown += [] if of_name else [name]
            known = _known(connection, there, passes) if unknown else []
            elsewhere = _known(connection, there, "TRUE") if unknown and within is not None else []
            notes = [_told(name, known, elsewhere) for name in unknown]
        return found, notes


def _best(table: str, passes: str) -> str:
    """Return the query for the best row of each segment, best first; its parameters are a name and a number."""
    _, name, score, box = _NAMED[table]
    return (
        f"SELECT {_ROW}{box}, {score} AS {_SCORE} FROM {table} WHERE lower({name}) = lower(?) AND {passes} "  # noqa: S608
        f"QUALIFY row_number() OVER (PARTITION BY segment_id ORDER BY {score} DESC) = 1 "
        f"ORDER BY {score} DESC, segment_id LIMIT ?"
    )


def _ranked(name: str, found: pa.Table) -> Ranked:
    rows = Rows.of_parts([Part.in_memory(name, found.drop_columns(_SCORE), "segment_id")])
    return Ranked(name, "names", as_vector_ids(found["segment_id"].to_pylist()), found[_SCORE].to_numpy(), rows)


def _known(connection: "duckdb.DuckDBPyConnection", tables: Collection[str], passes: str) -> list[str]:
    """Return all names that there are, in small letters."""
    queries = [f"SELECT DISTINCT {_NAMED[table][1]} FROM {table} WHERE {passes}" for table in tables]  # noqa: S608
    return sorted({str(row[0]).lower() for query in queries for row in connection.execute(query).fetchall()})


def _told(name: str, known: Sequence[str], elsewhere: Sequence[str]) -> str:
    if name.lower() in elsewhere:
        return f"{name!r} is detected or tagged only in what the condition leaves out"
    return f"nothing is detected or tagged as {name!r}{_meant(name, known)}"


def _meant(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name.lower(), known, 2, 0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
