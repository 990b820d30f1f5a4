"""How long a person waits for the first page of answers and its pictures, as a browser loads them.

Run with ``python benchmarks/bench_page.py demo/out/mm_assets.yaml [--questions demo/golden.yaml]`` after ``make demo``. Put
here: the page by its own server. Keep out: what a search costs (``bench_search``).

A question of the golden file is asked by GET /; pictures that do not come with the page are then fetched over six
connections that stay open, as browsers do, none of them known before. Beside it stands the same through the library: one
call of ``ask`` with pictures.
README line: ``benchmarks/bench_page.py``: the first page of answers with its pictures, by HTTP and by the library.
"""

import argparse
import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import local
from urllib.parse import urlencode

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from mm_assets.resources.readers import open_retriever
from mm_assets.retrieval import Question
from mm_assets.settings import load_settings

GOAL_MS = 200.0
_ANSWERS, _CONNECTIONS = 24, 6
_PICTURE = re.compile(r"/segments/[\w-]+/thumbnail")
_WITHIN = "data:image/jpeg;base64,"
_HERE = local()


@contextmanager
def serving(config: Path, port: int) -> Iterator[None]:
    """Run ``mm serve``."""
    command = [sys.executable, "-c", "from mm_assets.cli import main; main()", "serve", "-c", str(config)]
    unlimited = ["env", "MM_ASSETS_SERVE__REQUESTS_PER_MINUTE=1000000"]
    with subprocess.Popen(
        [*unlimited, *command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for(port)
            yield
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    ends_at = time.monotonic() + 60
    while True:
        try:
            get(port, "/healthz")
        except OSError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(0.2)
        else:
            return


def get(port: int, path: str) -> bytes:
    """Fetch over this thread's connection."""
    connection = getattr(_HERE, "connection", None)
    if connection is None:
        connection = _HERE.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        _HERE.connection = None
        raise
    if answer.status != 200:
        sys.exit(f"{path}: {answer.status} {body[:200]!r}")
    return body


def load(port: int, text: str, browser: ThreadPoolExecutor) -> tuple[float, float, int]:
    """Load a page as a browser does; returns the milliseconds of the page, of all, and the number of pictures."""
    started = time.monotonic()
    page = browser.submit(get, port, f"/?{urlencode({'text': text})}").result().decode()
    page_ms = 1_000 * (time.monotonic() - started)
    pictures = list(dict.fromkeys(_PICTURE.findall(page)))
    list(browser.map(lambda path: get(port, path), pictures))
    return page_ms, 1_000 * (time.monotonic() - started), len(pictures) + page.count(_WITHIN)


def ask(config: Path, texts: Sequence[str]) -> list[float]:
    """Ask the library; returns the milliseconds of each question."""
    retriever, costs = open_retriever(load_settings(config)), []
    for text in [texts[0], *texts]:
        started = time.monotonic()
        retriever.ask(Question(text=text, k=_ANSWERS), has_thumbnails=True)
        costs.append(1_000 * (time.monotonic() - started))
    return costs[1:]


def main() -> int:
    """Measure and print; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--questions", type=Path, default=Path("demo/golden.yaml"))
    parser.add_argument("--port", type=int, default=8791)
    arguments = parser.parse_args()
    queries = yaml.safe_load(arguments.questions.read_text(encoding="utf-8"))["queries"]
    texts = [query["text"] for query in queries if "text" in query]
    with serving(arguments.config, arguments.port), ThreadPoolExecutor(_CONNECTIONS) as browser:
        load(arguments.port, texts[0], browser)
        found = [load(arguments.port, text, browser) for text in texts]
    pages, all_of, counts = (np.array(values) for values in zip(*found, strict=True))
    rows = {
        "the page": pages,
        f"with its {np.median(counts):.0f} pictures": all_of,
        "the library": ask(arguments.config, texts),
    }
    table = Table("what", "median ms", "95th ms", "ratio", title=f"{len(texts)} questions; goal {GOAL_MS:.0f} ms")
    for what, values in rows.items():
        median = float(np.median(values))
        ratio = median / float(np.median(rows["the library"]))
        table.add_row(what, f"{median:.0f}", f"{np.percentile(values, 95):.0f}", f"{ratio:.2f}")
    Console().print(table)
    return int(float(np.median(all_of)) > GOAL_MS)


if __name__ == "__main__":
    sys.exit(main())
