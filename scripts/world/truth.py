"""What is true of each object of the collection, and its JSON form.

Put here: the records of truth and their codec.
Keep out: how the truth comes about (frames, films, recordings, documents).
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

GENERATOR_VERSION = 1

MediaKind: TypeAlias = Literal["image", "video", "audio", "document", "other"]
Expectation: TypeAlias = Literal["ok", "dead_letter", "skipped"]
Quality: TypeAlias = Literal["blurred", "dark", "blank", "silent", "frozen"]


@dataclass(frozen=True, slots=True)
class LabelBox:
    """A thing of one of the detector's classes; pixels of the upright frame."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class PersonBox:
    """The face of a named person; pixels of the upright frame."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class SceneTruth:
    """What is seen between two cuts; an image is one scene without times."""

    caption: str
    label_boxes: tuple[LabelBox, ...] = ()
    people: tuple[PersonBox, ...] = ()
    texts: tuple[str, ...] = ()
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class WordTruth:
    """A spoken word and the second at which it begins."""

    word: str
    start_s: float


@dataclass(frozen=True, slots=True)
class SpeechTruth:
    """A spoken sentence; words whose onset is not known are missing from `words`."""

    start_s: float
    end_s: float
    text: str
    words: tuple[WordTruth, ...]


@dataclass(frozen=True, slots=True)
class PageTruth:
    """The lines that are seen on a page, and the text that its file carries ("" for a scan)."""

    page_number: int
    texts: tuple[str, ...]
    embedded_text: str


@dataclass(frozen=True, slots=True)
class MediaObject:
    """One object of the collection; times are in seconds from the start that the container states."""

    key: str
    media_kind: MediaKind
    expect: Expectation = "ok"
    reason: str = ""
    note: str = ""
    width_px: int | None = None
    height_px: int | None = None
    duration_s: float | None = None
    scenes: tuple[SceneTruth, ...] = ()
    cuts_s: tuple[float, ...] = ()
    speech: tuple[SpeechTruth, ...] = ()
    pages: tuple[PageTruth, ...] = ()
    duplicate_of: str | None = None
    near_duplicate_of: str | None = None
    is_outlier: bool = False
    quality: tuple[Quality, ...] = ()
    size_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class CollectionTruth:
    """The truth about a whole collection and how it was made."""

    profile: str
    seed: int
    excluded_sentences_sha256: str | None = None
    generator_version: int = GENERATOR_VERSION
    objects: list[MediaObject] = field(default_factory=list)

    def to_json(self) -> str:
        """Write one object per line, so that a change to one object changes one line; numbers to 1/1000."""
        head = {key: value for key, value in asdict(self).items() if key != "objects"}
        lines = [json.dumps(_rounded(asdict(o)), ensure_ascii=False) for o in self.objects]
        start = json.dumps(head, ensure_ascii=False)[:-1]
        return start + ', "objects": [\n' + ",\n".join(lines) + "\n]}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def read_truth(path: Path) -> CollectionTruth:
    """Read what `CollectionTruth.to_json` wrote."""
    record = json.loads(path.read_text(encoding="utf-8"))
    objects = [_read_object(item) for item in record.pop("objects")]
    return CollectionTruth(**record, objects=objects)


def _read_object(record: dict[str, Any]) -> MediaObject:
    lists = ("scenes", "speech", "pages", "cuts_s", "quality")
    scenes = tuple(_read_scene(scene) for scene in record["scenes"])
    speech = tuple(_read_speech(speech) for speech in record["speech"])
    pages = tuple(PageTruth(**{**page, "texts": tuple(page["texts"])}) for page in record["pages"])
    cuts, quality = tuple(record["cuts_s"]), tuple(record["quality"])
    plain = {key: value for key, value in record.items() if key not in lists}
    return MediaObject(**plain, scenes=scenes, speech=speech, pages=pages, cuts_s=cuts, quality=quality)


def _read_scene(record: dict[str, Any]) -> SceneTruth:
    boxes = tuple(LabelBox(**box) for box in record["label_boxes"])
    people = tuple(PersonBox(**person) for person in record["people"])
    texts = tuple(record["texts"])
    return SceneTruth(**{**record, "label_boxes": boxes, "people": people, "texts": texts})


def _read_speech(record: dict[str, Any]) -> SpeechTruth:
    return SpeechTruth(**{**record, "words": tuple(WordTruth(**word) for word in record["words"])})
