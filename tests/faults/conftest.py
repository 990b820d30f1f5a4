"""Servers, rigs, and the table of faults at the end.

Put here: fixtures of the fault suite, and the count of what is automated. Keep out: tests.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fault_proxy import fault_proxy
from places import Place
from postgres_server import fresh_database
from rclone_server import rclone_server
from rig import Rig, buckets
from s3_server import moto_server

FAULTS = {
    1: "SIGKILL at each commit point",
    2: "random SIGKILLs",
    3: "worker stopped longer than its lease",
    4: "SIGTERM",
    5: "out of memory: child, container",
    6: "throttled now and then (503, Retry-After)",
    7: "throttled for a minute (503, 429)",
    8: "daily cap (403)",
    9: "refused: rights, keys, clock",
    10: "resets, no name, time-outs, drops",
    11: "body cut, too long, one bit changed",
    12: "forms of ETags",
    13: "overwritten while it is read",
    14: "deleted before it is read, hidden",
    15: "same content uploaded again",
    16: "broken pages of a listing",
    17: "late uploads, ties, insertions behind the cursor",
    18: "several listers, lost locks",
    19: "events lost, repeated, shuffled, late",
    20: "hostile webhooks",
    21: "webhook without a database",
    22: "encoded keys",
    23: "store that ignores or misreads conditions",
    24: "ambiguous writes",
    25: "upload left halfway",
    26: "disk or inodes full, read-only, folder gone",
    27: "database: deadlock, loss, busy, old backup",
    28: "ledger wiped",
    29: "result missing or damaged",
    30: "poison, killer, endless object",
    31: "Dagster killed, run launched twice",
    32: "clock jumps",
    33: "event rule suspended",
    34: "hostile keys",
}


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """Run moto once."""
    with moto_server() as url:
        yield url


@pytest.fixture(scope="session")
def rclone() -> Iterator[str]:
    """Run rclone once."""
    with rclone_server() as url:
        yield url


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Lay out a pipeline on the server and ledger that the test names; moto and SQLite where it names none."""
    server, ledger = getattr(request, "param", ("moto", "sqlite"))
    for name in ("MM_ASSETS_CONFIG", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        if ledger == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres")))
        proxy = stack.enter_context(fault_proxy(request.getfixturevalue(server)))
        client, source, lake = stack.enter_context(buckets(proxy.upstream))
        made = Rig(server, Place(tmp_path, media), proxy, client, source, lake, url)
        made.configure()
        yield made
        proxy.mend()
        made.place.drop_databases()


@pytest.fixture
def fresh_postgres(postgres: str) -> Iterator[str]:
    """Give the URL of an empty database."""
    with fresh_database(postgres) as url:
        yield url


# -- the table -----------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Outcomes of the tests of one fault."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """Say it in a word."""
        bad = self.outcomes["failed"] + self.outcomes["error"]
        return f"{bad} FAILED" if bad else "passed" if self.outcomes["passed"] else "NOT RUN"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the numbers travel with the reports, also out of the processes of xdist."""
    for item in items:
        for marker in item.iter_markers("fault"):
            item.user_properties.extend(("fault", number) for number in marker.args)


def _tallies(config: pytest.Config) -> dict[int, _Tally]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    found: dict[int, _Tally] = defaultdict(_Tally)
    for outcome in ("passed", "failed", "error", "skipped", ""):
        for report in reporter.stats.get(outcome, []) if reporter else []:
            for number in {int(n) for name, n in getattr(report, "user_properties", []) if name == "fault"}:
                found[number].outcomes[outcome] += outcome != ""
                found[number].seconds += report.duration
    return found


def _is_whole(config: pytest.Config) -> bool:
    """Whether the whole suite was asked for, so that a fault without a test is a failure."""
    folders = {Path(argument).resolve() for argument in config.args}
    return Path(__file__).parent in folders and not (config.option.keyword or config.option.markexpr)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a fault has no test that passed."""
    if (
        not hasattr(session.config, "workerinput")
        and not session.config.option.collectonly
        and _is_whole(session.config)
    ):
        found = _tallies(session.config)
        if any(not found[number].outcomes["passed"] for number in FAULTS):
            session.exitstatus = max(int(session.exitstatus), 1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table by number."""
    found = _tallies(config)
    if not found:
        return
    terminalreporter.section("faults")
    terminalreporter.line(f"{'no':>3}  {'fault':<50} {'tests':>5}  {'outcome':<10} {'seconds':>7}")
    for number, name in FAULTS.items():
        if number in found or _is_whole(config):
            tally = found[number]
            n_tests = sum(tally.outcomes.values())
            terminalreporter.line(f"{number:>3}  {name:<50} {n_tests:>5}  {tally.text:<10} {tally.seconds:>7.1f}")
