"""``POST /search``: a question in JSON → ranked moments.

Put here: the form of question and answer, and how many questions may wait. Keep out: answering, which ``retrieval``
does, and SQL: filters become a condition in ``retrieval.filters``.

One thread answers, one question after the other: a model already uses all cores, and its libraries do not say that they
may be called from several threads at once.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.flows.workspace import Workspace
from mm_assets.resources.readers import open_retriever
from mm_assets.retrieval import Answer, NothingPublishedError, Question, Retriever
from mm_assets.retrieval.filters import MAX_WORD, OPERATORS, Filter, to_condition
from mm_assets.server.access import Caller, Guard
from mm_assets.server.objects import find_object
from mm_assets.server.reading import Room, promised_bytes, read_body
from mm_assets.settings import Settings

MAX_PICTURE_BYTES = 10_000_000
_MAX_PICTURE_CHARS = 4 * -(-MAX_PICTURE_BYTES // 3)  # in base64
_MAX_BODY_BYTES = 2 * _MAX_PICTURE_CHARS + 1_000_000
READ_WITHIN_S = 60.0
_ANSWER_WITHIN_S = 30.0
_AT_ONCE = 32  # questions that are read, wait or are answered
_DRAWERS = 8
_HELD_BYTES = 4 * _MAX_BODY_BYTES
_OBJECT = ("bucket", "key", "etag", "object_id")


class _Part(BaseModel):
    """A part of a question or an answer; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GivenFilter(_Part):
    """A comparison of a column of `moments` with a value; null passes only is_null."""

    column: str = Field(
        max_length=MAX_WORD,
        description="e.g. media_kind, duration_s, key, modified_at; bucket is the alias of a source",
    )
    op: str = Field(max_length=MAX_WORD, json_schema_extra={"enum": [*OPERATORS]})
    value: Any = Field(None, description="as the column has it; a time as ISO 8601; a list for `in`; none for is_null")


class GivenQuestion(_Part):
    """What to find; everything that is given counts, and moments that several signals name come first."""

    text: str = Field("", description="what is to be seen, or is said or shown in these words or others")
    image: str | None = Field(None, description="a picture in base64 (JPEG, PNG, WebP, GIF, TIFF): what looks like it")
    face: str | None = Field(None, description="a picture in base64: who is on it, its largest face")
    like: str = Field("", description="id of a segment that answers should look like")
    said: str = Field(
        "", description='any of these words are spoken, the more the better; "a phrase" must be; begin* may go on'
    )
    shown: str = Field("", description="words on screen or page, in the same way")
    seen: str = Field("", description="names of detected classes and tags, separated by commas")
    filters: list[GivenFilter] = Field([], max_length=50, description="what an answer must be; all must pass")
    k: int = Field(10, description="answers at most; 1,000 are given at most")
    group_by: Literal["object"] | None = Field(None, description="object: one answer for each object")
    diversify: FiniteFloat = Field(0.0, description="0…1: prefer pictures that differ")
    collapse: bool = Field(False, description="leave out pictures that are near-duplicates of better answers")
    threshold: FiniteFloat = Field(
        -1.0,
        description="cosine from which on pictures, faces and meanings count as alike; look at the signals' scores",
    )
    spaces: list[str] = Field([], description="signals to use, of visual, face, text, words, names; all when empty")
    weights: dict[str, FiniteFloat] = Field({}, description="signal → weight of its ranks, 1 by default, .9 for text")


class FoundObject(_Part):
    """The object version that a moment is in."""

    bucket: str
    key: str
    etag: str
    object_id: str


class FoundSignal(_Part):
    """The place that one signal gave a moment."""

    signal: str
    rank: int
    score: float


class Moment(_Part):
    """One answer."""

    rank: int
    score: float = Field(description="compares within one answer only")
    object: FoundObject
    segment_id: str
    start_s: float | None
    end_s: float | None
    page_number: int | None
    box_px: list[float] | None = Field(description="x0, y0, x1, y1 of a face, a line or what was detected")
    why: str
    snippet: str | None = Field(description="what is said or shown, words that were asked for between **")
    signals: list[FoundSignal]
    link: str | None = Field(description="where the object lies, with the second or the page")
    thumbnail: str = Field(description="path of a small picture on this server; 404 where a segment has none")


class Found(_Part):
    """The answer to a question."""

    notes: list[str] = Field(description="what was done otherwise than asked")
    answers: list[Moment]


def build_search(workspace: Workspace, guard: Guard, desk: "Desk") -> APIRouter:
    """Build the route."""
    router = APIRouter()

    @router.post("/search")
    async def search(request: Request, caller: Annotated[Caller, Depends(guard.requires("search"))]) -> Found:
        """Find moments: what looks like a text or a picture, who is on it, what is said or shown."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "a question is sent as application/json")
        with desk.room.taken(min(_MAX_BODY_BYTES, promised_bytes(request, _MAX_BODY_BYTES))):
            sent = await read_body(request, _MAX_BODY_BYTES, READ_WITHIN_S)
            question = await run_in_threadpool(read_question, workspace, sent, caller)
            return to_found(await desk.ask(question))

    return router


def read_question(workspace: Workspace, body: bytes, caller: Caller) -> Question:
    """Return the question that a caller may ask; raises HTTPException (400, 404)."""
    try:
        given = GivenQuestion.model_validate_json(body)
        check_like(workspace, given.like, caller)
        return _to_question(given, caller)
    except ValidationError as error:
        raise HTTPException(400, "; ".join(_explain(error))) from None
    except ConfigError as error:
        raise HTTPException(400, str(error)) from None


def check_like(workspace: Workspace, segment_id: str, caller: Caller) -> None:
    """Refuse a segment of a source that is not the caller's, as one that nobody knows; raises HTTPException (404)."""
    if not segment_id or not caller.sources:
        return
    try:
        find_object(workspace, segment_id.partition("-")[0], caller)
    except HTTPException:
        raise HTTPException(404, "there is no such segment") from None


def _explain(error: ValidationError) -> list[str]:
    """Return what is wrong, without what was sent."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{'.'.join(map(str, fault['loc']))[:100] or 'body'}: {_tell(fault)}" for fault in faults[:5]]


def _tell(fault: Mapping[str, Any]) -> str:
    if fault["type"] != "extra_forbidden":
        return str(fault["msg"])
    fields = GivenQuestion if len(fault["loc"]) == 1 else GivenFilter
    return f"there is no such field; there are {', '.join(fields.model_fields)}"


def _to_question(given: GivenQuestion, caller: Caller) -> Question:
    filters = [Filter(asked.column, asked.op, asked.value) for asked in given.filters]
    if caller.sources:
        filters.append(Filter("bucket", "in", list(caller.sources)))
    asked = given.model_dump(exclude={"image", "face", "filters", "spaces"})
    image, face = _decode("image", given.image), _decode("face", given.face)
    return Question(**asked, image=image, face=face, where=to_condition(filters), spaces=tuple(given.spaces))


def _decode(name: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    if len(text) > _MAX_PICTURE_CHARS:
        msg = f"{name} is larger than {MAX_PICTURE_BYTES:,} bytes; scale it down"
        raise ConfigError(msg)
    try:
        picture = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        picture = b""
    if not picture:
        msg = f"{name} is no base64; encode the bytes of a picture file"
        raise ConfigError(msg)
    return picture


class Desk:
    """Where questions are asked: it opens search at the first one, and answers them one after the other.

    Attributes
    ----------
    room : for the bodies of questions, however they are sent
    drawers : threads that read the pictures of answers
    """

    def __init__(self, settings: Settings) -> None:
        self.room = Room(_AT_ONCE, _HELD_BYTES)
        self._settings = settings
        self._retriever: Retriever | None = None
        self._thread = ThreadPoolExecutor(1, "search")
        self.drawers = ThreadPoolExecutor(_DRAWERS, "drawers")

    async def ask(self, question: Question) -> Answer:
        """Return the answer.

        Raises
        ------
        HTTPException
            400 where it cannot be asked; 503 while nothing is published.
        ServiceError
            It takes too long, or a store does not answer; a retry may help.
        """
        waiting = self._thread.submit(self._answer, question)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(waiting), _ANSWER_WITHIN_S)
        except TimeoutError:
            msg = f"a question was not answered within {_ANSWER_WITHIN_S:.0f} s"
            raise ServiceError(msg) from None

    def close(self) -> None:
        """Drop what waits; what is being answered is not waited for."""
        for threads in (self._thread, self.drawers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: Question) -> Answer:
        if self._retriever is None:
            self._retriever = open_retriever(self._settings)  # its errors are not the caller's
        try:
            return self._retriever.ask(question)
        except NothingPublishedError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "60"}) from error
        except ConfigError as error:
            raise HTTPException(400, str(error)) from error


def to_found(answer: Answer) -> Found:
    """Give an answer the form that callers read."""
    return Found(notes=list(answer.notes), answers=[_to_moment(row) for row in answer.rows.to_pylist()])


def _to_moment(row: dict[str, Any]) -> Moment:
    values = {name: row[name] for name in Moment.model_fields if name in row}
    found = FoundObject(**{name: row[name] for name in _OBJECT})
    signals = [FoundSignal(**signal) for signal in row["signals"]]
    thumbnail = f"/segments/{row['segment_id']}/thumbnail"
    return Moment(**values | {"signals": signals}, object=found, thumbnail=thumbnail)
