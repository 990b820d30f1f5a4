"""Telling of matches: for each a signed webhook or a command, again after longer and longer waits, and an end of that.

Put here: one notice, its signature, what an answer means, patience. Keep out: what matches (``standing``).

A match is claimed before it is told and settled after it. Who dies in between, or gets no answer in time, tells it again
under the same ``Idempotency-Key``; otherwise it is told once.
"""

import json
import random
import shlex
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from mm_assets.events.verification import sign
from mm_assets.flows import metrics
from mm_assets.flows.asking import LateError, answer
from mm_assets.flows.ends import storable
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownMatch, Match, Watch

TIMESTAMP_HEADER, SIGNATURE_HEADER = "X-MM-Assets-Timestamp", "X-MM-Assets-Signature"
_WEBHOOK_S, _COMMAND_S = 10.0, 60.0
_LEASE_S = 120.0  # longer than any telling
_MAX_TRIES = 12
_FIRST_WAIT_S, _MAX_WAIT_S = 30.0, 21_600.0  # doubled each time: twelve tries take half a day or so
_MAX_ERROR_CHARS = 300
_PASSING = {408, 425, 429}  # of 4xx those that say "later"; the others say that this request will never do


class _FailedError(Exception):
    """It was not taken; another try may help."""


class _RefusedError(Exception):
    """It was not taken, and never will be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a telling ended.

    Attributes
    ----------
    state : sent | waiting (another try may help) | given_up
    """

    state: str
    error: str | None = None


def deliver(workspace: Workspace, deadline_s: float) -> Counter[str]:
    """Tell the matches that are due, one by one; returns outcome → number.

    A watch whose receiver fails is left alone for the rest of the call, so that it does not hold up the others.

    Parameters
    ----------
    deadline_s : seconds after which no further telling is begun
    """
    book, ends_at = workspace.ledger.watches, time.monotonic() + deadline_s
    counts: Counter[str] = Counter()
    failing: set[str] = set()
    while time.monotonic() < ends_at and (due := book.claim_due(_LEASE_S, without=failing)) is not None:
        watch = book.find(due.watch)
        if watch is None:
            continue  # removed this moment, and its matches with it
        outcome = _judge(tell(watch, to_notice(due)), due.tries)
        book.settle(due, outcome.state, outcome.error, wait_s(due.tries))
        counts[outcome.state] += 1
        if outcome.state != "sent":
            failing.add(watch.watch_id)
    if counts:
        metrics.count(workspace, {("deliveries_total", (("outcome", state),)): n for state, n in counts.items()})
    return counts


def _judge(outcome: Outcome, tries: int) -> Outcome:
    if outcome.state == "waiting" and tries >= _MAX_TRIES:
        return Outcome("given_up", f"{tries} tries, the last: {outcome.error}")
    return outcome


def wait_s(tries: int) -> float:
    """Return how long to wait after so many failed tries: doubled each time, up to six hours, half of it by chance."""
    longest = min(_MAX_WAIT_S, _FIRST_WAIT_S * 2.0 ** (tries - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  jitter


def to_notice(known: KnownMatch) -> dict[str, Any]:
    """Return what is told of a match."""
    match = known.match
    return {
        "match_id": match.match_id,
        "watch": known.watch,
        "is_test": False,
        "object": {"bucket": known.bucket, "key": known.key, "etag": known.etag, "object_id": match.object_id},
        "segment_id": match.segment_id,
        "start_s": match.start_s,
        "end_s": match.end_s,
        "page_number": match.page_number,
        "score": match.score,
        "matched_at": datetime.fromtimestamp(known.matched_at, UTC).isoformat(),
    }


def to_test_notice(watch: Watch) -> dict[str, Any]:
    """Return what is told of a match that is made up."""
    match = Match(watch.watch_id, "0" * 32, f"{'0' * 32}-i000000", None, None, None, None)
    known = KnownMatch(match, watch.name, "test", "test.jpg", "test", time.time(), "waiting", 1, None)
    return to_notice(known) | {"match_id": f"test-{uuid.uuid4().hex}", "is_test": True}


def tell(watch: Watch, notice: Mapping[str, Any]) -> Outcome:
    """Send one notice to where a watch's matches go, and say how that ended; raises nothing."""
    body = json.dumps(notice).encode("ascii") + b"\n"
    try:
        if watch.command is not None:
            _run(watch.command, body)
        else:
            # A receiver that sends its answer byte by byte would outlast the client's own patience.
            post = partial(_post, watch, body, str(notice["match_id"]))
            answer(post, ends_at=time.monotonic() + _WEBHOOK_S)
    except _RefusedError as error:
        return Outcome("given_up", str(error))
    except _FailedError as error:
        return Outcome("waiting", str(error))
    except LateError:
        return Outcome("waiting", f"no answer within {_WEBHOOK_S:.0f} s")
    except Exception as error:  # noqa: BLE001  whatever fails here is one try, and never the fault of a batch
        return Outcome("waiting", storable(f"{type(error).__name__}: {error}")[:_MAX_ERROR_CHARS])
    return Outcome("sent")


def _post(watch: Watch, body: bytes, match_id: str) -> None:
    import requests

    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": match_id,
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: sign(f"{timestamp}.".encode() + body, watch.secret or ""),
    }
    # As a stream, so that no byte of the answer's body is read: it may be endless, and says nothing to us.
    with requests.post(
        watch.webhook or "", data=body, headers=headers, timeout=_WEBHOOK_S, allow_redirects=False, stream=True
    ) as answered:
        _check(answered.status_code)


def _check(status: int) -> None:
    msg = f"HTTP {status}"
    if 300 <= status < 400:
        msg += ": redirects are not followed; add the watch with the address that it leads to"
    if 400 <= status < 500 and status not in _PASSING:
        raise _RefusedError(msg)
    if status >= 300:
        raise _FailedError(msg)


def _run(command: str, body: bytes) -> None:
    """Run a command without a shell, with the notice as its input; what it says on stderr goes where ours goes."""
    done = subprocess.run(  # noqa: S603  the operator's own command; nothing of the object is among its arguments
        shlex.split(command), input=body, stdout=subprocess.DEVNULL, timeout=_COMMAND_S, check=False
    )
    if done.returncode:
        msg = f"it ended with code {done.returncode}"
        raise _FailedError(msg)
