"""Erasing every version of an object, on services that keep them, keep none, or do not say."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rclone_server import rclone_server
from s3_server import Answer, fault_server, make_client, moto_server

from mm_assets.buckets.retry import RetriesExhaustedError, Retry
from mm_assets.buckets.s3 import S3Store
from mm_assets.errors import ServiceError

NO_CONTENT = Answer(204)
HEAD = {"ETag": '"v1"', "Last-Modified": "Sat, 21 Nov 2026 05:00:00 GMT"}
UNVERSIONED = Answer(body=b"<VersioningConfiguration/>")
VERSIONED = Answer(body=b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Run an S3 server that keeps versions; a client of it."""
    with moto_server() as url:
        yield make_client(url)


@pytest.fixture
def store(client: Any) -> S3Store:
    """Return a store in a new bucket with versioning on."""
    name = f"b{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return S3Store(client, name, "lake/")


def all_versions(client: Any, bucket: str) -> list[str]:
    """Return the key of every version and delete marker in a bucket."""
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
    found = [(*page.get("Versions", []), *page.get("DeleteMarkers", [])) for page in pages]
    return sorted(version["Key"] for page in found for version in page)


def error(status: int, code: str) -> Answer:
    """Return a refusal."""
    return Answer(status, f"<Error><Code>{code}</Code><Message></Message></Error>".encode())


def versions(*entries: tuple[str, str], more: str = "") -> Answer:
    """Return a page of versions (key, id); ``more`` is further XML."""
    rows = "".join(f"<Version><Key>{key}</Key><VersionId>{i}</VersionId></Version>" for key, i in entries)
    return Answer(body=f"<ListVersionsResult><KeyMarker/>{more}{rows}</ListVersionsResult>".encode())


def scripted(url: str) -> S3Store:
    """Return a store of a scripted server that waits for nothing."""
    ticks = iter(range(10_000))
    return S3Store(make_client(url), "b", retry=Retry(budget_s=20, clock=lambda: next(ticks), sleep=lambda _: None))


def test_erase_removes_all_versions_of_this_key_alone(client: Any, store: S3Store) -> None:
    """Overwritten, hidden and visible versions go, by id; a delete only hides; keys that start alike stay."""
    for key in ("k", "k", "k2", "k/x"):
        store.put(key, uuid.uuid4().bytes)
    store.delete("k")
    store.put("k", b"again")
    store.delete("k")
    assert all_versions(client, store._bucket).count("lake/k") == 5
    assert store.erase("k")
    assert all_versions(client, store._bucket) == ["lake/k/x", "lake/k2"]
    assert store.erase("k")


@pytest.mark.parametrize("key", ["a b+c%25", "é/🙂", "a&b<c>"])
def test_erase_takes_hostile_keys(client: Any, store: S3Store, key: str) -> None:
    """Keys are compared as they are, whatever the listing's encoding."""
    store.put(key, b"1")
    store.put(key, b"2")
    assert store.erase(key)
    assert all_versions(client, store._bucket) == []


def test_erase_hides_what_no_listing_can_name(client: Any, store: S3Store) -> None:
    """A key that makes the list of versions unreadable is deleted, and not said to be erased."""
    store.put("x\x01y", b"1")
    assert not store.erase("x\x01y")
    assert store.list_page().objects == ()


def test_erase_follows_pages_of_versions() -> None:
    """A key with more versions than fit a page loses all of them; other keys' versions are not touched."""
    more = (
        "<IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v2</NextVersionIdMarker>"
    )
    other = "<IsTruncated>true</IsTruncated><NextKeyMarker>k9</NextKeyMarker>"
    answers = [versions(("k", "v1"), ("k", "v2"), more=more), NO_CONTENT, NO_CONTENT]
    answers += [versions(("k", "v3"), ("k9", "w1"), more=other), NO_CONTENT, Answer(404)]
    with fault_server(*answers) as server:
        assert scripted(server.url).erase("k")
    deleted = [request for request in server.requests if request.startswith("DELETE")]
    assert deleted == [f"DELETE /b/k?versionId=v{n}" for n in (1, 2, 3)]
    assert "version-id-marker=v2" in server.requests[3]


def test_erase_does_not_go_round_in_circles() -> None:
    """A page of versions that names itself as the next one ends as a failing service."""
    more = (
        "<IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker>"
    )
    with fault_server(versions(more=more)) as server, pytest.raises(ServiceError, match="cannot go on"):
        scripted(server.url).erase("k")
    assert len(server.requests) == 2


PLAIN_LISTING = Answer(body=b"<ListBucketResult><IsTruncated>false</IsTruncated><Marker/></ListBucketResult>")
CANNOT_LIST = {"501": error(501, "NotImplemented"), "403": error(403, "AccessDenied"), "plain": PLAIN_LISTING}


@pytest.mark.parametrize("listing", CANNOT_LIST)
@pytest.mark.parametrize(
    ("told", "is_erased"),
    [
        (UNVERSIONED, True),
        (VERSIONED, False),
        (error(501, "NotImplemented"), False),
        (error(403, "AccessDenied"), False),
    ],
    ids=["keeps none", "keeps versions", "does not know", "does not say"],
)
def test_erase_says_when_a_version_may_only_be_hidden(listing: str, told: Answer, is_erased: bool) -> None:
    """Where versions cannot be listed the key is deleted all the same; erased it is only where none are kept."""
    with fault_server(CANNOT_LIST[listing], NO_CONTENT, told) as server:
        assert scripted(server.url).erase("k") is is_erased
    assert [request.split(" ")[0] for request in server.requests] == ["GET", "DELETE", "GET"]
    assert server.requests[1] == "DELETE /b/k"


def test_erase_says_when_a_version_is_locked() -> None:
    """A version that must be kept is hidden, and said to be."""
    with fault_server(versions(("k", "v1")), error(403, "AccessDenied"), NO_CONTENT, VERSIONED) as server:
        assert not scripted(server.url).erase("k")
    assert server.requests[2] == "DELETE /b/k"


LYING = {
    "names none": versions(),
    "leaves + undecoded": versions(("a b", "v1"), more="<EncodingType>url</EncodingType>"),
    "names no id": Answer(body=versions(("a+b", "")).body.replace(b"<VersionId></VersionId>", b"")),
}


@pytest.mark.parametrize("listing", LYING)
@pytest.mark.parametrize("told", [UNVERSIONED, VERSIONED], ids=["keeps none", "keeps versions"])
def test_erase_does_not_trust_a_list_that_leaves_the_object_out(listing: str, told: Answer) -> None:
    """What can still be seen was not erased: it is hidden, and said to be erased only where no versions are kept."""
    is_seen = [Answer(headers=HEAD)] if listing == "names none" else []
    with fault_server(LYING[listing], *is_seen, NO_CONTENT, told) as server:
        assert scripted(server.url).erase("a+b") is (told is UNVERSIONED)
    assert server.requests[-2] == "DELETE /b/a%2Bb"


def test_old_versions_under_an_undecoded_name_are_not_said_to_be_erased() -> None:
    """A key with '+' from a server that leaves it as it is reads as one with a blank: nobody's, and not erased."""
    listing = versions(("a b", "v1"), more="<EncodingType>url</EncodingType>")
    with fault_server(listing, VERSIONED) as server:
        assert not scripted(server.url).erase("a+b", keep_current=True)
    assert [request.split(" ")[0] for request in server.requests] == ["GET", "GET"]


def test_an_absent_list_of_versions_is_no_absent_object() -> None:
    """A 404 to the list of versions is a service that has none: the key is deleted all the same."""
    with fault_server(error(404, "NotFound"), NO_CONTENT, UNVERSIONED) as server:
        assert scripted(server.url).erase("k")
    assert server.requests[1] == "DELETE /b/k"


@pytest.mark.parametrize("body", [b"<html>please log in</html>", b"<ListBucketResult/>", b""])
def test_only_an_answer_about_versioning_proves_that_none_are_kept(body: bytes) -> None:
    """Any other XML names no status either, and proves nothing."""
    with fault_server(error(501, "NotImplemented"), NO_CONTENT, Answer(body=body)) as server:
        assert not scripted(server.url).erase("k")


def test_erase_does_not_take_an_outage_for_an_answer() -> None:
    """A service that fails is an error to try again later, neither erased nor hidden."""
    with fault_server(error(503, "SlowDown")) as server, pytest.raises(RetriesExhaustedError):
        scripted(server.url).erase("k")


def test_erase_on_a_server_without_versions() -> None:
    """A server that lists no versions and says that it keeps none (rclone): a delete erases."""
    with rclone_server() as url:
        client = make_client(url)
        client.create_bucket(Bucket="bucket")
        store = S3Store(client, "bucket", "lake/")
        store.put("k", b"x")
        assert store.erase("k")
        assert store.list_page().objects == ()
        assert store.abort_stale_uploads(0) == 0


@pytest.mark.fault(23)
def test_no_conditional_header_is_ever_sent(client: Any, tmp_path: Path) -> None:
    """No operation relies on conditions, which some services refuse and others ignore."""
    sent: set[str] = set()
    name = f"b{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    own = make_client(client.meta.endpoint_url)
    own.meta.events.register("before-send.s3", lambda request, **_: sent.update(map(str.lower, request.headers)))
    store = S3Store(own, name, "lake/")
    etag = store.put("k", b"data")
    (tmp_path / "file").write_bytes(b"data")
    calls: list[Callable[[], object]] = [
        *(lambda: store.check(writes=True), store.list_page, lambda: store.head("k"), lambda: store.read("k")),
        *(lambda: store.upload("u", tmp_path / "file"), lambda: store.read_range("k", 0, 2, etag=etag)),
        *(lambda: store.download("k", tmp_path / "t", etag=etag), lambda: store.delete("u"), lambda: store.erase("k")),
        lambda: store.abort_stale_uploads(0),
    ]
    for call in calls:
        call()
    assert "content-md5" in sent
    assert not [header for header in sent if header.startswith(("if-", "x-amz-if-", "x-amz-copy-source-if"))]
