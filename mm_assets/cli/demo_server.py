"""A local S3 server for ``mm demo --store s3``: moto's, in a child process on a free loopback port.

Put here: starting, filling and stopping it. Keep out: the demo's tour. moto is a development dependency.
"""

import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.settings import Location

FAKE_KEY = "demo"  # moto takes any key; it guards nothing
_STARTED = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
_START = "import sys; from moto.server import main; main(sys.argv[1:])"
_STOP_S = 10
_UPLOADS = 8


@contextmanager
def s3_server() -> Iterator[str]:
    """Run the server; yields its URL. It is stopped by its process id, whatever happens in between."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        msg = "the S3 server of the demo is moto, which is not installed: pip install 'moto[s3,server]', or `mm demo --store folder`"
        raise ConfigError(msg)
    command = [sys.executable, "-W", "ignore", "-u", "-c", _START, "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(  # noqa: S603  a constant command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which then stops the server
    ) as process:
        assert process.stderr is not None  # noqa: S101  a pipe was asked for
        # The pipe must be emptied, or the server blocks on its own log.
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        try:
            url = _read_url(process.stderr)
            reader.start()
            yield url
        finally:
            _stop(process)
            if reader.ident is not None:
                reader.join(_STOP_S)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _read_url(log: IO[str]) -> str:
    lines = []
    for line in log:
        lines.append(line)
        if found := _STARTED.search(line):
            return found[1]
    msg = "moto's server did not start:\n" + "".join(lines[-5:])
    raise ServiceError(msg)


def fill_bucket(url: str, media: Path) -> None:
    """Make the demo's two buckets and upload the media."""
    from mm_assets.resources.s3 import BucketS3Resource, open_store

    location = Location(
        uri="s3://demo-media", endpoint_url=url, region="us-east-1", access_key_id=FAKE_KEY, secret_access_key=FAKE_KEY
    )
    client = BucketS3Resource.from_location(location).get_client()
    for bucket in ("demo-media", "demo-lake"):
        client.create_bucket(Bucket=bucket)
    store = open_store(location)
    files = sorted(path for path in media.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_UPLOADS) as pool:
        list(pool.map(lambda file: store.upload(file.relative_to(media).as_posix(), file), files))
