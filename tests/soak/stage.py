"""Where a soak plays: a source, a lake and a ledger, opened by each process for itself, with fakes for what is slow.

Put here: servers, settings, the kinds of objects, the workspace of a process. Keep out: what the processes do.
"""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import yaml
from fakes import FakeVision, open_fake_workspace
from postgres_server import fresh_database, postgres_server
from rclone_server import rclone_server
from s3_server import KEY_ID, SECRET, make_client, moto_server

from mm_assets.flows import ends, hints, locking, preparing
from mm_assets.flows.workspace import Workspace
from mm_assets.limits import MediaLimits
from mm_assets.media.decode import decode_file
from mm_assets.media.guard import DecodedMedia
from mm_assets.media.segments import SegmentWriter
from mm_assets.media.worker import SEGMENTS_NAME, Ending
from mm_assets.settings import Settings, load_settings

ALIAS = "source"
STEPS = ("raw_objects", "segments", "visual_embeddings", "media_quality")
LEASE_S = 2.0
# An innocent object must outlive the storm: of 10,000, one was with eight processes in a row when they were killed.
MAX_TRIES, MAX_CLAIMS = 3, 12
# Kinds of objects; the key says which.
GOOD, POISON, STUBBORN, KILLER, TEXT = "good", "poison", "stubborn", "killer", "text"


def kind_of(key: str) -> str:
    """Return the kind of an object, by the end of its key's stem."""
    return key.rpartition("-")[2].partition(".")[0]


@dataclass(frozen=True)
class Stage:
    """One soak's files: settings, the journal of what was written to the source, and the log of errors."""

    folder: Path

    @property
    def config_file(self) -> Path:
        """The settings file."""
        return self.folder / "mm_assets.yaml"

    @property
    def journal(self) -> Path:
        """One line of JSON for each write and each delete, after it was done."""
        return self.folder / "journal.jsonl"

    @property
    def errors(self) -> Path:
        """One line of JSON for each error that ended a turn of a process."""
        return self.folder / "errors.jsonl"

    @cached_property
    def settings(self) -> Settings:
        """The settings, read once for all processes that are forked later."""
        return load_settings(self.config_file)

    def open(self) -> Workspace:
        """Open the workspace of this process."""
        workspace = open_fake_workspace(self.settings, fails_on=STUBBORN, failing_step="visual_embeddings")
        vision = workspace.extractors["visual_embeddings"]
        killing = KillingVision(vision.card, None, vision.place)
        killing.fails_on = STUBBORN
        cast("dict[str, Any]", workspace.extractors)["visual_embeddings"] = killing
        return workspace


class KillingVision(FakeVision):
    """Vectors of pictures; a killer's picture kills this process, as a model that runs out of memory might."""

    def _extract(self, segments: pa.Table) -> pa.Table:
        if any(kind_of(key) == KILLER for key in segments["key"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._extract(segments)


class OpenDecoder:
    """Decodes in this process: a guarded child takes a second to start, and here no process lives that long."""

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits

    def decode(self, file: Path, folder: Path) -> DecodedMedia:
        """Decode one file with the real decoders."""
        target = folder / SEGMENTS_NAME
        with SegmentWriter(target) as out:
            facts = decode_file(file, self.limits, out)
        return DecodedMedia(facts, target, Ending(0, None, False, 0, 0.0, 0.0))

    def close(self) -> None:
        """There is no child to end."""


def warm() -> None:
    """Import what the processes need, so that forked ones start at once, and make waits as short as their lives."""
    import faiss  # noqa: F401
    import hdbscan  # noqa: F401
    import PIL.PngImagePlugin  # noqa: F401
    import sklearn.neighbors  # noqa: F401

    setattr(preparing, "MediaWorker", OpenDecoder)  # noqa: B010  a name of the module, not of its interface
    locking.held.__wrapped__.__kwdefaults__["lease_s"] = LEASE_S  # type: ignore[attr-defined]
    for module, name in ((ends, "_BACKOFF_S"), (ends, "_SERVICE_WAIT_S"), (hints, "_WAIT_S")):
        assert hasattr(module, name)
        setattr(module, name, 0.2)
    gc.freeze()  # what was imported stays shared between the processes


@contextmanager
def set_stage(folder: Path, store: str, ledger: str) -> Iterator[Stage]:
    """Start the servers that are asked for, and write the settings.

    Parameters
    ----------
    store : folder | moto | rclone
    ledger : sqlite | postgresql
    """
    stage = Stage(folder)
    with ExitStack() as servers:
        values = _stores(folder, store, servers) | {"state": str(folder / "state")}
        if ledger == "postgresql":
            values["ledger_url"] = servers.enter_context(fresh_database(servers.enter_context(postgres_server())))
        values["runs"] = {
            "batch_objects": 8,
            "decode_workers": 1,
            "max_tries": MAX_TRIES,
            "max_claims": MAX_CLAIMS,
            "lease_s": LEASE_S,
        }
        # Half of a few hundred objects may be replaced between two passes.
        values["refresh"] = {"shard_objects": 500, "gone_brake": 0.9}
        stage.config_file.write_text(yaml.safe_dump(values), encoding="utf-8")
        assert stage.settings.state == folder / "state"
        yield stage


def _stores(folder: Path, store: str, servers: ExitStack) -> dict[str, Any]:
    if store == "folder":
        (folder / "source").mkdir()
        places: dict[str, dict[str, Any]] = {name: {"uri": str(folder / name)} for name in ("source", "lake")}
    else:
        url = servers.enter_context(moto_server() if store == "moto" else rclone_server())
        keys = {"endpoint_url": url, "region": "us-east-1", "access_key_id": KEY_ID, "secret_access_key": SECRET}
        client = make_client(url)
        for name in ("source", "lake"):
            client.create_bucket(Bucket=f"soak-{name}")
        places = {name: {"uri": f"s3://soak-{name}", **keys} for name in ("source", "lake")}
    return {"sources": [{**places["source"], "alias": ALIAS, "steps": list(STEPS)}], "lake": places["lake"]}
