"""Processing a batch: claims in, durable results and ledger rows out, one object version after the other.

Put here: the order of writes, leases, groups. Keep out: decoding, models, Dagster.

Order: claim with a fencing token · result file · ledger row, if the token is still ours · the caller's event. A kill
after any of these loses nothing and repeats at most one group's work.
"""

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from mm_assets.flows import ends
from mm_assets.flows.ends import StepEnd
from mm_assets.flows.extracting import extract_step
from mm_assets.flows.judging import Judge
from mm_assets.flows.preparing import Prepared, Preparer
from mm_assets.flows.recipes import DECODING_STEPS
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Claim

_GROUP_SEGMENTS = 128  # enough to fill the accelerator for each step in turn
_GROUP_OBJECTS = 64
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
    claims = work.claim_batch(batch_id, owner, recipes=recipes, lease_s=runs.lease_s, max_claims=runs.max_claims)
    work.release_batches([batch_id])  # planned under another recipe than this code makes: planned anew
    yield from process(workspace, claims, owner, batch_id, adopt=True)


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
    judge = Judge(workspace, batch_id)
    try:
        for step in {step for claim in claims for step in claim.steps} & set(workspace.extractors):
            workspace.extractors[step].check()
        lease_s = workspace.settings.runs.lease_s
        with repeating(lease_s / 3, partial(workspace.ledger.work.renew, owner, lease_s)), _scratch() as folder:
            workers = min(workspace.settings.runs.decode_workers or os.cpu_count() or 1, len(claims))
            preparer = Preparer(workspace, folder, workers=workers, adopt=adopt)
            for group in _groups(preparer.run(claims)):
                yield from _process_group(workspace, group, judge)
            judge.write()
    finally:
        workspace.ledger.work.release(owner)


def _groups(prepared: Iterator[Prepared]) -> Iterator[list[Prepared]]:
    group: list[Prepared] = []
    for item in prepared:
        group.append(item)
        if len(group) >= _GROUP_OBJECTS or sum(member.n_segments for member in group) >= _GROUP_SEGMENTS:
            yield group
            group = []
    if group:
        yield group


def _process_group(workspace: Workspace, group: list[Prepared], judge: Judge) -> Iterator[ObjectEnd]:
    try:
        rows = {step: extract_step(workspace, step, group) for step in workspace.extractors}
        judgements = judge.judge(rows.get("visual_embeddings", {}))
        accepted = workspace.ledger.work.finish(
            [ends.to_finished(item.claim, end) for item in group for end in item.ends]
        )
        answers = iter(accepted)
        for item in group:
            kept = tuple(end for end in item.ends if next(answers))
            if any(end.step == "segments" and end.state == "done" for end in kept):
                workspace.ledger.work.reopen(item.claim.known.object_id, "segments_dead")
            yield ObjectEnd(item.claim, kept, judgements.get(item.claim.known.object_id, {}))
    finally:
        for item in group:
            item.discard()


def new_owner(run_id: str = "") -> str:
    """Name this worker: host, process, and its run or else a word that no other start shares."""
    return f"{socket.gethostname()}/{os.getpid()}/{run_id or os.urandom(4).hex()}"


def is_dead_here(owner: str) -> bool:
    """Whether the owner ran on this host and its process is gone."""
    host, pid, _ = owner.split("/")
    return host == socket.gethostname() and not Path(f"/proc/{pid}").exists()


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


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mm_assets-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def steps_for_pods(workspace: Workspace, *, gpu: bool) -> tuple[str, ...]:
    """Return the steps that belong on GPU pods, or the others."""
    chosen = [step for step, extractor in workspace.extractors.items() if extractor.gpu == gpu]
    return tuple(chosen) if gpu else (*DECODING_STEPS, *chosen)
