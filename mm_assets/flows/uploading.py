"""A file that came in goes to its source, and is from then on an object like any other.

Put here: which keys may be written, the order of writes. Keep out: HTTP.

Stored, described, booked: killed between, the next listing books it.
"""

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mm_assets.buckets.base import ObjectNotFoundError, StoredObject
from mm_assets.errors import ObjectError, Reason, ServiceError
from mm_assets.flows.selecting import Selection
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import SeenObject

_LOG = logging.getLogger(__name__)
_MAX_KEY_BYTES = 1_024  # of every S3-compatible service
# Backblaze B2 refuses them; Ceph takes some of them and then cannot list its bucket.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An object that was stored and booked."""

    seen: SeenObject

    @property
    def task_id(self) -> str:
        """Id under which its state is asked for."""
        return self.seen.version.object_id


def check_key(workspace: Workspace, alias: str, key: str, size_bytes: int | None = None) -> None:
    """Refuse what could not be stored, or would never be processed; with the size, its limits too.

    Raises
    ------
    ObjectError
        POLICY; says what is wrong with the key.
    """
    source = workspace.settings.source(alias)
    whole = (source.prefix if source.is_bucket else "") + key
    if not key or _CONTROLS.search(key) or len(whole.encode("utf-8", "surrogatepass")) > _MAX_KEY_BYTES:
        msg = f"a key is 1 to {_MAX_KEY_BYTES} bytes long and holds no control characters"
        raise ObjectError(Reason.POLICY, msg)
    size_bytes = max(1, source.min_object_bytes) if size_bytes is None else size_bytes
    if not Selection.of(workspace, alias).wants(StoredObject(key, "", size_bytes, datetime.now(UTC))):
        msg = "the settings of this source leave such an object out: its patterns, its sizes, or a reserved prefix"
        raise ObjectError(Reason.POLICY, msg)


def store_upload(workspace: Workspace, alias: str, key: str, file: Path) -> Uploaded:
    """Write a file into a source that takes uploads, and book what a HEAD then says.

    Raises
    ------
    ObjectError
        The key or the size is refused, by the settings or by the store.
    ServiceError
        The store or the ledger failed; sending again is safe.
    """
    check_key(workspace, alias, key, file.stat().st_size)
    store = workspace.sources[alias]
    try:
        store.upload(key, file)
        picked = Selection.of(workspace, alias).pick([store.head(key)])
    except ObjectNotFoundError:
        picked = None
    except ObjectError as error:  # its text names the place, which is no caller's business
        _LOG.warning("an upload to source %s is refused by its store: %s", alias, error)
        raise ObjectError(error.reason, "the store of this source cannot hold an object of this name") from error
    if not picked or not picked.seen:
        msg = "the object was changed or removed while it was stored; send it again"
        raise ServiceError(msg)
    shard_objects = workspace.settings.refresh.shard_objects
    workspace.ledger.objects.record_hinted(alias, picked.seen, (), shard_objects=shard_objects)
    return Uploaded(picked.seen[0])
