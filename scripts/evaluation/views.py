"""Views: each stored picture of a collection beside what is truly seen on it.

Put here: pairing of segments with the truth, and boxes in the pixels of the stored picture.
Keep out: any measurement.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from world.truth import LabelBox, MediaObject, PersonBox, SceneTruth

from evaluation.figures import Row

Box: TypeAlias = tuple[float, float, float, float]
"""Corners x0, y0, x1, y1 in pixels of the stored picture."""


@dataclass(frozen=True, slots=True)
class View:
    """A stored picture and its truth; `scale` takes pixels of the upright original to pixels of the stored picture."""

    segment_id: str
    kind: str
    place: str
    scene: SceneTruth
    scale: tuple[float, float] = (1.0, 1.0)

    def to_stored(self, box: LabelBox | PersonBox) -> Box:
        """Give a true box in pixels of the stored picture."""
        x, y = self.scale
        return box.x0 * x, box.y0 * y, box.x1 * x, box.y1 * y


@dataclass(slots=True)
class Rows:
    """Rows of one table by the segment they were found in."""

    rows: Sequence[Row]
    _by_segment: dict[str, list[Row]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the rows into their segments."""
        for row in self.rows:
            self._by_segment.setdefault(row["segment_id"], []).append(row)

    def of(self, view: View) -> list[Row]:
        """Give the rows of one picture."""
        return self._by_segment.get(view.segment_id, [])


def box_of(row: Row) -> Box:
    """Give the box of a detection or a face."""
    return row["box_x0_px"], row["box_y0_px"], row["box_x1_px"], row["box_y1_px"]


def pair_views(segments: Sequence[Row], objects: Mapping[str, MediaObject]) -> Iterator[View]:
    """Pair each stored picture with its truth: images, pages, and keyframes by their time."""
    for row in segments:
        item = objects[row["key"]]
        scene = _scene_of(row, item)
        if scene is not None:
            scale = (
                (row["width_px"] / item.width_px, row["height_px"] / item.height_px) if item.width_px else (1.0, 1.0)
            )
            yield View(row["segment_id"], row["segment_kind"], place_of(row), scene, scale)


def _scene_of(row: Row, item: MediaObject) -> SceneTruth | None:
    """Give the truth about a picture; nothing is seen at a time or on a page that the truth does not have."""
    shown: Iterator[SceneTruth]
    if row["segment_kind"] == "image":
        shown = iter(item.scenes)
    elif row["segment_kind"] == "page":
        shown = (SceneTruth("", texts=page.texts) for page in item.pages if page.page_number == row["page_number"])
    elif row["segment_kind"] == "scene":
        shown = (s for s in item.scenes if (s.start_s or 0.0) <= row["frame_s"] < (s.end_s or 0.0))
    else:
        return None
    return next(shown, SceneTruth(""))


def place_of(row: Row) -> str:
    """Name the place of a segment for people."""
    if row.get("frame_s") is not None:
        return f"{row['key']} at {row['frame_s']:.2f} s"
    return f"{row['key']} page {row['page_number']}" if row.get("page_number") else str(row["key"])
