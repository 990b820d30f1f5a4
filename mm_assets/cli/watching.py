"""``mm ingest --watch``: what the sensors do, without a cluster: events, listings, runs and refreshes in one loop.

Put here: the order of a round, what is said of it, and patience with services that fail. Keep out: the work itself, and
how it is printed.

A batch that runs holds up the rest; events wait in the inbox meanwhile, and nothing is lost by waiting.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mm_assets.cli.opening import read_settings
from mm_assets.cli.runs import Runner
from mm_assets.errors import MmAssetsError, ServiceError
from mm_assets.flows.b2_rules import CHECK_EVERY_S, check_b2_rules
from mm_assets.flows.delivering import deliver
from mm_assets.flows.discovery import Discovery, discover
from mm_assets.flows.hints import Drained, drain_inbox
from mm_assets.flows.pacing import refresh_due
from mm_assets.flows.planning import free_lost_work
from mm_assets.flows.pulling import pull_queues
from mm_assets.flows.recipes import waves
from mm_assets.flows.stopping import noting
from mm_assets.flows.workspace import Workspace
from mm_assets.resources.workspace import open_workspace
from mm_assets.settings import Settings

_SETTINGS_EVERY_S = 5.0
_IDLE_S = 1.0  # between two looks at an empty inbox, which cost a millisecond each
_PULL_EVERY_S = 15.0
_TELL_EVERY_S = 5.0
_REFRESH_EVERY_S = 30.0  # counting what changed reads an index for as long as there is much of it
_SHARE_S = 30.0  # of one source or queue, before it is another's turn
_WAIT_S, _MAX_WAIT_S = 5.0, 300.0
_LOG = logging.getLogger(__name__)


class Say(Protocol):
    """Tells a change.

    ``what`` is found, processed, given_up, told, published, settings, alarm, waits, failed or recovered.
    """

    def __call__(self, what: str, text: str, **facts: Any) -> None:
        """Tell it in words and in numbers."""


def watch(
    config_file: Path | None,
    *,
    aliases: Sequence[str] | None = None,
    refresh: bool = True,
    interval_s: float = 60.0,
    say: Say,
) -> None:
    """Keep ledger, lake and tables up to date until a KeyboardInterrupt; claims are given back on the way out.

    Settings that are changed meanwhile are taken over; while they are wrong, the work goes on with the former ones.

    Parameters
    ----------
    aliases : sources to list; None for all. Events and work of the others are done in any case.
    refresh : publish and rebuild when it is due, by the rule of ``refresh_needed_sensor``
    interval_s : from the end of a listing to the begin of the next

    Raises
    ------
    ConfigError
        Before any work. Later errors, of services or of settings, are told and tried again.
    """
    settings = _read(config_file, aliases)
    while True:
        workspace = open_workspace(settings)
        with closing(workspace), Runner(workspace, config_file) as runner:
            runner.check()
            listed = aliases or [source.alias for source in settings.sources]
            chores = _chores(workspace, runner, listed, interval_s, say)
            if not refresh:
                del chores["refresh"]
            settings = _go_on_until_changed(settings, partial(_read, config_file, aliases), chores, say)
        say("settings", "the settings were changed and are taken over")


def _read(config_file: Path | None, aliases: Sequence[str] | None) -> Settings:
    settings = read_settings(config_file, for_sources=True)
    for alias in aliases or ():
        settings.source(alias)
    return settings


def _go_on_until_changed(settings: Settings, read: Callable[[], Settings], chores: "Chores", say: Say) -> Settings:
    """Do what is due, round after round; returns settings that differ from those it was given."""
    found = [settings]

    def look() -> bool:
        found[0] = read()
        return False

    watching = Chore("reading the settings", look, _SETTINGS_EVERY_S, say)
    with noting() as is_to_stop:
        while found[0] == settings:
            # Not any(): it would end at the first chore that found something to do.
            if not sum([chore.do_if_due() for chore in chores.values()]):
                time.sleep(_IDLE_S)
            watching.do_if_due()
            if is_to_stop():  # and nobody raised it: a library caught it
                raise KeyboardInterrupt
    return found[0]


class Chore:
    """Something that is done again and again; failures are told once, and tried again after longer and longer waits.

    Parameters
    ----------
    name : what it does, for messages
    do : returns whether it is worth while to do it again at once
    every_s : seconds from one time to the next
    """

    def __init__(self, name: str, do: Callable[[], bool], every_s: float, say: Say) -> None:
        self._name, self._do, self._every_s, self._say = name, do, every_s, say
        self._due_at = 0.0
        self._n_failed = 0
        self._said = ""

    def do_if_due(self) -> bool:
        """Do it, unless it is too early; returns whether there may be more to do at once."""
        if time.monotonic() < self._due_at:
            return False
        try:
            has_more = self._do()
        except MmAssetsError as error:
            self._fail(str(error))
            return False
        except Exception as error:  # noqa: BLE001  a fault of ours in one chore does not end the others
            _LOG.exception("%s failed unexpectedly", self._name)
            self._fail(f"{type(error).__name__}: {error}")
            return False
        if self._n_failed:
            self._say("recovered", f"{self._name}: works again")
        self._n_failed, self._said = 0, ""
        self._due_at = 0.0 if has_more else time.monotonic() + self._every_s
        return has_more

    def _fail(self, message: str) -> None:
        wait_s = min(_MAX_WAIT_S, max(self._every_s, _WAIT_S * 2.0 ** min(self._n_failed, 10)))
        if message != self._said:
            self._say("failed", f"{self._name}: {message} (tried again every {wait_s:.0f} s or later)", error=message)
        self._n_failed, self._said = self._n_failed + 1, message
        self._due_at = time.monotonic() + wait_s


Chores = dict[str, Chore]


def _chores(workspace: Workspace, runner: Runner, aliases: Sequence[str], interval_s: float, say: Say) -> "Chores":
    """Build what a round consists of, in its order."""
    listings = {
        f"list {alias}": Chore(f"listing {alias}", _Listing(workspace, alias, say).go_on, interval_s, say)
        for alias in aliases
    }
    queues = Chore("queues", partial(_pull, workspace), _PULL_EVERY_S, say)
    return {
        **({"pull": queues} if workspace.settings.events.sqs or workspace.settings.events.r2 else {}),
        "rules": Chore("event rules", _Rules(workspace, say).look, CHECK_EVERY_S, say),
        "events": Chore("events", partial(_drain, workspace, say), 0.0, say),
        **listings,
        "process": Chore("processing", _Processing(workspace, runner, say).go_on, 0.0, say),
        "matches": Chore("matches", partial(_tell_matches, workspace, say), _TELL_EVERY_S, say),
        "refresh": Chore("tables and indexes", _Refresh(workspace, runner, say).go_on, _REFRESH_EVERY_S, say),
    }


def _pull(workspace: Workspace) -> bool:
    pulled = pull_queues(workspace, _SHARE_S)
    if pulled.failures:
        raise ServiceError("; ".join(f"{name}: {error}" for name, error in sorted(pulled.failures.items())))
    return pulled.n_messages > 0


def _drain(workspace: Workspace, say: Say) -> bool:
    drained = drain_inbox(workspace, _SHARE_S)
    if drained.has_changes:
        say("found", f"events: {_changes(drained)}", **asdict(drained))
    return drained.has_changes


def _tell_matches(workspace: Workspace, say: Say) -> bool:
    counts = deliver(workspace, _SHARE_S)
    if counts:
        told = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in sorted(counts.items()))
        say("told", f"matches of watches: {told} (mm watch matches)", **counts)
    return counts["sent"] > 0


class _Rules:
    """Whether Backblaze still sends its events; an alarm is told once."""

    def __init__(self, workspace: Workspace, say: Say) -> None:
        self._workspace, self._say = workspace, say
        self._alarms: dict[str, str | None] = {}

    def look(self) -> bool:
        """Ask for the rules of all sources that have some."""
        alarms = check_b2_rules(self._workspace)
        for alias, alarm in alarms.items():
            if alarm and alarm != self._alarms.get(alias):
                self._say("alarm", f"ALARM: {alarm}", source=alias)
        self._alarms = dict(alarms)
        return False


class _Listing:
    """The listing of one source; an alarm, or why it waits, is told once."""

    def __init__(self, workspace: Workspace, alias: str, say: Say) -> None:
        self._workspace, self._alias, self._say = workspace, alias, say
        self._alarm: str | None = None
        self._stopped_by: str | None = None

    def go_on(self) -> bool:
        """List for a while; returns whether the pass goes on at once."""
        found = discover(self._workspace, self._alias, deadline_s=_SHARE_S, is_paced=True)
        if found.has_changes:
            self._say("found", f"{self._alias}: {_changes(found)}", **asdict(found))
        if found.alarm and found.alarm != self._alarm:
            self._say("alarm", f"ALARM: {found.alarm}", source=self._alias)
        if found.stopped_by and found.stopped_by != self._stopped_by:
            self._say("waits", f"{self._alias}: {found.stopped_by}", source=self._alias, until=found.paused_until)
        self._alarm, self._stopped_by = found.alarm, found.stopped_by
        return not found.is_complete and found.stopped_by is None


class _Processing:
    """Runs of what is wanted, and what was given up in them."""

    def __init__(self, workspace: Workspace, runner: Runner, say: Say) -> None:
        self._workspace, self._runner, self._say = workspace, runner, say
        self._depth: Counter[str] | None = None  # of dead letters, when last looked at

    def go_on(self) -> bool:
        """Run one batch, and one for each step that reads its results: new events do not wait for a long queue."""
        if self._depth is None:
            self._depth = self._count_dead()
        n_failed, started = len(self._runner.failed_runs), time.monotonic()
        free_lost_work(self._workspace)
        processed = set[str]()
        for _ in waves(tuple(self._workspace.recipes), self._workspace.extractors):
            self._runner.process_some(1, processed)
            if len(self._runner.failed_runs) > n_failed:
                break
        if processed:
            seconds = time.monotonic() - started
            text = f"{len(processed)} objects processed, {seconds:.1f} s"
            self._say("processed", text, n_objects=len(processed), seconds=seconds)
            self._tell_given_up()
        _raise_failures(self._runner, n_failed)
        return bool(processed)

    def _count_dead(self) -> Counter[str]:
        return Counter(self._workspace.ledger.dead.depth(self._workspace.recipes))

    def _tell_given_up(self) -> None:
        before, self._depth = self._depth or Counter(), self._count_dead()
        if reasons := self._depth - before:
            told = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
            self._say("given_up", f"steps given up: {told} (mm dlq list)", reasons=dict(reasons))


class _Refresh:
    """Publishing when enough changed or the oldest change has waited long enough."""

    def __init__(self, workspace: Workspace, runner: Runner, say: Say) -> None:
        self._workspace, self._runner, self._say = workspace, runner, say
        self._asked_at = 0.0

    def go_on(self) -> bool:
        """Refresh if it is due."""
        due = refresh_due(self._workspace, self._asked_at)
        if not due.is_due:
            return False
        n_failed, self._asked_at = len(self._runner.failed_runs), time.time()
        self._runner.refresh(due.why)
        _raise_failures(self._runner, n_failed)
        self._say("published", f"tables and indexes are up to date ({due.why})", why=due.why)
        return False


def _raise_failures(runner: Runner, n_before: int) -> None:
    failed = list(runner.failed_runs.items())[n_before:]
    if failed:
        raise ServiceError("; ".join(f"run {run_id} failed: {error}" for run_id, error in failed))


def _changes(found: Discovery | Drained) -> str:
    counts = {"new": found.n_new, "changed": found.n_changed, "back again": found.n_revived, "gone": found.n_gone}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)
