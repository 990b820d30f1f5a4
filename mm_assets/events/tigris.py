"""Webhooks of Tigris: the documented form, and the flat one of its blog.

Put here: Tigris' envelope and names. Keep out: its credentials, which ``verification`` compares.

There is no signature and no event id: the id is made of what the event says. How keys are encoded is not documented,
so both readings are taken. ``OBJECT_RENAME`` names one key; the other is found by the listing.
"""

from collections.abc import Iterable

from mm_assets.events.base import (
    Delivery,
    Event,
    Kind,
    Record,
    both_readings,
    kind_of,
    make_event,
    part,
    plain,
    read_events,
    read_json,
    text,
)

_KINDS: dict[str, Kind] = {"OBJECT_CREATED": "created", "OBJECT_RENAME": "created", "OBJECT_DELETED": "deleted"}


def parse(body: bytes, *, max_batch: int) -> Delivery:
    """Read one delivery; raises DeliveryRefusedError (400, 413)."""
    document = read_json(body)
    records = document.get("events", [document])
    return read_events(records, _read_event, max_batch)


def _read_event(record: Record) -> Iterable[Event]:
    is_flat = "object" not in record
    name = text(record, "eventType" if is_flat else "eventName")
    kind = kind_of(name, _KINDS)
    stored = record if is_flat else part(record, "object")
    tag = plain(stored, "etag") if is_flat else plain(stored, "eTag")
    bucket, identity = text(record, "bucket"), (name, *tag, *plain(record, "eventTime", "timestamp"))
    for key in both_readings(text(stored, "key")):
        yield make_event(kind, bucket, key, "tigris", *identity)
