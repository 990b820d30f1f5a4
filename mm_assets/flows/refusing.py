"""Names in a source that nothing of ours can hold: told and kept, so that no object is passed over in silence.

Put here: the record in the lake, then the row in the ledger. Keep out: which names are refused, and the dead letters of
objects that have a row.
"""

import time
from collections.abc import Sequence

from mm_assets.errors import Reason
from mm_assets.flows.asking import answers
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.ledger import Refusal


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


def withdraw(workspace: Workspace, alias: str, pass_number: int) -> None:
    """Remove record and row of names that a complete pass did not meet: they were renamed or removed."""
    missed = workspace.ledger.objects.missed_refusals(alias, pass_number)
    for refusal_id in missed:
        for _, _, stored in workspace.lake.dead_letters(refusal_id):
            workspace.lake.store.erase(stored.key)
    if missed:
        workspace.ledger.objects.forget_refusals(missed)


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
        "step": "discovery",
        "reason": refusal.reason,
        "error": refusal.error,
        "died_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(refusal.first_seen_at)),
    }
    workspace.lake.write_dead_letter(refusal.refusal_id, "discovery", record)
