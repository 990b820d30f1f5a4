"""Scenes that differ from another in one thing: the hard negatives that a model of captions learns from.

Put here: changes of one colour, shape, size, count, relation or background.
Keep out: which scenes a collection has (scenes) and how often a trainer shows each variant.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from world.shapes import COLOURS, COUNTS, HELD_OUT, INVERSE, RELATIONS, SHAPES, ColouredShape, ShapeScene

_OTHER_SIZE = {"small": "large", "large": "small", "": "small"}


def vary_scene(scene: ShapeScene, rng: np.random.Generator) -> list[ShapeScene]:
    """Give scenes of the same ingredients and another meaning; none has a held-out pair."""
    if scene.kind == "two":
        return list(_vary_two(scene, rng))
    if scene.kind == "one":
        return list(_vary_one(scene, rng))
    return [replace(scene, count=count) for count in COUNTS if count != scene.count]


def swap_shapes(scene: ShapeScene, rng: np.random.Generator) -> list[ShapeScene]:
    """Give up to two scenes in which one shape has become another: shapes are what is learnt last."""
    scenes = []
    for _ in range(2):
        index, shape = int(rng.integers(len(scene.objects))), _pick(SHAPES, rng)
        changed = [*scene.objects]
        changed[index] = (changed[index][0], shape)
        objects = tuple(changed)
        if shape != scene.objects[index][1] and _is_allowed(objects):
            scenes.append(replace(scene, objects=objects))
    return scenes


def _vary_two(scene: ShapeScene, rng: np.random.Generator) -> Iterator[ShapeScene]:
    """Turn the relation round, let the shapes change colours, turn the relation by a right angle."""
    first, second = scene.objects
    yield replace(scene, relation=INVERSE[scene.relation])
    exchanged = ((second[0], first[1]), (first[0], second[1]))
    if first[0] != second[0] and first[1] != second[1] and _is_allowed(exchanged):
        yield replace(scene, objects=exchanged)
    across = [relation for relation in RELATIONS if relation not in (scene.relation, INVERSE[scene.relation])]
    yield replace(scene, relation=_pick(across, rng))


def _vary_one(scene: ShapeScene, rng: np.random.Generator) -> Iterator[ShapeScene]:
    colour, shape = scene.objects[0]
    yield replace(scene, size=_OTHER_SIZE[scene.size])
    other = _pick(SHAPES, rng)
    if other != shape and _is_allowed(((colour, other),)):
        yield replace(scene, objects=((colour, other),))
    background = _pick(tuple(COLOURS), rng)
    if background not in (scene.background, colour):
        yield replace(scene, background=background)


def _is_allowed(objects: tuple[ColouredShape, ...]) -> bool:
    return len(set(objects)) == len(objects) and not HELD_OUT.intersection(objects)


def _pick(options: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
