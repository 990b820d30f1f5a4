"""The golden file: questions whose right answers are known, as people write them down in YAML.

Put here: the form of the file, and what is wrong with it in words. Keep out: asking, and judging what comes back.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from mm_assets.errors import ConfigError
from mm_assets.retrieval.questions import Question
from mm_assets.settings_faults import explain_fault

KINDS = ("text", "said", "shown", "seen", "image", "face", "like")  # the parts of a question that can be asked alone
_CONDITIONS = ("where", "group_by", "spaces", "threshold")
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of the file; an unknown name is an error, so that a typing slip is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Expected(_Part):
    """A right answer: a stretch of time, a page, or a whole object.

    Attributes
    ----------
    object : key, or alias/key
    start_s, end_s : seconds from the start of the media
    page : from 1
    """

    object: str = Field(min_length=1)
    start_s: Seconds | None = None
    end_s: Seconds | None = None
    page: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _names_one_place(self) -> "Expected":
        if (self.start_s is None) != (self.end_s is None):
            msg = "start_s and end_s belong together"
            raise ValueError(msg)
        if self.stretch and self.stretch[0] >= self.stretch[1]:
            msg = "end_s must be after start_s"
            raise ValueError(msg)
        if self.stretch and self.page is not None:
            msg = "give a time or a page, not both"
            raise ValueError(msg)
        return self

    @property
    def stretch(self) -> tuple[float, float] | None:
        """Start and end in seconds; None for a page or a whole object."""
        return None if self.start_s is None or self.end_s is None else (self.start_s, self.end_s)


class GoldenQuery(_Part):
    """A question and the answers that are right; fields but the last two are those of ``Question``.

    Attributes
    ----------
    within_s : how far from ``start_s`` a right answer may begin; None where any time in common is enough
    expect : each is right
    """

    text: str = ""
    said: str = ""
    shown: str = ""
    seen: str = ""
    image: Path | None = None
    face: Path | None = None
    like: str = ""
    where: str = ""
    group_by: Literal["object"] | None = None
    spaces: str = ""
    threshold: float | None = None
    within_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    expect: tuple[Expected, ...] = Field(min_length=1)

    @field_validator("image", "face")
    @classmethod
    def _is_beside_the_file(cls, path: Path | None, info: "ValidationInfo[dict[str, Path]]") -> Path | None:
        file = path and info.context["folder"] / path.expanduser()
        if file and not file.is_file():
            msg = f"there is no file {file}"
            raise ValueError(msg)
        return file

    @model_validator(mode="after")
    def _can_be_asked(self) -> "GoldenQuery":
        try:
            self.question(1)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.within_s and not all(expected.stretch for expected in self.expect):
            msg = "within_s compares starts, so each of `expect` needs start_s and end_s"
            raise ValueError(msg)
        return self

    def question(self, k: int) -> Question:
        """Return what is asked, for k answers."""
        return Question(**self._asked(), k=k)

    @property
    def kind(self) -> str:
        """What is asked by: one of ``KINDS``, or several joined by +."""
        return "+".join(name for name in KINDS if getattr(self, name))

    def __str__(self) -> str:
        """Write what is asked on one line; pictures by name."""
        values = {name: value.name if isinstance(value, Path) else value for name, value in self._asked().items()}
        return ", ".join(f"{name}: {value}" for name, value in values.items())

    def _asked(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in (*KINDS, *_CONDITIONS)}
        return {name: value for name, value in values.items() if value not in {None, ""}}


@dataclass(frozen=True)
class Golden:
    """A golden file that was read; queries are counted from 1."""

    file: Path
    queries: tuple[GoldenQuery, ...]

    def require_objects(self, known: Collection[str]) -> None:
        """Raise ConfigError where an expected object is not among the known ones, each as key and as alias/key."""
        expected = ((number, item.object) for number, query in enumerate(self.queries, 1) for item in query.expect)
        faults = [f"query {n}: no object is called {name!r}" for n, name in expected if name not in known]
        _refuse(self.file, faults)


def read_golden(file: Path) -> Golden:
    """Read ``queries: [{text | said | shown | seen | image | face | like, where?, …, within_s?, expect: […]}]``.

    Pictures are found from the file's folder.

    Raises
    ------
    ConfigError
        Names the file, each query that is wrong, and what is wrong with it.
    """
    queries, faults = [], []
    for number, item in enumerate(_read_items(file), 1):
        try:
            queries.append(GoldenQuery.model_validate(item, context={"folder": file.parent}))
        except ValidationError as error:
            faults += [f"query {number}{fault}" for fault in _explain(error)]
    _refuse(file, faults)
    return Golden(file, tuple(queries))


def _read_items(file: Path) -> list[Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        msg = f"{file} cannot be read: {error}"
        raise ConfigError(msg) from error
    items = content.get("queries") if isinstance(content, dict) and content.keys() == {"queries"} else None
    if not items or not isinstance(items, list):
        msg = (
            f"{file} must hold `queries:` and below it a list of one query at least; docs/evaluation.md shows the form"
        )
        raise ConfigError(msg)
    return items


def _explain(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        place = "".join(f" {part + 1}" if isinstance(part, int) else f", {part}" for part in fault["loc"])
        yield f"{place}: {explain_fault(fault, GoldenQuery, 'field')}"


def _refuse(file: Path, faults: list[str]) -> None:
    if faults:
        raise ConfigError(f"{file} is wrong:\n" + "\n".join(f"  {fault}" for fault in faults))
