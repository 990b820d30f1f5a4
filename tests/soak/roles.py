"""What the processes of a soak do, each in a loop until it is killed.

Put here: the turns of worker, lister, refresher, feeder and mutator, on the real flows. Keep out: starting and killing.
"""

import hashlib
import io
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mm_assets.buckets.base import Store
from mm_assets.errors import MmAssetsError
from mm_assets.flows import publishing, refreshing
from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.planning import free_lost_work, plan_batches
from mm_assets.flows.processing import process_batch
from mm_assets.flows.removing import sweep
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger.inbox import Hint
from mm_assets.media.sandbox import die_with
from mm_assets.spaces import SPACES
from soak.stage import ALIAS, GOOD, KILLER, POISON, STUBBORN, TEXT, Stage, kind_of

_IDLE_S = {"worker": 0.1, "lister": 1.0, "refresher": 3.0}
_POLL_S = 0.1
# One of so many new objects, at a fixed place among them, is of this kind.
_RARE = {POISON: (50, 7), STUBBORN: (100, 13), TEXT: (100, 63), KILLER: (400, 31)}
_OVERWRITES, _DELETES = 0.08, 0.04
_LOST, _REPEATED = 0.3, 0.25

Turn = Callable[[Workspace], bool]  # returns whether there was anything to do


def live(role: str, stage: Stage, parent: int) -> None:
    """Play a role until killed; an error ends a turn and is written down."""
    belong_to(parent)
    if role == "feeder":
        feed(stage)
    workspace = stage.open()
    while True:
        is_idle = True
        try:
            is_idle = not TURNS[role](workspace)
        except Exception as error:  # noqa: BLE001  the checker judges what was written down
            note_error(stage, role, error)
        if is_idle:
            time.sleep(_IDLE_S[role])


def belong_to(parent: int) -> None:
    """End when the parent does, and leave Ctrl-C to it."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def note_error(stage: Stage, role: str, error: Exception) -> None:
    """Write an error down in one piece."""
    text = "".join(traceback.format_exception(error))
    line = {"role": role, "kind": type(error).__name__, "is_ours": isinstance(error, MmAssetsError), "text": text}
    _append(stage.errors, line)


def work(workspace: Workspace) -> bool:
    """Plan a little and process it, as ``mm ingest`` does."""
    planned = [batch for batches in plan_batches(workspace, limit=2).values() for batch in batches]
    for batch in planned:
        for _ in process_batch(workspace, batch.batch_id):
            pass
    return bool(planned)


def look(workspace: Workspace) -> bool:
    """Drain the inbox, list for a moment, and free what the dead held, as a sensor does."""
    free_lost_work(workspace)
    drained = drain_inbox(workspace, deadline_s=2.0)
    found = discover(workspace, ALIAS, deadline_s=2.0)
    return found.has_changes or bool(drained.n_hints)


def renew(workspace: Workspace) -> bool:
    """Publish, build, and remove what left."""
    if not refreshing.needs_refresh(workspace) and not workspace.ledger.removals.n_leaving():
        return False
    publishing.publish_steps(workspace)
    refreshing.build_vector_index(workspace, SPACES["visual"])
    refreshing.build_text_index(workspace)
    refreshing.build_cluster_model(workspace)
    refreshing.build_anomaly_baseline(workspace)
    refreshing.freeze_taxonomy(workspace)
    publishing.publish_judgements(workspace)
    sweep(workspace)
    return True


TURNS: Mapping[str, Turn] = {"worker": work, "lister": look, "refresher": renew}


# -- the source and its events -------------------------------------------------------------------------------------


class Mutator:
    """Writes, overwrites and deletes objects of the source; what it does follows from the seed alone."""

    def __init__(self, stage: Stage, store: Store, seed: int) -> None:
        self._random = random.Random(seed)
        self._stage, self._store = stage, store
        self._keys: list[str] = []
        self._n_made = 0

    def write_new(self) -> None:
        """Write an object under a new key."""
        kind = next((kind for kind, (every, at) in _RARE.items() if self._n_made % every == at), GOOD)
        key = f"{self._n_made % 10}/{self._n_made:06d}-{kind}" + (".txt" if kind == TEXT else ".png")
        self._keys.append(key)
        self._write(key)

    def change(self) -> None:
        """Overwrite or delete an object, or write a new one."""
        chance = self._random.random()
        if not self._keys or chance > _OVERWRITES + _DELETES:
            self.write_new()
        elif chance < _OVERWRITES:
            self._write(self._random.choice(self._keys))
        else:
            key = self._keys.pop(self._random.randrange(len(self._keys)))
            self._store.delete(key)
            _append(self._stage.journal, {"op": "delete", "key": key})

    def _write(self, key: str) -> None:
        self._n_made += 1
        kind = kind_of(key)
        etag = self._store.put(key, draw(kind, self._random.randrange(1 << 62)))
        _append(self._stage.journal, {"op": "put", "key": key, "etag": etag})


def draw(kind: str, seed: int) -> bytes:
    """Return the bytes of an object: a small noisy picture, a picture cut in half, or a text."""
    if kind == TEXT:
        return f"not media {seed}".encode()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[: len(data) // 2] if kind == POISON else data


def mutate(stage: Stage, parent: int, n_objects: int, seconds: float, seed: int) -> None:
    """Change the source for so long, evenly, until so many objects were written; half of them before anything else."""
    belong_to(parent)
    workspace = stage.open()
    mutator = Mutator(stage, workspace.sources[ALIAS], seed)
    n_before = n_objects // 2
    for _ in range(n_before):
        mutator.write_new()
    _append(stage.journal, {"op": "begun"})
    n_changes = round((n_objects - n_before) / (1 - _OVERWRITES - _DELETES))
    started = time.monotonic()
    for number in range(n_changes):
        time.sleep(max(0.0, started + number * seconds / n_changes - time.monotonic()))
        mutator.change()
    workspace.close()


def feed(stage: Stage) -> None:
    """Tell the inbox what the journal says: much is lost, some is told twice, nothing in order."""
    workspace = stage.open()
    held: list[Hint] = []
    for line in _follow(stage.journal):
        if line is not None and "key" in line and random.random() > _LOST:
            hint = _to_hint(line)
            held += [hint, hint] if random.random() < _REPEATED else [hint]
        if held and (line is None or len(held) >= 50):
            random.shuffle(held)
            n = random.randint(1, len(held))
            try:
                workspace.ledger.inbox.add(held[:n])
                held = held[n:]
            except Exception as error:  # noqa: BLE001  the sender tries again
                note_error(stage, "feeder", error)


def _to_hint(line: Mapping[str, Any]) -> Hint:
    event_id = hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
    return Hint(event_id, "s3", ALIAS, line["key"])


def _follow(file: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the lines that are added to a file from now on; None when there is none for a moment."""
    while not file.exists():
        time.sleep(_POLL_S)
    with file.open(encoding="utf-8") as lines:
        lines.seek(0, os.SEEK_END)
        while True:
            line = lines.readline()
            if not line:
                time.sleep(_POLL_S)
            yield json.loads(line) if line else None


def _append(file: Path, line: Mapping[str, Any]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(line, sort_keys=True).encode() + b"\n")
    finally:
        os.close(descriptor)
