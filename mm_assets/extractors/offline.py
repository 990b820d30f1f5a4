"""No library calls home: every switch that the model libraries have, set before they are imported.

Put here: switches of third-party libraries that are read from the environment at their import.
Keep out: settings of mm_assets, which only ``settings`` reads.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What each one stops was found by an audit hook on sockets and processes; a test repeats the audit.
SWITCHES = {
    "HF_HUB_OFFLINE": "1",  # open_clip asks the hub for weights that are not there
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "YOLO_OFFLINE": "true",  # ultralytics resolves two host names at import and posts analytics after each predict
    "YOLO_AUTOINSTALL": "false",  # ultralytics runs pip when a package is missing
    "ULTRALYTICS_SAFE_LOAD": "1",  # unpickle known classes only
    "ORT_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}


def go_offline(threads: int = 0) -> None:
    """Set the switches; call before importing any model library.

    insightface and whisper have none: their extractors pass absolute paths of files whose digests were checked, which
    these libraries never download.

    Parameters
    ----------
    threads : CPU threads of OpenMP and numba, 0 = all cores; ultralytics would otherwise set 1 for the whole process
    """
    os.environ.update(SWITCHES)  # noqa: TID251  # written for the libraries; nothing is read
    for library in ("OMP", "NUMBA"):
        os.environ.setdefault(f"{library}_NUM_THREADS", str(threads or os.cpu_count() or 1))  # noqa: TID251
    os.environ.setdefault("YOLO_CONFIG_DIR", str(_private_folder()))  # noqa: TID251


def _private_folder() -> Path:
    """Where ultralytics keeps its settings: the home folder is often read-only in containers."""
    folder = Path(tempfile.gettempdir()) / f"mm_assets-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # another user of this machine was faster
        return Path(tempfile.mkdtemp(prefix="mm_assets-"))
    return folder


@contextmanager
def one_thread_per_child() -> Iterator[None]:
    """Limit child processes that are started inside to one OpenMP thread each, as many of them run side by side.

    The limit is taken back, because a library that loads OpenMP into this process afterwards would obey it too.
    """
    before = os.environ.get("OMP_THREAD_LIMIT")  # noqa: TID251
    os.environ["OMP_THREAD_LIMIT"] = "1"  # noqa: TID251
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_THREAD_LIMIT"]  # noqa: TID251
        else:
            os.environ["OMP_THREAD_LIMIT"] = before  # noqa: TID251
