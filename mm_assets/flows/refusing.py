"""Names in a source that nothing of ours can hold: told and kept, so that no object is passed over in silence.

Put here: the record in the lake, then the row in the ledger. Keep out: which names are refused, and the dead letters of
objects that have a row.
"""

import time
from collections.abc import Sequence
from functools import partial

from mm_assets.errors import Reason
from mm_assets.flows.asking import LateError, answers
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.lake import DISCOVERY
from mm_assets.ledger import Refusal

_AT_ONCE = 64


def refuse(workspace: Workspace, alias: str, names: Sequence[tuple[str, str]], seen_pass: int) -> None:
    """Record (name, why) of what is not known yet, and that this pass met it.

    The record is durable before the ledger's row, as with every dead letter.
    """
    if not names:
        return
    refusals = {item.refusal_id: item for item in (_to_refusal(alias, name, why) for name, why in names)}
    fresh = [refusals[refusal_id] for refusal_id in sorted(workspace.ledger.objects.unrefused(list(refusals)))]
    for _, written in answers(lambda item: _write(workspace, item), fresh, ends_at=float("inf")):
        if isinstance(written, Exception):
            raise written
    workspace.ledger.objects.refuse(list(refusals.values()), seen_pass)


def withdraw(workspace: Workspace, alias: str, pass_number: int, *, ends_at: float) -> None:
    """Remove row and record of names that a complete pass did not meet: they were renamed or removed.

    The row goes first: a record without one is garbage, a row without one would never have one again. What there is no
    time for (by ``time.monotonic``) is left to the end of the next pass.
    """
    while time.monotonic() < ends_at:
        forgotten = workspace.ledger.objects.forget_refusals(alias, pass_number, _AT_ONCE)
        for _, erased in answers(partial(_erase_record, workspace), forgotten, ends_at=ends_at):
            if isinstance(erased, LateError):
                return
            if isinstance(erased, Exception):
                raise erased
        if len(forgotten) < _AT_ONCE:
            return


def _erase_record(workspace: Workspace, refusal_id: str) -> None:
    workspace.lake.erase_dead_letter(refusal_id, DISCOVERY)


def _to_refusal(alias: str, name: str, why: str) -> Refusal:
    # ascii() has one reading for each name, also for those that UTF-8 cannot encode.
    return Refusal(short_hash("refusal", alias, ascii(name)), alias, shown(name), str(Reason.POLICY), why, time.time())


def shown(name: str) -> str:
    """Write a name so that every database and terminal takes it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name)


def _write(workspace: Workspace, refusal: Refusal) -> None:
    record = {
        "refusal_id": refusal.refusal_id,
        "bucket": refusal.alias,
        "shown_key": refusal.shown_key,
        "step": DISCOVERY,
        "reason": refusal.reason,
        "error": refusal.error,
        "died_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(refusal.first_seen_at)),
    }
    workspace.lake.write_dead_letter(refusal.refusal_id, DISCOVERY, record)
