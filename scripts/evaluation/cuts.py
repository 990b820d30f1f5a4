"""Cuts: starts of scenes against the frames at which the picture changes.

Put here: figures of the scenes' times in the table segments.
Keep out: what is seen in a scene.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from world.truth import MediaObject

from evaluation.figures import Figure, Row

F1_TARGET = 0.98
ROUNDING_S = 0.002
"""The truth is written to a millisecond."""


@dataclass(frozen=True, slots=True)
class _Cuts:
    n_hits: int = 0
    n_found: int = 0
    n_true: int = 0

    def __add__(self, other: "_Cuts") -> "_Cuts":
        return _Cuts(self.n_hits + other.n_hits, self.n_found + other.n_found, self.n_true + other.n_true)

    @property
    def f1(self) -> float:
        """Give the harmonic mean of precision and recall; 1 where there is nothing to find and nothing found."""
        return 2 * self.n_hits / (self.n_found + self.n_true) if self.n_found + self.n_true else 1.0


def found_cuts(segments: Sequence[Row], key: str) -> list[float]:
    """Give the starts of all scenes of a film but its first; a long scene is several segments."""
    starts: dict[int, float] = {}
    for row in segments:
        if row["key"] == key and row["segment_kind"] == "scene":
            number = row["scene_number"]
            starts[number] = min(row["start_s"], starts.get(number, row["start_s"]))
    return sorted(start for number, start in starts.items() if number > 0)


def count_hits(found: Sequence[float], true: Sequence[float], tolerance_s: float) -> int:
    """Count the found cuts within the tolerance of a true one; each true one is found once. Both ascend."""
    n_hits = i = j = 0
    while i < len(found) and j < len(true):
        is_hit = abs(found[i] - true[j]) <= tolerance_s
        n_hits += is_hit
        is_late = found[i] > true[j]
        i, j = i + (is_hit or not is_late), j + (is_hit or is_late)
    return n_hits


def measure_cuts(
    films: Sequence[MediaObject],
    segments: Sequence[Row],
    frame_s: Mapping[str, float],
    containers: Mapping[str, str],
) -> list[Figure]:
    """Measure all films together and those of each container.

    Parameters
    ----------
    frame_s : key → duration of one frame, the tolerance
    containers : key → format of the file
    """
    total, worst = _Cuts(), []
    by_container: dict[str, _Cuts] = {}
    for film in films:
        found = found_cuts(segments, film.key)
        cuts = _Cuts(count_hits(found, film.cuts_s, frame_s[film.key] + ROUNDING_S), len(found), len(film.cuts_s))
        total += cuts
        container = containers.get(film.key, "unread")
        by_container[container] = by_container.get(container, _Cuts()) + cuts
        if cuts.f1 < 1:
            worst.append(f"{film.key}: found {[round(s, 2) for s in found]}, true {[round(s, 2) for s in film.cuts_s]}")
    return [
        _figure("cuts_f1", total, F1_TARGET, worst),
        *(_figure(f"cuts_f1_{name}", by_container[name]) for name in sorted(by_container)),
    ]


def _figure(name: str, cuts: _Cuts, target: float | None = None, worst: Sequence[str] = ()) -> Figure:
    counts = f"{cuts.n_hits} right, {cuts.n_found - cuts.n_hits} made up, {cuts.n_true - cuts.n_hits} missed"
    return Figure(name, cuts.f1, cuts.n_true, counts, target, worst=tuple(worst))
