"""Tigris' webhooks: the documented form, and the blog's."""

import json
from typing import Any

import pytest

from mm_assets.events import tigris
from mm_assets.events.base import DeliveryRefusedError, Ignored


def documented(name: str = "OBJECT_CREATED_PUT", key: str = "path/to/myfile.txt") -> dict[str, Any]:
    """Return an event of Tigris' documents."""
    stored = {"key": key, "size": 1024, "eTag": "d41d8cd98f00b204e9800998ecf8427e"}
    times = {"eventVersion": "1", "eventSource": "tigris", "eventTime": "2023-05-15T10:30:00.000Z"}
    return times | {"eventName": name, "bucket": "my-bucket", "object": stored}


def parse(*events: Any) -> Any:
    """Parse a delivery of these events."""
    return tigris.parse(json.dumps({"events": events}).encode(), max_batch=50)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("OBJECT_CREATED_PUT", "created"),
        ("OBJECT_CREATED_MULTIPART", "created"),
        ("OBJECT_CREATED_COPY", "created"),
        ("OBJECT_RENAME", "created"),
        ("OBJECT_DELETED", "deleted"),
    ],
)
def test_documented_form_is_read(name: str, kind: str) -> None:
    """Creations, deletions and renames lead to a look at the key."""
    [event] = parse(documented(name)).events
    assert (event.bucket, event.key, event.kind) == ("my-bucket", "path/to/myfile.txt", kind)


def test_flat_form_is_read() -> None:
    """The blog's form has one event and no envelope."""
    body = {"eventType": "OBJECT_CREATED_PUT", "bucket": "my-bucket", "key": "a.jpg", "etag": "x", "size": 1}
    [event] = tigris.parse(json.dumps(body).encode(), max_batch=50).events
    assert (event.bucket, event.key) == ("my-bucket", "a.jpg")


def test_transition_is_left_out() -> None:
    """A change of tier changes no byte."""
    assert parse(documented("OBJECT_TRANSITIONED")).ignored == {Ignored.UNKNOWN_TYPE: 1}


def test_key_that_reads_two_ways_is_taken_both_ways() -> None:
    """The encoding is not documented: the reading that does not exist finds nothing."""
    assert [event.key for event in parse(documented(key="my+file%2B.txt")).events] == ["my+file%2B.txt", "my file+.txt"]
    assert [event.key for event in parse(documented(key="100%FF")).events] == ["100%FF"]


def test_id_is_made_of_what_the_event_says() -> None:
    """There is no id: repetitions agree in all, another write differs in its ETag."""
    first, again = parse(documented()).events[0], parse(documented()).events[0]
    other = documented()
    other["object"]["eTag"] = "another"
    assert first.event_id == again.event_id != parse(other).events[0].event_id


@pytest.mark.parametrize(
    "body", [b"{}", b'{"events": 1}', b'{"events": [{"eventName": "OBJECT_DELETED", "object": 1}]}']
)
def test_wrong_form_is_refused(body: bytes) -> None:
    """What has neither form is a 400."""
    with pytest.raises(DeliveryRefusedError) as caught:
        tigris.parse(body, max_batch=50)
    assert caught.value.status == 400
