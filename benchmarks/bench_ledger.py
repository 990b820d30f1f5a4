"""How the ledger bears load: questions of a large one, a hundred workers on one PostgreSQL, one object of 5 GiB.

Run with ``PYTHONPATH=tests python benchmarks/bench_ledger.py questions|claims|huge``. Put here: the three measurements.
Keep out: the listing of a million keys (``bench_listing``) and pushed events (``bench_events``).
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fakes import open_fake_workspace
from media_factory import Clip, write_clip
from postgres_server import fresh_database, postgres_server
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, func, make_url, select, update

from mm_assets.flows.discovery import discover
from mm_assets.flows.metrics import collect
from mm_assets.flows.planning import free_lost_work, plan_batches
from mm_assets.flows.processing import process_batch
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import Finished, Ledger, SeenObject
from mm_assets.ledger.dead import DeadFilter
from mm_assets.ledger.tables import WORK
from mm_assets.schemas import STEP_TABLES
from mm_assets.settings import load_settings

FORK = multiprocessing.get_context("fork")
_PAGE, _BATCH = 1_000, 10
_RECIPES = {"segments": "recipe"}


# -- questions of a large ledger -----------------------------------------------------------------------------------


def questions(arguments: argparse.Namespace) -> int:
    """Measure what ``mm status``, ``mm dlq list`` and ``/metrics`` ask, each the median and the slowest of ten times."""
    rows = []
    with _ledgers() as urls:
        for url in urls:
            with tempfile.TemporaryDirectory() as folder:
                workspace = _workspace(Path(folder), ledger_url=url)
                n_rows = _fill(workspace, arguments.objects, arguments.dead)
                rows += [(_name(url), f"{n_rows:,}", *row) for row in _ask_all(workspace)]
                workspace.close()
    _print(
        f"questions, {arguments.dead:,} dead letters",
        ("database", "rows of work", "question", "median ms", "slowest ms"),
        rows,
    )
    return int(any(float(row[-1]) >= 200 for row in rows))


def _ask_all(workspace: Workspace) -> Iterator[tuple[str, str, str]]:
    recipes, ledger = dict(workspace.recipes), workspace.ledger
    asked: dict[str, Callable[[], object]] = {
        "work by step, state, reason": lambda: ledger.work.counts(recipes),
        "objects that wait": lambda: ledger.work.n_waiting(recipes),
        "dead letters by reason": lambda: ledger.dead.depth(recipes),
        "100 dead letters by prefix": lambda: ledger.dead.letters(DeadFilter(prefix="folder/000000")),
        "all metrics": lambda: collect(workspace),
    }
    for name, ask in asked.items():
        times = sorted(_timed(ask) for _ in range(10))
        yield name, f"{times[5] * 1e3:.0f}", f"{times[-1] * 1e3:.0f}"


def _fill(workspace: Workspace, n_objects: int, n_dead: int) -> int:
    """List so many objects, then write the ends of their work straight into the table; returns how many rows of work."""
    _list(workspace.ledger, n_objects)
    recipes = workspace.recipes_of("source")
    while workspace.ledger.work.open_work("source", recipes, 10_000):
        pass
    engine = create_engine(workspace.settings.ledger_location, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(update(WORK).values(state="done", n_rows=1))
        letters = select(WORK.c.object_id).where(WORK.c.step == "ocr_text").limit(n_dead)
        dead = update(WORK).where(WORK.c.step == "ocr_text", WORK.c.object_id.in_(letters))
        connection.execute(dead.values(state="dead", reason="timeout"))
        if engine.dialect.name == "postgresql":  # which does so by itself, in time; nobody does it for SQLite
            connection.exec_driver_sql("ANALYZE")
        n_rows = int(connection.scalar(select(func.count()).select_from(WORK)) or 0)
    engine.dispose()
    return n_rows


def _list(ledger: Ledger, n_objects: int) -> None:
    for start in range(0, n_objects, _PAGE):
        versions = (ObjectVersion("source", f"folder/{n:08d}.png", f"{n:032x}") for n in range(start, start + _PAGE))
        seen = [SeenObject(version, 1, 1.0) for version in versions]
        at = ledger.objects.scan("source")
        ledger.objects.record_page("source", seen, at=at, after=seen[-1].version.key, shard_objects=2_000)


# -- a hundred workers ---------------------------------------------------------------------------------------------


def claims(arguments: argparse.Namespace) -> int:
    """Let workers claim batches, each of which two of them try to get, and finish them; look who got what."""
    rows = []
    with _ledgers() as urls:
        for url in urls:
            batches = _planned(url, arguments.workers * arguments.claims // 2)
            seconds, got = _claim_all(url, arguments, batches)
            n_twice = sum(n > 1 for n in Counter(got).values())
            n_missed = len(batches) * _BATCH - len(set(got))
            p50, p99 = np.percentile(np.array(seconds) * 1e3, (50, 99))
            rows.append((_name(url), str(len(seconds)), f"{p50:.1f}", f"{p99:.1f}", str(n_twice), str(n_missed)))
    columns = ("database", "claims", "median ms", "p99 ms", "claimed twice", "never claimed")
    _print(f"{arguments.workers} workers, each busy for about {arguments.busy_s} s with a batch", columns, rows)
    postgres = rows[-1]
    return int(postgres[-2:] != ("0", "0") or float(postgres[3]) >= 50)


def _planned(url: str, n_batches: int) -> list[str]:
    ledger = Ledger(url)
    _list(ledger, -(-n_batches * _BATCH // _PAGE) * _PAGE)
    while ledger.work.open_work("source", _RECIPES, 10_000):
        pass
    options: dict[str, Any] = {"needs": {}, "aliases": ["source"], "size": _BATCH, "max_tries": 3, "planner": "a/1/b"}
    planned = ledger.work.plan(_RECIPES, **options, limit=n_batches)
    ledger.close()
    return [batch.batch_id for batch in planned]


def _claim_all(url: str, arguments: argparse.Namespace, batches: list[str]) -> tuple[list[float], list[str]]:
    orders = [
        [*batches[n :: arguments.workers], *batches[(n + 1) % arguments.workers :: arguments.workers]]
        for n in range(arguments.workers)
    ]
    start = FORK.Barrier(arguments.workers)
    answers: Any = FORK.Queue()
    workers = [
        FORK.Process(target=_claimer, args=(url, n, order, arguments.busy_s, start, answers))
        for n, order in enumerate(orders)
    ]
    for worker in workers:
        worker.start()
    told = [answers.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    return [s for seconds, _ in told for s in seconds], [item for _, got in told for item in got]


def _claimer(url: str, number: int, batches: list[str], busy_s: float, start: Any, answers: Any) -> None:
    chance = random.Random(number)
    ledger, owner = Ledger(url), f"host/{number}/{number:08x}"
    seconds: list[float] = []
    got: list[str] = []
    ledger.work.claim_batch("", owner, recipes=_RECIPES, lease_s=600, max_claims=8)  # connects, compiles the statements
    start.wait()
    time.sleep(chance.uniform(0, 2 * busy_s))
    for batch_id in batches:
        begun = time.perf_counter()
        claimed = ledger.work.claim_batch(batch_id, owner, recipes=_RECIPES, lease_s=600, max_claims=8)
        seconds.append(time.perf_counter() - begun)
        got += [claim.known.object_id for claim in claimed]
        time.sleep(chance.uniform(0, 2 * busy_s))
        ends = [Finished(c.known.object_id, "segments", "recipe", c.tokens["segments"], "done") for c in claimed]
        ledger.work.finish(ends, _RECIPES)
    ledger.close()
    answers.put((seconds, got))


# -- one object of 5 GiB -------------------------------------------------------------------------------------------


def huge(_: argparse.Namespace) -> int:
    """Process a sparse clip of 5 GiB in a process of its own; kill the first one, and let another one finish."""
    with tempfile.TemporaryDirectory(prefix="mm-huge-") as name:
        folder = Path(name)
        _workspace(folder).close()
        draw_huge_clip(folder / "source" / "huge.mp4", 5 << 30)
        command = [sys.executable, __file__, "process", str(folder)]
        _kill_at(command, folder / "scratch", 1 << 30)
        begun = time.monotonic()
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        ends, own_mib, child_mib = json.loads(answer.stdout.splitlines()[-1])
    row = (f"{time.monotonic() - begun:.0f}", f"{own_mib:.0f}", f"{child_mib:.0f}", _say(ends))
    _print("5 GiB, after a kill at 1 GiB", ("seconds", "MiB of the process", "MiB of the decoder", "ends"), [row])
    return int(own_mib >= 256 or not set(ends) <= {"done", "skipped"})


def _say(ends: Sequence[str]) -> str:
    return ", ".join(f"{n} {state}" for state, n in Counter(ends).items())


def _kill_at(command: Sequence[str], scratch: Path, n_bytes: int) -> None:
    """Start a process and kill it when it has written a file of so many bytes."""
    with subprocess.Popen(command) as process:
        while not any(file.stat().st_size > n_bytes for file in scratch.rglob("*.bin")):
            if process.poll() is not None:
                sys.exit("it ended before it could be killed")
            time.sleep(0.02)
        process.kill()


def draw_huge_clip(file: Path, n_bytes: int) -> None:
    """Write a small clip followed by a box of nothing, which takes no room on the disk."""
    write_clip(file, Clip(scenes=[1.0], width=64, height=48))
    with file.open("r+b") as stream:
        begins = stream.seek(0, os.SEEK_END)
        stream.write(struct.pack(">I4sQ", 1, b"free", n_bytes - begins))
        stream.truncate(n_bytes)


def process(arguments: argparse.Namespace) -> int:
    """Discover and process all there is; prints how it ended, and the peaks of memory in MiB."""
    folder = Path(arguments.folder)
    (folder / "scratch").mkdir(exist_ok=True)
    tempfile.tempdir = str(folder / "scratch")
    workspace = open_fake_workspace(load_settings(folder / "mm_assets.yaml"))
    discover(workspace, "source")
    free_lost_work(workspace)
    batches = [batch for planned in plan_batches(workspace).values() for batch in planned]
    ends = [end.state for batch in batches for item in process_batch(workspace, batch.batch_id) for end in item.ends]
    workspace.close()
    peaks = (resource.getrusage(who).ru_maxrss / 1_024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([ends, *peaks]))
    return 0


# -- common --------------------------------------------------------------------------------------------------------


def _workspace(folder: Path, **settings: Any) -> Workspace:
    (folder / "source").mkdir()
    sources = [{"uri": str(folder / "source"), "alias": "source", "steps": list(STEP_TABLES)}]
    values = {"sources": sources, "lake": {"uri": str(folder / "lake")}, "state": str(folder / "state"), **settings}
    (folder / "mm_assets.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return open_fake_workspace(load_settings(folder / "mm_assets.yaml"))


@contextmanager
def _ledgers() -> Iterator[list[str]]:
    """Give a ledger on SQLite and one on PostgreSQL whose commits are durable."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(postgres_server(careless=False))
        yield [f"sqlite:///{folder}/ledger.db", stack.enter_context(fresh_database(server))]


def _name(url: str) -> str:
    return make_url(url).get_backend_name()


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main() -> int:
    """Run one measurement; 1 when it misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    commands = parser.add_subparsers(required=True)
    for measure in (questions, claims, huge, process):
        command = commands.add_parser(measure.__name__, help=(measure.__doc__ or "").partition(";")[0])
        command.set_defaults(measure=measure)
        for name, value in _OPTIONS.get(measure.__name__, {}).items():
            command.add_argument(name, type=type(value), default=value)
    arguments = parser.parse_args()
    return int(arguments.measure(arguments))


_OPTIONS: dict[str, dict[str, Any]] = {
    "questions": {"--objects": 12_500, "--dead": 10_000},
    "claims": {"--workers": 100, "--claims": 10, "--busy-s": 1.0},
    "process": {"folder": ""},
}

if __name__ == "__main__":
    sys.exit(main())
