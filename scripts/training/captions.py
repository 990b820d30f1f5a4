"""Captions of frames, each with the rule that says which other frames it is true of as well.

Put here: the words that training uses, and exact predicates: without them true pairs would be punished as wrong.
Keep out: frames and their canonical captions (world), batches (pairs).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from world.frames import FrameSpec
from world.shapes import (
    COUNTS,
    INVERSE,
    PLURALS,
    PREAMBLES,
    ColouredShape,
    ShapeScene,
    paraphrase_scene,
    scene_key,
    with_article,
)

Predicate: TypeAlias = Callable[[FrameSpec], bool]
Option = TypeVar("Option")
PERSON_WORDS = ("a person", "a face", "someone")
_PREFIXES = (*PREAMBLES, "", "", "", "")


class Claim(NamedTuple):
    """A caption, and the rule that says of any frame whether the caption is true of it."""

    text: str
    holds: Predicate


def extras_of(spec: FrameSpec) -> tuple[str, ...]:
    """Give what stands beside the shapes: a person, a prop, both or nothing."""
    return ("person",) * (spec.person is not None) + ((spec.prop,) if spec.prop else ())


def full_claim(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    """Draw a caption of the whole scene; the extras are named in about half of the cases."""
    text = paraphrase_scene(spec.scene, rng, lone_background=True)
    has_background = "background" in text
    named: tuple[str, ...] = ()
    if extras_of(spec) and rng.random() < 0.5:
        named = tuple(extra for extra in extras_of(spec) if rng.random() < 0.75)
    if named:
        words = [_pick(PERSON_WORDS, rng) if extra == "person" else f"a {extra}" for extra in named]
        text += _pick((" with ", " and ", " next to "), rng) + " and ".join(words)
    holds = _same_meaning(spec.scene, has_background=has_background)
    return Claim(text, lambda other: holds(other) and set(named) <= set(extras_of(other)))


def _same_meaning(scene: ShapeScene, *, has_background: bool) -> Predicate:
    """Give the rule of a full caption: a lone shape without a size is also seen beside another, all else must match."""
    wanted = scene_key(scene)

    def is_equal(other: FrameSpec) -> bool:
        key = scene_key(other.scene)
        return key == wanted if has_background else key[:-1] == wanted[:-1]

    def is_seen(other: FrameSpec) -> bool:
        is_there = other.scene.kind != "count" and scene.objects[0] in other.scene.objects
        return is_there and (not has_background or other.scene.background == scene.background)

    return is_seen if scene.kind == "one" and not scene.size else is_equal


def partial_claim(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    """Draw a caption of one aspect: a colour, a shape, the background, a count, a relation, somebody there."""
    draw = rng.random()
    for limit, build in _COMMON:
        if draw < limit:
            return _prefixed(build(spec, rng), rng)
    if extras_of(spec) and draw < 0.80:
        return _prefixed(_claim_extra(spec, rng), rng)
    return _prefixed(_BY_KIND[spec.scene.kind](spec, rng), rng)


def _prefixed(claim: Claim, rng: np.random.Generator) -> Claim:
    return Claim(_pick(_PREFIXES, rng) + claim.text, claim.holds)


def _pick(options: Sequence[Option], rng: np.random.Generator) -> Option:
    return options[int(rng.integers(len(options)))]


def _shows(colour: str | None = None, shape: str | None = None) -> Predicate:
    return lambda other: any(
        colour in (None, other_colour) and shape in (None, other_shape)
        for other_colour, other_shape in other.scene.objects
    )


def _claim_colour(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    colour, _ = _pick(spec.scene.objects, rng)
    article = with_article(colour)
    words = (colour, f"something {colour}", f"{article} object", f"{article} shape", f"{colour} things")
    return Claim(_pick(words, rng), _shows(colour))


def _claim_shape(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    _, shape = _pick(spec.scene.objects, rng)
    return Claim(_pick((shape, f"a {shape}", f"the {shape}", PLURALS[shape]), rng), _shows(shape=shape))


def _claim_pair(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    colour, shape = _pick(spec.scene.objects, rng)
    bare = f"{colour} {shape}"
    words = (with_article(bare), bare, f"the {bare}", f"{colour} {PLURALS[shape]}")
    return Claim(_pick(words, rng), _shows(colour, shape))


def _claim_background(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    name = spec.scene.background
    article = with_article(name)
    words = (f"{article} background", f"{name} background", f"on {name}", f"{article} scene")
    return Claim(_pick(words, rng), lambda other: other.scene.background == name)


def _claim_colour_on_background(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    (colour, _), name = _pick(spec.scene.objects, rng), spec.scene.background
    is_shown = _shows(colour)
    return Claim(f"{colour} on {name}", lambda other: other.scene.background == name and is_shown(other))


def _claim_extra(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    extra, (colour, shape) = _pick(extras_of(spec), rng), _pick(spec.scene.objects, rng)
    words = (*PERSON_WORDS, "person", "people") if extra == "person" else (f"a {extra}", extra, f"the {extra}")
    word = _pick(words, rng)
    if rng.random() >= 0.4:
        return Claim(word, lambda other: extra in extras_of(other))
    pair, is_shown = f"{with_article(colour)} {shape}", _shows(colour, shape)
    text = _pick((f"{word} and {pair}", f"{pair} and {word}"), rng)
    return Claim(text, lambda other: extra in extras_of(other) and is_shown(other))


def _claim_size(spec: FrameSpec, _rng: np.random.Generator) -> Claim:
    scene = spec.scene
    colour, shape = scene.objects[0]
    if not scene.size:
        return Claim(f"{with_article(colour)} {shape}", _shows(colour, shape))
    text = f"a {scene.size} {shape}"
    return Claim(text, lambda other: other.scene.size == scene.size and other.scene.objects[0][1] == shape)


def _claim_count(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    count, (_, shape) = spec.scene.count, spec.scene.objects[0]
    if rng.random() < 0.35:
        return Claim(f"{COUNTS[count]} shapes", lambda other: _counts(other.scene, count))
    text = f"{_pick((COUNTS[count], str(count)), rng)} {PLURALS[shape]}"
    return Claim(text, lambda other: _counts(other.scene, count) and other.scene.objects[0][1] == shape)


def _counts(scene: ShapeScene, count: int) -> bool:
    return scene.kind == "count" and scene.count == count


def _claim_two(spec: FrameSpec, rng: np.random.Generator) -> Claim:
    """Name both shapes, both coloured shapes, both colours, or the relation."""
    scene = spec.scene
    is_turned = rng.random() < 0.5
    first, second = scene.objects[::-1] if is_turned else scene.objects
    draw = rng.random()
    if draw < 0.3 and first[1] != second[1]:
        text = _pick((f"a {first[1]} and a {second[1]}", f"{first[1]} and {second[1]}"), rng)
        return Claim(text, _holds_both(lambda pair: pair[1], first, second))
    if draw < 0.5:
        text = f"{with_article(first[0])} {first[1]} and {with_article(second[0])} {second[1]}"
        return Claim(text, _holds_both(" ".join, first, second))
    if draw < 0.6 and first[0] != second[0]:
        return Claim(f"{first[0]} and {second[0]}", _holds_both(lambda pair: pair[0], first, second))
    relation = INVERSE[scene.relation] if is_turned else scene.relation
    return _claim_relation(first, relation, second[1], has_colour=bool(rng.random() < 0.5))


def _holds_both(aspect: Callable[[ColouredShape], str], first: ColouredShape, second: ColouredShape) -> Predicate:
    wanted = sorted((aspect(first), aspect(second)))
    return lambda other: other.scene.kind == "two" and sorted(map(aspect, other.scene.objects)) == wanted


def _claim_relation(first: ColouredShape, relation: str, shape: str, *, has_colour: bool) -> Claim:
    subject = f"{with_article(first[0])} {first[1]}" if has_colour else f"a {first[1]}"

    def holds(other: FrameSpec) -> bool:
        scene = other.scene
        if scene.kind != "two":
            return False
        a, b = scene.objects
        return any(
            direction == relation and end[1] == shape and (start == first if has_colour else start[1] == first[1])
            for start, direction, end in ((a, scene.relation, b), (b, INVERSE[scene.relation], a))
        )

    return Claim(f"{subject} {relation} a {shape}", holds)


_COMMON = (
    (0.16, _claim_colour),
    (0.36, _claim_shape),
    (0.58, _claim_pair),
    (0.66, _claim_background),
    (0.70, _claim_colour_on_background),
)
"""Aspects that every scene has, with the upper ends of their shares."""
_BY_KIND: Mapping[str, Callable[[FrameSpec, np.random.Generator], Claim]] = {
    "one": _claim_size,
    "two": _claim_two,
    "count": _claim_count,
}
