"""A local copy of parts of the lake, for programs that read files: DuckDB, FAISS.

Put here: keeping the copy equal to the lake. Keep out: what the files mean.

A lake in a folder is read where it lies; of a lake in a bucket, only what changed (by ETag) is fetched. DuckDB's own
S3 reader is deliberately not used: it is fetched from the network at run time, and boto3 is the one client on buckets.
"""

import json
import uuid
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    known_file = _known_file(folder, prefix)
    known = _read_known(known_file)
    there = {stored.key: stored for stored in lake.walk(prefix)}
    changed = [s for s in there.values() if known.get(s.key) != s.etag or not (folder / s.key).is_file()]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda stored: _fetch(lake, stored, folder), changed))
    for key in known.keys() - there.keys():
        (folder / key).unlink(missing_ok=True)
    known_file.parent.mkdir(parents=True, exist_ok=True)
    new = known_file.with_suffix(f".{uuid.uuid4().hex}")
    new.write_text(json.dumps({key: stored.etag for key, stored in there.items()}))
    new.replace(known_file)
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    return folder / prefix


def local_files(lake: Lake, keys: Sequence[str], cache: Path) -> list[Path]:
    """Return files that hold what the lake has under these keys, which never change: what was fetched once is kept.

    Raises
    ------
    ObjectNotFoundError
        The lake has no such file.
    """
    if isinstance(lake.store, LocalStore):
        files = [lake.store.folder / key for key in keys]
        if missing := next((key for key, file in zip(keys, files, strict=True) if not file.is_file()), None):
            msg = f"{lake.uri}/{missing}"
            raise ObjectNotFoundError(msg)
        return files
    folder = cache / lake.lake_id()
    missing_keys = [key for key in keys if not (folder / key).is_file()]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda key: _download(lake, key, folder / key), missing_keys))
    return [folder / key for key in keys]


def drop_copies(lake: Lake, prefix: str, cache: Path, *, keep: Collection[str]) -> None:
    """Remove what was copied below ``prefix`` (ending in '/') but for these keys: old builds hold what was erased since."""
    if isinstance(lake.store, LocalStore):
        return
    folder = cache / lake.lake_id()
    for file in list((folder / prefix).rglob("*")):
        if file.is_file() and file.relative_to(folder).as_posix() not in keep:
            file.unlink(missing_ok=True)


def _known_file(folder: Path, prefix: str) -> Path:
    return folder / "etags" / f"{prefix.strip('/').replace('/', '_')}.json"


def _read_known(file: Path) -> dict[str, str]:
    """Return key → ETag of what was fetched; nothing where the note is missing or damaged, which fetches all anew."""
    try:
        known: dict[str, str] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known


def _fetch(lake: Lake, stored: StoredObject, folder: Path) -> None:
    """Fetch what a listing named; what was replaced since is brought by the next call."""
    with suppress(ObjectNotFoundError):
        _download(lake, stored.key, folder / stored.key)


def _download(lake: Lake, key: str, target: Path) -> None:
    """Fetch into a new name, then rename: a reader never sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    lake.store.download(key, new)
    new.replace(target)
