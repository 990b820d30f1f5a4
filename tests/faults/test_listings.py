"""Listings that break, lie or change while they are read."""

import re
from dataclasses import replace

import pytest
from fault_proxy import Fault, Forward, Reply, Request, after, answer, edited
from rig import Rig, alternately, everywhere, once, pairwise

from mm_assets.errors import ServiceError
from mm_assets.flows.discovery import discover

_ENTRY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)


def _twice(body: bytes) -> bytes:
    return _ENTRY.sub(lambda entry: entry[0] + entry[0], body)


def _too_many(body: bytes) -> bytes:
    return _ENTRY.sub(lambda entry: entry[0] * 1_001, body, count=1)


def _not_xml(body: bytes) -> bytes:
    return body[: len(body) // 2] + b"\x00<&"


def _empty(_body: bytes) -> bytes:
    return b""


def _other_page(_body: bytes) -> bytes:
    return b"<html><body>Please log in</body></html>"


def _empty_truncated(token: str) -> bytes:
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true'
        f"</IsTruncated><KeyCount>0</KeyCount><NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>"
    ).encode()


BROKEN: dict[str, Fault] = {
    "status_500": answer(500, "InternalError"),
    "no_xml": edited(_not_xml),
    "nothing": edited(_empty),
    "html": edited(_other_page),
    "keys_twice": edited(_twice),
    "keys_1001": edited(_too_many),
}


@pytest.mark.fault(16)
@alternately("fault", {name: (fault,) for name, fault in BROKEN.items()})
def test_a_broken_page_is_asked_for_again(rig: Rig, fault: Fault) -> None:
    """Whatever comes instead of a page, nothing is lost, doubled or called gone."""
    rig.add("picture0.png", "picture1.png")
    workspace = rig.open()
    discover(workspace, "source")
    rule = rig.proxy.spoil(fault, "ListObjectsV2", bucket=rig.source, times=2)

    rig.settle(workspace)

    assert rule.n_done >= 1
    assert rig.violations() == []
    assert {row["state"] for row in rig.rows("SELECT state FROM objects")} == {"live"}


@pytest.mark.fault(16)
@pairwise
def test_an_empty_page_that_repeats_its_token_ends(rig: Rig) -> None:
    """A listing that leads nowhere is an error of the service, and nothing is called gone because of it."""
    rig.add("picture0.png")
    workspace = rig.open()
    rig.settle(workspace)
    rule = rig.proxy.spoil(_leads_nowhere, "ListObjectsV2", bucket=rig.source)

    with pytest.raises(ServiceError, match="cannot go on"):
        discover(workspace, "source")
    rig.proxy.mend()
    rig.settle(workspace)

    assert rule.n_done < 10
    assert rig.violations() == []


@pytest.mark.fault(16)
@once
def test_an_empty_page_before_the_rest_is_passed(rig: Rig) -> None:
    """Hidden versions leave pages without a key; the listing follows their token."""
    rig.add("picture0.png")
    rule = rig.proxy.spoil(_first_page_is_empty, "ListObjectsV2", bucket=rig.source)
    workspace = rig.open()

    rig.settle(workspace)

    assert rule.n_done >= 2
    assert rig.violations() == []


def _leads_nowhere(_request: Request, _forward: Forward) -> Reply:
    return Reply(200, {"Content-Type": "application/xml"}, _empty_truncated("again"))


def _first_page_is_empty(request: Request, forward: Forward) -> Reply:
    if request.query.get("continuation-token") == "further":
        return forward(replace(request, target=request.target.replace("continuation-token=further", "x=")))
    return Reply(200, {"Content-Type": "application/xml"}, _empty_truncated("further"))


@pytest.mark.fault(17)
@everywhere
def test_an_upload_in_parts_begun_long_ago_is_found(rig: Rig) -> None:
    """Its time of modification may lie before what was listed last: no cursor on times would see it."""
    begun = rig.client.create_multipart_upload(Bucket=rig.source, Key="late.png")
    workspace = rig.open()
    rig.add("picture0.png")
    rig.settle(workspace)
    part = {"Bucket": rig.source, "Key": "late.png", "UploadId": begun["UploadId"]}
    etag = rig.client.upload_part(**part, PartNumber=1, Body=rig.drawn("picture1.png"))["ETag"]
    rig.client.complete_multipart_upload(**part, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})

    assert discover(workspace, "source").n_new == 1
    rig.settle(workspace)

    assert rig.violations() == []


@pytest.mark.fault(17)
@everywhere
def test_objects_behind_the_cursor_are_found_in_the_next_pass(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that appears where the listing has already been is missed once and not twice."""
    monkeypatch.setattr("mm_assets.flows.discovery._PAGE", 2)
    monkeypatch.setattr("mm_assets.flows.discovery._PAGES_AT_ONCE", 1)
    for number in range(4):
        rig.put(f"m{number}.png", rig.drawn(f"picture{number}.png"))
    late = rig.drawn("picture5.png")
    rig.proxy.spoil(after(lambda: rig.put("a.png", late)), "ListObjectsV2", bucket=rig.source, times=1)
    workspace = rig.open()

    assert discover(workspace, "source").n_new == 4
    assert discover(workspace, "source").n_new == 1
    rig.settle(workspace)

    assert rig.violations() == []


@pytest.mark.fault(17)
@pairwise
def test_two_objects_of_the_same_second_are_both_found(rig: Rig) -> None:
    """A second object within one tick of the store's clock is as new as the first."""
    workspace = rig.open()
    rig.put("a.png", rig.drawn("picture0.png"))
    n_first = discover(workspace, "source").n_new
    rig.put("b.png", rig.drawn("picture1.png"))

    assert (n_first, discover(workspace, "source").n_new) == (1, 1)
    rig.settle(workspace)

    assert rig.violations() == []
