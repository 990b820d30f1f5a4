"""Listings of a bucket, from servers that answer oddly; every page comes from a real socket."""

from datetime import UTC, datetime

import pytest
from s3_server import Answer, FaultServer, fault_server, make_client, page

from mm_assets.buckets.listings import to_timestamp
from mm_assets.buckets.retry import Retry
from mm_assets.buckets.s3 import S3Store
from mm_assets.errors import ServiceError


def make_store(server: FaultServer) -> S3Store:
    """Return a store of a bucket on the scripted server that waits for nothing."""
    ticks = iter(range(10_000))
    return S3Store(
        make_client(server.url), "bucket", retry=Retry(budget_s=20, clock=lambda: next(ticks), sleep=lambda _: None)
    )


@pytest.mark.fault(16)
@pytest.mark.parametrize("raw", [b"a%01b\x01", b"a%01b&#x1;", b"a%01b&#01;"])
def test_control_characters_in_listings_are_mended(raw: bytes) -> None:
    """A server that writes a control character raw, where XML has none, is understood all the same."""
    with fault_server(page(b"a", raw, b"z%2F%26+&amp;")) as server:
        assert [o.key for o in make_store(server).list_page().objects] == ["a", "a\x01b\x01", "z/& &"]
    assert len(server.requests) == 1


@pytest.mark.fault(16)
def test_unreadable_entries_are_isolated_stepped_over_and_counted() -> None:
    """Without URL encoding the key cannot be known: the page is halved down to it, and the listing goes on behind."""
    bad, plain = page(b"b\x01", truncated=True, head=b""), page(b"c", head=b"")
    with fault_server(bad, bad, bad, plain) as server:
        found = make_store(server).list_page(limit=4)
    assert ([o.key for o in found.objects], found.next_after, found.skipped) == (["c"], None, ("b\x01",))
    asked = [request.partition("?")[2] for request in server.requests]
    assert ["max-keys=4" in asked[0], "max-keys=2" in asked[1], "max-keys=1" in asked[2]] == [True] * 3
    assert "start-after=b%01" in asked[3]


STUCK = {
    "no key": page(b"\x01", head=b"").body.replace(b"<Key>", b"<K\x01>"),
    "empty page without a token": page(truncated=True).body,
    "the same token again": page(truncated=True, head=b"<NextContinuationToken>t</NextContinuationToken>").body,
    "backwards": page(b"a", truncated=True).body,
    "the same unreadable key again": page(b"b\x01", head=b"").body,
}


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", STUCK)
def test_listings_that_go_nowhere_end(name: str) -> None:
    """A service that never moves on is an error, not an endless loop."""
    with fault_server(Answer(body=STUCK[name])) as server, pytest.raises(ServiceError, match="cannot go on"):
        make_store(server).list_page(after="b", limit=8)


@pytest.mark.fault(16)
def test_tokens_that_come_round_again_end() -> None:
    """Empty pages that lead in a circle are no endless loop, however long the circle is."""
    tokens = (b"t1", b"t2", b"t3", b"t1", b"t2")
    pages = [page(truncated=True, head=b"<NextContinuationToken>%s</NextContinuationToken>" % t) for t in tokens]
    with fault_server(*pages) as server, pytest.raises(ServiceError, match="cannot go on"):
        make_store(server).list_page()
    assert len(server.requests) == 4


@pytest.mark.fault(16)
def test_pages_with_a_key_twice_list_it_once() -> None:
    """An object overwritten while its page was made is listed once, as it was later; the order stays."""
    older = page(b"a", b"b", b"b", b"c")
    first, _, rest = older.body.partition(b"<Key>b</Key>")
    body = first + b"<Key>b</Key>" + rest.replace(b"<ETag>e</ETag>", b"<ETag>old</ETag>", 1)
    with fault_server(Answer(body=body)) as server:
        found = make_store(server).list_page().objects
    assert [(o.key, o.etag) for o in found] == [("a", "e"), ("b", "e"), ("c", "e")]


@pytest.mark.fault(16)
def test_pages_longer_than_asked_are_kept_whole() -> None:
    """A server that sends 1,001 keys loses none of them, and the listing goes on after the last."""
    keys = [b"k%04d" % n for n in range(1_001)]
    with fault_server(page(*keys, truncated=True)) as server:
        found = make_store(server).list_page(limit=5_000)
    assert (len(found.objects), found.next_after) == (1_001, "k1000")
    assert "max-keys=1000" in server.requests[0]


def test_pages_out_of_order_are_put_in_order() -> None:
    """The cursor never goes back, so that nothing is skipped or listed for ever."""
    with fault_server(page(b"c", b"a", b"b", truncated=True)) as server:
        found = make_store(server).list_page()
    assert ([o.key for o in found.objects], found.next_after) == (["a", "b", "c"], "c")


@pytest.mark.parametrize(
    "broken",
    [
        *(b"<Size>x</Size>", b"<Size>100000000000000000000</Size>", b"<Size>-1</Size>", b""),
        *(b"<LastModified>yesterday</LastModified>", b"<LastModified>9e99</LastModified>"),
    ],
    ids=["size", "huge", "negative", "missing", "time", "number"],
)
def test_entries_with_broken_fields_are_stepped_over_and_counted(broken: bytes) -> None:
    """One entry that says nonsense does not stop the listing; it is isolated like one that cannot be parsed."""
    field = b"<LastModified>2026-11-21T05:00:00.000Z</LastModified>" if b"Last" in broken else b"<Size>1</Size>"
    bad = Answer(body=page(b"b", truncated=True).body.replace(field, broken))
    with fault_server(bad, bad, page(b"c")) as server:
        found = make_store(server).list_page(limit=2)
    assert ([o.key for o in found.objects], len(found.skipped)) == (["c"], 1)
    assert "start-after=b" in server.requests[2]


def test_listings_are_read_as_botocore_reads_them() -> None:
    """Entities, encoded keys, namespaces, owners and unknown elements: the same objects as by botocore's own parser."""
    entry = (
        b"<Contents><Owner><ID>x</ID></Owner><StorageClass>STANDARD</StorageClass><Size>7</Size>"
        b"<ETag>&quot;e&#45;1&quot;</ETag><Key>a%2Fb+c&amp;%C3%A9</Key><LastModified>2026-11-21T05:00:00Z</LastModified></Contents>"
    )
    head = b"<EncodingType>url</EncodingType><Name>b</Name>"
    body = page(head=head).body.replace(b"</ListBucketResult>", entry + b"</ListBucketResult>")
    body = body.replace(b"<ListBucketResult>", b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">')
    with fault_server(Answer(body=body)) as server:
        plain = make_client(server.url).list_objects_v2(Bucket="bucket")["Contents"][0]
        (found,) = make_store(server).list_page().objects
    assert (found.key, found.etag, found.size_bytes) == ("a/b c&é", "e-1", 7)
    assert (plain["Key"], plain["ETag"], plain["Size"]) == ("a/b c&é", '"e-1"', 7)
    assert found.modified_at == plain["LastModified"]


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T05:00:00Z",
        "2026-11-21T05:00:00.000Z",
        "2026-11-21T05:00:00.000000Z",
        "20261121T050000Z",
        "Sat, 21 Nov 2026 05:00:00 GMT",
        "2026-11-21T06:00:00+01:00",
        "2026-11-21T05:00:00",
        "2026-11-21 05:00:00.000",
        "1795237200",
    ],
)
def test_timestamps_of_every_form_are_read(text: str) -> None:
    """The fast way for listings and botocore's for the rest give the same moment, with its zone."""
    assert to_timestamp(text) == datetime(2026, 11, 21, 5, tzinfo=UTC)


@pytest.mark.fault(16)
def test_empty_pages_in_the_middle_are_followed() -> None:
    """Hidden versions leave pages without entries; what comes behind them is found."""
    empty = page(truncated=True, head=b"<NextContinuationToken>t1</NextContinuationToken>")
    with fault_server(empty, page(b"x")) as server:
        assert [o.key for o in make_store(server).list_page().objects] == ["x"]
    assert "continuation-token=t1" in server.requests[1]


@pytest.mark.fault(16)
def test_broken_listings_are_not_taken_for_empty() -> None:
    """Half a page, or a proxy's, is never an empty collection."""
    for body in (
        page(b"a").body[:-30],
        b"<html>please log in</html>",
        b"",
        b"<Error><Code>InternalError</Code></Error>",
    ):
        with fault_server(Answer(body=body)) as server, pytest.raises(ServiceError):
            make_store(server).list_page()
