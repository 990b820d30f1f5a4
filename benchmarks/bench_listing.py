"""A million keys listed: by boto3's own paginator, by the store, and by discovery into a fresh SQLite ledger.

Run with ``PYTHONPATH=tests python benchmarks/bench_listing.py [--keys 1000000]``; some minutes. A stub server in another
process serves the pages, so that the figures are the client's. Discovery runs in ticks, as the sensor's do; its process
is killed in the middle of the second one, and another goes on. Put here: the measurement. Keep out: other loads of the
ledger (``bench_ledger``) and pushed events (``bench_events``).

README line: ``benchmarks/bench_listing.py``: CPU, memory and longest tick of listing a million keys, beside boto3.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import yaml
from botocore.config import Config
from fakes import open_fake_workspace
from rich.console import Console
from rich.table import Table
from s3_server import KEY_ID, SECRET, make_client

from mm_assets.buckets.s3 import S3Store
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.settings import load_settings

_PAGE = 1_000
_MAX_CPU_S, _MAX_RSS_MIB, _MAX_TICK_S = 60.0, 300.0, 40.0
_ALIAS = "photos"
_ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-11-21T05:00:00.000Z</LastModified>"
    "<ETag>&quot;{number:032x}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_PAGE_OF = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>photos</Name><EncodingType>url</EncodingType><IsTruncated>{more}</IsTruncated>"
    "<NextContinuationToken>{last}</NextContinuationToken>{entries}</ListBucketResult>"
)


# -- the server ----------------------------------------------------------------------------------------------------


def key_of(number: int) -> str:
    """Return a key as it is written in a page; they sort like their numbers."""
    return f"camera%20{number // 10_000:03d}/2026/clip-{number:08d}.mp4"


def page_at(start: int, n_keys: int) -> bytes:
    """Return the page that begins with this key."""
    numbers = range(start, min(start + _PAGE, n_keys))
    entries = "".join(_ENTRY.format(key=key_of(n), number=n, size=1_000 + n) for n in numbers)
    more = str(numbers.stop < n_keys).lower()
    return _PAGE_OF.format(more=more, last=key_of(numbers.stop - 1), entries=entries).encode()


def serve(n_keys: int) -> int:
    """Answer ListObjectsV2 from prebuilt pages, and ``/calls`` with the number of pages given."""
    pages = {start: page_at(start, n_keys) for start in range(0, n_keys, _PAGE)}
    calls = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/calls":
                body = str(next(calls)).encode()
            else:
                next(calls)
                asked = parse_qs(urlsplit(self.path).query)
                after = (asked.get("start-after") or asked.get("continuation-token") or [""])[0]
                start = int(after[-12:-4]) + 1 if after else 0
                body = pages.get(start) or page_at(start, n_keys)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
    return 0


@contextmanager
def server_of(n_keys: int) -> Iterator[str]:
    """Run the server in a process of its own; yields its URL."""
    with subprocess.Popen([*_SELF, "serve", str(n_keys)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{_line_of(process).strip()}"
        finally:
            process.terminate()


def _line_of(process: subprocess.Popen[str]) -> str:
    if process.stdout is None:
        msg = "the process was started without a pipe"
        raise RuntimeError(msg)
    return process.stdout.readline()


# -- the listers, each in a process of its own ---------------------------------------------------------------------


def paginator(url: str) -> int:
    """List with boto3 alone, as its documentation shows."""
    keys = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, config=Config(s3={"addressing_style": "path"}), **keys)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="photos")
    return sum(len(page["Contents"]) for page in pages)


def store(url: str) -> int:
    """List with the store alone."""
    bucket = S3Store(make_client(url), "photos")
    n_listed, after = 0, ""
    while after is not None:
        page = bucket.list_page(after)
        n_listed, after = n_listed + len(page.objects), page.next_after
    return n_listed


def discovery(url: str, folder: Path, tick_s: float) -> Iterator[dict[str, Any]]:
    """List into the ledger in ticks, going on where the last process stopped; yields what each tick did."""
    workspace = open_workspace(url, folder)
    is_complete = False
    while not is_complete:
        started = time.monotonic()
        found = discover(workspace, _ALIAS, deadline_s=tick_s)
        is_complete = found.is_complete
        yield {"listed": found.n_listed, "new": found.n_new, "tick_s": time.monotonic() - started}


def open_workspace(url: str, folder: Path) -> Workspace:
    """Open a workspace whose source is the stub's bucket."""
    keys = {"endpoint_url": url, "region": "us-east-1", "access_key_id": KEY_ID, "secret_access_key": SECRET}
    settings = {
        "sources": [{"uri": "s3://photos", "alias": _ALIAS, **keys}],
        "lake": {"uri": str(folder / "lake")},
        "state": str(folder / "state"),
    }
    file = folder / "mm_assets.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return open_fake_workspace(load_settings(file))


def peak_rss_mib() -> float:
    """Return the most memory that this process held so far, imports included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(what: str, url: str, folder: Path, tick_s: float) -> int:
    """Run one lister and print a line of JSON for each tick, with the resources used so far."""
    runs = {"paginator": lambda: iter([{"listed": paginator(url)}]), "store": lambda: iter([{"listed": store(url)}])}
    begin = runs.get(what, lambda: discovery(url, folder, tick_s))
    imported_s = time.process_time()
    for done in begin():
        used = {"cpu_s": time.process_time() - imported_s, "rss_mib": peak_rss_mib()}
        sys.stdout.write(json.dumps(done | used) + "\n")
        sys.stdout.flush()
    return 0


# -- the run -------------------------------------------------------------------------------------------------------


def lines_of(what: str, url: str, folder: Path, tick_s: float) -> list[dict[str, Any]]:
    """Run a lister to its end."""
    done = subprocess.run([*_SELF, what, url, str(folder), str(tick_s)], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def kill_in_second_tick(url: str, folder: Path, tick_s: float) -> tuple[dict[str, Any], float]:
    """Run discovery and kill it in its second tick; returns what the first did, and all the CPU seconds spent."""
    with subprocess.Popen(
        [*_SELF, "discovery", url, str(folder), str(tick_s)], stdout=subprocess.PIPE, text=True
    ) as process:
        first = json.loads(_line_of(process))
        time.sleep(tick_s / 4)
        process.kill()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != -signal.SIGKILL:
            sys.exit("the listing was complete before the second tick; choose a shorter --kill-tick-s")
    return first, usage.ru_utime + usage.ru_stime


def run(n_keys: int, tick_s: float, kill_tick_s: float) -> int:
    """Print the table, and fail where a target is missed."""
    with server_of(n_keys) as url, tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        whole.mkdir()
        parts.mkdir()
        rows = {what: lines_of(what, url, whole, tick_s) for what in ("paginator", "store", "discovery")}
        first, killed_cpu_s = kill_in_second_tick(url, parts, kill_tick_s)
        rest = lines_of("discovery", url, parts, tick_s)
        n_known = open_workspace(url, parts).ledger.objects.n_live(_ALIAS)
    _show(rows, n_keys)
    n_after = sum(tick["listed"] for tick in rest)
    Console().print(
        f"killed in the second tick after {first['listed']:,} keys and {killed_cpu_s:.1f} CPU-s; the next process listed "
        f"the other {n_after:,}; the ledger holds {n_known:,} of {n_keys:,}"
    )
    ticks = rows["discovery"]
    is_met = ticks[-1]["cpu_s"] <= _MAX_CPU_S and ticks[-1]["rss_mib"] < _MAX_RSS_MIB
    is_met &= max(tick["tick_s"] for tick in ticks) <= max(_MAX_TICK_S, tick_s) + 1
    is_resumed = n_known == n_keys and n_after <= n_keys - first["listed"]
    return 0 if is_met and is_resumed else 1


def _show(rows: dict[str, list[dict[str, Any]]], n_keys: int) -> None:
    table = Table("lister", "keys", "CPU-s", "ratio to boto3", "peak MiB", "ticks", "longest s")
    base = rows["paginator"][-1]["cpu_s"]
    for what, ticks in rows.items():
        cpu_s, n_listed = ticks[-1]["cpu_s"], sum(tick["listed"] for tick in ticks)
        if n_listed != n_keys:
            sys.exit(f"{what} listed {n_listed} of {n_keys}")
        longest = max(tick.get("tick_s", 0.0) for tick in ticks)
        cells = (f"{n_listed:,}", f"{cpu_s:.1f}", f"{cpu_s / base:.2f}", f"{ticks[-1]['rss_mib']:.0f}")
        table.add_row(what, *cells, str(len(ticks)), f"{longest:.1f}" if longest else "")
    Console().print(table)


def main() -> int:
    """Read the command line; without a subcommand everything is measured."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        what, *rest = sys.argv[1:]
        return serve(int(rest[0])) if what == "serve" else measure(what, rest[0], Path(rest[1]), float(rest[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--tick-s", type=float, default=39.0, help="deadline of a tick; the page under way is finished")
    parser.add_argument("--kill-tick-s", type=float, default=8.0, help="deadline of the tick before the kill")
    arguments = parser.parse_args()
    return run(arguments.keys, arguments.tick_s, arguments.kill_tick_s)


_SELF = (sys.executable, __file__)

if __name__ == "__main__":
    sys.exit(main())
