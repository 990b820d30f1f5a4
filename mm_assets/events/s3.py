"""S3 notifications: Amazon's own, through SNS, SQS or EventBridge, and those of MinIO and Ceph.

Put here: these envelopes, and how each of them encodes keys. Keep out: fetching from queues.

========================  =====================  =======================================
who                       key                    identity
========================  =====================  =======================================
Amazon (``aws:s3``)       form-encoded           name, time, sequencer, version
MinIO (``minio:s3``)      form-encoded           name, time, sequencer, version
Ceph (``ceph:s3``)        raw                    ``eventId``
EventBridge               raw                    ``id``
========================  =====================  =======================================

A sequencer orders events of one key only, and documents disagree on how; nothing here is ordered.
"""

import logging
import re
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from mm_assets.events.base import (
    Delivery,
    DeliveryRefusedError,
    Event,
    Ignored,
    IgnoredEventError,
    Kind,
    Record,
    form_decoded,
    kind_of,
    make_event,
    part,
    plain,
    read_events,
    read_json,
    text,
)

_LOG = logging.getLogger(__name__)
_SNS_HOST = re.compile(r"sns\.[a-z0-9-]{1,40}\.amazonaws\.com(\.cn)?")
_KINDS: dict[str, Kind] = {
    "ObjectCreated:": "created",
    "ObjectRemoved:": "deleted",
    "LifecycleExpiration:": "deleted",
    "ObjectLifecycle:Expiration:": "deleted",
}
_BRIDGE_KINDS: dict[str, Kind] = {"Object Created": "created", "Object Deleted": "deleted"}
_DECODERS: dict[str, Callable[[str], str]] = {"aws:s3": form_decoded, "minio:s3": form_decoded, "ceph:s3": str}


def parse(body: bytes | str, *, max_batch: int | None) -> Delivery:
    """Read one delivery or, without a ``max_batch``, the body of an SQS message; raises DeliveryRefusedError (400, 413)."""
    document = read_json(body)
    if _is_from_sns(document):
        if document["Type"] != "Notification":
            return _ignore_subscription(document)
        document = read_json(text(document, "Message"))
    return _read_document(document, max_batch)


def _is_from_sns(document: Record) -> bool:
    return isinstance(document.get("Type"), str) and "Message" in document and "TopicArn" in document


def _ignore_subscription(document: Record) -> Delivery:
    """Say how a subscription can be confirmed: a person does that; a URL from outside is never opened here."""
    try:
        url = plain(document, "SubscribeURL")[0]
        host = urlsplit(url).hostname or ""
    except ValueError:
        url, host = "", ""
    kind = document["Type"]
    if _SNS_HOST.fullmatch(host) and url.startswith("https://"):
        _LOG.warning("SNS sent %.40r; not followed. If you asked for it, open its URL: %.1000r", kind, url)
    else:
        _LOG.warning("SNS sent %.40r; not followed. Its URL is not one of SNS, it leads to host %.300r", kind, host)
    return Delivery(ignored={Ignored.SUBSCRIPTION: 1})


def _read_document(document: Record, max_batch: int | None) -> Delivery:
    if "Records" in document:
        return read_events(document["Records"], _read_record, max_batch)
    if document.get("Event") == "s3:TestEvent":
        return Delivery(ignored={Ignored.TEST: 1})
    if "detail-type" in document:
        return read_events([document], _read_bridge_event, max_batch)
    raise DeliveryRefusedError(400, "malformed", "not an event delivery: neither Records, nor a test, nor EventBridge")


def _read_record(record: Record) -> Iterable[Event]:
    decode = _DECODERS.get(text(record, "eventSource"))
    if decode is None:
        raise IgnoredEventError(Ignored.UNKNOWN_SOURCE)
    name = text(record, "eventName").removeprefix("s3:")
    kind = kind_of(name, _KINDS)
    told = part(record, "s3")
    stored = part(told, "object")
    identity = plain(record, "eventId")
    if not identity[0]:
        identity = (name, *plain(record, "eventTime"), *plain(stored, "sequencer", "versionId", "eTag"))
    yield make_event(kind, text(part(told, "bucket"), "name"), decode(text(stored, "key")), "s3", *identity)


def _read_bridge_event(record: Record) -> Iterable[Event]:
    if record.get("source") != "aws.s3":
        raise IgnoredEventError(Ignored.UNKNOWN_SOURCE)
    kind = kind_of(text(record, "detail-type"), _BRIDGE_KINDS)
    detail = part(record, "detail")
    bucket, key = text(part(detail, "bucket"), "name"), text(part(detail, "object"), "key")
    yield make_event(kind, bucket, key, "s3", text(record, "id"))
