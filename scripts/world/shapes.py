"""Coloured shapes on a coloured ground: what a scene holds, how it is called, how one shape is drawn.

Put here: the vocabulary of colours, shapes and relations, scenes made of them, and their captions.
Keep out: people, props and text (their own modules) and the placing of shapes in a frame (layout).
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from world.pen import SUBPIXELS, Box, Colour, Image, Points, bounds_of, fill_circle, fill_polygon, stroke_circle

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 90, 220),
    "yellow": (245, 214, 40),
    "orange": (245, 130, 30),
    "purple": (130, 50, 180),
    "pink": (250, 140, 190),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "cyan": (60, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# These pairs were never trained on, so that a test can ask for them.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("blue", "triangle"),
        ("green", "ring"),
        ("yellow", "square"),
        ("purple", "circle"),
        ("pink", "cross"),
        ("orange", "heart"),
        ("cyan", "diamond"),
        ("white", "triangle"),
        ("black", "heart"),
    }
)
PLURALS = {shape: shape + "s" for shape in SHAPES} | {"cross": "crosses"}
COUNTS = {2: "two", 3: "three", 4: "four"}
SIZES = ("small", "large", "")
PREAMBLES = (
    "",
    "",
    "",
    "a picture of ",
    "an image of ",
    "there is ",
    "a scene with ",
    "a photo of ",
    "a video frame with ",
)
SYNONYMS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under"),
}

SceneKind: TypeAlias = Literal["one", "two", "count"]
ColouredShape: TypeAlias = tuple[str, str]
SceneKey: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ShapeScene:
    """One shape, two shapes in a relation, or several equal shapes, on a background."""

    kind: SceneKind
    objects: tuple[ColouredShape, ...]
    background: str
    size: str = ""
    relation: str = ""
    count: int = 1


def sample_scene(rng: np.random.Generator, *, held_out: bool = False) -> ShapeScene:
    """Draw a scene; with `held_out` it has a pair that was never trained on, without it has none."""
    drawn = str(rng.choice(["one", "two", "count"], p=[0.25, 0.6, 0.15]))
    kind: SceneKind = "one" if drawn == "one" else "two" if drawn == "two" else "count"
    while True:
        objects = tuple(_sample_object(rng) for _ in range(2 if kind == "two" else 1))
        if len(objects) != len(set(objects)) or any(o in HELD_OUT for o in objects) != held_out:
            continue
        background = tuple(COLOURS)[rng.integers(len(COLOURS))]
        if all(colour != background for colour, _ in objects):
            break
    if kind == "one":
        return ShapeScene(kind, objects, background, size=SIZES[rng.integers(len(SIZES))])
    if kind == "two":
        return ShapeScene(kind, objects, background, relation=RELATIONS[rng.integers(len(RELATIONS))])
    return ShapeScene(kind, objects, background, count=int(rng.integers(2, 5)))


def _sample_object(rng: np.random.Generator) -> ColouredShape:
    return tuple(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]


def scene_key(scene: ShapeScene) -> SceneKey:
    """Give the scene's meaning: equal for two scenes that no caption tells apart."""
    if scene.kind != "two":
        return (scene.kind, scene.objects[0], scene.size, scene.count, scene.background)
    (first, second), relation = scene.objects, scene.relation
    if relation in ("right of", "below"):
        first, second, relation = second, first, INVERSE[relation]
    return (scene.kind, first, second, relation, scene.background)


def with_article(words: str) -> str:
    """Put "a" or "an" in front of a colour or a size."""
    return f"an {words}" if words.startswith("orange") else f"a {words}"


def describe_scene(scene: ShapeScene, *, with_background: bool | None = None) -> str:
    """Give the canonical caption; None names the background of a lone shape only."""
    text = _describe_objects(scene)
    if with_background or (with_background is None and scene.kind == "one"):
        text += f" on {with_article(scene.background)} background"
    return text


def _describe_objects(scene: ShapeScene) -> str:
    colour, shape = scene.objects[0]
    if scene.kind == "one":
        return with_article(f"{scene.size} {colour} {shape}".strip())
    if scene.kind == "count":
        return f"{COUNTS[scene.count]} {colour} {PLURALS[shape]}"
    first, second = (with_article(" ".join(pair)) for pair in scene.objects)
    return f"{first} {scene.relation} {second}"


def paraphrase_scene(scene: ShapeScene, rng: np.random.Generator, *, lone_background: bool = False) -> str:
    """Give one of the many captions that are true of the scene; `lone_background` names it more often."""
    article = with_article if rng.integers(4) else "the {}".format
    colour, shape = scene.objects[0]
    on_background = rng.integers(2) == 0
    if scene.kind == "one":
        text = article(f"{scene.size} {colour} {shape}".strip())
        on_background = on_background or (lone_background and rng.integers(2) == 0)
    elif scene.kind == "count":
        text = f"{COUNTS[scene.count]} {colour} {PLURALS[shape]}"
    else:
        (first, second), relation = scene.objects, scene.relation
        if rng.integers(2):
            first, second, relation = second, first, INVERSE[relation]
        words = SYNONYMS[relation][rng.integers(len(SYNONYMS[relation]))]
        text = f"{article(' '.join(first))} {words} {article(' '.join(second))}"
    if on_background:
        text += f" on {with_article(scene.background)} background"
    return PREAMBLES[rng.integers(len(PREAMBLES))] + text


def shape_corners(shape: str, x: float, y: float, radius: float, rotation: float) -> Points:
    """Give the corners of any shape but circle and ring, which have none."""
    cos, sin = np.cos(rotation), np.sin(rotation)
    turned: Points = UNIT_CORNERS[shape] @ np.array([[cos, sin], [-sin, cos]])
    return turned * radius + [x, y]


def _unit_star() -> Points:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], 1)


def _unit_cross(half_width: float = 0.33) -> Points:
    w = half_width
    corners = [[-w, -1], [w, -1], [w, -w], [1, -w], [1, w], [w, w]]
    return np.array([*corners, [w, 1], [-w, 1], [-w, w], [-1, w], [-1, -w], [-w, -w]], float)


def _unit_heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 40)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, (y + 1) / 15], 1)


UNIT_CORNERS: dict[str, Points] = {
    "square": np.array([[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]]),
    "triangle": np.array([[0, -1], [0.95, 0.75], [-0.95, 0.75]]),
    "diamond": np.array([[0, -1.1], [0.7, 0], [0, 1.1], [-0.7, 0]]),
    "star": _unit_star(),
    "cross": _unit_cross(),
    "heart": _unit_heart(),
}


def draw_shape(
    image: Image, shape: str, colour: Colour, x: float, y: float, radius: float, rotation: float = 0.0
) -> None:
    """Draw a shape in place."""
    if shape == "circle":
        fill_circle(image, x, y, radius, colour)
    elif shape == "ring":
        stroke_circle(image, x, y, _ring_radius(radius), colour, max(2, int(radius * 0.38)))
    else:
        fill_polygon(image, shape_corners(shape, x, y, radius, rotation), colour)


def _ring_radius(radius: float) -> float:
    # radius * .8 * 16 and radius * (.8 * 16) may differ by one sixteenth: keep the order of the trained drawings.
    return int(radius * 0.8 * SUBPIXELS) / SUBPIXELS


def shape_bounds(shape: str, x: float, y: float, radius: float, rotation: float) -> Box:
    """Give the box of a drawn shape."""
    if shape in ("circle", "ring"):
        reach = radius * (1.0 if shape == "circle" else 0.99)
        return x - reach, y - reach, x + reach, y + reach
    return bounds_of(shape_corners(shape, x, y, radius, rotation))
