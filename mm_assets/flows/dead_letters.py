"""Dead letters in both places that keep them: the row in the ledger and the record in the lake.

Put here: what a record says, and every way out of it. Keep out: the rules of when an object is given up (``ends``).

The record is in the lake before the ledger says dead. It stays when the step is asked for again, is written anew when
the step dies again, and is removed once the step has ended otherwise or the letter was dropped.
"""

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from importlib.metadata import packages_distributions, version
from typing import Any

import pyarrow as pa

from mm_assets.errors import Reason
from mm_assets.flows.recipes import DECODING_STEPS, provenance
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import to_parquet
from mm_assets.ledger import Claim
from mm_assets.ledger.dead import DeadLetter

REPORT = "dead_letters.parquet"
_DECODERS = ("av", "PIL", "pypdfium2", "scenedetect", "soundfile")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("object_id", "bucket", "key", "etag")),
        ("size_bytes", pa.int64()),
        *((name, pa.string()) for name in ("step", "recipe", "reason", "error")),
        *((name, pa.int64()) for name in ("n_tries", "n_claims", "n_replays")),
        *((name, pa.timestamp("us", "UTC")) for name in ("first_seen_at", "died_at")),
    ]
)


def write_record(
    workspace: Workspace, claim: Claim, step: str, reason: Reason, error: str, *, tries: int, stage: str | None
) -> None:
    """Write why a step is given up, before the ledger says so.

    Parameters
    ----------
    stage : where it failed: download, decode, or the step; None where the worker died and nobody knows
    """
    known, recipe = claim.known, claim.steps[step]
    first_seen_at, replays = workspace.ledger.dead.history(known.object_id, step, recipe)
    record = {
        "object_id": known.object_id,
        "bucket": known.version.alias,
        "key": known.version.key,
        "etag": known.version.etag,
        "version_id": known.version.version_id,
        "size_bytes": known.size_bytes,
        "first_seen_at": _utc(first_seen_at),
        "step": step,
        "recipe": recipe,
        "reason": str(reason),
        "stage": stage,
        "error": error,
        "tries": tries,
        "claims": claim.n_starts,
        "replays": replays,
        "died_at": _utc(time.time()),
        "made_by": provenance(step, recipe, workspace.settings, workspace.extractors),
        "versions": _versions(_DECODERS if step in DECODING_STEPS else workspace.extractors[step].packages),
    }
    workspace.lake.write_dead_letter(known.object_id, step, record)


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


@cache
def _versions(modules: tuple[str, ...]) -> Mapping[str, str]:
    """Return distribution → version of this package and of the libraries that a step runs on."""
    distributions = packages_distributions()
    names = {"mm-assets", *(name for module in modules for name in distributions.get(module, ()))}
    return {name: version(name) for name in sorted(names)}


def remove_records(workspace: Workspace, ended: Sequence[tuple[str, str]]) -> None:
    """Remove the records, where there are any, of (object_id, step) that have ended well."""
    recorded = workspace.ledger.dead.recorded(sorted({object_id for object_id, _ in ended}))
    _remove(workspace, recorded & set(ended))


def _remove(workspace: Workspace, letters: AbstractSet[tuple[str, str]]) -> None:
    for object_id in sorted({object_id for object_id, _ in letters}):
        for _, step, stored in workspace.lake.dead_letters(object_id):
            if (object_id, step) in letters:
                workspace.lake.store.delete(stored.key)


def replay(workspace: Workspace, letters: Sequence[DeadLetter]) -> int:
    """Want these steps again with all their tries; returns how many. Their records stay until the steps have ended."""
    return workspace.ledger.dead.replay(letters, workspace.recipes)


def drop(workspace: Workspace, letters: Sequence[DeadLetter]) -> int:
    """Skip these steps for good and remove their records; returns how many."""
    n = workspace.ledger.dead.drop(letters)
    _remove(workspace, {(letter.known.object_id, letter.step) for letter in letters})
    return n


def write_dead_letters(workspace: Workspace, letters: Sequence[DeadLetter]) -> str:
    """Write ``reports/dead_letters.parquet``, one row for each letter; returns its key.

    Keys and errors are as strangers wrote them: whoever puts them into a spreadsheet or a page escapes them.
    """
    table = pa.Table.from_pylist([_row(letter) for letter in letters], _SCHEMA)
    made_at = _utc(time.time())
    return workspace.lake.write_report(REPORT, to_parquet(table, {"made_at": made_at}, rows_per_group=65_536))


def _row(letter: DeadLetter) -> dict[str, Any]:
    version = letter.known.version
    return {
        "object_id": letter.known.object_id,
        "bucket": version.alias,
        "key": version.key,
        "etag": version.etag,
        "size_bytes": letter.known.size_bytes,
        "step": letter.step,
        "recipe": letter.recipe,
        "reason": letter.reason,
        "error": letter.error,
        "n_tries": letter.tries,
        "n_claims": letter.claims,
        "n_replays": letter.replays,
        "first_seen_at": _microseconds(letter.first_seen_at),
        "died_at": _microseconds(letter.changed_at),
    }


def _microseconds(moment: float) -> int:
    return round(moment * 1e6)
