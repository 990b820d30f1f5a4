"""Pictures in time: frames in, scenes with keyframes out, in one pass and bounded memory.

Put here: cuts (PySceneDetect's detector), division of long scenes, choice of keyframes. Keep out: containers and files.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_assets.media.images import to_jpeg, to_thumbnail
from mm_assets.media.segments import Segment

# PySceneDetect's AdaptiveDetector: a cut is a frame that differs from its predecessor by at least this much (0…255,
# mean of hue, saturation and value) and this many times more than its neighbours do.
ADAPTIVE_THRESHOLD = 3.0
MIN_CONTENT_VAL = 15.0
WINDOW_FRAMES = 2
MIN_SCENE_S = 0.4
# Levels below this are raised to it: saturation near black is noise, and one level of it looked like a cut. On 27,000
# frames with 333 cuts the largest change without a cut fell from 15.9 to 7.5, the smallest cut stayed at 22 (2026-11).
BLACK_LEVEL = 32
SMALL_WIDTH, SMALL_HEIGHT = 256, 144
_TICKS_PER_S = 1_000_000
_MAX_CANDIDATES = 8
_FIRST_SPACING_S = 0.25
_HD_LINES = 720
_BT709, _UNSPECIFIED = 1, 2  # ITU-T H.273, matrix coefficients

Pixels = NDArray[np.uint8]


@dataclass(slots=True)
class _Seen:
    """One frame with what was measured on it."""

    time_s: float
    tick: int
    change_frac: float
    sharpness: float
    frame: Any


@dataclass(slots=True)
class _Candidate:
    time_s: float
    sharpness: float
    pixels: Pixels


class PictureTrack:
    """Decoded frames in, scene segments out.

    A scene longer than ``every_s`` is divided into segments no longer than that and no shorter than half of it, each
    with its own keyframe. Memory: a few frames at full size, eight at stored size.
    """

    def __init__(self, every_s: float, side_px: int, frame_rate: Fraction) -> None:
        from av.video.reformatter import VideoReformatter
        from scenedetect import AdaptiveDetector

        self._detector = AdaptiveDetector(
            adaptive_threshold=ADAPTIVE_THRESHOLD,
            min_scene_len=MIN_SCENE_S,
            window_width=WINDOW_FRAMES,
            min_content_val=MIN_CONTENT_VAL,
        )
        # Kept, because a frame's own reformat() sets up a scaler with threads for each frame.
        self._scaler, self._to_bgr = VideoReformatter(), VideoReformatter()
        self._every_s, self._side_px, self._rate = every_s, side_px, frame_rate
        self._undecided: deque[_Seen] = deque()  # the detector answers this many frames late
        self._luma: Pixels | None = None
        self._scene_number = -1
        self._part = _Part(0.0)
        self._ordinal = 0
        self._last_s = -1.0
        self.end_s = 0.0
        self.shown_size: tuple[int, int] | None = None
        self.n_frames = 0

    def add(self, frame: Any, time_s: float) -> Iterator[Segment]:
        """Take the next frame, shown at ``time_s``; one that does not come later than its predecessor is left out."""
        if time_s <= self._last_s:
            return
        self._last_s = time_s
        self.end_s = time_s + _duration_s(frame, self._rate)
        self.shown_size = self.shown_size or _shown_size(frame)
        self.n_frames += 1
        seen, bgr = self._measure(frame, time_s)
        self._undecided.append(seen)
        cuts = {cut.pts for cut in self._detector.process_frame(self._timecode(seen.tick), bgr)}
        if self._scene_number < 0:
            self._open_scene(time_s)
        if cuts or len(self._undecided) > WINDOW_FRAMES + 1:
            yield from self._settle(cuts, keep=WINDOW_FRAMES)

    def finish(self) -> Iterator[Segment]:
        """Close the last scene."""
        yield from self._settle(set(), keep=0)
        if self.n_frames:
            yield from self._close_scene(self.end_s)

    def _measure(self, frame: Any, time_s: float) -> tuple[_Seen, Pixels]:
        import cv2

        small = self._scaler.reformat(
            frame, SMALL_WIDTH, SMALL_HEIGHT, "yuv420p", interpolation="FAST_BILINEAR", threads=1
        )
        luma = _plane(small.planes[0])
        change = 0.0 if self._luma is None else cv2.norm(luma, self._luma, cv2.NORM_L1) / (luma.size * 255.0)
        self._luma = luma
        sharpness = float(cv2.Laplacian(luma, cv2.CV_16S).var())
        seen = _Seen(time_s, round(time_s * _TICKS_PER_S), change, sharpness, frame)
        bgr = self._to_bgr.reformat(small, format="bgr24", threads=1)
        return seen, np.maximum(bgr.to_ndarray().astype(np.uint8, copy=False), np.uint8(BLACK_LEVEL))

    def _timecode(self, tick: int) -> Any:
        from scenedetect.common import FrameTimecode, Timecode

        return FrameTimecode(Timecode(tick, Fraction(1, _TICKS_PER_S)), self._rate)

    def _settle(self, cuts: set[int], keep: int) -> Iterator[Segment]:
        """Give frames, except the last ``keep``, to the scene they belong to."""
        while len(self._undecided) > keep:
            seen = self._undecided.popleft()
            if seen.tick in cuts:
                yield from self._close_scene(seen.time_s)
                self._open_scene(seen.time_s)
            self._part.add(seen, self._side_px)
            if seen.time_s - self._part.start_s >= 2 * self._every_s:
                yield self._emit(self._part.start_s + self._every_s)

    def _open_scene(self, start_s: float) -> None:
        self._scene_number += 1
        self._part = _Part(start_s)

    def _close_scene(self, end_s: float) -> Iterator[Segment]:
        start_s = self._part.start_s
        self._part.flush(self._side_px)
        if end_s - start_s > self._every_s:
            yield self._emit((start_s + end_s) / 2)
        yield self._emit(end_s)

    def _emit(self, end_s: float) -> Segment:
        from PIL import Image

        part = self._part
        keyframe = part.pick(end_s)
        image = Image.fromarray(keyframe.pixels)
        segment = Segment(
            "scene",
            self._ordinal,
            scene_number=self._scene_number,
            start_s=part.start_s,
            end_s=end_s,
            frame_s=keyframe.time_s,
            width_px=image.width,
            height_px=image.height,
            motion_frac=part.motion_frac(end_s),
            keyframe_jpeg=to_jpeg(image),
            thumbnail_jpeg=to_thumbnail(image),
        )
        self._ordinal += 1
        part.advance(end_s)
        return segment


@dataclass(slots=True)
class _Part:
    """The stretch of a scene that is not yet a segment: brightness changes and evenly spaced keyframe candidates.

    Candidates: the sharpest frame of each interval. When there are more than eight, every other one is dropped and
    the interval doubled, so that there always is one near the middle, whatever the length turns out to be.
    """

    start_s: float
    changes: list[tuple[float, float]] = field(default_factory=list)
    candidates: list[_Candidate] = field(default_factory=list)
    spacing_s: float = _FIRST_SPACING_S
    best: _Seen | None = None

    def add(self, seen: _Seen, side_px: int) -> None:
        if self.changes or self.best:  # the first frame's change is the cut itself
            self.changes.append((seen.time_s, seen.change_frac))
        if self.best and self._interval(seen) != self._interval(self.best):
            self.flush(side_px)
        if self.best is None or seen.sharpness > self.best.sharpness:
            self.best = seen

    def _interval(self, seen: _Seen) -> int:
        return int((seen.time_s - self.start_s) / self.spacing_s)

    def flush(self, side_px: int) -> None:
        """Make the best frame of the running interval a candidate."""
        if self.best is None:
            return
        pixels = upright_pixels(self.best.frame, side_px)
        self.candidates.append(_Candidate(self.best.time_s, self.best.sharpness, pixels))
        self.best = None
        if len(self.candidates) > _MAX_CANDIDATES:
            self.candidates = self.candidates[::2]
            self.spacing_s *= 2

    def pick(self, end_s: float) -> _Candidate:
        """Return the sharpest candidate of the middle half of [start, end); where there is none, the one nearest to it."""
        middle, quarter = (self.start_s + end_s) / 2, (end_s - self.start_s) / 4
        central = [c for c in self.candidates if abs(c.time_s - middle) <= quarter]
        if central:
            return max(central, key=lambda c: c.sharpness)
        return min(self.candidates, key=lambda c: abs(c.time_s - middle))

    def motion_frac(self, end_s: float) -> float:
        changes = [change for time_s, change in self.changes if time_s < end_s]
        return float(np.mean(changes)) if changes else 0.0

    def advance(self, start_s: float) -> None:
        """Forget what lies before ``start_s``."""
        self.changes = [pair for pair in self.changes if pair[0] >= start_s]
        self.candidates = [c for c in self.candidates if c.time_s >= start_s]
        self.start_s = start_s


def upright_pixels(frame: Any, side_px: int) -> Pixels:
    """Return a frame as it is shown, RGB (height, width, 3): display matrix applied, scaled to fit."""
    matrix = _display_matrix(frame)
    width, height = _square_size(frame)
    scale = min(1.0, side_px / max(width, height))
    is_untagged_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_LINES
    image = frame.reformat(
        max(1, round(width * scale)),
        max(1, round(height * scale)),
        "rgb24",
        src_colorspace=_BT709 if is_untagged_hd else None,  # what players assume
        interpolation="BICUBIC",
        threads=1,
    )
    return _orient(image.to_ndarray(), matrix)


def _orient(pixels: Pixels, matrix: tuple[int, int, int, int]) -> Pixels:
    """Apply the display matrix (x' = a·x + c·y, y' = b·x + d·y), of which quarter turns and mirrors are obeyed."""
    a, b, c, d = matrix
    is_swapped = abs(b) > abs(a)
    x_sign, y_sign = (c, b) if is_swapped else (a, d)
    turned = pixels.transpose(1, 0, 2) if is_swapped else pixels
    turned = turned[:, ::-1] if x_sign < 0 else turned
    return np.ascontiguousarray(turned[::-1] if y_sign < 0 else turned)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c, d of the frame's display matrix (ISO/IEC 14496-12 §8.3.2); the identity where it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            return a, b, c, d
    return 1, 0, 0, 1


def _shown_size(frame: Any) -> tuple[int, int]:
    width, height = _square_size(frame)
    a, b, _, _ = _display_matrix(frame)
    return (height, width) if abs(b) > abs(a) else (width, height)


def _square_size(frame: Any) -> tuple[int, int]:
    return frame.width, frame.height


def _duration_s(frame: Any, rate: Fraction) -> float:
    duration = getattr(frame, "duration", 0) or 0
    return float(duration * frame.time_base) if 0 < duration * frame.time_base < 60 else float(1 / rate)


def _plane(plane: Any) -> Pixels:
    """Copy one plane of a frame, without the padding at the lines' ends."""
    lines: Pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width].copy()
