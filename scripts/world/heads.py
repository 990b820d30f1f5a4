"""One look of a person: the drawing of a head, with or without a shirt, and where its landmarks are.

Put here: strokes of the face, the pose that varies between two pictures of the same person.
Keep out: who the person is (people) and where the person stands in a frame (frames).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from world.pen import SUBPIXEL_BITS, SUBPIXELS, Box, Image, Points, bounds_of, to_scalar
from world.people import (
    AFRO,
    BALD,
    FULL_BEARD,
    GOATEE,
    LONG,
    LONG_PARTED,
    MOUSTACHE,
    NONE,
    PARTED,
    SHORT,
    SPIKY,
    SQUARE_GLASSES,
    Identity,
    Vector,
)

GLASSES = ((20, 20, 20), (170, 30, 30), (60, 60, 150))


@dataclass(frozen=True, slots=True)
class Pose:
    """What changes from picture to picture; `yaw` −1…1 moves the inner features sideways."""

    rotation: float = 0.0
    yaw: float = 0.0
    smile: float = 0.0
    is_blinking: bool = False
    has_shirt: bool = True

    @property
    def shift(self) -> float:
        """Give how far the inner features move, in half-widths."""
        return self.yaw * 0.22


class _Brush:
    """Draws in the face's own coordinates: the face is the unit circle, x right, y down."""

    def __init__(self, image: Image, centre: Vector, width: float, height: float, rotation: float) -> None:
        self._image = image
        self._centre = np.array(centre)
        self._radii = np.array([width, height])
        self._rotation = rotation
        cos, sin = np.cos(rotation), np.sin(rotation)
        self._turn = np.array([[cos, sin], [-sin, cos]])

    def place(self, points: npt.ArrayLike) -> Points:
        placed: Points = (np.asarray(points, float) * self._radii) @ self._turn + self._centre
        return placed

    def _place_subpixels(self, points: npt.ArrayLike) -> npt.NDArray[np.int32]:
        return np.round(self.place(points) * SUBPIXELS).astype(np.int32)

    def _thickness(self, fraction: float) -> int:
        return max(1, round(float(self._radii[1]) * fraction))

    def fill(self, points: npt.ArrayLike, colour: npt.ArrayLike) -> None:
        cv2.fillPoly(self._image, [self._place_subpixels(points)], _clip(colour), cv2.LINE_AA, SUBPIXEL_BITS)

    def line(self, points: npt.ArrayLike, colour: npt.ArrayLike, width: float) -> None:
        corners = [self._place_subpixels(points)]
        thickness = self._thickness(width)
        cv2.polylines(self._image, corners, False, _clip(colour), thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    def ellipse(self, centre: Vector, radii: Vector, colour: npt.ArrayLike, width: float | None = None) -> None:
        x, y = self._place_subpixels([centre])[0]
        axes = [max(1, int(r * scale * SUBPIXELS)) for r, scale in zip(radii, self._radii, strict=True)]
        thickness = -1 if width is None else self._thickness(width)
        angle = float(np.degrees(self._rotation))
        cv2.ellipse(
            self._image,
            (int(x), int(y)),
            (axes[0], axes[1]),
            angle,
            0,
            360,
            _clip(colour),
            thickness,
            cv2.LINE_AA,
            SUBPIXEL_BITS,
        )


def _clip(colour: npt.ArrayLike) -> tuple[int, ...]:
    return to_scalar(np.clip(np.asarray(colour), 0, 255))


@dataclass(frozen=True, slots=True)
class Head:
    """Where a drawn head is: the face's box, and the eyes, nose and mouth corners, shape (5, 2), image-left first."""

    box: Box
    landmarks: npt.NDArray[np.float32]


def draw_person(image: Image, who: Identity, x: float, y: float, half_height: float, pose: Pose) -> Head:
    """Draw a person in place; `x`, `y` is the middle of the face."""
    brush = _Brush(image, (x, y), half_height * who.aspect, half_height, pose.rotation)
    outline = _face_outline(who)
    if pose.has_shirt:
        _draw_shirt(brush, who)
    _draw_hair_behind(brush, who)
    _draw_ears(brush, who, pose)
    brush.fill(outline, who.skin)
    _draw_hair_in_front(brush, who, pose, outline)
    eyes = _eye_centres(who, pose)
    _draw_complexion(brush, who, pose, eyes)
    _draw_eyes(brush, who, pose, eyes)
    _draw_brows(brush, who, eyes)
    _draw_nose(brush, who, pose)
    _draw_beard(brush, who, pose, outline)
    _draw_mouth(brush, who, pose)
    _draw_accessories(brush, who, pose, eyes)
    landmarks = brush.place([*eyes, _nose_tip(who, pose), *_mouth_corners(who, pose)])
    return Head(bounds_of(brush.place(outline)), landmarks.astype(np.float32))


def _circle_points() -> tuple[Points, Points]:
    t = np.linspace(0, 2 * np.pi, 60)
    return np.cos(t), np.sin(t)


def _face_outline(who: Identity) -> Points:
    x, y = _circle_points()
    narrowed = x * (1 - (1 - who.jaw) * 0.35 * y**2)
    return np.stack([np.where(y > 0, narrowed, x), y], 1)


def _shade(who: Identity) -> npt.NDArray[np.float64]:
    return np.array(who.skin, float) * 0.72


def _draw_shirt(brush: _Brush, who: Identity) -> None:
    brush.fill([[-0.42, 0.7], [0.42, 0.7], [0.45, 1.25], [-0.45, 1.25]], _shade(who))
    left = [[-1.35, 1.9], [-1.1, 1.3], [-0.45, 1.08]]
    brush.fill([*left, [0.45, 1.08], [1.1, 1.3], [1.35, 1.9]], np.asarray(who.shirt))


def _draw_hair_behind(brush: _Brush, who: Identity) -> None:
    hair = np.array(who.hair, float)
    if who.hair_style in (LONG, LONG_PARTED):
        x, y = _circle_points()
        drop = 0.12 if who.hair_style == LONG else 0.25
        mane = np.stack([1.22 * x * (1 + 0.05 * (y > 0)), 1.12 * y - 0.02], 1)
        brush.fill(mane * [1, 1.0] + [0, drop], hair * 0.9)
    if who.hair_style == AFRO:
        brush.ellipse((0, -0.35), (1.35, 1.0), hair)


def _draw_ears(brush: _Brush, who: Identity, pose: Pose) -> None:
    for side in (-1, 1):
        brush.ellipse((side * 0.98 - pose.shift * 0.3, 0.0), (who.ear, 0.19), np.array(who.skin, float) * 0.93)
        if who.has_earrings:
            brush.ellipse((side * 1.02 - pose.shift * 0.3, 0.24), (0.05, 0.05), (250, 215, 60))


def _draw_hair_in_front(brush: _Brush, who: Identity, pose: Pose, outline: Points) -> None:
    if who.hair_style == BALD:
        return
    if who.hair_style == SPIKY:
        brush.fill(_spikes(), who.hair)
        return
    dx = pose.shift
    top, stretch, fringe = {
        SHORT: (-0.35, [1.04, 1.06], [[0.6, -0.5], [-0.6, -0.55]]),
        LONG: (-0.2, [1.06, 1.08], [[0.5 + dx, -0.62], [-0.1 + dx, -0.45], [-0.7 + dx, -0.6]]),
        PARTED: (-0.2, [1.06, 1.08], [[0.5 + dx, -0.62], [-0.1 + dx, -0.45], [-0.7 + dx, -0.6]]),
        LONG_PARTED: (-0.1, [1.07, 1.08], [[0.75, -0.3], [0.0 + dx, -0.78], [-0.75, -0.3]]),
        AFRO: (-0.45, [1.1, 1.1], [[0.4, -0.55], [-0.4, -0.55]]),
    }[who.hair_style]
    _, y = _circle_points()
    brush.fill(np.concatenate([outline[y <= top] * stretch, fringe]), who.hair)


def _spikes() -> Points:
    angles = np.linspace(-np.pi * 0.93, -np.pi * 0.07, 15)
    radii = np.where(np.arange(15) % 2 == 0, 1.02, 1.3)
    tips = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], 1)
    return np.concatenate([tips, [[0.75, -0.55], [0, -0.5], [-0.75, -0.55]]])


def _eye_centres(who: Identity, pose: Pose) -> tuple[Vector, Vector]:
    return (-who.eye_spread + pose.shift, who.eye_y), (who.eye_spread + pose.shift, who.eye_y)


def _draw_complexion(brush: _Brush, who: Identity, pose: Pose, eyes: tuple[Vector, Vector]) -> None:
    if who.has_red_cheeks:
        blush = np.array(who.skin, float) * 0.8 + np.array([240, 90, 90]) * 0.2
        for x, y in eyes:
            brush.ellipse((x * 1.25, y + 0.38), (0.15, 0.1), blush)
    if who.has_freckles:
        rng = np.random.default_rng(who.freckle_seed)
        for _ in range(10):
            x, y = rng.uniform(-0.55, 0.55), rng.uniform(0.02, 0.3)
            brush.ellipse((x + pose.shift, y), (0.022, 0.018), _shade(who))


def _draw_eyes(brush: _Brush, who: Identity, pose: Pose, eyes: tuple[Vector, Vector]) -> None:
    size = who.eye_size
    for x, y in eyes:
        if pose.is_blinking:
            lid = [(x - size * 1.3, y), (x, y + size * 0.35), (x + size * 1.3, y)]
            brush.line(lid, (40, 25, 20), 0.035)
            continue
        gaze = x + pose.yaw * 0.03
        brush.ellipse((x, y), (size * 1.45, size), (250, 250, 250))
        brush.ellipse((gaze, y), (size * 0.75, size * 0.8), np.asarray(who.eye))
        brush.ellipse((gaze, y), (size * 0.36, size * 0.38), (10, 10, 10))


def _draw_brows(brush: _Brush, who: Identity, eyes: tuple[Vector, Vector]) -> None:
    y = who.eye_y - who.eye_size * 1.55 - 0.06
    colour = np.array(who.hair, float) * 0.8 if who.hair_style != BALD else _shade(who) * 0.7
    for side, (x, _) in zip((-1, 1), eyes, strict=True):
        tilt = side * who.brow_tilt * 0.12
        brush.line([(x - 0.13 * 1.1, y + tilt), (x + 0.13 * 1.1, y - tilt)], colour, who.brow * 1.6)


def _nose_tip(who: Identity, pose: Pose) -> Vector:
    return pose.shift * 1.5, who.eye_y + who.nose_length + 0.1


def _draw_nose(brush: _Brush, who: Identity, pose: Pose) -> None:
    x, y = _nose_tip(who, pose)
    width, skin = who.nose_width, np.array(who.skin, float)
    if who.nose_kind == 0:
        brush.line([(x - width, y), (x, y + 0.05), (x + width, y)], _shade(who), 0.03)
    elif who.nose_kind == 1:
        brush.ellipse((x, y), (width * 1.1, width), skin * 0.85)
    elif who.nose_kind == 2:
        brush.fill([(x - width, y + 0.03), (x, y - 0.2), (x + width, y + 0.03)], skin * 0.86)
    else:
        profile = [(x - width * 0.3, y - 0.2), (x + width * 0.8, y + 0.02), (x - width * 0.5, y + 0.03)]
        brush.line(profile, _shade(who), 0.03)


def _mouth_corners(who: Identity, pose: Pose) -> tuple[Vector, Vector]:
    x, y = pose.shift * 1.1, who.mouth_y - pose.smile * 0.3
    return (x - who.mouth_width, y), (x + who.mouth_width, y)


def _draw_beard(brush: _Brush, who: Identity, pose: Pose, outline: Points) -> None:
    x, y, width = pose.shift * 1.1, who.mouth_y, who.mouth_width
    if who.beard == FULL_BEARD:
        chin = outline[outline[:, 1] > 0.25] * [1.0, 1.02]
        brush.fill(np.concatenate([chin, [[-0.6, 0.22], [0, y + 0.14], [0.6, 0.22]]]), who.hair)
    if who.beard == MOUSTACHE:
        upper = [(x - width * 1.1, y - 0.05), (x, y - 0.13), (x + width * 1.1, y - 0.05)]
        lower = [(x + width * 0.9, y - 0.01), (x, y - 0.06), (x - width * 0.9, y - 0.01)]
        brush.fill([*upper, *lower], who.hair)
    if who.beard == GOATEE:
        tuft = [(x - 0.16, y + 0.16), (x + 0.16, y + 0.16), (x + 0.08, y + 0.42), (x - 0.08, y + 0.42)]
        brush.fill(tuft, who.hair)


def _draw_mouth(brush: _Brush, who: Identity, pose: Pose) -> None:
    a = np.linspace(-1, 1, 11)
    curve_y = who.mouth_y + pose.smile * (1 - a**2) * 1.0 - pose.smile * 0.3
    curve = np.stack([pose.shift * 1.1 + a * who.mouth_width, curve_y], 1)
    if pose.smile > 0.1:
        brush.fill(np.concatenate([curve, curve[::-1] - [0, pose.smile * 0.9]]), (130, 30, 40))
    brush.line(curve, who.lip, who.lip_thickness * 1.5)


def _draw_accessories(brush: _Brush, who: Identity, pose: Pose, eyes: tuple[Vector, Vector]) -> None:
    if who.mole is not None:
        brush.ellipse((who.mole[0] + pose.shift, who.mole[1]), (0.035, 0.03), (60, 35, 25))
    if who.glasses == NONE:
        return
    colour, size = GLASSES[who.glasses], who.eye_size
    for x, y in eyes:
        if who.glasses == SQUARE_GLASSES:
            p = size * 2.1
            left = [(x - p, y - p * 0.8), (x + p, y - p * 0.8)]
            brush.line([*left, (x + p, y + p * 0.8), (x - p, y + p * 0.8), left[0]], colour, 0.04)
        else:
            brush.ellipse((x, y), (size * 2.0, size * 1.8), colour, 0.04)
    (left_x, y), (right_x, _) = eyes
    brush.line([(left_x + size * 2, y), (right_x - size * 2, y)], colour, 0.04)
