"""How a step of an object version ended, and what that means for the ledger and the dead letters.

Put here: the rules of tries, skips and dead letters. Keep out: the work itself.
"""

from collections.abc import Collection
from dataclasses import dataclass

from mm_assets.errors import ObjectError, Reason
from mm_assets.flows import dead_letters
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import NO_INPUT, Claim, Finished

_BACKOFF_S = 60.0
_SERVICE_WAIT_S = 60.0
_MAX_ERROR_CHARS = 4_000


@dataclass(frozen=True, slots=True)
class StepEnd:
    """The end of one step of one object version.

    Attributes
    ----------
    state : done | skipped | dead | wanted (to be tried again)
    key : the result in the lake, for done
    is_new : False when an earlier result was found and kept
    """

    step: str
    state: str
    reason: str | None = None
    error: str | None = None
    n_rows: int | None = None
    key: str | None = None
    seconds: float = 0.0
    is_new: bool = True
    counts_as_try: bool = False
    retry_after_s: float = 0.0


def done(step: str, n_rows: int, key: str, seconds: float, *, is_new: bool = True) -> StepEnd:
    """End with a result."""
    return StepEnd(step, "done", n_rows=n_rows, key=key, seconds=seconds, is_new=is_new)


def skipped(step: str, reason: str) -> StepEnd:
    """End without a result, because there is nothing to do for this kind of object."""
    return StepEnd(step, "skipped", reason=reason)


def without_input(step: str, kinds: Collection[str]) -> StepEnd:
    """End because the object has no segment of the kinds that the step takes."""
    return skipped(step, f"{NO_INPUT}{' or '.join(sorted(kinds))}")


def interrupted(step: str, reason: str, error: object, wait_s: float | None = None) -> StepEnd:
    """End for a fault that the object did not cause: tried again after ``wait_s`` (default: 60 s), burns no try."""
    wait_s = _SERVICE_WAIT_S if wait_s is None else wait_s
    return StepEnd(step, "wanted", reason=reason, error=storable(str(error)), retry_after_s=wait_s)


def failed(workspace: Workspace, claim: Claim, step: str, error: ObjectError, stage: str) -> StepEnd:
    """End for a fault of the object: another try where one may help, else a dead letter, durable before the ledger.

    Parameters
    ----------
    stage : where it failed: download, decode, or the step
    """
    tries = claim.tries.get(step, 0) + 1
    message = storable(error.message)
    if not error.is_permanent and tries < workspace.settings.runs.max_tries:
        wait = _BACKOFF_S * 4 ** (tries - 1)
        return StepEnd(step, "wanted", str(error.reason), message, counts_as_try=True, retry_after_s=wait)
    dead_letters.write_record(workspace, claim, step, error.reason, message, tries=tries, stage=stage)
    return StepEnd(step, "dead", str(error.reason), message, counts_as_try=True)


def storable(text: str) -> str:
    """Cut a message, and escape what PostgreSQL or UTF-8 cannot hold: it may quote a stranger's bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")[:_MAX_ERROR_CHARS]


def record_crash_loop(workspace: Workspace, claim: Claim) -> None:
    """Write the dead letters of an object over which the worker died too often, before the ledger says dead."""
    message = f"the worker died {claim.n_starts} times over this object"
    for step in claim.steps:
        dead_letters.write_record(
            workspace, claim, step, Reason.CRASH_LOOP, message, tries=claim.tries[step], stage=None
        )


def to_finished(claim: Claim, end: StepEnd) -> Finished:
    """Say it as the ledger wants to hear it."""
    return Finished(
        claim.known.object_id,
        end.step,
        claim.steps[end.step],
        claim.tokens[end.step],
        end.state,
        end.reason,
        end.error,
        end.n_rows,
        end.retry_after_s,
        end.counts_as_try,
    )
