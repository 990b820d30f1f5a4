"""Services that throttle, fail, refuse, cap or stall."""

import dataclasses
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.config import Config
from fault_proxy import Fault, answer, late, reset, slow
from flow_driver import process
from rig import Rig, alternately, buckets, everywhere, once, pairwise, read_from, run_once

from mm_assets.buckets.base import BreakerOpenError
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.resources.s3 import BucketS3Resource

SLOW_DOWN = answer(503, "SlowDown", "Please reduce your request rate", Retry_After="1")


def _blames(rig: Rig) -> list[dict[str, Any]]:
    """Return the rows of work that hold a fault of the object."""
    return rig.rows("SELECT * FROM work WHERE tries > 0 OR state = 'dead'")


@pytest.mark.fault(6)
@everywhere
def test_throttling_is_waited_for_and_blames_nobody(rig: Rig) -> None:
    """One request in ten is answered with 503 and Retry-After: each is repeated, and not before its time."""
    rig.add("picture0.png")
    workspace = rig.open()
    rule = rig.proxy.spoil(SLOW_DOWN, share=0.1, times=3)
    rig.settle(workspace)

    assert rule.n_done == 3
    for n, refused in enumerate(rig.proxy.log):
        if refused.status == 503:
            again = next(e for e in rig.proxy.log[n + 1 :] if e.request.target == refused.request.target)
            assert again.at - refused.at >= 1.0
    assert _blames(rig) == []
    assert rig.violations() == []


class _Hurried:
    """A clock that runs sixty times as fast as the real one, for what waits half a minute."""

    factor = 60.0

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> float:
        """Return seconds of this clock."""
        return (time.monotonic() - self._began) * self.factor

    def sleep(self, seconds: float) -> None:
        """Sleep by this clock."""
        time.sleep(seconds / self.factor)


def _hurry(workspace: Workspace) -> _Hurried:
    """Let the stores' waits and breakers live by a fast clock; budgets are the product's own."""
    clock = _Hurried()
    workspace.traffic.clock, workspace.traffic.sleep = clock.now, clock.sleep
    for store in (*workspace.sources.values(), workspace.lake.store):
        requests = store._requests  # type: ignore[attr-defined]
        requests.retry = dataclasses.replace(requests.retry, clock=clock.now, budget_s=300.0)
        requests._sleep = clock.sleep
    return clock


@pytest.mark.fault(7)
@pairwise
@pytest.mark.parametrize("fault", [answer(503, "SlowDown"), answer(429, "TooManyRequests")], ids=["503", "429"])
def test_a_minute_of_refusals_opens_the_breaker_and_then_drains(rig: Rig, fault: Fault) -> None:
    """While a bucket answers nothing it is asked once in half a minute; afterwards everything is done."""
    rig.add(*(f"picture{number}.png" for number in range(4)))
    workspace = rig.open()
    clock = _hurry(workspace)
    discover(workspace, "source")
    rule = rig.proxy.spoil(fault, bucket=rig.source)
    ends_at = clock.now() + 120
    while clock.now() < ends_at:
        rig.skip_waits()
        with suppress(ServiceError):
            process(workspace)
            discover(workspace, "source")
    n_asked = rule.n_done
    rig.proxy.mend()
    clock.sleep(31)

    rig.settle(workspace)

    assert n_asked < 20 + 120 / 30 + 8  # until it opens, then probes; eight threads may be on their way
    assert workspace.traffic.drain()  # and it was counted
    assert _blames(rig) == []
    assert rig.violations() == []


@pytest.mark.fault(7)
@once
def test_an_open_breaker_refuses_at_once(rig: Rig) -> None:
    """Who asks a bucket that is down does not wait for its failure once more."""
    rig.add("picture0.png")
    workspace = rig.open()
    rig.proxy.spoil(answer(500, "InternalError"), bucket=rig.source)
    for _ in range(40):
        try:
            workspace.sources["source"].head("picture0.png")
        except BreakerOpenError:
            break
        except ServiceError:
            continue
    started, n_asked = time.monotonic(), len(rig.proxy.log)
    with pytest.raises(BreakerOpenError, match="is not asked for"):
        workspace.sources["source"].head("picture0.png")

    assert time.monotonic() - started < 1.0
    assert len(rig.proxy.log) == n_asked


@pytest.mark.fault(8)
@pairwise
def test_a_daily_cap_pauses_its_source_until_midnight_and_no_other(rig: Rig) -> None:
    """simulated: Backblaze B2's 403 of a cap. The others go on, nothing is dead, and the source comes back by itself."""
    with buckets(rig.proxy.upstream) as (client, other, _):
        access = read_from(rig.proxy.url)
        sources = [
            {"uri": f"s3://{name}", "alias": alias, **access}
            for alias, name in (("source", rig.source), ("other", other))
        ]
        rig.configure(sources=sources)
        rig.add("picture0.png")
        client.put_object(Bucket=other, Key="o.png", Body=rig.drawn("picture1.png"))
        workspace = rig.open()
        rule = rig.proxy.spoil(
            answer(403, "transaction_cap_exceeded", "Cannot list: transaction cap exceeded"), bucket=rig.source
        )
        run_once(workspace)
        run_once(workspace)

        midnight = (
            (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        )
        [(until, reason)] = _pauses(workspace)
        assert rule.n_done == 1
        assert midnight <= until <= midnight + 3_600
        assert "cap" in reason
        assert {state for state, _ in rig.states("o.png").values()} <= {"done", "skipped"}
        rig.proxy.mend()
        rig.execute("UPDATE scans SET paused_until = 1")
        rig.settle(workspace)

        assert {state for state, _ in rig.states("picture0.png").values()} <= {"done", "skipped"}
        assert _blames(rig) == []


def _pauses(workspace: Workspace) -> list[tuple[float, str]]:
    """Return (until, why) of the paused sources."""
    return list(workspace.ledger.objects.paused().values())


@pytest.mark.fault(8)
@once
def test_a_cap_on_downloads_pauses_and_burns_no_try(rig: Rig) -> None:
    """simulated: the cap may be met while objects are read; they wait until midnight as they are."""
    rig.add("picture0.png", "picture1.png")
    workspace = rig.open()
    rule = rig.proxy.spoil(
        answer(403, "download_cap_exceeded", "Download cap exceeded"), "GetObject", bucket=rig.source
    )
    run_once(workspace)
    rig.skip_waits()
    run_once(workspace)

    assert 1 <= rule.n_done <= 2  # objects are read ahead
    assert _pauses(workspace)
    assert _blames(rig) == []
    rig.proxy.mend()
    rig.execute("UPDATE scans SET paused_until = 1")
    rig.settle(workspace)
    assert rig.violations() == []


REFUSED = {
    "rights": (answer(403, "AccessDenied", "Access Denied"), "list, read"),
    "key_id": (answer(403, "InvalidAccessKeyId"), "access_key_id"),
    "secret": (answer(403, "SignatureDoesNotMatch"), "secret_access_key"),
    "expired": (answer(400, "ExpiredToken"), "renew"),
    "clock": (answer(403, "RequestTimeTooSkewed"), "clock"),
    "bucket": (answer(404, "NoSuchBucket"), "bucket's name"),
}


@pytest.mark.fault(9)
@alternately("fault,says", REFUSED)
def test_a_refusal_ends_at_once_says_what_to_do_and_removes_nothing(rig: Rig, fault: Fault, says: str) -> None:
    """Wrong rights, keys or clocks are no outage: one request, one message, and no object is gone or dead."""
    rig.add("picture0.png")
    workspace = rig.open()
    discover(workspace, "source")
    rule = rig.proxy.spoil(fault, bucket=rig.source)

    with pytest.raises(ConfigError, match=says):
        discover(workspace, "source")
    assert rule.n_done == 1
    process(workspace)
    rig.proxy.mend()
    rig.settle(workspace)

    assert _blames(rig) == []
    assert rig.violations() == []


@pytest.mark.fault(9)
@pytest.mark.parametrize("rig", [("rclone", "sqlite")], ids=["rclone-sqlite"], indirect=True)
def test_wrong_keys_are_refused_by_a_server_that_looks(rig: Rig) -> None:
    """No simulation: rclone checks the signature."""
    access = read_from(rig.proxy.url) | {"secret_access_key": "wrong"}
    rig.configure(sources=[{"uri": f"s3://{rig.source}", "alias": "source", **access}])

    with pytest.raises(ConfigError, match="secret_access_key"):
        discover(rig.open(), "source")


@pytest.mark.fault(10)
@everywhere
def test_every_third_connection_is_reset_and_nothing_is_lost(rig: Rig) -> None:
    """Whatever the client was about to do, it does again."""
    rig.add("picture0.png", "picture1.png")
    rule = rig.proxy.spoil(reset, share=0.3)

    rig.settle(rig.open())
    rig.proxy.mend()

    assert rule.n_done > 10
    assert _blames(rig) == []
    assert rig.violations() == []


@pytest.mark.fault(10)
@once
@pytest.mark.parametrize("url", ["http://name.invalid", "http://127.0.0.1:9"], ids=["no_such_name", "nobody_listens"])
def test_an_endpoint_that_cannot_be_reached_is_said_with_its_name(rig: Rig, url: str) -> None:
    """No name, no listener: the message names the endpoint, and whatever was known stays."""
    rig.add("picture0.png")
    rig.settle(rig.open())
    rig.configure(sources=[{"uri": f"s3://{rig.source}", "alias": "source", **read_from(url)}])

    with pytest.raises(ServiceError, match=url):
        discover(rig.open(), "source")

    assert rig.violations() == []


@pytest.mark.fault(10)
@pairwise
def test_drops_are_a_stall_and_another_connection_is_tried(rig: Rig) -> None:
    """One byte at a time keeps every read timeout quiet; too few bytes for too long are a failure all the same."""
    rig.add("picture0.png")
    workspace = rig.open()
    store: Any = workspace.sources["source"]
    store._limits = dataclasses.replace(store._limits, stall_s=0.5)
    rule = rig.proxy.spoil(slow(1, 0.05), "GetObject", bucket=rig.source, times=2)
    started = time.monotonic()

    rig.settle(workspace)

    assert rule.n_done == 2
    assert time.monotonic() - started < 60
    assert _blames(rig) == []
    assert rig.violations() == []


@pytest.mark.fault(10)
@once
def test_an_answer_that_never_comes_is_asked_for_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read timeout ends the wait, and the next attempt succeeds."""
    usual = BucketS3Resource._config
    monkeypatch.setattr(BucketS3Resource, "_config", lambda self: usual(self).merge(Config(read_timeout=0.5)))
    rig.add("picture0.png")
    workspace = rig.open()
    rule = rig.proxy.spoil(late(3.0), "ListObjectsV2", bucket=rig.source, times=1)
    started = time.monotonic()

    assert discover(workspace, "source").n_new == 1

    assert rule.n_done == 1
    assert 0.4 < time.monotonic() - started < 3.0
