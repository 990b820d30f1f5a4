"""Event notifications of Cloudflare R2, as its queues hand them out.

Put here: the body of one message. Keep out: pulling and acknowledging.

The body arrives as an object, as JSON text or as base64 of JSON, by the content type the queue was given. How keys are
encoded is not documented, so both readings are taken. Message ids change with each delivery and identify nothing.
"""

import base64
import binascii
from collections.abc import Iterable

from mm_assets.events.base import (
    Delivery,
    DeliveryRefusedError,
    Event,
    Kind,
    Record,
    as_record,
    both_readings,
    kind_of,
    make_event,
    part,
    plain,
    read_events,
    read_json,
    text,
)

_KINDS: dict[str, Kind] = {
    "PutObject": "created",
    "CopyObject": "created",
    "CompleteMultipartUpload": "created",
    "DeleteObject": "deleted",
    "LifecycleDeletion": "deleted",
}


def parse(body: object) -> Delivery:
    """Read the body of one message; raises DeliveryRefusedError (400)."""
    return read_events([_to_record(body)], _read_event, None)


def _to_record(body: object) -> Record:
    if not isinstance(body, str):
        return as_record(body)
    try:
        return read_json(body)
    except DeliveryRefusedError:
        return read_json(_from_base64(body))


def _from_base64(body: str) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise DeliveryRefusedError(400, "malformed", "neither JSON nor base64 of JSON") from None


def _read_event(record: Record) -> Iterable[Event]:
    action = text(record, "action")
    kind = kind_of(action, _KINDS)
    bucket, stored = text(record, "bucket"), part(record, "object")
    identity = (action, *plain(record, "account", "eventTime"), *plain(stored, "eTag"))
    for key in both_readings(text(stored, "key")):
        yield make_event(kind, bucket, key, "r2", *identity)
