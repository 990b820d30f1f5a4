"""A worker's temporary folder, and those that dead workers left behind.

Put here: making, locking and sweeping. Keep out: what is put into it.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "mm_assets-scratch-"  # and nothing else of ours is called so: what has the name is swept
_YOUNG_S = 60.0  # a folder may be seen between its making and its locking


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a private folder until the block ends, after removing those of dead workers.

    The folder is locked by the kernel for as long as this process lives. Process numbers would not do: they mean
    nothing in another container that shares the folder, and are given out again.

    Raises
    ------
    OSError
        There is no room, or no right, for a temporary folder.
    """
    sweep_scratch()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield Path(folder)
        finally:
            os.close(descriptor)


def sweep_scratch() -> int:
    """Remove our own folders that no living worker holds; links are never followed. Returns how many."""
    return sum(_remove_if_dead(folder) for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"))


def _remove_if_dead(folder: Path) -> bool:
    with suppress(OSError):  # a file, a link, somebody else's, locked, or gone already
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or found.st_mtime > time.time() - _YOUNG_S:
                return False
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            return True
        finally:
            os.close(descriptor)
    return False
