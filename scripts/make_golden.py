"""Write demo/golden.yaml: queries on the demo media whose right answers follow from the truth about them.

Put here: which questions name their answers beyond doubt, by rules that look at the truth alone.
Keep out: what search answers. No query is put in or left out by its result.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from evaluation.words import words_of
from world.shapes import PLURALS
from world.truth import CollectionTruth, MediaObject, SceneTruth, read_truth

DEMO = Path(__file__).resolve().parents[1] / "demo"
NOTE = """\
# Written by scripts/make_golden.py from truth.json; change the script and run it again.
# After `make demo`: mm evaluate demo/golden.yaml -c demo/out/mm_assets.yaml"""
MARGIN_S = 0.25
"""What begins or ends this near to a cut may be a neighbour that was cut a few frames off; it is not expected."""
WITHIN_S = 0.5
PHRASE = 3
_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}

Query: TypeAlias = dict[str, Any]
Words: TypeAlias = tuple[str, ...]


def make_golden(truth: CollectionTruth) -> str:
    """Return the golden file."""
    objects = [item for item in truth.objects if item.expect == "ok"]
    queries = [*_captions(objects), *_spoken(objects), *_shown(objects), *_near_copies(objects), *_faces(objects)]
    return "\n".join([NOTE, "queries:", *map(_to_yaml, queries)]) + "\n"


def _captions(objects: Sequence[MediaObject]) -> Iterator[Query]:
    """Ask for each scene whose caption is true of no other scene of the collection, a copy of it included."""
    scenes = [(item, scene) for item in objects for scene in item.scenes if scene.caption]
    meanings = [_meaning(scene.caption) for _, scene in scenes]
    for (item, scene), meaning in zip(scenes, meanings, strict=True):
        if _is_once(meaning, meanings, _says_all):
            yield {"text": scene.caption, "expect": [{"object": item.key, **_place(scene)}]}


def _spoken(objects: Sequence[MediaObject]) -> Iterator[Query]:
    """Ask of each object for one phrase that is said nowhere else: the words after the first of an utterance."""
    said = [tuple(words_of(part.text)) for item in objects for part in item.speech]
    for item in objects:
        for part in item.speech:
            phrase = tuple(words_of(" ".join(word.word for word in part.words[1 : 1 + PHRASE])))
            if len(phrase) == PHRASE and _is_once(phrase, said, _has_phrase):
                expected = {"object": item.key, "start_s": part.words[1].start_s, "end_s": part.end_s}
                yield {"said": f'"{" ".join(phrase)}"', "within_s": WITHIN_S, "expect": [expected]}
                break


def _shown(objects: Sequence[MediaObject]) -> Iterator[Query]:
    """Ask of each folder for one phrase that is shown nowhere else: the first words of a line."""
    lines_at = [({"object": item.key, **_place(scene)}, scene.texts) for item in objects for scene in item.scenes]
    lines_at += [
        ({"object": item.key, "page": page.page_number}, page.texts) for item in objects for page in item.pages
    ]
    shown = [tuple(words_of(" ".join(lines))) for _, lines in lines_at]
    asked: set[PurePosixPath] = set()
    for expected, lines in lines_at:
        folder = PurePosixPath(expected["object"]).parent
        phrases = [tuple(words_of(line)[:PHRASE]) for line in lines if folder not in asked]
        phrase = next((p for p in phrases if len(p) == PHRASE and _is_once(p, shown, _has_phrase)), None)
        if phrase:
            asked.add(folder)
            yield {"shown": f'"{" ".join(phrase)}"', "expect": [expected]}


def _near_copies(objects: Sequence[MediaObject]) -> Iterator[Query]:
    """Ask by each near-copy of a picture, which is not to find itself, for the picture."""
    for item in objects:
        if item.near_duplicate_of:
            yield {**_by_picture("image", item.key), "expect": [{"object": item.near_duplicate_of}]}


def _faces(objects: Sequence[MediaObject]) -> Iterator[Query]:
    """Ask by the first picture of each person alone, which is not to find itself, for all scenes with the person."""
    scenes = [(item, scene) for item in objects for scene in item.scenes]
    alone = {
        scene.people[0].name: item.key
        for item, scene in reversed(scenes)
        if item.media_kind == "image" and len(scene.people) == 1
    }
    for name, key in sorted(alone.items()):
        others = [
            {"object": item.key, **_place(scene)}
            for item, scene in scenes
            if item.key != key and name in {person.name for person in scene.people}
        ]
        yield {**_by_picture("face", key), "expect": others}


def _by_picture(kind: str, key: str) -> Query:
    quoted = key.replace("'", "''")
    return {kind: f"media/{key}", "where": f"key <> '{quoted}'"}


def _place(scene: SceneTruth) -> dict[str, float]:
    """Return the time of a scene without its edges; nothing for an image."""
    if scene.start_s is None or scene.end_s is None:
        return {}
    return {"start_s": round(scene.start_s + MARGIN_S, 3), "end_s": round(scene.end_s - MARGIN_S, 3)}


def _is_once(asked: Words, texts: Sequence[Words], holds: Callable[[Words, Words], bool]) -> bool:
    return sum(holds(words, asked) for words in texts) == 1


def _meaning(caption: str) -> Words:
    """Return the words that tell scenes apart: without articles, and stars as star, since two stars are a star, too."""
    return tuple(_SINGULARS.get(word, word) for word in words_of(caption) if word not in {"a", "an"})


def _says_all(meaning: Words, asked: Words) -> bool:
    """Whether a caption says all that is asked, in this order: what is true of a star is true of a large star, too."""
    rest = iter(meaning)
    return all(word in rest for word in asked)


def _has_phrase(words: Words, asked: Words) -> bool:
    return any(words[start : start + len(asked)] == asked for start in range(len(words)))


def _to_yaml(query: Query) -> str:
    """Write a query, with a line for each expected moment."""
    asked = _fields({name: value for name, value in query.items() if name != "expect"})
    moments = [f"  - {{{', '.join(_fields(moment))}}}" for moment in query["expect"]]
    return "  - " + "\n    ".join([*asked, "expect:", *moments])


def _fields(values: Query) -> list[str]:
    """Write names and values; JSON's quotes are YAML's, too."""
    return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


def main() -> None:
    """Write the file."""
    file = DEMO / "golden.yaml"
    file.write_text(make_golden(read_truth(DEMO / "truth.json")), encoding="utf-8")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
