"""S3's notifications through all their channels, each with its own encoding of keys."""

import json
import logging
from typing import Any

import pytest

from mm_assets.events import s3
from mm_assets.events.base import DeliveryRefusedError, Ignored

WINDOW = {"eventVersion": "2.1", "awsRegion": "us-east-1", "eventTime": "2024-01-01T00:00:00.000Z"}


def record(key: str, name: str = "ObjectCreated:Put", source: str = "aws:s3", **values: Any) -> dict[str, Any]:
    """Return a record as Amazon writes it."""
    stored = {"key": key, "size": 1024, "eTag": "d41d8cd9", "sequencer": "0A1B2C3D4E5F678901"}
    told = {"s3SchemaVersion": "1.0", "bucket": {"name": "my-bucket"}, "object": stored}
    return WINDOW | {"eventSource": source, "eventName": name, "s3": told} | values


def parse(document: Any, max_batch: int = 50) -> Any:
    """Parse one document."""
    return s3.parse(json.dumps(document).encode(), max_batch=max_batch)


def keys(document: Any) -> list[str]:
    """Return the keys of the events of a document."""
    return [event.key for event in parse(document).events]


@pytest.mark.parametrize(
    ("wire", "key"),
    [
        ("red+flower.jpg", "red flower.jpg"),
        ("a%2Bb.jpg", "a+b.jpg"),
        ("a%2Fb/c", "a/b/c"),
        ("100%25.txt", "100%.txt"),
        ("a%252Fb", "a%2Fb"),
        ("caf%C3%A9", "café"),
        ("a%0Ab", "a\nb"),
    ],
)
@pytest.mark.parametrize("source", ["aws:s3", "minio:s3"])
def test_form_encoded_keys_are_decoded_once(source: str, wire: str, key: str) -> None:
    """Amazon and MinIO form-encode keys; what is encoded twice stays encoded once."""
    assert keys({"Records": [record(wire, source=source)]}) == [key]


@pytest.mark.parametrize("key", ["photos/my summer+(2024) é%25.jpg", "a+b", "a%2Fb"])
def test_raw_keys_are_not_decoded(key: str) -> None:
    """Ceph and EventBridge send keys as they are; decoding would name another object."""
    assert keys({"Records": [record(key, source="ceph:s3", eventId="1795218120.398688.5d41")]}) == [key]
    assert keys(bridge(key)) == [key]


def bridge(key: str, kind: str = "Object Created", source: str = "aws.s3") -> dict[str, Any]:
    """Return an event as EventBridge sends it."""
    stored = {"key": key, "size": 5, "etag": "b1946ac92492d2347c6235b4d2611184", "sequencer": "617f08299329d189"}
    detail = {"version": "0", "bucket": {"name": "my-bucket"}, "object": stored, "reason": "PutObject"}
    return {"id": "17793124-05d4-b198-2fde-7ededc63b103", "source": source, "detail-type": kind, "detail": detail}


def test_key_that_is_no_text_is_left_out() -> None:
    """Bytes that are no UTF-8 name nothing we can hold."""
    assert parse({"Records": [record("%FF%FE")]}).ignored == {Ignored.UNUSABLE_KEY: 1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ObjectCreated:CompleteMultipartUpload", "created"),
        ("s3:ObjectCreated:Put", "created"),
        ("ObjectRemoved:Delete", "deleted"),
        ("ObjectRemoved:DeleteMarkerCreated", "deleted"),
        ("LifecycleExpiration:Delete", "deleted"),
        ("ObjectLifecycle:Expiration:Current", "deleted"),
    ],
)
def test_types_are_read(name: str, kind: str) -> None:
    """MinIO writes ``s3:`` before them, Amazon does not."""
    assert [event.kind for event in parse({"Records": [record("k", name)]}).events] == [kind]


def test_deletion_needs_no_size_and_no_etag() -> None:
    """Deletions have neither; MinIO's empty objects have no size."""
    plain = record("k", "ObjectRemoved:Delete")
    plain["s3"]["object"] = {"key": "k", "sequencer": "01"}
    assert keys({"Records": [plain]}) == ["k"]


def test_minio_envelope_is_read() -> None:
    """MinIO adds names of its own beside the records, whose key alone is taken."""
    document = {"EventName": "s3:ObjectCreated:Put", "Key": "my-bucket/my summer.jpg"}
    assert keys(document | {"Records": [record("my+summer.jpg", "s3:ObjectCreated:Put", "minio:s3")]}) == [
        "my summer.jpg"
    ]


def test_sns_notification_is_unpacked() -> None:
    """SNS carries the same JSON as a text, once."""
    inner = json.dumps({"Records": [record("red+flower.jpg")]})
    envelope = {"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:r:1:t", "Message": inner}
    assert keys(envelope) == ["red flower.jpg"]
    with pytest.raises(DeliveryRefusedError):
        parse(envelope | {"Message": json.dumps(envelope)})


def test_subscription_is_shown_and_not_followed(caplog: pytest.LogCaptureFixture) -> None:
    """The log tells the host; that no connection is made, the server's tests prove."""
    confirmation = {"Type": "SubscriptionConfirmation", "TopicArn": "arn", "Message": "You have chosen…"}
    with caplog.at_level(logging.WARNING):
        delivery = parse(confirmation | {"SubscribeURL": "http://user:pw@evil.example/?Token=secret"})
    assert (delivery.events, delivery.ignored) == ((), {Ignored.SUBSCRIPTION: 1})
    assert "evil.example" in caplog.text
    assert "secret" not in caplog.text


def test_subscription_of_sns_can_be_confirmed_by_a_person(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the whole address where it is one of SNS."""
    url = "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&TopicArn=arn&Token=2336412f37"
    confirmation = {"Type": "SubscriptionConfirmation", "TopicArn": "arn", "Message": "You have chosen…"}
    for other in (url.replace("https", "http"), url.replace(".com/", ".com.evil.example/")):
        parse(confirmation | {"SubscribeURL": other})
    assert "Token" not in caplog.text
    parse(confirmation | {"SubscribeURL": url})
    assert url in caplog.text


@pytest.mark.parametrize("url", [7, "http://[", ""])
def test_subscription_with_a_wrong_url_is_ignored(url: object) -> None:
    """What is not followed need not be a URL."""
    assert not parse({"Type": "UnsubscribeConfirmation", "TopicArn": "arn", "Message": "", "SubscribeURL": url}).events


def test_test_event_is_ignored() -> None:
    """Amazon sends one when notifications are set up."""
    test = {
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Time": "t",
        "Bucket": "b",
        "RequestId": "r",
        "HostId": "h",
    }
    assert parse(test).ignored == {Ignored.TEST: 1}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"Records": [record("k", "ObjectTagging:Put")]}, Ignored.UNKNOWN_TYPE),
        ({"Records": [record("k", source="other:s3")]}, Ignored.UNKNOWN_SOURCE),
        (bridge("k", "Object Tags Added"), Ignored.UNKNOWN_TYPE),
        (bridge("k", source="com.example"), Ignored.UNKNOWN_SOURCE),
    ],
)
def test_unknown_is_left_out(document: Any, why: Ignored) -> None:
    """No encoding is guessed for a source that is not known."""
    delivery = parse(document)
    assert (delivery.events, delivery.ignored) == ((), {why: 1})


def test_repetition_has_one_id() -> None:
    """Amazon's events have no id: name, time, sequencer and version make one."""
    first, again = (parse({"Records": [record("k")]}).events[0].event_id for _ in range(2))
    later = record("k")
    later["s3"]["object"]["sequencer"] = "0A1B2C3D4E5F678902"
    assert first == again != parse({"Records": [later]}).events[0].event_id


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"Records": 1},
        {"Records": [[]]},
        {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": []}]},
        {"Records": [{"eventSource": "aws:s3"}]},
        {"detail-type": "Object Created", "source": "aws.s3", "id": "1"},
        {"detail-type": 1, "source": "aws.s3"},
        {"Type": "Notification", "TopicArn": "arn", "Message": "no JSON"},
        {"Type": "Notification", "TopicArn": "arn", "Message": 1},
    ],
)
def test_wrong_form_is_refused(document: Any) -> None:
    """What has no form of S3's is a 400."""
    with pytest.raises(DeliveryRefusedError) as caught:
        parse(document)
    assert caught.value.status == 400


def test_too_many_records_are_refused() -> None:
    """The limit holds inside SNS, too."""
    inner = json.dumps({"Records": [record("k")] * 3})
    with pytest.raises(DeliveryRefusedError) as caught:
        parse({"Type": "Notification", "TopicArn": "arn", "Message": inner}, max_batch=2)
    assert caught.value.status == 413
