"""What every provider's events come down to, and how a delivery is refused.

Put here: the event, the delivery, reading JSON and its fields with a typed error for each way they can be wrong.
Keep out: what one provider calls its fields and how it encodes keys, which is that provider's module.

A delivery whose form is wrong is refused whole, with a status for the sender. An event that is of no use (a test, an
unknown type, a key that nothing can hold, a wrong form) is left out and counted: the others of its batch are good.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal
from urllib.parse import unquote_plus

from mm_assets.errors import MmAssetsError

MAX_KEY_BYTES = 4_096  # buckets hold 1,024; folders more

Record = dict[str, Any]
Kind = Literal["created", "deleted"]


class Ignored(StrEnum):
    """Why an event of a right form is of no use; a label of the metric."""

    TEST = "test"
    SUBSCRIPTION = "subscription"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_SOURCE = "unknown_source"
    UNUSABLE_KEY = "unusable_key"
    UNKNOWN_BUCKET = "unknown_bucket"
    NOT_SELECTED = "not_selected"
    OWN_FILES = "own_files"
    MALFORMED = "malformed"
    POISON = "poison"  # a message of a queue that is no event at all


@dataclass(frozen=True, slots=True)
class Event:
    """A provider said that something happened to a key; whether it did, only a HEAD can tell.

    Attributes
    ----------
    event_id : 64 hex digits; the same for every repetition of one event
    key : the whole key in the bucket, decoded as this provider encodes it
    """

    event_id: str
    bucket: str
    key: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request or message brought.

    Attributes
    ----------
    ignored : why → how many events were left out
    """

    events: tuple[Event, ...] = ()
    ignored: Mapping[Ignored, int] = field(default_factory=dict)


class DeliveryRefusedError(MmAssetsError):
    """A delivery is not taken; sending the same once more will not help.

    Parameters
    ----------
    status : HTTP status for the sender, 4xx
    why : one word for the metric: malformed, too_large, too_many, unsigned, unauthorized, content_type, encoding, slow
    message : for the sender; says nothing of ours
    """

    def __init__(self, status: int, why: str, message: str) -> None:
        super().__init__(message)
        self.status, self.why = status, why


class IgnoredEventError(Exception):
    """One event of a right form is of no use; the others of its delivery are."""

    def __init__(self, why: Ignored) -> None:
        super().__init__(why)
        self.why = why


def read_json(body: bytes | str) -> Record:
    """Parse a JSON object: UTF-8 only, no name twice in one object; nested too deeply is malformed like the rest."""
    try:
        text = body.decode("utf-8") if isinstance(body, bytes) else body
        value = json.loads(text, object_pairs_hook=_to_record)
    except (ValueError, RecursionError):
        raise DeliveryRefusedError(400, "malformed", "the body is no JSON object in UTF-8") from None
    return as_record(value)


def _to_record(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        msg = "a name twice in one object has two readings"
        raise ValueError(msg)
    return record


def as_record(value: object) -> Record:
    """Return a JSON object as it is; anything else is malformed."""
    if not isinstance(value, dict):
        raise DeliveryRefusedError(400, "malformed", "an object is expected")
    return value


def part(record: Record, name: str) -> Record:
    """Return an object inside an object."""
    return as_record(record.get(name))


def text(record: Record, name: str) -> str:
    """Return a text that must be there."""
    value = record.get(name)
    if not isinstance(value, str):
        fault = "is no text" if name in record else "is missing"
        raise DeliveryRefusedError(400, "malformed", f"{name} {fault}")
    return value


def plain(record: Record, *names: str) -> tuple[str, ...]:
    """Return values that may be absent, for the making of an id: texts and numbers as text, all else as ''."""
    return tuple(str(value) if isinstance(value := record.get(name), str | int) else "" for name in names)


def kind_of(name: str, kinds: Mapping[str, Kind]) -> Kind:
    """Return the kind whose start a name has; providers add types at any time, so others are left out, not refused."""
    for start, kind in kinds.items():
        if name.startswith(start):
            return kind
    raise IgnoredEventError(Ignored.UNKNOWN_TYPE)


def read_events(records: object, read: Callable[[Record], Iterable[Event]], max_batch: int | None) -> Delivery:
    """Read the records of a delivery one by one.

    Parameters
    ----------
    max_batch : most records of one delivery; None for what was fetched from a queue, which nobody would send again

    Raises
    ------
    DeliveryRefusedError
        413 for more than ``max_batch`` records, 400 for a wrong form of all of them.
    """
    if not isinstance(records, list):
        raise DeliveryRefusedError(400, "malformed", "a list of events is expected")
    if max_batch is not None and len(records) > max_batch:
        raise DeliveryRefusedError(413, "too_many", f"more than {max_batch} events in one delivery")
    events: list[Event] = []
    ignored: Counter[Ignored] = Counter()
    for record in records:
        try:
            events.extend(read(as_record(record)))
        except IgnoredEventError as error:
            ignored[error.why] += 1
        except DeliveryRefusedError:
            if len(records) == 1:
                raise
            ignored[Ignored.MALFORMED] += 1
    if records and ignored[Ignored.MALFORMED] == len(records):
        raise DeliveryRefusedError(400, "malformed", "no event of this delivery has a right form")
    return Delivery(tuple(events), ignored)


def make_event(kind: Kind, bucket: str, key: str, *identity: str) -> Event:
    """Build an event whose id is the hash of bucket, key and ``identity``: what makes a repetition the same event."""
    try:
        raw = key.encode("utf-8")
    except UnicodeEncodeError:
        raise IgnoredEventError(Ignored.UNUSABLE_KEY) from None  # a lone surrogate
    if not 0 < len(raw) <= MAX_KEY_BYTES or b"\x00" in raw:
        raise IgnoredEventError(Ignored.UNUSABLE_KEY)
    return Event(make_id(bucket, key, *identity), bucket, key, kind)


def make_id(*parts: str) -> str:
    """Hash texts, each preceded by its length, to 64 hex digits."""
    digest = hashlib.sha256()
    for item in parts:
        raw = item.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def form_decoded(key: str) -> str:
    """Decode a form-encoded key, once (``+`` is a space)."""
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        raise IgnoredEventError(Ignored.UNUSABLE_KEY) from None


def both_readings(key: str) -> tuple[str, ...]:
    """Return a key as it is and, where that differs, form-decoded: for providers that do not say which it is.

    Each becomes a hint of its own; the HEAD of the one that does not exist finds nothing and changes nothing.
    """
    try:
        decoded = form_decoded(key)
    except IgnoredEventError:
        return (key,)
    return (key,) if decoded == key else (key, decoded)
