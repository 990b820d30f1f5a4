"""How a bucket's store bears a service that fails; every fault comes from a real socket."""

import dataclasses
import random
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from s3_server import Answer, FaultServer, fault_server, make_client, page

from mm_assets.buckets.base import ObjectChangedError, ObjectNotFoundError
from mm_assets.buckets.retry import RetriesExhaustedError, Retry, TransientError, parse_retry_after
from mm_assets.buckets.s3 import S3Store
from mm_assets.errors import ConfigError, ObjectError, ServiceError

HEADERS = {"ETag": '"v1"', "Last-Modified": "Sat, 21 Nov 2026 05:00:00 GMT"}
DATA = bytes(range(256)) * 40_000  # 10 MB: more than the sockets' buffers hold
WRITTEN = Answer(headers=HEADERS)
OK = Answer(body=b"data", headers=HEADERS)
SLOW_DOWN = Answer(503, b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>")


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Move on."""
        self.waits.append(seconds)
        self.now += seconds

    def retry(self, **changes: Any) -> Retry:
        """Return a Retry that lives in this time and always draws the longest wait."""
        return Retry(clock=lambda: self.now, sleep=self.sleep, draw=lambda _, high: high, **changes)


def make_store(server: FaultServer, time: Time | None = None) -> S3Store:
    """Return a store of a bucket on the failing server."""
    return S3Store(make_client(server.url), "bucket", retry=(time or Time()).retry())


def fault(status: int, code: str, message: str = "") -> Answer:
    """Return an answer as S3 words it."""
    return Answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())


@pytest.mark.fault(6)
def test_retry_waits_as_long_as_the_server_asks() -> None:
    """Retry-After is a lower bound, in seconds or as a date; without it the jitter's bound doubles."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    asked = [{"Retry-After": "7"}, {"Retry-After": later}, {}, {"Retry-After": "soon"}]
    time = Time()
    with fault_server(*(dataclasses.replace(SLOW_DOWN, headers=h) for h in asked), OK) as server:
        assert make_store(server, time).read("k") == b"data"
    assert time.waits[0] == 7
    assert 35 < time.waits[1] <= 40
    assert time.waits[2:] == [2.0, 4.0]
    assert len(server.requests) == 5


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    "answer",
    [
        *(SLOW_DOWN, Answer(429), Answer(500, b"<html>x</html>"), Answer(502), Answer(504)),
        *(fault(500, "InternalError"), fault(400, "RequestTimeout"), fault(408, "RequestTimeout")),
        *(fault(409, "OperationAborted"), fault(400, "BadDigest")),
    ],
    ids=lambda a: f"{a.status}",
)
def test_transient_answers_are_tried_again(answer: Answer) -> None:
    """Throttling and failures of the service are borne, for reading and for writing."""
    with fault_server(answer, OK, answer, WRITTEN) as server:
        store = make_store(server)
        assert store.read("k") == b"data"
        assert store.put("k", b"x") == "v1"
    assert len(server.requests) == 4


def test_retry_gives_up_within_its_budget() -> None:
    """A service that only fails ends as a ServiceError; no wait goes past the budget of five minutes."""
    time = Time()
    with fault_server(SLOW_DOWN) as server, pytest.raises(RetriesExhaustedError, match="SlowDown") as gave_up:
        make_store(server, time).read("k")
    assert gave_up.value.is_retryable
    assert 200 < time.now <= 300
    assert max(time.waits) == 60


def test_retry_does_not_wait_for_what_comes_too_late() -> None:
    """A Retry-After beyond the budget ends at once: the work is put off instead of a worker blocked."""
    time = Time()
    with fault_server(dataclasses.replace(SLOW_DOWN, headers={"Retry-After": "3600"})) as server:
        with pytest.raises(ServiceError):
            make_store(server, time).read("k")
        assert (time.waits, len(server.requests)) == ([], 1)


def test_retry_counts_its_budget_from_the_first_failure() -> None:
    """A long transfer that breaks after more than the budget gets another try."""
    time = Time()

    def attempt() -> str:
        time.now += 1_000
        if time.now < 1_500:
            raise TransientError("cut")  # noqa: EM101
        return "done"

    assert time.retry(budget_s=300).run(attempt) == "done"


def test_retry_draws_full_jitter() -> None:
    """Waits are spread over the whole range, so that many workers do not come back at once."""
    waits: list[float] = []
    retry = Retry(sleep=waits.append, clock=lambda: 0.0, draw=random.Random(1).uniform, budget_s=1e9)
    calls = iter(range(200))

    def attempt() -> None:
        if next(calls) < 199:
            raise TransientError("x")  # noqa: EM101

    retry.run(attempt)
    late = waits[10:]
    assert min(late) < 5
    assert max(late) > 55


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((None, 0), ("", 0), ("12", 12), (" 3 ", 3), ("-1", 0), ("nan", 0), ("1e9", 0), ("x", 0), ("٣", 0)),
        *(("Sat, 21 Nov 2026 05:00:30 GMT", 30), ("Sat, 21 Nov 2026 04:00:00 GMT", 0)),
        *((f"Sat, 21 Nov {'9' * 12} 05:00:00 GMT", 0), (f"Sat, 21 Nov 2026 05:00:00 +{'9' * 12}", 0)),
    ],
)
def test_retry_after_is_read_from_hostile_headers(value: str | None, seconds: float) -> None:
    """Seconds or an HTTP date; the past and nonsense ask for nothing."""
    assert parse_retry_after(value, datetime(2026, 11, 21, 5, tzinfo=UTC)) == seconds


@pytest.mark.fault(11)
def test_truncated_bodies_are_read_again(tmp_path: Path) -> None:
    """A body that ends early is never handed out; the next attempt starts afresh."""
    cut = Answer(body=DATA, headers=HEADERS, cut=1_000)
    with fault_server(cut, cut, Answer(body=DATA, headers=HEADERS), cut, OK) as server:
        store = make_store(server)
        download = store.download("k", tmp_path / "t", etag="v1")
        assert (download.n_bytes, (tmp_path / "t").read_bytes() == DATA) == (len(DATA), True)
        assert store.read("k") == b"data"
    assert len(server.requests) == 5


@pytest.mark.fault(12)
def test_etags_of_every_form_name_one_version(tmp_path: Path) -> None:
    """Quoted, bare and weak: LIST, HEAD, GET and PUT of one version agree."""
    heads = [{**HEADERS, "ETag": etag} for etag in ("v1", '"v1"', 'W/"v1"')]
    answers = [Answer(body=b"data", headers=head) for head in heads]
    listed = page(b"k").body.replace(b"<ETag>e</ETag>", b"<ETag>&quot;v1&quot;</ETag>")
    with fault_server(*answers, Answer(headers=heads[2]), Answer(body=listed)) as server:
        store = make_store(server)
        found = {store.head("k").etag, store.download("k", tmp_path / "t", etag='W/"v1"').stored.etag}
        assert store.read_range("k", 0, 2, etag='"v1"') == b"da"
        found |= {store.put("k", b"data"), store.list_page().objects[0].etag}
    assert found == {"v1"}


def test_declined_objects_cost_little(tmp_path: Path) -> None:
    """When ``accept`` declines or the version is another, the connection is dropped, not read to its end."""
    big = Answer(body=DATA * 4, headers=HEADERS)
    with fault_server(big) as server:
        make_store(server).download("k", tmp_path / "t", accept=lambda _: False)
        with pytest.raises(ObjectChangedError):
            make_store(server).download("k", tmp_path / "t", etag="v0")
    assert server.n_sent < len(DATA * 4) / 2


@pytest.mark.fault(10)
def test_refused_connections_are_borne_then_given_up(tmp_path: Path) -> None:
    """An endpoint that is away is a failing service; ``check`` gives up within seconds and names the setting."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        time = Time()
        store = S3Store(make_client(url), "bucket", retry=time.retry())
        with pytest.raises(RetriesExhaustedError, match="Could not connect"):
            store.read("k")
        assert len(time.waits) > 5
        time.waits.clear()
        with pytest.raises(RetriesExhaustedError, match=f"{url}.*endpoint_url"):
            store.check()
        assert sum(time.waits) <= 10


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (fault(403, "AccessDenied", "missing capability listFiles"), "may list, read"),
        (fault(403, "InvalidAccessKeyId"), "access_key_id"),
        (fault(403, "SignatureDoesNotMatch"), "region"),
        (fault(403, "RequestTimeTooSkewed"), "clock"),
        (fault(404, "NoSuchBucket"), "bucket's name"),
        (fault(401, "Unauthorized"), "mm doctor"),
        (fault(400, "AuthorizationHeaderMalformed"), "region"),
        (fault(400, "ExpiredToken"), "renew"),
        (fault(501, "NotImplemented"), "mm doctor"),
    ],
    ids=lambda value: value.body[13:30].decode() if isinstance(value, Answer) else None,
)
def test_wrong_rights_and_keys_say_what_to_check(answer: Answer, hint: str) -> None:
    """What a person must correct fails at once, names endpoint and region, and is no fault of an object."""
    with fault_server(answer) as server:
        store = make_store(server)
        for call in (store.list_page, store.check, lambda: store.read("k"), lambda: store.put("k", b"")):
            with pytest.raises(ConfigError, match=hint) as refused:
                call()
            assert server.url in str(refused.value)
    assert len(server.requests) == 4


def test_head_without_a_body_is_told_by_its_status() -> None:
    """HEAD answers carry no code: 404 is absent, 403 and 400 are settings, 503 is tried again."""
    for answer, error in [(Answer(404), ObjectNotFoundError), (Answer(403), ConfigError), (Answer(400), ConfigError)]:
        with fault_server(answer) as server, pytest.raises(error):
            make_store(server).head("k")
    with fault_server(Answer(503), OK) as server:
        assert make_store(server).head("k").etag == "v1"


def test_used_up_caps_say_when_they_reset() -> None:
    """A cap's 403 is the service's, with the hour; it is neither a wrong key nor worth another try now."""
    for answer in (fault(403, "download_cap_exceeded"), fault(403, "AccessDenied", "Transaction cap exceeded, see")):
        with fault_server(answer) as server:
            with pytest.raises(ServiceError, match="00:00 GMT"):
                make_store(server).read("k")
            assert len(server.requests) == 1


def test_archived_objects_are_at_fault_themselves() -> None:
    """An object in cold storage fails alone."""
    with fault_server(fault(403, "InvalidObjectState")) as server, pytest.raises(ObjectError, match="restore"):
        make_store(server).read("k")


def test_answers_of_a_proxy_are_not_objects() -> None:
    """A 200 without an ETag is no answer of a store."""
    with fault_server(Answer(body=b"<html>please log in</html>")) as server, pytest.raises(ServiceError, match="proxy"):
        make_store(server).read("k")


@pytest.mark.parametrize(
    "header",
    [
        *({"Last-Modified": "yesterday"}, {"Last-Modified": "9" * 30}, {"Last-Modified": "Sat, 99 Nov 2026 05:00:00"}),
        *({"Content-Length": "1" + "0" * 20}, {"Content-Length": "many"}),
    ],
    ids=str,
)
def test_headers_that_say_nonsense_are_a_failing_service(header: dict[str, str]) -> None:
    """Nothing but this project's errors comes out of a store, and another answer mends it."""
    bad = Answer(headers={**HEADERS, **header})
    with fault_server(bad, WRITTEN) as server:
        assert make_store(server).head("k").etag == "v1"
    with fault_server(bad) as server, pytest.raises(RetriesExhaustedError):
        make_store(server).head("k")


def test_a_time_without_a_zone_is_in_utc() -> None:
    """So every version has a moment that can be compared."""
    with fault_server(Answer(headers={**HEADERS, "Last-Modified": "2026-11-21T05:00:00"})) as server:
        assert make_store(server).head("k").modified_at == datetime(2026, 11, 21, 5, tzinfo=UTC)


@pytest.mark.parametrize("status", [301, 307])
def test_endless_redirections_are_a_wrong_setting(status: int) -> None:
    """Whatever is asked is sent elsewhere: said in terms of region and endpoint."""
    with fault_server(Answer(status)) as server, pytest.raises(ConfigError, match="endpoint_url"):
        make_store(server).head("k")


def test_a_full_disk_is_no_fault_of_the_object(tmp_path: Path) -> None:
    """Where the target cannot be written, the error names it and blames neither object nor service."""
    with fault_server(OK) as server:
        with pytest.raises(ServiceError, match="cannot be written"):
            make_store(server).download("k", tmp_path / "missing" / "t")
        (tmp_path / "full").symlink_to("/dev/full")  # the cleanup then removes the link, never the device
        with pytest.raises(ServiceError, match="No space left"):
            make_store(server).download("k", tmp_path / "full")
        assert len(server.requests) == 2


def test_newlines_and_dots_travel_in_the_path() -> None:
    """Keys are sent percent-encoded and nowhere normalised."""
    with fault_server(OK) as server:
        make_store(server).read("a\nb/../c//é")
    assert server.requests == ["GET /bucket/a%0Ab/../c//%C3%A9"]


def test_check_does_not_take_a_proxy_for_a_store() -> None:
    """What answers every path with a page of its own is no store."""
    with (
        fault_server(Answer(body=b"<html>please log in</html>")) as server,
        pytest.raises(ServiceError, match=r"proxy.*endpoint_url"),
    ):
        make_store(server).check()
