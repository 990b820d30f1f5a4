"""Backblaze B2's deliveries: the signature, the forms its documents and SDK show, and what a stranger may send."""

import json
from typing import Any

import pytest

from mm_assets.events import b2, verification
from mm_assets.events.base import DeliveryRefusedError, Ignored
from mm_assets.events.verification import sign

SECRET = "3XDfkdQte2OgA78qCtSD17LAzpj6ay9H"  # noqa: S105  the one of the SDK
# The payload of b2-sdk-java's B2EventNotificationTest, byte for byte; its HMAC was computed with OpenSSL.
SIGNED_BODY = b"""{
  "events": [
    {
      "accountId": "e85c6a500333",
      "bucketId": "aea8c5bc362ae55070130333",
      "bucketName": "mySampleBucket",
      "eventTimestamp": 1684793309123,
      "eventType": "b2:ObjectCreated:Upload",
      "eventVersion": 1,
      "matchedRuleName": "mySampleRule1",
      "objectName": "objectName.txt",
      "objectSize": 10495842,
      "objectVersionId": "4_zaea8c5bc362ae55070130333_f117c7bd5d6c6597c_d20230521_m235957_c001_v0001044_t0052_u01684713597235"
    }
  ]
}"""
SIGNATURE = "v1=28993e3628e618a3369f277f99c0aeca265824aaea1af9149b72ac83997dbfbd"


def upload(**values: Any) -> dict[str, Any]:
    """Return an event as B2 sent it to Backblaze's own sample receiver."""
    return {
        "accountId": "15f935cf4dcb",
        "bucketId": "21a5bf29a395fc7f84dd0c1b",
        "bucketName": "my-bucket",
        "eventId": "19f154fa574c68f60ea362f8e2a4272a63aefc094889d8985740c93d2710dcbe",
        "eventTimestamp": 1721711606884,
        "eventType": "b2:ObjectCreated:Upload",
        "eventVersion": 1,
        "matchedRuleName": "--autocreated-b2listen-2024-07-22-22-13-20-312502--",
        "objectName": "images/raw/smiley.png",
        "objectSize": 23889,
        "objectVersionId": "4_z21a5bf29a395fc7f84dd0c1b_f102737ab881484be_d20240723_m051326_c004_v0402010_t0003_u01721711606612",
    } | values


def parse(*events: Any, max_batch: int = 50) -> Any:
    """Sign and parse a delivery of these events."""
    body = json.dumps({"events": events}).encode()
    return b2.parse(body, sign(body, SECRET), [SECRET], max_batch=max_batch)


def refused(body: bytes, signature: str | None = None) -> DeliveryRefusedError:
    """Parse what must be refused, signed rightly unless said otherwise."""
    with pytest.raises(DeliveryRefusedError) as caught:
        b2.parse(body, sign(body, SECRET) if signature is None else signature, [SECRET], max_batch=50)
    return caught.value


def test_signature_of_the_sdk_payload_is_accepted() -> None:
    """The HMAC is over the raw body with the secret's own bytes as key."""
    [event] = b2.parse(SIGNED_BODY, SIGNATURE, [SECRET], max_batch=50).events
    assert (event.bucket, event.key, event.kind) == ("mySampleBucket", "objectName.txt", "created")


@pytest.mark.parametrize("header", [f"v1={'0' * 64}, {SIGNATURE}", f"{SIGNATURE},v2=abc", f" {SIGNATURE} "])
def test_any_signature_of_the_header_suffices(header: str) -> None:
    """While a secret changes, B2 sends several signatures, separated by commas."""
    assert b2.parse(SIGNED_BODY, header, [SECRET], max_batch=50).events


def test_any_secret_suffices() -> None:
    """While a secret changes, we know several."""
    assert b2.parse(SIGNED_BODY, SIGNATURE, ["another-secret-of-32-characters-", SECRET], max_batch=50).events


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "v1=",
        SIGNATURE.removeprefix("v1="),
        SIGNATURE.upper(),
        SIGNATURE.replace("v1", "v2"),
        "v1=\xe9",
        "," * 1_000,
    ],
)
def test_wrong_signature_is_refused(signature: str) -> None:
    """A missing, cut, other-version or non-ASCII signature is a 401."""
    error = refused(SIGNED_BODY, signature)
    assert (error.status, error.why) == (401, "unsigned")


def test_changed_body_is_refused() -> None:
    """One changed byte voids the signature."""
    assert refused(SIGNED_BODY.replace(b"objectName.txt", b"objectName.txu"), SIGNATURE).status == 401


def test_no_secret_accepts_nothing() -> None:
    """Without a secret no signature is right, the one of an empty key included."""
    with pytest.raises(DeliveryRefusedError, match="signature"):
        b2.parse(SIGNED_BODY, sign(SIGNED_BODY, ""), [], max_batch=50)


@pytest.mark.parametrize(
    ("kind_name", "kind"),
    [
        ("b2:ObjectCreated:Upload", "created"),
        ("b2:ObjectCreated:MultipartUpload", "created"),
        ("b2:ObjectCreated:Copy", "created"),
        ("b2:ObjectCreated:Replica", "created"),
        ("b2:ObjectDeleted:Delete", "deleted"),
        ("b2:ObjectDeleted:LifecycleRule", "deleted"),
        ("b2:HideMarkerCreated:Hide", "deleted"),
        ("b2:HideMarkerCreated:LifecycleRule", "deleted"),
    ],
)
def test_types_are_read(kind_name: str, kind: str) -> None:
    """Uploads, copies, deletions and hide markers all lead to a look at the key."""
    [event] = parse(upload(eventType=kind_name)).events
    assert (event.bucket, event.key, event.kind) == ("my-bucket", "images/raw/smiley.png", kind)


@pytest.mark.parametrize("size", [None, 0, 23889])
def test_deletion_needs_no_size(size: int | None) -> None:
    """Documents disagree whether a deletion has a size."""
    assert parse(upload(eventType="b2:ObjectDeleted:Delete", objectSize=size)).events


def test_key_is_taken_raw() -> None:
    """B2's names are not encoded: what looks encoded is the name."""
    key = "a+b %25 é//../\n😀"
    assert parse(upload(objectName=key)).events[0].key == key


def test_unknown_type_is_left_out() -> None:
    """B2 adds types; one that is unknown does not cost the others of its batch."""
    delivery = parse(upload(eventType="b2:MultipartUploadCreated:LiveRead"), upload(eventType="b2:New:Thing"), upload())
    assert len(delivery.events) == 1
    assert delivery.ignored == {Ignored.UNKNOWN_TYPE: 2}


def test_repeated_event_has_one_id() -> None:
    """The id is the event's, whatever else a repetition says; another event has another."""
    first, again = parse(upload()).events[0], parse(upload(eventTimestamp=1, objectSize=None)).events[0]
    other = parse(upload(eventId="0" * 64)).events[0]
    assert first.event_id == again.event_id != other.event_id
    assert len(first.event_id) == 64


def test_event_without_id_gets_one() -> None:
    """The SDK's events have no id: version and time tell them apart."""
    plain = upload()
    del plain["eventId"]
    first, again, later = (parse(plain | {"eventTimestamp": at}).events[0].event_id for at in (1, 1, 2))
    assert first == again != later


def event_for_test() -> dict[str, Any]:
    """Return a test event as b2-sdk-java has it: without object and without id."""
    names = ("accountId", "bucketId", "bucketName", "eventTimestamp", "eventVersion", "matchedRuleName")
    return {name: upload()[name] for name in names} | {"eventType": "b2:TestEvent"}


def test_signed_test_event_is_ignored() -> None:
    """A test event is acknowledged and is no data."""
    delivery = parse(event_for_test())
    assert (delivery.events, delivery.ignored) == ((), {Ignored.TEST: 1})


def test_test_event_with_a_wrong_signature_is_acknowledged() -> None:
    """B2's documents disagree on what signs a test event; it is never data, so it is let pass."""
    body = json.dumps({"events": [event_for_test()]}).encode()
    assert b2.parse(body, "v1=bad", [SECRET], max_batch=50).events == ()


@pytest.mark.parametrize(
    "events",
    [[], [upload()], [event_for_test(), upload()], [event_for_test(), upload(eventType="b2:New:Thing")]],
)
def test_only_test_events_pass_with_a_wrong_signature(events: list[Any]) -> None:
    """Nothing else hides behind a test event."""
    assert refused(json.dumps({"events": events}).encode(), "v1=bad").status == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"events": {}}',
        b'{"events": [1]}',
        b'{"events": [{}]}',
        b'{"events": [{"eventType": 1}]}',
        b'{"events": [{"eventType": "b2:ObjectCreated:Upload", "bucketName": "b", "objectName": 7}]}',
        b'{"events": [{"eventType": "b2:ObjectCreated:Upload", "bucketName": null, "objectName": "k"}]}',
        b'{"events": [], "events": []}',
        b'{"events": [}',
        b"\xff\xfe",
        '{"events": []}'.encode("utf-16"),
        b"\xef\xbb\xbf" + b'{"events": []}',
        b'{"events": ' + b"9" * 10_000 + b"}",
        b"[" * 200_000,
        b'{"events":' * 100_000 + b"1" + b"}" * 100_000,
    ],
)
def test_wrong_form_is_refused(body: bytes) -> None:
    """Signed nonsense of any kind, nested however deeply, is a 400."""
    error = refused(body)
    assert (error.status, error.why) == (400, "malformed")


def test_malformed_event_costs_no_other() -> None:
    """One bad record is left out and counted; where all are bad the delivery is refused."""
    delivery = parse(upload(), upload(objectName=1), None)
    assert len(delivery.events) == 1
    assert delivery.ignored == {Ignored.MALFORMED: 2}
    with pytest.raises(DeliveryRefusedError, match="right form"):
        parse(upload(objectName=1), None)


def test_header_of_many_signatures_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few are looked at, of the right length; without one the body is not even hashed."""
    monkeypatch.setattr(verification, "sign", lambda *_: pytest.fail("hashed"))
    for header in ("," * 30_000, "v1=,v1=" + "0" * 63, ",".join(["x"] * 8 + [SIGNATURE])):
        assert not verification.is_signed(SIGNED_BODY, header, [SECRET])


def test_large_unsigned_body_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's megabyte is refused as it is, also where it calls itself a test."""
    test = json.dumps({"events": [{"eventType": "b2:TestEvent"}], "x": "x" * 5_000}).encode()
    monkeypatch.setattr(b2, "read_json", lambda _: pytest.fail("parsed"))
    assert refused(test, "v1=bad").status == 401


@pytest.mark.parametrize("key", ["", "a\x00b", "\ud800", "é" * 2_049])
def test_unusable_key_is_left_out(key: str) -> None:
    """What no ledger and no bucket can hold is counted; the rest of the batch counts, too."""
    delivery = parse(upload(objectName=key), upload())
    assert len(delivery.events) == 1
    assert delivery.ignored == {Ignored.UNUSABLE_KEY: 1}


def test_too_many_events_are_refused() -> None:
    """B2 sends at most fifty at once."""
    assert len(parse(*[upload(eventId=str(n)) for n in range(50)]).events) == 50
    with pytest.raises(DeliveryRefusedError) as caught:
        parse(*[upload()] * 51)
    assert caught.value.status == 413
