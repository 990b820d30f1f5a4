"""A local copy of parts of the lake, for programs that read files: DuckDB, FAISS.

Put here: keeping the copy equal to the lake. Keep out: what the files mean.

A lake in a folder is read where it lies; of a lake in a bucket, only what changed (by ETag) is fetched. DuckDB's own
S3 reader is deliberately not used: it is fetched from the network at run time, and boto3 is the one client on buckets.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mm_assets.buckets.base import ObjectNotFoundError, StoredObject
from mm_assets.buckets.local import LocalStore
from mm_assets.lake import Lake

_THREADS = 8


def local_copy(lake: Lake, prefix: str, cache: Path) -> Path:
    """Return a folder that holds what the lake has below ``prefix`` (ending in '/'), fetching what changed."""
    if isinstance(lake.store, LocalStore):
        return lake.store.folder / prefix
    folder = cache / lake.lake_id()
    known_file = folder / "etags" / f"{prefix.strip('/').replace('/', '_')}.json"
    known = json.loads(known_file.read_text()) if known_file.is_file() else {}
    there = {stored.key: stored for stored in lake.walk(prefix)}
    changed = [s for s in there.values() if known.get(s.key) != s.etag or not (folder / s.key).is_file()]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda stored: _fetch(lake, stored, folder), changed))
    for key in known.keys() - there.keys():
        (folder / key).unlink(missing_ok=True)
    known_file.parent.mkdir(parents=True, exist_ok=True)
    known_file.write_text(json.dumps({key: stored.etag for key, stored in there.items()}))
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    return folder / prefix


def _fetch(lake: Lake, stored: StoredObject, folder: Path) -> None:
    """Fetch into a new name, then rename: a reader never sees half a file."""
    target = folder / stored.key
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.new")
    new.unlink(missing_ok=True)
    try:
        lake.store.download(stored.key, new)
    except ObjectNotFoundError:
        return  # replaced between listing and reading; the next call brings it
    new.replace(target)
