"""Messages of Cloudflare's queues about R2, in the three forms in which they come."""

import base64
import json
from typing import Any

import pytest

from mm_assets.events import r2
from mm_assets.events.base import DeliveryRefusedError, Ignored


def message(action: str = "PutObject", key: str = "my-new-object", **values: Any) -> dict[str, Any]:
    """Return a message as Cloudflare's documents show it."""
    stored = {"key": key, "size": 65536, "eTag": "c846ff7a18f28c2e262116d6e8719ef0"}
    told = {"account": "3f4b7e3dcab231cbfdaa90a6a28bd548", "action": action, "bucket": "my-bucket", "object": stored}
    return told | {"eventTime": "2024-05-24T19:36:44.379Z"} | values


@pytest.mark.parametrize(
    "body",
    [message(), json.dumps(message()), base64.b64encode(json.dumps(message()).encode()).decode()],
    ids=["object", "text", "base64"],
)
def test_every_form_is_read(body: object) -> None:
    """The content type of the queue decides the form; all three are the same event."""
    [event] = r2.parse(body).events
    assert (event.bucket, event.key, event.kind) == ("my-bucket", "my-new-object", "created")
    assert event.event_id == r2.parse(message()).events[0].event_id


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("CopyObject", "created"),
        ("CompleteMultipartUpload", "created"),
        ("DeleteObject", "deleted"),
        ("LifecycleDeletion", "deleted"),
    ],
)
def test_actions_are_read(action: str, kind: str) -> None:
    """Deletions have neither size nor ETag."""
    told = message(action, object={"key": "k"})
    assert [event.kind for event in r2.parse(told).events] == [kind]


def test_unknown_action_is_left_out() -> None:
    """Cloudflare may add actions."""
    assert r2.parse(message("AbortMultipartUpload")).ignored == {Ignored.UNKNOWN_TYPE: 1}


def test_key_that_reads_two_ways_is_taken_both_ways() -> None:
    """The encoding is not documented: the reading that does not exist finds nothing."""
    events = r2.parse(message(key="a+b%20c")).events
    assert [event.key for event in events] == ["a+b%20c", "a b c"]
    assert events[0].event_id != events[1].event_id


@pytest.mark.parametrize("body", [None, 7, [], "", "no JSON", "bm8gSlNPTg==", "é", {"action": "PutObject"}, "[]"])
def test_poison_is_refused(body: object) -> None:
    """What is no event in any form is an error for whoever pulled it."""
    with pytest.raises(DeliveryRefusedError):
        r2.parse(body)
