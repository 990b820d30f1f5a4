#!/usr/bin/env python
"""Plays Backblaze B2 to a running ``mm serve``: signed deliveries for the objects of the sources, some lost, some twice.

    mm serve & scripts/replay_events.py --rate 1000 --duplicate .3 --lose .05 --shuffle

Put here: making and sending deliveries, and what the receiver answered. Keep out: what becomes of them.
"""

import argparse
import json
import random
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import requests

from mm_assets.buckets.retry import parse_retry_after
from mm_assets.errors import MmAssetsError
from mm_assets.events.b2 import SIGNATURE_HEADER
from mm_assets.events.verification import sign
from mm_assets.resources.s3 import open_store
from mm_assets.settings import Settings, SourceSettings, load_settings

_TIMEOUT_S = 3.0  # what B2 waits
_RESEND_FOR_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent.

    Attributes
    ----------
    deliveries : (seconds after the start, number of events, body)
    """

    deliveries: Sequence[tuple[float, int, bytes]]
    n_events: int
    n_lost: int
    n_repeated: int


@dataclass
class Outcome:
    """What the receiver answered, gathered by all senders."""

    waits_s: list[float] = field(default_factory=list)
    n_accepted: int = 0
    n_resent: int = 0
    n_refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> int:
    """Plan, send, print a table; exit code 1 when a delivery was refused for good."""
    arguments = _parse_arguments()
    try:
        settings = load_settings(arguments.config)
        if not settings.events.b2_secrets:
            print("events.b2_secrets is empty: the receiver of B2 is off", file=sys.stderr)
            return 2
        plan = make_plan(list(list_objects(settings)), settings.events.max_batch, arguments)
    except MmAssetsError as error:
        print(error, file=sys.stderr)
        return 2
    started = time.monotonic()
    outcome = send(plan, f"{arguments.url.rstrip('/')}/events/b2", settings.events.b2_secrets[0], arguments.senders)
    print_table(plan, outcome, time.monotonic() - started)
    return 1 if outcome.n_refused else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8787", help="where mm serve listens")
    parser.add_argument("--config", type=Path, help="settings file; default: as mm finds it")
    parser.add_argument("--rate", type=float, default=1_000.0, help="events a second")
    parser.add_argument("--duplicate", type=float, default=0.0, help="share of events that are sent twice")
    parser.add_argument("--lose", type=float, default=0.0, help="share of events that are never sent")
    parser.add_argument("--shuffle", action="store_true", help="send in random order")
    parser.add_argument("--seconds", type=float, help="go on for so long; default: one event for each object")
    parser.add_argument("--senders", type=int, default=16, help="deliveries under way at once")
    parser.add_argument("--seed", type=int, default=0, help="of the randomness")
    return parser.parse_args()


def list_objects(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (bucket, key) of all objects of the sources; a folder goes by its alias."""
    for source in settings.sources:
        store, after = open_store(source), ""
        while True:
            page = store.list_page(after=after)
            for stored in page.objects:
                yield _name(source), (source.prefix if source.is_bucket else "") + stored.key
            if page.next_after is None:
                break
            after = page.next_after


def _name(source: SourceSettings) -> str:
    return source.bucket if source.is_bucket else source.alias


def make_plan(objects: Sequence[tuple[str, str]], max_batch: int, arguments: argparse.Namespace) -> Plan:
    """Make the events, lose and repeat some, put them in order, cut them into deliveries."""
    chance = random.Random(arguments.seed)
    n_events = int(arguments.rate * arguments.seconds) if arguments.seconds else len(objects)
    events = [make_event(bucket, key) for bucket, key in islice(cycle(objects), n_events)] if objects else []
    told = [event for event in events if chance.random() >= arguments.lose]
    again = [event for event in told if chance.random() < arguments.duplicate]
    stream = told + again
    if arguments.shuffle:
        chance.shuffle(stream)
    return Plan(list(cut(stream, max_batch, arguments.rate, chance)), len(events), len(events) - len(told), len(again))


def make_event(bucket: str, key: str) -> dict[str, object]:
    """Return one event as B2 writes it."""
    return {
        "accountId": "replayed",
        "bucketId": "replayed",
        "bucketName": bucket,
        "eventId": uuid.uuid4().hex * 2,
        "eventTimestamp": int(time.time() * 1_000),
        "eventType": "b2:ObjectCreated:Upload",
        "eventVersion": 1,
        "matchedRuleName": "replayed",
        "objectName": key,
        "objectSize": 1,
        "objectVersionId": uuid.uuid4().hex,
    }


def cut(
    events: Sequence[dict[str, object]], max_batch: int, rate: float, chance: random.Random
) -> Iterator[tuple[float, int, bytes]]:
    """Yield deliveries of one event to as many as a delivery may hold."""
    start = 0
    while start < len(events):
        part = events[start : start + chance.randint(1, max_batch)]
        yield start / rate, len(part), json.dumps({"events": part}, ensure_ascii=False).encode("utf-8")
        start += len(part)


def send(plan: Plan, url: str, secret: str, n_senders: int) -> Outcome:
    """Send every delivery at its time, or as soon as a sender is free."""
    outcome, sessions, started = Outcome(), threading.local(), time.monotonic()
    sent: list[Future[None]] = []
    with ThreadPoolExecutor(n_senders, initializer=lambda: setattr(sessions, "own", requests.Session())) as pool:
        for at_s, n_events, body in plan.deliveries:
            time.sleep(max(0.0, started + at_s - time.monotonic()))
            sent.append(pool.submit(_deliver, sessions, url, sign(body, secret), n_events, body, outcome))
    for delivery in sent:
        delivery.result()  # a fault of this script's own
    return outcome


def _deliver(sessions: threading.local, url: str, signature: str, n_events: int, body: bytes, outcome: Outcome) -> None:
    headers = {"Content-Type": "application/json; charset=UTF-8", SIGNATURE_HEADER: signature}
    give_up_at = time.monotonic() + _RESEND_FOR_S
    n_resent = -1
    status, wait_s = 503, 0.0
    while status == 503 and time.monotonic() < give_up_at:
        time.sleep(min(wait_s, max(0.0, give_up_at - time.monotonic())))
        n_resent += 1
        status, wait_s, taken_s = _post(sessions.own, url, body, headers)
        with outcome.lock:
            outcome.waits_s.append(taken_s)
    with outcome.lock:
        outcome.n_resent += n_resent
        outcome.n_accepted += n_events if status == 200 else 0
        outcome.n_refused += n_events if status != 200 else 0


def _post(session: requests.Session, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, float, float]:
    """Return (status, seconds to wait before sending again, seconds taken); no answer in time is as good as a 503."""
    started = time.perf_counter()
    try:
        answer = session.post(url, data=body, headers=headers, timeout=_TIMEOUT_S)
    except requests.RequestException:
        return 503, 1.0, time.perf_counter() - started
    wait_s = parse_retry_after(answer.headers.get("Retry-After", "1"))
    return answer.status_code, wait_s, time.perf_counter() - started


def print_table(plan: Plan, outcome: Outcome, seconds: float) -> None:
    """Print what happened."""
    waits_ms = sorted(1_000 * wait_s for wait_s in outcome.waits_s) or [0.0]
    percentiles = statistics.quantiles(waits_ms, n=100, method="inclusive") if len(waits_ms) > 1 else waits_ms * 99
    rows = {
        "events": plan.n_events,
        "lost on purpose": plan.n_lost,
        "sent twice": plan.n_repeated,
        "accepted": outcome.n_accepted,
        "refused": outcome.n_refused,
        "deliveries": len(plan.deliveries),
        "sent again after a 503": outcome.n_resent,
        "acknowledged, p50 ms": f"{percentiles[49]:.1f}",
        "acknowledged, p99 ms": f"{percentiles[98]:.1f}",
        "acknowledged, max ms": f"{waits_ms[-1]:.1f}",
        "seconds": f"{seconds:.1f}",
        "accepted events a second": f"{outcome.n_accepted / seconds:.0f}",
    }
    for name, value in rows.items():
        print(f"{name:<26}{value:>12}")


if __name__ == "__main__":
    sys.exit(main())
