"""An export as files: one Parquet file, or a Lance dataset.

Put here: writing beside the target and renaming, so that a target is whole or not there. Keep out: what the rows are.
"""

import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.exporting.contents import Contents
from mm_assets.lake import open_parquet, read_provenance


def write_parquet(contents: Contents, target: Path, *, is_forced: bool = False) -> None:
    """Write one Parquet file of bounded row groups; the facts are in its metadata.

    Parameters
    ----------
    is_forced : replace an export that is there; no other file is replaced, which may be a medium or a table

    Raises
    ------
    ConfigError
        The target is there.
    ServiceError
        It cannot be written (rights, full disk); nothing of it is left.
    """
    _require_free(target, is_forced=is_forced, is_ours=_is_export(target), kind="export to Parquet")
    with _beside(target) as new, open_parquet(new, contents.schema, contents.facts) as writer:
        for batch in contents.batches():
            writer.write_batch(batch)


def write_lance(contents: Contents, target: Path, *, is_forced: bool = False) -> None:
    """Write a Lance dataset into a folder, without an index of Lance's own; parameters and errors as ``write_parquet``."""
    try:
        import lance
    except ImportError as error:
        msg = "an export to Lance needs pylance, which is not installed: pip install pylance"
        raise ConfigError(msg) from error
    is_dataset = (target / "_versions").is_dir()
    _require_free(target, is_forced=is_forced, is_ours=is_dataset, kind="Lance dataset")
    is_stopped = Event()
    batches = takewhile(lambda _: not is_stopped.is_set(), contents.batches())
    rows = pa.RecordBatchReader.from_batches(contents.schema, batches)
    # In a thread beside this one: interrupted in its own, Lance returns while threads of it still read and write.
    with _beside(target) as new, ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(lance.write_dataset, rows, str(new)).result()
        finally:
            is_stopped.set()


def _is_export(target: Path) -> bool:
    try:
        return target.is_file() and "index" in read_provenance(pq.read_schema(target))
    except (ValueError, OSError):  # no Parquet, or with a provenance that is none of ours
        return False


def _require_free(target: Path, *, is_forced: bool, is_ours: bool, kind: str) -> None:
    if target.exists() and not is_ours:
        msg = f"{target} exists and is no {kind}; name another target"
        raise ConfigError(msg)
    if target.exists() and not is_forced:
        msg = f"{target} exists; name another target, or replace it with --force"
        raise ConfigError(msg)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Give a name beside the target to write to; it takes the target's place at the end, and goes where there was none."""
    new, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex}.{kind}") for kind in ("new", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield new
        if target.is_dir():  # no folder can take the place of another in one step
            target.rename(old)
        new.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        msg = f"{target} cannot be written, and is as it was: {error}; export again when there are rights and room"
        raise ServiceError(msg) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        new.unlink(missing_ok=True)
