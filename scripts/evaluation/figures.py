"""A figure: what was measured, on how many items, what was asked for, and where it went wrong.

Put here: the record and its printed form.
Keep out: how any figure is measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Row: TypeAlias = dict[str, Any]
"""A row of a published table, by column."""
MAX_WORST = 8


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Attributes
    ----------
    n_items : what the value is a share or a quantile of
    counts : the value as counts, for people
    target : smallest value that is good enough, the largest where `is_error`; None where nothing is promised
    worst : what went wrong, gravest first
    """

    name: str
    value: float
    n_items: int
    counts: str = ""
    target: float | None = None
    is_error: bool = False
    worst: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """Say whether the target is reached; nothing measured reaches no target."""
        if self.target is None:
            return True
        return self.n_items > 0 and (self.value <= self.target if self.is_error else self.value >= self.target)


def share(name: str, n_right: int, n_items: int, *, target: float | None = None, worst: Iterable[str] = ()) -> Figure:
    """Make a figure of a count of right ones among all; 0 where there are none."""
    value = n_right / n_items if n_items else 0.0
    return Figure(name, value, n_items, f"{n_right} of {n_items}", target, worst=tuple(worst)[:MAX_WORST])


def spread(name: str, errors_s: Sequence[float]) -> Figure:
    """Make a figure of times that should be equal: the median of the absolute errors, in seconds."""
    if not errors_s:
        return Figure(name, 0.0, 0, "nothing to compare", is_error=True)
    sizes = np.abs(errors_s)
    within = float(np.mean(sizes <= 0.5))
    counts = f"90 % ≤ {np.quantile(sizes, 0.9):.3f} s, {within:.1%} ≤ .5 s, bias {np.median(errors_s):+.3f} s"
    return Figure(name, float(np.median(sizes)), len(sizes), counts, is_error=True)


def format_table(figures: Sequence[Figure]) -> str:
    """Give the figures as lines of text, each with its worst cases below."""
    width = max(len(figure.name) for figure in figures)
    lines = [f"{'figure':<{width}}  {'target':>8}  {'got':>7}         items"]
    for figure in figures:
        target = "" if figure.target is None else f"{'≤' if figure.is_error else '≥'} {figure.target:g}"
        mark = "" if figure.target is None else "ok" if figure.is_met else "MISSED"
        start = f"{figure.name:<{width}}  {target:>8}  {figure.value:7.4f}  {mark:<6}"
        lines.append(f"{start} {figure.n_items:>5}  {figure.counts}")
        lines.extend(f"{'':<{width}}    {case}" for case in figure.worst)
    return "\n".join(lines)
