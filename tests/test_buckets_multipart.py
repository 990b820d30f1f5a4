"""Uploads in parts: completion is not trusted, and nothing is left of what failed."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError
from s3_server import Answer, fault_server, make_client, moto_server

from mm_assets.buckets import multipart, traffic
from mm_assets.buckets.base import BreakerOpenError, ObjectNotFoundError
from mm_assets.buckets.retry import Retry
from mm_assets.buckets.s3 import Limits, S3Store
from mm_assets.errors import ConfigError, ServiceError

COMPLETE = "CompleteMultipartUpload"


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """Run an S3 server."""
    with moto_server() as url:
        yield url


@pytest.fixture
def client(server_url: str) -> Any:
    """Return a client of its own, on which answers can be spoilt."""
    return make_client(server_url)


@pytest.fixture
def store(client: Any) -> S3Store:
    """Return a store in a new bucket that sends everything in parts and does not wait."""
    name = f"b{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    ticks = iter(range(10_000))
    retry = Retry(budget_s=50, clock=lambda: next(ticks), sleep=lambda _: None)
    return S3Store(client, name, "lake/", retry=retry, limits=Limits(max_put_bytes=0))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file of three parts."""
    monkeypatch.setattr(multipart, "PART_BYTES", 5 << 20)
    path = tmp_path / "file"
    path.write_bytes(os.urandom((10 << 20) + 1))
    return path


def spoil(client: Any, operation: str, *spoilers: Callable[[dict[str, Any]], None]) -> None:
    """Change the first answers to an operation after the server gave them."""
    waiting = list(spoilers)

    def change(response_dict: dict[str, Any], **_: object) -> None:
        if waiting:
            waiting.pop(0)(response_dict)

    client.meta.events.register(f"before-parse.*.{operation}", change)


def lose(_: dict[str, Any]) -> None:
    """Lose an answer: the server did what it was asked, and nobody knows."""
    raise ConnectionClosedError(endpoint_url="lost")


def say(status: int, body: bytes) -> Callable[[dict[str, Any]], None]:
    """Put another answer into the place of the true one."""
    return lambda answer: answer.update(status_code=status, body=body)


def unfinished(client: Any, store: S3Store) -> list[str]:
    """Return the keys of unfinished uploads."""
    found = client.list_multipart_uploads(Bucket=store._bucket)
    return [upload["Key"] for upload in found.get("Uploads", [])]


AMBIGUOUS = {
    "the answer is lost": lose,
    "an error inside a 200": say(200, b"<Error><Code>InternalError</Code><Message>again</Message></Error>"),
    "no ETag": say(200, b"<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>"),
    "another ETag": say(200, b"<CompleteMultipartUploadResult><ETag>x-3</ETag></CompleteMultipartUploadResult>"),
}


@pytest.mark.fault(24)
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_completions_are_verified(client: Any, store: S3Store, file: Path, name: str) -> None:
    """Whatever the completion answers, HEAD decides: the object is there once, with the ETag that it is known by."""
    spoil(client, COMPLETE, AMBIGUOUS[name])
    etag = store.upload("k", file)
    assert etag == store.head("k").etag
    assert store.read("k") == file.read_bytes()
    assert unfinished(client, store) == []


@pytest.mark.fault(24)
def test_an_unknown_upload_is_not_taken_for_done(client: Any, store: S3Store, file: Path) -> None:
    """Where the upload vanished and an older object of the same size is there, the file is sent again."""
    old = store.put("k", os.urandom(file.stat().st_size))
    vanished = say(404, b"<Error><Code>NoSuchUpload</Code><Message></Message></Error>")
    begun: list[object] = []
    spoil(client, "CreateMultipartUpload", *[begun.append] * 2)
    client.meta.events.register(f"before-send.s3.{COMPLETE}", _abort_first(client, store))
    spoil(client, COMPLETE, vanished)
    assert store.upload("k", file) != old
    assert store.read("k") == file.read_bytes()
    assert len(begun) == 2


def _abort_first(client: Any, store: S3Store) -> Callable[..., None]:
    """Abort the upload just before it is completed, once."""
    waiting = [True]

    def abort(**_: object) -> None:
        if waiting:
            waiting.clear()
            for upload in client.list_multipart_uploads(Bucket=store._bucket)["Uploads"]:
                client.abort_multipart_upload(Bucket=store._bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    return abort


def test_parts_are_tried_again_alone(client: Any, store: S3Store, file: Path) -> None:
    """A part that fails is sent again; the others are not."""
    sent: list[int] = []
    client.meta.events.register("before-send.s3.UploadPart", lambda **_: sent.append(1))
    spoil(client, "UploadPart", say(503, b"<Error><Code>SlowDown</Code></Error>"), lose)
    store.upload("k", file)
    assert store.read("k") == file.read_bytes()
    assert len(sent) == 5


@pytest.mark.fault(25)
def test_failed_uploads_leave_nothing(client: Any, store: S3Store, file: Path) -> None:
    """An upload that cannot be finished is aborted: no object, no parts that somebody pays for."""
    spoil(client, "UploadPart", say(403, b"<Error><Code>AccessDenied</Code><Message></Message></Error>"))
    with pytest.raises(ConfigError, match="AccessDenied"):
        store.upload("k", file)
    assert unfinished(client, store) == []
    with pytest.raises(ObjectNotFoundError):
        store.head("k")


@pytest.mark.fault(25)
def test_uploads_are_aborted_behind_an_open_breaker(
    client: Any, store: S3Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that failed until its breaker opened is asked once more to drop the parts."""
    monkeypatch.setattr(traffic, "OPEN_AFTER", 3)
    monkeypatch.setattr(traffic, "OPEN_AFTER_S", 0.0)
    down = say(503, b"<Error><Code>SlowDown</Code></Error>")
    spoil(client, "UploadPart", *[down] * 1_000)
    with pytest.raises(BreakerOpenError):
        store.upload("k", file)
    assert unfinished(client, store) == []


@pytest.mark.fault(24)
def test_an_upload_that_vanishes_between_its_parts_is_begun_anew(client: Any, store: S3Store, file: Path) -> None:
    """Somebody aborts it while parts are under way: that is no missing object, and the file is sent again."""
    spoil(client, "UploadPart", say(404, b"<Error><Code>NoSuchUpload</Code><Message></Message></Error>"))
    store.upload("k", file)
    assert store.read("k") == file.read_bytes()
    assert unfinished(client, store) == []


@pytest.mark.fault(25)
def test_leftovers_of_kills_are_aborted_by_age(client: Any, store: S3Store) -> None:
    """Unfinished uploads below the prefix go when they are old enough; others are not ours."""
    for key in ("lake/killed", "lake/é b", "elsewhere"):
        client.create_multipart_upload(Bucket=store._bucket, Key=key)
    years = 365 * 86_400.0
    assert store.abort_stale_uploads(50 * years) == 0  # moto dates every upload to November 2010
    assert store.list_page().objects == ()
    assert len(unfinished(client, store)) == 3
    assert store.abort_stale_uploads(10 * years) == 2
    assert unfinished(client, store) == ["elsewhere"]


@pytest.mark.fault(25)
def test_leftovers_of_others_are_never_aborted() -> None:
    """A server that ignores the prefix does not make us abort other people's uploads, or go round in circles."""
    entry = "<Upload><Key>theirs</Key><UploadId>u</UploadId><Initiated>2020-01-01T00:00:00Z</Initiated></Upload>"
    head = "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>theirs</NextKeyMarker>"
    body = f"{head}{entry}</ListMultipartUploadsResult>"
    with fault_server(Answer(body=body.encode())) as server:
        with pytest.raises(ServiceError, match="cannot go on"):
            S3Store(make_client(server.url), "b", "lake/").abort_stale_uploads(0)
        assert not [request for request in server.requests if request.startswith("DELETE")]


@pytest.mark.fault(24)
def test_puts_without_an_etag_are_verified() -> None:
    """A 200 that names no ETag is looked at by HEAD: what is not there was not written."""
    head = {"ETag": '"v1"', "Last-Modified": "Sat, 21 Nov 2026 05:00:00 GMT", "Content-Length": "4"}
    with fault_server(Answer(), Answer(headers=head), Answer(), Answer(headers=head)) as server:
        store = S3Store(make_client(server.url), "b")
        assert store.put("k", b"data") == "v1"
        with pytest.raises(ServiceError, match="another object of 4"):
            store.put("k", b"longer data")


@pytest.mark.fault(24)
def test_a_put_whose_answer_is_lost_is_sent_again(client: Any, store: S3Store) -> None:
    """The same bytes again are the same object."""
    spoil(client, "PutObject", lose)
    etag = store.put("k", b"data")
    assert (store.head("k").etag, store.read("k")) == (etag, b"data")
