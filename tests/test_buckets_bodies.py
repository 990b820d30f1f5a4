"""Bodies that come damaged, too slowly, too short or too long; every fault comes from a real socket."""

import hashlib
import time
from pathlib import Path

import pytest
from s3_server import Answer, FaultServer, fault_server, make_client

from mm_assets.buckets.bodies import Body, StalledError, TruncatedError
from mm_assets.buckets.retry import RetriesExhaustedError, Retry
from mm_assets.buckets.s3 import Limits, S3Store
from mm_assets.errors import ServiceError

DATA = bytes(range(256)) * 64
FLIPPED = bytes([DATA[0] ^ 1]) + DATA[1:]
FLIPPED_ELSEWHERE = DATA[:-1] + bytes([DATA[-1] ^ 128])


def answer(body: bytes, etag: str = hashlib.md5(DATA, usedforsecurity=False).hexdigest(), **headers: str) -> Answer:
    """Return an object's answer; the ETag is by default the MD5 of what was stored."""
    shown = {"ETag": f'"{etag}"', "Last-Modified": "Sat, 21 Nov 2026 05:00:00 GMT", **headers}
    return Answer(body=body, headers=shown)


def make_store(server: FaultServer, limits: Limits | None = None) -> S3Store:
    """Return a store that does not wait between attempts and gives up after some dozens."""
    ticks = iter(range(10_000))
    retry = Retry(budget_s=50, clock=lambda: next(ticks), sleep=lambda _: None)
    return S3Store(make_client(server.url), "bucket", retry=retry, limits=limits)


@pytest.mark.fault(11)
def test_flipped_bits_are_read_again(tmp_path: Path) -> None:
    """A body of the right length whose MD5 is not the ETag is read again; the right bytes end it."""
    with fault_server(answer(FLIPPED), answer(FLIPPED_ELSEWHERE), answer(DATA)) as server:
        download = make_store(server).download("k", tmp_path / "t")
        assert (tmp_path / "t").read_bytes() == DATA
        assert download.sha256 == hashlib.sha256(DATA).hexdigest()
    with fault_server(answer(FLIPPED), answer(DATA)) as server:
        assert make_store(server).read("k") == DATA


@pytest.mark.fault(11)
def test_bytes_that_change_with_each_reading_are_never_handed_out(tmp_path: Path) -> None:
    """A line that damages every body ends as a failing service, and leaves no file."""
    bodies = [DATA[:n] + b"?" + DATA[n + 1 :] for n in range(200)]
    with fault_server(*map(answer, bodies)) as server, pytest.raises(RetriesExhaustedError, match="damaged"):
        make_store(server).download("k", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_an_etag_that_is_no_md5_costs_one_reading_more(tmp_path: Path) -> None:
    """The same bytes twice, as many as HEAD says, are the object, whatever its ETag looks like; that ends comparing."""
    with fault_server(answer(DATA, etag="0" * 32)) as server:
        store = make_store(server)
        assert store.download("k", tmp_path / "t").stored.etag == "0" * 32
        assert [request.split()[0] for request in server.requests] == ["GET", "GET", "HEAD"]
        assert store.read("k") == DATA
        assert len(server.requests) == 4


@pytest.mark.fault(11)
def test_the_same_bytes_of_another_length_are_read_again() -> None:
    """A cache that adds the same bytes each time gives no object: HEAD says how long it is."""
    longer, short = answer(DATA + b"!"), answer(DATA)
    with fault_server(longer, longer, short, longer, short, short) as server:  # GET, GET, HEAD, GET, HEAD, GET
        assert make_store(server).read("k") == DATA
        assert [request.split()[0] for request in server.requests] == ["GET", "GET", "HEAD", "GET", "HEAD", "GET"]


@pytest.mark.parametrize(
    "opaque",
    [
        answer(DATA, etag="0" * 32 + "-3"),
        answer(DATA, etag="v1"),
        answer(DATA, etag="0" * 32, **{"x-amz-server-side-encryption": "aws:kms"}),
        answer(DATA, etag="0" * 32, **{"x-amz-server-side-encryption-customer-algorithm": "AES256"}),
    ],
    ids=["parts", "opaque", "kms", "customer key"],
)
def test_opaque_etags_are_not_compared(opaque: Answer) -> None:
    """ETags of parts, of other forms and of objects under a key are no MD5: one reading."""
    with fault_server(opaque) as server:
        assert make_store(server).read("k") == DATA
        assert len(server.requests) == 1


@pytest.mark.fault(10)
def test_bodies_that_trickle_are_given_up(tmp_path: Path) -> None:
    """Single bytes keep a read timeout from ever firing; too few within the limit, and another connection is tried."""
    slow = Answer(body=DATA, headers=answer(DATA).headers, drip_s=0.02)
    with fault_server(slow, slow, answer(DATA)) as server:
        started = time.monotonic()
        make_store(server, Limits(stall_s=0.2)).download("k", tmp_path / "t")
        assert (tmp_path / "t").read_bytes() == DATA
        assert 0.4 <= time.monotonic() - started < 5  # a byte each 20 ms would take five minutes
        assert len(server.requests) == 3


def test_slow_but_steady_bodies_are_read() -> None:
    """What comes faster than the limit is no stall, however long it takes; a small body may take its time."""
    with fault_server(Answer(body=DATA[:60], headers=answer(DATA, etag="v1").headers, drip_s=0.01)) as server:
        assert make_store(server, Limits(stall_bytes=3, stall_s=0.1)).read("k") == DATA[:60]
        assert len(server.requests) == 1


@pytest.mark.fault(10)
@pytest.mark.parametrize(("bytes_a_second", "is_stalled"), [(40, True), (900, True), (2_000, False)])
def test_the_usual_limit_is_a_kibibyte_a_second(
    monkeypatch: pytest.MonkeyPatch, bytes_a_second: int, is_stalled: bool
) -> None:
    """What would hold a worker for days is a stall; a slow link is none."""
    now = [0.0]
    monkeypatch.setattr("mm_assets.buckets.bodies.time.monotonic", lambda: now[0])

    class Raw:
        n_left = 100_000

        def read1(self, amt: int | None = None) -> bytes:
            now[0] += 1
            piece = min(amt or 0, bytes_a_second, self.n_left)
            self.n_left -= piece
            return bytes(piece)

    limits = Limits()
    body = Body(Raw(), 100_000, stall_bytes=limits.stall_bytes, stall_s=limits.stall_s)
    if is_stalled:
        with pytest.raises(StalledError, match="in 30 s"):
            body.read()
    else:
        assert len(body.read()) == 100_000


@pytest.mark.fault(11)
def test_bodies_of_another_length_are_refused() -> None:
    """Less or more than was promised is never taken for the object."""

    class Raw:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def read1(self, amt: int | None = None) -> bytes:
            piece, self.data = self.data[:amt], self.data[amt:]
            return piece

    for data in (DATA[:-1], DATA + b"x", b""):
        with pytest.raises(TruncatedError):
            Body(Raw(data), len(DATA), stall_bytes=1, stall_s=1).read()
    assert Body(Raw(DATA), len(DATA), stall_bytes=1, stall_s=1).read() == DATA


@pytest.mark.fault(11)
def test_bytes_beyond_the_promised_length_are_not_taken_for_the_next_answer() -> None:
    """What a server sends too much is neither part of the object nor read as another object."""
    long = Answer(
        body=DATA + b"HTTP/1.1 200 OK\r\n\r\n", headers=answer(DATA).headers | {"Content-Length": f"{len(DATA)}"}
    )
    with fault_server(long, long, answer(DATA)) as server:
        store = make_store(server)
        for _ in range(3):
            assert store.read("k") == DATA


def test_connections_are_kept_for_the_next_request() -> None:
    """A body that was read to its end leaves its connection open."""
    with fault_server(answer(DATA)) as server:
        store = make_store(server)
        for _ in range(5):
            assert store.read("k") == DATA
        assert len(server.ports) == 1


@pytest.mark.fault(10)
def test_broken_connections_are_tried_again() -> None:
    """Connections that are reset before any answer are borne, for reading and writing."""
    reset = Answer(is_reset=True)
    with fault_server(reset, reset, answer(DATA), reset, answer(b"")) as server:
        store = make_store(server)
        assert store.read("k") == DATA
        assert store.put("k", DATA)
        assert len(server.requests) == 5


@pytest.mark.fault(10)
def test_names_that_do_not_resolve_are_a_failing_service() -> None:
    """While work runs, DNS is part of the service; ``check`` calls it a wrong setting."""
    retry = Retry(budget_s=0, sleep=lambda _: None)
    store = S3Store(make_client("http://s3.example.invalid"), "bucket", retry=retry)
    with pytest.raises(ServiceError, match=r"s3\.example\.invalid"):
        store.read("k")
