"""What the page shows beside answers: facets to narrow them, and one object on its timeline.

Put here: tables and stories → plain values for the templates. Keep out: HTML.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mm_assets.flows.telling import read_story
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject
from mm_assets.retrieval import NothingPublishedError, open_tables
from mm_assets.retrieval.filters import Filter, to_condition
from mm_assets.server.access import Caller
from mm_assets.server.media import shown_type

_FACET_VALUES = 30
# Name of the field, which is the column of the filter and is counted → title and table.
FACETS = {
    "media_kind": ("Kind", "raw_objects"),
    "bucket": ("Source", "raw_objects"),
    "tag": ("Tag", "tags"),
    "label": ("Seen in the picture", "detected_objects"),
}
Row = Mapping[str, Any]


class Facets:
    """What answers can be narrowed to, counted in the published tables; counted again when they change."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: dict[tuple[str, ...], tuple[float, list[dict[str, Any]]]] = {}

    def read(self, caller: Caller) -> list[dict[str, Any]]:
        """Return name, title and (value, number of objects), the most frequent first."""
        published_at = self._workspace.ledger.catalog.last_published_at() or 0.0
        known = self._known.get(caller.sources)
        if known is None or known[0] != published_at:
            known = self._known[caller.sources] = published_at, self._count(caller)
        return known[1]

    def _count(self, caller: Caller) -> list[dict[str, Any]]:
        try:
            connection = open_tables(self._workspace.lake, self._workspace.settings.cache)
        except NothingPublishedError:
            return []
        within = to_condition([Filter("bucket", "in", list(caller.sources))]) if caller.sources else "TRUE"
        with connection:
            views = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
            found = []
            for name, (title, table) in FACETS.items():
                query = (
                    f"SELECT {name}, count(DISTINCT object_id) AS n FROM {table} WHERE {within} GROUP BY {name} "  # noqa: S608  constants
                    f"ORDER BY n DESC, {name} LIMIT {_FACET_VALUES}"
                )
                values = connection.execute(query).fetchall() if table in views else []
                found.append({"name": name, "title": title, "counts": values})
        return found


def describe(workspace: Workspace, known: KnownObject, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page of an object shows.

    Parameters
    ----------
    asked : of the address: ``t`` the second to begin at, ``segment`` the one that was found
    """
    story = read_story(workspace, known)
    segments = [s for s in story["segments"] if s["segment_kind"] != "audio"]
    found: dict[str, list[dict[str, Any]]] = story["found"]
    return {
        "object": story["object"],
        "kind": _kind(story["segments"]) or ("" if story["is_published"] else _guess_kind(known.version.key)),
        "is_playable": is_playable(workspace, known),
        "is_published": story["is_published"],
        "at_s": _seconds(asked.get("t", "")),
        "segment_id": asked.get("segment", ""),
        "page_number": next((s["page_number"] for s in segments if s["segment_id"] == asked.get("segment")), None),
        "segments": segments,
        "lanes": _lanes(segments, found),
        "spoken": found.get("transcripts", []),
        "shown": found.get("ocr_text", []),
        "labels": Counter(row["label"] for row in found.get("detected_objects", [])).most_common(),
        "tags": Counter(row["tag"] for row in found.get("tags", [])).most_common(),
        "n_faces": len(found.get("faces", [])),
        "steps": story["steps"],
    }


def is_playable(workspace: Workspace, known: KnownObject) -> bool:
    """Whether an object version's bytes are still to be had."""
    return known.state == "live" and known.version.alias in workspace.sources


def _guess_kind(key: str) -> str:
    start = (shown_type(key) or "").partition("/")[0]
    return "document" if start == "application" else start


def _kind(segments: Sequence[Row]) -> str:
    kinds = {segment["segment_kind"] for segment in segments}
    names = {"scene": "video", "image": "image", "page": "document", "audio": "audio"}
    return next((name for kind, name in names.items() if kind in kinds), "")


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def _lanes(segments: Sequence[Row], found: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Return the lanes of the timeline that have anything, each with its stretches in thousandths of the whole."""
    sources: dict[str, tuple[Sequence[Row], Callable[[Row], str]]] = {
        "Scenes": (segments, lambda _: "scene"),
        "Speech": (found.get("transcripts", ()), lambda row: row["text"]),
        "Text": (found.get("ocr_text", ()), lambda row: row["text"]),
        "Faces": (found.get("faces", ()), lambda _: "face"),
        "Tags": (found.get("tags", ()), lambda row: row["tag"]),
    }
    timed = {
        title: [(row, text(row)) for row in rows if row["start_s"] is not None]
        for title, (rows, text) in sources.items()
    }
    whole_s = max((row["end_s"] for parts in timed.values() for row, _ in parts), default=0.0)
    if not whole_s:
        return []
    return [{"title": title, "parts": _stretches(parts, whole_s)} for title, parts in timed.items() if parts]


def _stretches(parts: Sequence[tuple[Row, str]], whole_s: float) -> list[dict[str, Any]]:
    """Join what is found at one time into one stretch."""
    at: dict[tuple[float, float], dict[str, None]] = {}
    for row, text in parts:
        at.setdefault((row["start_s"], row["end_s"]), {})[text] = None
    return [
        {
            "start_s": round(start, 2),
            "text": ", ".join(texts),
            "x": round(start / whole_s * 1_000, 1),
            "width": round(max(4.0, (end - start) / whole_s * 1_000 - 1), 1),
        }
        for (start, end), texts in at.items()
    ]
