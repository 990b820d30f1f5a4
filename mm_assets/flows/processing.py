"""Processing a batch: claims in, durable results and ledger rows out, one object version after the other.

Put here: the order of writes, leases, groups. Keep out: decoding, models, Dagster.

Order: claim with a fencing token · result file · matches of watches · ledger row, if the token is still ours · the
caller's event. A kill after any of these loses nothing and repeats at most one group's work.
"""

import logging
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa

from mm_assets.buckets.base import DailyCapError
from mm_assets.flows import dead_letters, ends, metrics
from mm_assets.flows.arriving import write_arrivals
from mm_assets.flows.delivering import deliver
from mm_assets.flows.ends import StepEnd
from mm_assets.flows.extracting import extract_step
from mm_assets.flows.judging import Judge
from mm_assets.flows.leases import Lease
from mm_assets.flows.preparing import Prepared, Preparer
from mm_assets.flows.recipes import DECODING_STEPS
from mm_assets.flows.scratch import scratch
from mm_assets.flows.standing import StandingQueries
from mm_assets.flows.stopping import finishing, giving_back
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.ledger import Claim

_GROUP_SEGMENTS = 128  # enough to fill the accelerator for each step in turn
_FIRST_SEGMENTS = 16  # of the first group, so that something is done and told soon; the next are twice as large each
_GROUP_OBJECTS = 64
_TELLING_S = 10.0  # at the end of a batch; what is left is told after the next, or by who follows the bucket
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObjectEnd:
    """What happened to one object version; durable before it is yielded.

    Attributes
    ----------
    judgements : name → rows, made on arrival against the frozen generations
    """

    claim: Claim
    ends: tuple[StepEnd, ...]
    judgements: dict[str, pa.Table]


def process_batch(workspace: Workspace, batch_id: str, run_id: str = "") -> Iterator[ObjectEnd]:
    """Process what a batch still has to do; can be repeated after any kill, and resumed at once by the same run."""
    runs, owner = workspace.settings.runs, new_owner(run_id)
    work, recipes = workspace.ledger.work, dict(workspace.recipes)
    for worn_out in work.worn_out(batch_id, owner, recipes, runs.max_claims):
        ends.record_crash_loop(workspace, worn_out)
    try:
        claims = work.claim_batch(
            batch_id,
            owner,
            recipes=recipes,
            lease_s=runs.lease_s,
            max_claims=runs.max_claims,
            reads=workspace.reads(),
        )
        work.release_batches([batch_id])  # planned under another recipe than this code makes: planned anew
        yield from process(workspace, claims, owner, batch_id, adopt=True)
    except BaseException:
        work.release(owner)  # Ctrl-C may come between the claim and those who would give it back
        raise


def process(
    workspace: Workspace, claims: Sequence[Claim], owner: str, batch_id: str, *, adopt: bool = False
) -> Iterator[ObjectEnd]:
    """Process claims; on any way out the unfinished ones are given back.

    Parameters
    ----------
    adopt : keep results that are in the lake although the ledger does not know them, instead of making them again
    """
    if not claims:
        return
    judge, queries, lease = Judge(workspace), StandingQueries(workspace), Lease(workspace, owner, claims)
    try:
        with metrics.timed_run(workspace), _pausing_at_the_lakes_cap(workspace), giving_back(lease.give_back):
            for step in {step for claim in claims for step in claim.steps} & set(workspace.extractors):
                workspace.extractors[step].check()
            with repeating(workspace.settings.runs.lease_s / 3, lease.renew), scratch() as folder:
                workers = min(workspace.settings.runs.decode_workers or os.cpu_count() or 1, len(claims))
                preparer = Preparer(workspace, folder, workers=workers, adopt=adopt)
                for number, group in enumerate(_groups(preparer.run(claims))):
                    lease.check()
                    yield from _process_group(workspace, f"{batch_id}-{number}", group, judge, queries, lease)
        deliver(workspace, _TELLING_S)
    finally:
        lease.give_back()


@contextmanager
def _pausing_at_the_lakes_cap(workspace: Workspace) -> Iterator[None]:
    """Pause all sources until the lake takes results again: without it every run would end where this one did."""
    try:
        yield
    except DailyCapError as error:
        for source in workspace.settings.sources:
            workspace.ledger.objects.pause(source.alias, error.resets_at, f"the lake: {error}")
        raise


def _groups(prepared: Iterator[Prepared]) -> Iterator[list[Prepared]]:
    group: list[Prepared] = []
    enough = _FIRST_SEGMENTS
    for item in prepared:
        group.append(item)
        if len(group) >= _GROUP_OBJECTS or sum(member.n_segments for member in group) >= enough:
            yield group
            group, enough = [], min(2 * enough, _GROUP_SEGMENTS)
    if group:
        yield group


def _process_group(
    workspace: Workspace,
    name: str,
    group: list[Prepared],
    judge: Judge,
    queries: StandingQueries,
    lease: Lease,
) -> Iterator[ObjectEnd]:
    try:
        with finishing():
            # In the order of the recipes: a step after those whose results it reads.
            in_order = [step for step in workspace.recipes if step in workspace.extractors]
            rows = {step: extract_step(workspace, step, group) for step in in_order}
            lease.check()  # of what left since, a sweep looks for files as long as it is under work, and not after
            judgements = judge.judge(name, rows.get("visual_embeddings", {}))
            write_arrivals(workspace, name, group, rows)
            queries.match(group, rows)  # before the ledger says done: whoever repeats the group finds the same again
            accepted = lease.finish([ends.to_finished(item.claim, end) for item in group for end in item.ends])
            answers = iter(accepted)
            kept = [tuple(end for end in item.ends if next(answers)) for item in group]
            _settle(workspace, list(zip(group, kept, strict=True)))
        for item, its_ends in zip(group, kept, strict=True):
            yield ObjectEnd(item.claim, its_ends, judgements.get(item.claim.known.object_id, {}))
    finally:
        for item in group:
            item.discard()


def _settle(workspace: Workspace, ended: Sequence[tuple[Prepared, tuple[StepEnd, ...]]]) -> None:
    """Do what follows from ends that the ledger took: records that are untrue now, meters."""
    over = [(item.claim.known.object_id, end) for item, its_ends in ended for end in its_ends]
    good = [(object_id, end.step) for object_id, end in over if end.state in {"done", "skipped"}]
    dead_letters.remove_records(workspace, good)
    metrics.count(workspace, _meters([end for _, end in over]))


def _meters(over: Sequence[StepEnd]) -> metrics.Values:
    """Count ends by step, state and reason, and the seconds of what was made."""
    values: dict[metrics.MeterKey, float] = defaultdict(float)
    for end in over:
        step, reason = ("step", end.step), ("reason", end.reason or "")
        values["step_ends_total", (reason, ("state", end.state), step)] += 1
        if end.counts_as_try:
            values["step_failures_total", (reason, step)] += 1
        if end.state == "done" and end.is_new:
            values["step_results_total", (step,)] += 1
            values["step_seconds_total", (step,)] += end.seconds
    return values


def new_owner(run_id: str = "") -> str:
    """Name this worker: machine, process, and its run or else a word that no other start shares."""
    return f"{_machine()}/{os.getpid()}/{run_id or os.urandom(4).hex()}"


def is_dead_here(owner: str) -> bool:
    """Whether the owner's process number meant something here, and its process is gone."""
    machine, _, rest = owner.partition("/")
    if machine != _machine():
        return False
    try:
        os.kill(int(rest.partition("/")[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's process is alive, too
    return False


@cache
def _machine() -> str:
    """Name where process numbers mean the same: host, start of its kernel, PID namespace.

    Containers share names and kernels, and a host that was started again gives the same numbers to others.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}:{short_hash(boot, str(Path('/proc/self/ns/pid').readlink()))}"


@contextmanager
def repeating(interval_s: float, call: Callable[[], object]) -> Iterator[None]:
    """Call something again and again in a thread, as long as the block lasts."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(interval_s):
            try:
                call()
            except Exception:  # noqa: BLE001  one failure (a locked database, say) must not end the repetition
                _LOG.exception("a repeated call failed; it is made again in %s s", interval_s)

    thread = threading.Thread(target=repeat, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def steps_for_pods(workspace: Workspace, *, gpu: bool) -> tuple[str, ...]:
    """Return the steps that belong on GPU pods, or the others."""
    chosen = [step for step, extractor in workspace.extractors.items() if extractor.gpu == gpu]
    return tuple(chosen) if gpu else (*DECODING_STEPS, *chosen)
