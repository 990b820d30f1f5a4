"""What must be true after a soak, beyond what ``checker`` compares for every test: how each kind of object ends.

Put here: coming to rest, the rules of a soak, what is counted. Keep out: playing.
"""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import checker
import numpy as np
import pyarrow.parquet as pq
from checker import Bucket, Folder, Row
from fakes import hash_vectors
from s3_server import make_client

from mm_assets.flows.refreshing import needs_refresh
from mm_assets.flows.workspace import Workspace
from mm_assets.settings import Location
from soak import roles
from soak.stage import ALIAS, GOOD, KILLER, MAX_CLAIMS, MAX_TRIES, POISON, STEPS, STUBBORN, TEXT, Stage, kind_of

_SETTLE_S = 600
# (state, reason) of each step, by the kind of the object.
_DONE: dict[str, tuple[str, str | None]] = dict.fromkeys(STEPS, ("done", None))
_ENDS: Mapping[str, Mapping[str, tuple[str, str | None]]] = {
    GOOD: _DONE,
    POISON: {
        "raw_objects": ("done", None),
        "segments": ("dead", "corrupt"),
        "visual_embeddings": ("skipped", "segments_dead"),
        "media_quality": ("skipped", "segments_dead"),
    },
    STUBBORN: _DONE | {"visual_embeddings": ("dead", "model_error")},
    KILLER: dict.fromkeys(STEPS, ("dead", "crash_loop")),  # it kills before any end reaches the ledger
    TEXT: _DONE | dict.fromkeys(STEPS[1:], ("skipped", "unsupported")),
}


@dataclass(frozen=True)
class Verdict:
    """What was counted, and a sentence for each violation."""

    counts: Counter[str]
    violations: Sequence[str]


def wait_until_quiet(stage: Stage, parent: int) -> None:
    """Return when two listings were completed, no event waits and no work is left."""
    roles.belong_to(parent)
    workspace = stage.open()
    first_pass = workspace.ledger.objects.scan(ALIAS).pass_number
    while workspace.ledger.objects.scan(ALIAS).pass_number < first_pass + 2 or _is_busy(workspace):
        time.sleep(0.5)
    workspace.close()


def _is_busy(workspace: Workspace) -> bool:
    return bool(
        workspace.ledger.inbox.depth()
        or workspace.ledger.work.n_waiting(dict(workspace.recipes), list(workspace.sources))
    )


def check(stage: Stage) -> Verdict:
    """Bring everything to an end in this process, then apply the rules."""
    workspace = stage.open()
    try:
        is_settled = settle(workspace)
        evidence = gather(workspace, stage)
    finally:
        workspace.close()
    violations = [] if is_settled else [f"there was still something to do after {_SETTLE_S} s"]
    return Verdict(count(evidence), [*violations, *find_violations(evidence)])


def settle(workspace: Workspace) -> bool:
    """Take turns until a round of all of them changes nothing; False when that takes too long."""
    ends_at = time.monotonic() + _SETTLE_S
    while time.monotonic() < ends_at:
        is_moving = roles.look(workspace)
        while roles.work(workspace):
            is_moving = True
        is_moving = roles.renew(workspace) or is_moving or needs_refresh(workspace)
        if not is_moving and not _is_busy(workspace):
            return True
        time.sleep(0.2)
    return False


@dataclass(kw_only=True)
class Evidence(checker.Evidence):
    """What ``checker`` looks at, and what only a soak knows."""

    stage: Stage

    @cached_property
    def versions(self) -> list[Row]:
        """All versions there ever were."""
        return self.rows("SELECT * FROM objects")

    @cached_property
    def errors(self) -> list[Row]:
        """What ended a turn."""
        return _lines(self.stage.errors.read_text(encoding="utf-8")) if self.stage.errors.exists() else []


def gather(workspace: Workspace, stage: Stage) -> Evidence:
    """Name the places to look at."""
    settings = workspace.settings
    places = {ALIAS: _files(settings.source(ALIAS))}
    return Evidence(places, settings.ledger_location, _files(settings.lake), stage=stage)


def _files(location: Location) -> Folder | Bucket:
    if not location.is_bucket:
        return Folder(location.folder)
    return Bucket(make_client(location.endpoint_url or ""), location.bucket, location.prefix)


def _lines(text: str) -> list[Row]:
    return [json.loads(line) for line in text.splitlines()]


def find_violations(evidence: Evidence) -> list[str]:
    """Return what is wrong, one sentence each."""
    own = [f"{rule.__name__.removeprefix('_')}: {text}" for rule in _RULES for text in rule(evidence)]
    return own + checker.find_violations(evidence)


def _ends(evidence: Evidence) -> Iterator[str]:
    """Compare the end of each step of each live version with what its kind must come to."""
    for (version, step), row in evidence.work.items():
        key = evidence.live[version]["key"]
        expected = _ENDS[kind_of(key)][step]
        if (row["state"], row["reason"]) != expected:
            yield f"{step} of {key} ended {row['state']} {row['reason']}, not {expected}: {row['error']}"
        if row["tries"] > MAX_TRIES or row["claims"] > MAX_CLAIMS:
            yield f"{step} of {key} took {row['tries']} tries and {row['claims']} claims"
        if row["reason"] == "model_error" and row["tries"] != MAX_TRIES:
            yield f"{step} of {key} was given up after {row['tries']} tries"


def _vectors(evidence: Evidence) -> Iterator[str]:
    """Compare each vector with the picture of its own object."""
    recipe = evidence.published["segments"]
    shown = dict(
        zip(
            evidence.column("visual_embeddings", "object_id"),
            evidence.column("visual_embeddings", "vector"),
            strict=True,
        )
    )
    for version, vector in shown.items():
        name = f"results/segments/{recipe}/{version[:2]}/{version}.parquet"
        picture = pq.read_table(io.BytesIO(evidence.lake.read(name)), columns=["keyframe_jpeg"])[0].to_pylist()
        if not np.allclose(hash_vectors(picture), np.array([vector]), atol=1e-6):
            yield f"the vector of {version} is that of another picture"


def _sweeps(evidence: Evidence) -> Iterator[str]:
    """Look for versions that left and were not swept, and for work on them."""
    gone = {row["object_id"] for row in evidence.versions if row["state"] != "live"}
    for row in evidence.versions:
        if row["object_id"] in gone and row["swept_at"] is None:
            yield f"{row['key']} ({row['object_id']}) is {row['state']} and was not swept"
    for row in evidence.rows("SELECT DISTINCT object_id FROM work"):
        if row["object_id"] in gone:
            yield f"{row['object_id']} left and has work"


def _errors(evidence: Evidence) -> Iterator[str]:
    """Tell errors that are ours, and say what to do, from faults of the code."""
    for line in evidence.errors:
        if not line["is_ours"]:
            yield f"{line['kind']} ended a turn of a {line['role']}: {line['text'][-1_500:]}"


_RULES: tuple[Callable[[Evidence], Iterator[str]], ...] = (_ends, _vectors, _sweeps, _errors)


def count(evidence: Evidence) -> Counter[str]:
    """Count what there was."""
    counts: Counter[str] = Counter({"objects at the end": len(evidence.live), "versions": len(evidence.versions)})
    lines = _lines(evidence.stage.journal.read_text(encoding="utf-8"))
    counts.update(f"{line['op']}s in the source" for line in lines if "key" in line)
    counts.update(f"turns of a {line['role']} ended by {line['kind']}" for line in evidence.errors)
    counts["events stored"] = len(evidence.rows("SELECT inbox_id FROM inbox"))
    counts["files in the lake"] = len(evidence.names)
    counts.update(f"dead letters, {row['reason']}" for row in evidence.work.values() if row["state"] == "dead")
    return counts
