"""Event notifications of Backblaze B2 (reference guide, event version 1).

Put here: B2's envelope, names and signature. Keep out: its rules, which ``flows.b2_rules`` watches.

``{"events": [{bucketName, eventId, eventTimestamp, eventType, objectName, objectVersionId, …}]}``; names are raw.
An S3 DELETE without a version id arrives as ``b2:HideMarkerCreated:Hide``. Test events have no object. Types may be
added at any time, so an unknown one is left out, not refused.
"""

import logging
from collections.abc import Iterable, Sequence

from mm_assets.events.base import (
    Delivery,
    DeliveryRefusedError,
    Event,
    Ignored,
    IgnoredEventError,
    Kind,
    Record,
    kind_of,
    make_event,
    plain,
    read_events,
    read_json,
    text,
)
from mm_assets.events.verification import is_signed

SIGNATURE_HEADER = "x-bz-event-notification-signature"
_MAX_TEST_BYTES = 4_096  # no more of what nobody signed is parsed
_LOG = logging.getLogger(__name__)
_KINDS: dict[str, Kind] = {
    "b2:ObjectCreated:": "created",
    "b2:ObjectDeleted:": "deleted",
    "b2:HideMarkerCreated:": "deleted",
}


def parse(body: bytes, signature: str, secrets: Sequence[str], *, max_batch: int) -> Delivery:
    """Verify and read one delivery.

    Parameters
    ----------
    body : as it came; the signature is over these bytes
    signature : the header ``X-Bz-Event-Notification-Signature``, '' where there is none
    secrets : any of them may have signed

    Raises
    ------
    DeliveryRefusedError
        401 for a wrong signature, 400 for a wrong form, 413 for too many events.
    """
    if is_signed(body, signature, secrets):
        return _read(body, max_batch)
    if _is_test(body, max_batch):
        # B2's documents disagree on what signs a test event; refused, the rule could not be set up.
        _LOG.warning("a test event of B2 with a wrong signature was acknowledged and ignored")
        return Delivery(ignored={Ignored.TEST: 1})
    raise DeliveryRefusedError(401, "unsigned", "the signature is missing or wrong")


def _read(body: bytes, max_batch: int) -> Delivery:
    return read_events(read_json(body).get("events"), _read_event, max_batch)


def _is_test(body: bytes, max_batch: int) -> bool:
    if len(body) > _MAX_TEST_BYTES:
        return False
    try:
        delivery = _read(body, max_batch)
    except DeliveryRefusedError:
        return False
    return not delivery.events and set(delivery.ignored) == {Ignored.TEST}


def _read_event(record: Record) -> Iterable[Event]:
    kind_name = text(record, "eventType")
    if kind_name == "b2:TestEvent":
        raise IgnoredEventError(Ignored.TEST)
    kind = kind_of(kind_name, _KINDS)
    identity = plain(record, "eventId")
    if not identity[0]:
        identity = plain(record, "eventType", "eventTimestamp", "objectVersionId")
    yield make_event(kind, text(record, "bucketName"), text(record, "objectName"), "b2", *identity)
