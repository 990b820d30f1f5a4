"""What a person asks of the page: fields of a form or an address → a question.

Put here: reading forms. Keep out: answering, and HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import FormData, UploadFile

from mm_assets.errors import ConfigError
from mm_assets.retrieval import Question
from mm_assets.retrieval.filters import Filter, to_condition
from mm_assets.server.describing import FACETS
from mm_assets.server.searching import MAX_PICTURE_BYTES

MAX_FORM_BYTES = 2 * MAX_PICTURE_BYTES + 1_000_000
_ANSWERS = 24
_WORDS = ("text", "said", "shown", "seen", "like")
_NARROWING = ("min_s", "max_s", "group_by", "collapse")


@dataclass(frozen=True)
class Asked:
    """What a form holds, as it was given, to be shown again.

    Attributes
    ----------
    chosen : facet → values
    pictures : image, face → bytes of the file
    """

    text: str = ""
    said: str = ""
    shown: str = ""
    seen: str = ""
    like: str = ""
    min_s: str = ""
    max_s: str = ""
    group_by: str = ""
    collapse: str = ""
    chosen: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict.fromkeys(FACETS, ()))
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def narrowed(self) -> list[tuple[str, str]]:
        """Names and values of all that narrows the answers."""
        single = [(name, getattr(self, name)) for name in _NARROWING]
        return [pair for pair in single if pair[1]] + [
            (n, value) for n, values in self.chosen.items() for value in values
        ]

    @property
    def is_narrowed(self) -> bool:
        """Whether a filter is set."""
        return bool(self.narrowed)

    @property
    def is_question(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.pictures) or any(getattr(self, name).strip() for name in _WORDS)

    def to_question(self, sources: Sequence[str]) -> Question:
        """Return the question within these sources, all when empty; raises ConfigError."""
        filters = [Filter(name, "in", list(values)) for name, values in self.chosen.items() if values]
        filters += [Filter("bucket", "in", list(sources))] if sources else []
        for name, op in (("min_s", ">="), ("max_s", "<=")):
            if getattr(self, name).strip():
                filters.append(Filter("duration_s", op, _number(getattr(self, name))))
        words: dict[str, Any] = {name: getattr(self, name) for name in _WORDS if getattr(self, name).strip()}
        return Question(
            **words,
            **self.pictures,  # type: ignore[arg-type]  # image and face
            where=to_condition(filters),
            k=_ANSWERS,
            group_by="object" if self.group_by else None,
            collapse=bool(self.collapse),
        )


def read_form(values: Any) -> Asked:
    """Read the fields of a form or an address."""
    chosen = {name: tuple(str(value) for value in values.getlist(name)) for name in FACETS}
    single: dict[str, Any] = {name: str(values.get(name, "")) for name in (*_WORDS, *_NARROWING)}
    return Asked(**single, chosen=chosen)


async def read_pictures(form: FormData) -> Asked:
    """Read a form with its pictures; raises HTTPException (413)."""
    asked, pictures = read_form(form), {}
    for name in ("image", "face"):
        file = form.get(name)
        if isinstance(file, UploadFile) and (data := await file.read(MAX_PICTURE_BYTES + 1)):
            if len(data) > MAX_PICTURE_BYTES:
                raise HTTPException(413, f"the picture is larger than {MAX_PICTURE_BYTES:,} bytes; scale it down")
            pictures[name] = data
    return replace(asked, pictures=pictures)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"{text[:40]!r} is no number of seconds"
        raise ConfigError(msg) from None
