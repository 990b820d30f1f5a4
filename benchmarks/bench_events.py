"""Pushed events at full speed: 50,000 in a minute, lost, repeated and shuffled, through a real ``mm serve``.

Run with ``PYTHONPATH=tests:scripts python benchmarks/bench_events.py``. Beside the product's group commit stands the
same server with one commit for each delivery, in the same run. Put here: the storm, and whether the ledger equals the
bucket after it. Keep out: making and sending deliveries, which ``scripts/replay_events.py`` does.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import replay_events
import yaml
from fakes import open_fake_workspace
from postgres_server import fresh_database, postgres_server
from rich.console import Console
from rich.table import Table

from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.receiving import Receiver
from mm_assets.flows.workspace import Workspace
from mm_assets.settings import load_settings

_SECRET = "a secret for measuring only"  # noqa: S105
_STARTED = re.compile(r"Listening on (http://\S+)")
_MAX_ACK_P99_MS, _MAX_GROWTH = 1_000.0, 1.2
_SAMPLE_EVERY_S = 0.5


class SingleReceiver(Receiver):
    """The alternative: each delivery is a transaction of its own."""

    def _commit(self, group: Sequence[object]) -> None:
        for item in group:
            super()._commit([item])  # type: ignore[list-item]  # a private type


@dataclass
class Server:
    """A server in a process of its own, and how much memory it takes in the course of time."""

    process: "subprocess.Popen[str]"
    url: str = ""
    rss_mib: list[float] = field(default_factory=list)

    def watch(self, stop: threading.Event) -> None:
        """Sample its resident memory."""
        while not stop.wait(_SAMPLE_EVERY_S):
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
            self.rss_mib.append(int(status.partition("VmRSS:")[2].split()[0]) / 1_024)


@dataclass(frozen=True)
class Measured:
    """What came of one storm."""

    plan: replay_events.Plan
    outcome: replay_events.Outcome
    seconds: float
    rss_mib: Sequence[float]
    n_by_events: int
    n_by_listing: int
    n_different: int
    n_commits: int

    def row(self) -> dict[str, str]:
        """Say it for a table."""
        waits_ms = np.array(self.outcome.waits_s) * 1e3
        p50, p99, most = np.percentile(waits_ms, (50, 99, 100))
        begin, middle, end = self._memory()
        return {
            "events told, with repeats": f"{self.outcome.n_accepted:,}",
            "deliveries": f"{len(self.plan.deliveries):,}",
            "commits": f"{self.n_commits:,}",
            "sent again after a 503": str(self.outcome.n_resent),
            "refused": str(self.outcome.n_refused),
            "seconds": f"{self.seconds:.1f}",
            "acknowledged, p50 ms": f"{p50:.1f}",
            "acknowledged, p99 ms": f"{p99:.1f}",
            "acknowledged, slowest ms": f"{most:.1f}",
            "RSS of the server at start, middle, end, MiB": f"{begin:.0f}, {middle:.0f}, {end:.0f}",
            "versions by events, then by the listing": f"{self.n_by_events:,}, {self.n_by_listing:,}",
            "ledger and bucket differ in": str(self.n_different),
        }

    def _memory(self) -> tuple[float, float, float]:
        third = max(1, len(self.rss_mib) // 3)
        begin, middle, end = (float(np.mean(self.rss_mib[n * third :][:third])) for n in range(3))
        return begin, middle, end

    def is_good(self) -> bool:
        """Whether it reaches the marks: quick answers, flat memory, nothing refused, nothing lost."""
        begin, _, end = self._memory()
        p99_ms = float(np.percentile(np.array(self.outcome.waits_s) * 1e3, 99))
        is_whole = not (self.n_different or self.outcome.n_refused)
        return is_whole and p99_ms < _MAX_ACK_P99_MS and end < _MAX_GROWTH * begin


def measure(receiver: str, arguments: argparse.Namespace) -> Measured:
    """Lay out a source and a ledger, let the storm pass, look at what the ledger knows."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-events-")))
        config = _write_settings(folder, arguments, stack)
        plan = _make_plan(config, arguments)
        with serving(receiver, config) as server:
            begun = time.monotonic()
            outcome = replay_events.send(plan, f"{server.url}/events/b2", _SECRET, arguments.senders)
            seconds = time.monotonic() - begun
        workspace = open_fake_workspace(load_settings(config))
        stack.callback(workspace.close)
        n_by_events = drain_inbox(workspace, limit=10_000_000).n_new
        n_by_listing = discover(workspace, "source").n_new
        n_commits = round(workspace.ledger.meters.totals()["event_commits_total", ()])
        found = (n_by_events, n_by_listing, _n_different(workspace), n_commits)
        return Measured(plan, outcome, seconds, server.rss_mib, *found)


def _write_settings(folder: Path, arguments: argparse.Namespace, stack: ExitStack) -> Path:
    source = folder / "source"
    for number in range(arguments.events):
        file = source / f"{number % 100:02d}" / f"{number:08d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(number), encoding="utf-8")
    values = {
        "sources": [{"uri": str(source), "alias": "source"}],
        "lake": {"uri": str(folder / "lake")},
        "state": str(folder / "state"),
        "events": {"b2_secrets": [_SECRET]},
    }
    if arguments.ledger == "postgresql":
        server = stack.enter_context(postgres_server(careless=False))
        values["ledger_url"] = stack.enter_context(fresh_database(server))
    config = folder / "mm_assets.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    open_fake_workspace(load_settings(config)).close()
    return config


def _make_plan(config: Path, arguments: argparse.Namespace) -> replay_events.Plan:
    """Tell of every object once, then lose, repeat and shuffle, and spread all over the time."""
    n_told = arguments.events * (1 - arguments.lose) * (1 + arguments.duplicate)
    wish = argparse.Namespace(**vars(arguments), rate=n_told / arguments.within_s, seconds=None, shuffle=True)
    settings = load_settings(config)
    return replay_events.make_plan(list(replay_events.list_objects(settings)), settings.events.max_batch, wish)


@contextmanager
def serving(receiver: str, config: Path) -> Iterator[Server]:
    """Run the server in a process of its own; ends it by SIGTERM and sees that it ends well."""
    command = [sys.executable, __file__, "serve", receiver, "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # noqa: S101  asked for
    lines = iter(process.stdout)
    server = Server(process, next(found[1] for line in lines if (found := _STARTED.search(line))))
    stop = threading.Event()
    watcher = threading.Thread(target=server.watch, args=(stop,))
    watcher.start()
    try:
        yield server
    finally:
        stop.set()
        watcher.join()
        process.terminate()
        for _ in lines:
            pass
        if process.wait(30) != 0:
            sys.exit(f"the server ended with {process.returncode}")


def serve(arguments: argparse.Namespace) -> int:
    """Be ``mm serve``, with the receiver that was named."""
    from mm_assets.cli import main as mm
    from mm_assets.server import app

    if arguments.receiver == "single":
        app.Receiver = SingleReceiver  # type: ignore[attr-defined]  # the one place where it is chosen
    sys.argv = ["mm", "serve", "--port", "0", "--config", str(arguments.config)]
    mm()
    return 0


def _n_different(workspace: Workspace) -> int:
    """Count the keys whose version in the ledger is not the one in the source."""
    store, after, there = workspace.sources["source"], "", dict[str, str]()
    while after is not None:
        page = store.list_page(after=after)
        there |= {stored.key: stored.etag for stored in page.objects}
        after = page.next_after  # type: ignore[assignment]
    known = workspace.ledger.objects.live_at_key("source", there)
    n_live = workspace.ledger.objects.n_live("source")
    n_same = sum(key in known and known[key].version.etag == etag for key, etag in there.items())
    return len(there) - n_same + n_live - len(known)


def storm(arguments: argparse.Namespace) -> int:
    """Measure the product and the alternative; 1 when the product misses its marks."""
    found = {receiver: measure(receiver, arguments) for receiver in ("group", "single")}
    rows = {receiver: measured.row() for receiver, measured in found.items()}
    table = Table("", "group commit", "one commit for each delivery", title=_title(arguments))
    for name in rows["group"]:
        table.add_row(name, rows["group"][name], rows["single"][name])
    Console().print(table)
    return int(not found["group"].is_good())


def _title(arguments: argparse.Namespace) -> str:
    shares = f"{arguments.duplicate:.0%} repeated, {arguments.lose:.0%} lost, shuffled"
    return f"{arguments.events:,} events in {arguments.within_s:.0f} s, {shares}, {arguments.ledger}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.set_defaults(run=storm)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--within-s", type=float, default=60.0)
    parser.add_argument("--duplicate", type=float, default=0.3)
    parser.add_argument("--lose", type=float, default=0.05)
    parser.add_argument("--senders", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ledger", choices=("sqlite", "postgresql"), default="sqlite")
    server = parser.add_subparsers().add_parser("serve", help="used by the benchmark itself")
    server.add_argument("receiver", choices=("group", "single"))
    server.add_argument("--config", type=Path, required=True)
    server.set_defaults(run=serve)
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
