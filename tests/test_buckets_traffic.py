"""How stores of one process hold back together: request rate, breaker, counts."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from s3_server import Answer, fault_server, make_client

from mm_assets.buckets.base import BreakerOpenError, DailyCapError, ObjectNotFoundError
from mm_assets.buckets.retry import Retry, TransientError
from mm_assets.buckets.s3 import S3Store
from mm_assets.buckets.traffic import MAX_RATE, OPEN_AFTER, OPEN_AFTER_S, PROBE_EVERY_S, Lane, Traffic
from mm_assets.errors import ServiceError

OK = Answer(body=b"data", headers={"ETag": '"v1"', "Last-Modified": "Sat, 21 Nov 2026 05:00:00 GMT"})
SLOW_DOWN = Answer(503, b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>")


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        """Tell the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on."""
        self.slept.append(seconds)
        self.now += seconds

    def traffic(self) -> Traffic:
        """Return traffic that lives in this time."""
        return Traffic(self.clock, self.sleep)


def send(lane: Lane, n: int, outcome: Callable[[], None] = lambda: None) -> None:
    """Send requests that all end alike."""
    for _ in range(n):
        with suppress(TransientError, ObjectNotFoundError), lane.request("get_object"):
            outcome()


def fail() -> None:
    """End as an outage does."""
    msg = "the service is down"
    raise TransientError(msg)


def fail_until_open(time: Time, lane: Lane) -> None:
    """Fail as often, and for as long, as opens the breaker."""
    send(lane, OPEN_AFTER - 1, fail)
    time.now += OPEN_AFTER_S
    send(lane, 1, fail)


@contextmanager
def throttling_lane(time: Time) -> Iterator[tuple[Lane, Callable[[], None], Callable[[], None]]]:
    """Give a lane, a request that goes through, and one that a real server throttles."""
    with fault_server(SLOW_DOWN) as server:
        lane = time.traffic().lane("photos", server.url, "bucket")
        store = S3Store(make_client(server.url), "bucket", retry=Retry(budget_s=0, sleep=time.sleep), lane=lane)

        def throttle() -> None:
            with suppress(ServiceError):
                store.read("k")

        yield lane, lambda: send(lane, 1), throttle


def seconds_for(time: Time, n: int, pass_one: Callable[[], None]) -> float:
    """Measure how long n requests take."""
    started = time.now
    for _ in range(n):
        pass_one()
    return time.now - started


def test_traffic_holds_nothing_back_while_all_is_well() -> None:
    """As long as nothing was throttled, requests go out as fast as they come, up to the maximum."""
    time = Time()
    lane = time.traffic().lane("photos", "https://s3", "bucket")
    send(lane, int(MAX_RATE))
    assert time.slept == []
    send(lane, int(MAX_RATE))
    assert sum(time.slept) == pytest.approx(1.0, rel=0.1)


def test_throttling_halves_the_rate_that_was_sent() -> None:
    """After one throttled answer the endpoint gets half of what it got, not half of a theoretical maximum."""
    time = Time()
    with throttling_lane(time) as (_, pass_one, throttle):
        for _ in range(1_000):  # at 100 a second
            pass_one()
            time.now += 0.01
        throttle()
        seconds_for(time, 50, pass_one)  # what is left of the burst
        assert seconds_for(time, 100, pass_one) == pytest.approx(2.0, rel=0.15)


def test_a_burst_of_throttled_answers_is_one_signal() -> None:
    """Sixteen workers that are throttled at once halve the rate once."""
    time = Time()
    with throttling_lane(time) as (_, pass_one, throttle):
        for _ in range(1_000):
            pass_one()
            time.now += 0.01
        for _ in range(10):
            throttle()
        seconds_for(time, 60, pass_one)
        assert seconds_for(time, 100, pass_one) == pytest.approx(2.0, rel=0.25)


def test_the_rate_grows_back_by_five_percent_a_second() -> None:
    """A minute after a throttled answer at the lowest rate, about nineteen requests a second go through."""
    time = Time()
    with throttling_lane(time) as (_, pass_one, throttle):
        throttle()
        assert seconds_for(time, 3, pass_one) == pytest.approx(2.0, abs=0.4)  # the lowest rate is one a second
        time.now += 57
        seconds_for(time, 20, pass_one)
        assert seconds_for(time, 20, pass_one) == pytest.approx(1.0, rel=0.2)
        time.now += 86_400
        seconds_for(time, int(MAX_RATE), pass_one)
        assert seconds_for(time, 100, pass_one) <= 0.11


def test_endpoints_are_throttled_apart_and_buckets_of_one_together() -> None:
    """The rate belongs to the endpoint: its other buckets slow down, too; another endpoint does not."""
    time = Time()
    with fault_server(SLOW_DOWN) as server:
        traffic = time.traffic()
        first = traffic.lane("a", server.url, "one")
        store = S3Store(make_client(server.url), "one", retry=Retry(budget_s=0), lane=first)
        with pytest.raises(ServiceError):
            store.read("k")
        send(traffic.lane("b", "https://elsewhere", "one"), 10)
        assert time.slept == []
        send(traffic.lane("c", server.url, "two"), 10)
        assert sum(time.slept) > 5


def test_breaker_opens_after_failures_in_a_row_and_probes() -> None:
    """Twenty failures within ten seconds close the way; one request each half minute tries; its success opens it for all."""
    time = Time()
    traffic = time.traffic()
    lane = traffic.lane("photos", "https://s3", "bucket")
    fail_until_open(time, lane)
    calls: list[int] = []
    for _ in range(3):
        with pytest.raises(BreakerOpenError, match="bucket at https://s3 failed 20 times"), lane.request("get_object"):
            calls.append(1)
    time.now += PROBE_EVERY_S
    send(lane, 1, fail)  # the probe
    with pytest.raises(BreakerOpenError), lane.request("get_object"):
        calls.append(1)
    time.now += PROBE_EVERY_S
    send(lane, 1)
    send(lane, 1)
    assert calls == []
    assert time.slept == []
    counted = traffic.drain()
    assert counted["breaker_opened_total", (("alias", "photos"),)] == 1


def test_breaker_lets_one_probe_through_at_a_time() -> None:
    """While a probe is under way the others still end at once."""
    time = Time()
    lane = time.traffic().lane("photos", "https://s3", "bucket")
    fail_until_open(time, lane)
    time.now += PROBE_EVERY_S
    with lane.request("get_object"), pytest.raises(BreakerOpenError), lane.request("get_object"):
        pass
    send(lane, 1)


def test_breaker_counts_failures_of_the_service_only() -> None:
    """A missing object or one success in between is an answer; other buckets of the endpoint are not concerned."""
    time = Time()
    traffic = time.traffic()
    lane = traffic.lane("photos", "https://s3", "bucket")

    def not_found() -> None:
        raise ObjectNotFoundError

    send(lane, 50, not_found)
    for _ in range(3):
        send(lane, OPEN_AFTER - 1, fail)
        time.now += OPEN_AFTER_S
        send(lane, 1)
    fail_until_open(time, lane)
    with pytest.raises(BreakerOpenError), lane.request("get_object"):
        pass
    send(traffic.lane("others", "https://s3", "other"), 1)


@pytest.mark.fault(7)
def test_a_blip_does_not_open_the_breaker_however_many_threads_meet_it() -> None:
    """Sixteen threads fail more than twenty times within two seconds: all of them are borne, by their own budgets."""
    time = Time()
    lane = time.traffic().lane("photos", "https://s3", "bucket")
    time.now += 3_600  # nothing was asked for an hour, which is no outage of an hour
    for _ in range(4):
        send(lane, 16, fail)
        time.now += 0.5
    send(lane, 16)
    time.now += OPEN_AFTER_S
    send(lane, OPEN_AFTER - 1, fail)
    send(lane, 1)


def test_cleaning_up_does_not_wait_for_the_breaker() -> None:
    """What is urgent is sent past an open breaker, and its success closes it."""
    time = Time()
    lane = time.traffic().lane("photos", "https://s3", "bucket")
    fail_until_open(time, lane)
    with pytest.raises(BreakerOpenError), lane.request("get_object"):
        pass
    with lane.request("abort_multipart_upload", is_urgent=True):
        pass
    send(lane, 1)


@pytest.mark.fault(7)
def test_an_outage_ends_at_once_for_those_who_come_later() -> None:
    """Behind an open breaker no request is sent and no budget waited for; after the outage everything drains."""
    time = Time()
    with fault_server(*[Answer(503)] * OPEN_AFTER, OK) as server:
        lane = time.traffic().lane("photos", server.url, "bucket")
        retry = Retry(clock=time.clock, sleep=time.sleep, budget_s=20, draw=lambda _, high: high)
        store = S3Store(make_client(server.url), "bucket", retry=retry, lane=lane)
        for _ in range(10):
            with pytest.raises(ServiceError):
                store.read("k")
        assert len(server.requests) == OPEN_AFTER
        time.now += PROBE_EVERY_S
        assert store.read("k") == b"data"
        assert store.read("k") == b"data"


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    "code",
    ["cap_exceeded", "storage_cap_exceeded", "transaction_cap_exceeded", "download_cap_exceeded", "AccessDenied"],
)
def test_caps_are_told_by_every_operation(code: str) -> None:
    """A cap's 403 says when it resets, at 00:00 GMT, also where HEAD shows no reason; it is no failure to retry."""
    body = f"<Error><Code>{code}</Code><Message>Transaction cap exceeded, see the Caps page</Message></Error>"
    time = Time()
    with fault_server(Answer(403, body.encode())) as server:
        lane = time.traffic().lane("photos", server.url, "bucket")
        store = S3Store(make_client(server.url), "bucket", lane=lane)
        calls = [
            *(store.list_page, lambda: store.head("k"), lambda: store.read("k"), lambda: store.put("k", b"")),
            *(lambda: store.delete("k"), lambda: store.erase("k"), store.check, lambda: store.abort_stale_uploads(0)),
        ]
        for call in calls * 3:
            with pytest.raises(DailyCapError) as capped:
                call()
            assert capped.value.resets_at % 86_400 == 0
        assert len(server.requests) == 3 * (len(calls) + 1)  # HEAD asks once more, for the reason


def test_requests_and_waits_are_counted() -> None:
    """By source, operation and code; waits for the rate and for retries; a drain starts anew."""
    time = Time()
    cut = Answer(body=b"data", headers=OK.headers, cut=2)
    with fault_server(SLOW_DOWN, cut, Answer(is_reset=True), OK, Answer(404), OK) as server:
        traffic = time.traffic()
        lane = traffic.lane("photos", server.url, "bucket")
        retry = Retry(clock=time.clock, sleep=time.sleep, draw=lambda _, high: high)
        store = S3Store(make_client(server.url), "bucket", retry=retry, lane=lane)
        store.read("k")
        with pytest.raises(ObjectNotFoundError):
            store.head("k")
    counted = traffic.drain()
    requests = {labels: n for (name, labels), n in counted.items() if name == "store_requests_total"}
    ends = {tuple(value for _, value in labels): n for labels, n in requests.items()}
    got = {code for alias, operation, code in ends if (alias, operation) == ("photos", "get_object")}
    assert {"503", "200"} < got
    assert len(got) == 4
    assert ends["photos", "head_object", "404"] == 1
    assert sum(ends.values()) == 5
    assert counted["store_throttled_total", (("alias", "photos"),)] == 1
    assert counted["store_wait_seconds_total", (("alias", "photos"),)] == pytest.approx(sum(time.slept))
    assert traffic.drain() == {}


def test_traffic_is_safe_from_many_threads() -> None:
    """Nothing is lost from the counts when eight threads share a lane."""
    traffic = Time().traffic()
    lane = traffic.lane("photos", "https://s3", "bucket")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: send(lane, 500), range(8)))
    assert sum(n for (name, _), n in traffic.drain().items() if name == "store_requests_total") == 4_000
