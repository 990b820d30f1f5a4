"""Writes whose outcome is unclear, half done, or answered by a store that does not keep to the rules."""

import dataclasses
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from children import Moment, end, ingest, start
from fault_proxy import Fault, Forward, Reply, Request, answer, lose_answer
from rig import Rig, everywhere, once, pairwise

from mm_assets.buckets.multipart import PART_BYTES

CONDITIONS = ("if-match", "if-none-match")


def _strict(status: int, code: str) -> Fault:
    """Refuse every write that carries a condition, whatever it says."""

    def refuse(request: Request, forward: Forward) -> Reply:
        is_conditional = any(name.lower() in CONDITIONS for name in request.headers)
        return answer(status, code)(request, forward) if is_conditional else forward(request)

    return refuse


@pytest.mark.fault(23)
@everywhere
def test_no_write_leans_on_a_condition(rig: Rig) -> None:
    """Stores that ignore If-None-Match (rclone does) would let two writers win: nothing of ours ever sends one."""
    rig.add("picture0.png", "sound.wav", "broken.png")

    rig.settle(rig.open())

    sent = [e for e in rig.proxy.log if any(name.lower() in CONDITIONS for name in e.request.headers)]
    assert sent == []
    assert rig.violations() == []


@pytest.mark.fault(23)
@once
@pytest.mark.parametrize(
    ("status", "code"),
    [(412, "PreconditionFailed"), (501, "NotImplemented"), (409, "ConditionalRequestConflict")],
    ids=["412", "501", "409"],
)
def test_a_store_that_refuses_conditions_is_as_good_as_any(rig: Rig, status: int, code: str) -> None:
    """simulated: Backblaze B2 answers 501, Ceph 412 for the right ETag, Amazon 409 in a race."""
    rig.add("picture0.png")
    rig.proxy.spoil(_strict(status, code))

    rig.settle(rig.open())

    assert rig.violations() == []


@pytest.mark.fault(23)
@pairwise
def test_a_conflict_of_two_writers_is_tried_again(rig: Rig) -> None:
    """409 for a plain write says that another one was under way: the next attempt is alone."""
    rig.add("picture0.png")
    rule = rig.proxy.spoil(answer(409, "ConditionalRequestConflict"), "PutObject", bucket=rig.lake, times=3)

    rig.settle(rig.open())

    assert rule.n_done == 3
    assert rig.violations() == []


@pytest.mark.fault(24)
@everywhere
def test_writes_whose_answers_are_lost_are_repeated_and_made_once(rig: Rig) -> None:
    """The store did it and nobody was told: doing it again changes nothing."""
    rig.add("picture0.png", "sound.wav", "broken.png")
    rule = rig.proxy.spoil(lose_answer, "PutObject", bucket=rig.lake, share=0.3, times=12)

    rig.settle(rig.open())

    assert rule.n_done > 3
    assert rig.violations() == []


def _error_inside(_request: Request, forward: Forward) -> Reply:
    body = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>try again</Message></Error>"
    return Reply(200, {"Content-Type": "application/xml"}, body)


def _without_etag(request: Request, forward: Forward) -> Reply:
    reply = forward(request)
    headers = {name: value for name, value in reply.headers.items() if name.lower() != "etag"}
    return dataclasses.replace(reply, headers=headers, body=re.sub(rb"<ETag>.*?</ETag>", b"<ETag></ETag>", reply.body))


@pytest.mark.fault(24)
@pairwise
@pytest.mark.parametrize(
    "fault", [_error_inside, _without_etag, lose_answer], ids=["error_inside_200", "empty_etag", "answer_lost"]
)
def test_what_completing_an_upload_answers_is_not_trusted(rig: Rig, tmp_path: Path, fault: Fault) -> None:
    """HEAD tells what is there; the ETag that is kept is the one that everybody else sees."""
    store: Any = rig.open().lake.store
    store._limits = dataclasses.replace(store._limits, max_put_bytes=PART_BYTES)
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(range(256)) * ((PART_BYTES + 4_096) // 256))
    rule = rig.proxy.spoil(fault, "CompleteMultipartUpload", times=1)

    etag = store.upload("large.bin", file)

    assert rule.n_done == 1
    found = rig.client.head_object(Bucket=rig.lake, Key="large.bin")
    assert (found["ETag"].strip('"'), found["ContentLength"]) == (etag, file.stat().st_size)
    assert store.read("large.bin") == file.read_bytes()


@pytest.mark.fault(25)
@pairwise
def test_a_kill_within_an_upload_in_parts_shows_nobody_half_of_it(rig: Rig) -> None:
    """Parts are no object; the next run makes the result whole, and old parts are aborted by us."""
    rig.add("picture0.png")
    small_parts = Moment("mm_assets.buckets.multipart:_complete", "before")
    assert end(start(ingest_in_parts, str(rig.place.config_file), small_parts)) == -signal.SIGKILL
    uploads = _unfinished(rig)
    assert uploads
    assert not [name for name in rig.evidence().names if name.startswith("results/segments")]
    workspace = rig.open()
    store: Any = workspace.lake.store

    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    n_old = sum(upload["Initiated"] < hour_ago for upload in uploads)  # moto dates them all to the year 2010
    assert store.abort_stale_uploads(older_than_s=3_600) == n_old
    assert store.abort_stale_uploads(older_than_s=-60) == len(uploads) - n_old
    rig.settle(workspace)

    assert _unfinished(rig) == []
    assert rig.violations() == []


def _unfinished(rig: Rig) -> list[Any]:
    try:
        return list(rig.client.list_multipart_uploads(Bucket=rig.lake).get("Uploads", []))
    except rig.client.exceptions.ClientError:  # how rclone says that there are none
        return []


def ingest_in_parts(config: str, moment: Moment) -> None:
    """Ingest with a store that sends every file in parts."""
    from mm_assets.buckets import s3

    s3.Limits.__init__.__defaults__ = (1_000, 1_024, 30.0)
    ingest(config, moment)
