"""What an operator watches: counters of all processes, and the state of the books at this moment.

Put here: what is counted under which name. Keep out: how it is shown (``/metrics``, ``mm status``, the report).

Names follow Prometheus. Counters only rise and are summed over all processes; gauges are read when asked for.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mm_assets.flows.workspace import Workspace

Labels = tuple[tuple[str, str], ...]
MeterKey = tuple[str, Labels]
Values = Mapping[MeterKey, float]

_HELP = {
    "run_seconds_total": "Seconds of runs that processed a batch, by how they ended.",
    "runs_total": "Runs that processed a batch: done, failed, or stopped by a signal.",
    "step_seconds_total": "Seconds spent on new results of a step; those of segments include reading and decoding.",
    "step_results_total": "New results of a step.",
    "step_ends_total": "Ends of steps by state and reason; wanted means that it is tried again.",
    "step_failures_total": "Failures that an object caused, by reason; each is one try.",
    "matches_total": "New objects that matched a watch.",
    "deliveries_total": "Tellings of matches: sent, waiting for another try, or given up.",
    "lease_lost_total": "Steps whose claim another worker took over.",
    "reconcile_found_total": "Changes that a listing found and no event had told.",
    "events_received_total": "Events that were verified, by provider.",
    "events_duplicate_total": "Events that were known already.",
    "events_ignored_total": "Events of no interest, by provider and why.",
    "events_refused_total": "Deliveries that were refused, by provider and why.",
    "event_commits_total": "Transactions that stored events.",
    "store_requests_total": "Requests to stores by operation and code.",
    "store_wait_seconds_total": "Seconds that requests waited for their turn or for a retry.",
    "store_throttled_total": "Answers that asked for fewer requests.",
    "breaker_opened_total": "How often a bucket failed so often in a row that it was left alone for a while.",
    "objects": "Live object versions of a source.",
    "objects_unplanned": "Live object versions for which no work was planned yet.",
    "ledger_rows": "Steps of object versions by state, of those for which work was planned.",
    "dead_letters": "Steps of live object versions that were given up, by reason.",
    "matches_waiting": "Matches that are still to be told.",
    "refusals": "Names in sources that no key can hold.",
    "oldest_unprocessed_seconds": "Age of the oldest live object version with unfinished work.",
    "inbox_depth": "Events that wait to be looked at.",
    "inbox_oldest_seconds": "Age of the oldest event that waits.",
    "list_calls_today": "Listing calls since 00:00 GMT.",
    "source_paused": "1 while a daily cap pauses a source.",
    "deletions_alarm": "1 while deletions wait for a person.",
    "rule_suspended": "1 while a source's provider sends no events.",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One number.

    Attributes
    ----------
    kind : counter | gauge
    labels : (name, value), in order of the names
    """

    name: str
    kind: str
    help: str
    labels: Labels
    value: float


def count(workspace: Workspace, values: Values) -> None:
    """Add to the counters, together with the requests that this process has sent since it last told."""
    workspace.ledger.meters.add({**values, **workspace.traffic.drain()})


@contextmanager
def timed_run(workspace: Workspace) -> Iterator[None]:
    """Count the block as a run: done, failed, or stopped."""
    started, outcome = time.monotonic(), "stopped"
    try:
        yield
        outcome = "done"
    except Exception:
        outcome = "failed"
        raise
    finally:
        labels = (("outcome", outcome),)
        seconds = time.monotonic() - started
        count(workspace, {("run_seconds_total", labels): seconds, ("runs_total", labels): 1})


def collect(workspace: Workspace) -> list[Sample]:
    """Return all metrics, those of one name together; counts rows by index and asks no store."""
    return [*_counters(workspace), *_gauges(workspace)]


def _counters(workspace: Workspace) -> Iterator[Sample]:
    for (name, labels), value in sorted(workspace.ledger.meters.totals().items()):
        yield Sample(name, "counter", _HELP.get(name, ""), labels, value)


def _gauges(workspace: Workspace) -> Iterator[Sample]:
    values = {**_of_sources(workspace), **_of_work(workspace), **_of_inbox(workspace)}
    values["matches_waiting", ()] = sum(states["waiting"] for states in workspace.ledger.watches.counts().values())
    for (name, labels), value in sorted(values.items()):
        yield Sample(name, "gauge", _HELP[name], labels, value)


def _of_sources(workspace: Workspace) -> dict[MeterKey, float]:
    objects, values, now = workspace.ledger.objects, dict[MeterKey, float](), time.time()
    for source in workspace.settings.sources:
        scan, labels = objects.scan(source.alias), (("alias", source.alias),)
        values["objects", labels] = objects.n_live(source.alias)
        values["objects_unplanned", labels] = workspace.ledger.meters.n_unplanned(source.alias)
        values["list_calls_today", labels] = scan.n_calls
        values["source_paused", labels] = float((scan.paused_until or 0.0) > now)
        values["deletions_alarm", labels] = float(scan.waiting_alarm is not None)
        values["rule_suspended", labels] = float(scan.events_alarm is not None)
    return values


def _of_work(workspace: Workspace) -> dict[MeterKey, float]:
    ledger, recipes = workspace.ledger, dict(workspace.recipes)
    values: dict[MeterKey, float] = {("refusals", ()): ledger.objects.n_refusals()}
    for (step, recipe, state), n in ledger.meters.n_rows().items():
        if recipes.get(step) == recipe:
            values["ledger_rows", (("state", state), ("step", step))] = n
    for reason, n in ledger.dead.depth(recipes).items():
        values["dead_letters", (("reason", reason),)] = n
    values["oldest_unprocessed_seconds", ()] = _age(ledger.meters.oldest_unprocessed_at())
    return values


def _of_inbox(workspace: Workspace) -> dict[MeterKey, float]:
    inbox = workspace.ledger.inbox
    return {("inbox_depth", ()): inbox.depth(), ("inbox_oldest_seconds", ()): _age(inbox.oldest_at())}


def _age(moment: float | None) -> float:
    return max(0.0, time.time() - moment) if moment is not None else 0.0


def failures_today(workspace: Workspace) -> tuple[int, int]:
    """Return how many steps failed since 00:00 GMT through their object's fault, and how many were begun and ended."""
    failed = sum(workspace.ledger.meters.today("step_failures_total").values())
    ends = workspace.ledger.meters.today("step_ends_total")
    good = sum(n for labels, n in ends.items() if dict(labels)["state"] == "done")
    return int(failed), int(failed + good)
