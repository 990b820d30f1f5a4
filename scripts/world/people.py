"""Cartoon people: what stays the same in all pictures of one person, and the cast of five named people.

Put here: identities and how they are drawn by lot.
Keep out: the drawing of a head (heads) and where a person stands in a frame (frames).
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from world.pen import Colour

SKINS = (
    (255, 224, 196),
    (241, 194, 160),
    (224, 172, 125),
    (198, 134, 92),
    (141, 85, 54),
    (92, 58, 40),
    (250, 210, 120),
    (150, 200, 140),
    (150, 170, 230),
)
HAIRS = (
    (30, 22, 18),
    (90, 56, 30),
    (160, 100, 40),
    (230, 190, 90),
    (180, 60, 30),
    (150, 150, 155),
    (240, 240, 240),
    (60, 60, 160),
    (200, 60, 160),
    (40, 140, 90),
)
EYES = ((60, 40, 25), (40, 90, 170), (50, 130, 70), (120, 120, 120), (150, 90, 40))
LIPS = ((190, 70, 70), (150, 60, 60), (210, 110, 110), (120, 50, 50))
SHIRTS = (
    (200, 40, 40),
    (40, 90, 200),
    (40, 150, 70),
    (240, 200, 50),
    (130, 60, 170),
    (50, 50, 50),
    (240, 240, 240),
    (240, 130, 40),
)
SHORT, LONG, PARTED, SPIKY, LONG_PARTED, AFRO, BALD = range(7)
FULL_BEARD, MOUSTACHE, GOATEE = range(3)
SQUARE_GLASSES = 1
NONE = -1

Vector: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Identity:
    """What stays the same in all pictures of a person; lengths are fractions of half the face's height or width."""

    skin: npt.NDArray[np.int64]
    hair: npt.NDArray[np.int64]
    eye: Colour
    hair_style: int
    aspect: float
    jaw: float
    eye_spread: float
    eye_size: float
    eye_y: float
    brow: float
    brow_tilt: float
    nose_kind: int
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_y: float
    lip: npt.NDArray[np.int64]
    lip_thickness: float
    glasses: int
    beard: int
    mole: Vector | None
    has_freckles: bool
    ear: float
    has_earrings: bool
    shirt: Colour
    has_red_cheeks: bool
    freckle_seed: int


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draw a person; the order of the draws is part of who the cast is."""
    uniform = rng.uniform

    def pick(n: int) -> int:
        return int(rng.integers(n))

    def tint(palette: tuple[tuple[int, int, int], ...]) -> npt.NDArray[np.int64]:
        return np.clip(np.array(palette[pick(len(palette))]) + rng.integers(-10, 11, 3), 0, 255)

    return Identity(
        skin=tint(SKINS),
        hair=tint(HAIRS),
        eye=EYES[pick(5)],
        hair_style=pick(7),
        aspect=uniform(0.78, 1.02),
        jaw=uniform(0.6, 1.1),
        eye_spread=uniform(0.34, 0.5),
        eye_size=uniform(0.075, 0.13),
        eye_y=uniform(-0.16, -0.02),
        brow=uniform(0.015, 0.05),
        brow_tilt=uniform(-0.25, 0.25),
        nose_kind=pick(4),
        nose_length=uniform(0.16, 0.28),
        nose_width=uniform(0.06, 0.13),
        mouth_width=uniform(0.2, 0.36),
        mouth_y=uniform(0.36, 0.5),
        lip=tint(LIPS),
        lip_thickness=uniform(0.02, 0.055),
        glasses=pick(3) if rng.random() < 0.4 else NONE,
        beard=pick(3) if rng.random() < 0.3 else NONE,
        mole=(uniform(-0.45, 0.45), uniform(0.0, 0.4)) if rng.random() < 0.3 else None,
        has_freckles=bool(rng.random() < 0.2),
        ear=uniform(0.1, 0.2),
        has_earrings=bool(rng.random() < 0.25),
        shirt=SHIRTS[pick(8)],
        has_red_cheeks=bool(rng.random() < 0.3),
        freckle_seed=pick(1 << 30),
    )


CAST_SEEDS = {"Anna": 3, "Ben": 14, "Clara": 25, "David": 36, "Emma": 48}
CAST_NAMES = tuple(CAST_SEEDS)
CAST = tuple(sample_identity(np.random.default_rng(seed)) for seed in CAST_SEEDS.values())
