"""Runs a soak: ``python -m soak.run --seconds 600 --objects 10000`` with ``tests`` on the path.

Put here: starting, killing and stopping processes, the phases, the report. Keep out: what the processes do (``roles``)
and what must be true afterwards (``check``).

Processes are forked from this one, which has imported everything and opened nothing: they work from their first
millisecond, so that even a process killed every second gets something done.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

from rich.console import Console
from rich.table import Table

from soak import check, roles
from soak.stage import LEASE_S, Stage, set_stage, warm

FORK = multiprocessing.get_context("fork")
CAST = {"worker": 4, "lister": 2, "refresher": 1, "feeder": 1}  # how many processes play a role
_KILL_EVERY_S = (0.1, 0.3)
_STOPPED_SHARE = 0.1
_STOP_S = 1.5 * LEASE_S
_SHOWN = 50
_TELL_EVERY_S = 30.0


@dataclass
class Company:
    """The processes that play, and what was done to them."""

    stage: Stage
    chance: random.Random
    playing: dict[int, tuple[str, ForkProcess]] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    tell_at: float = 0.0
    is_interrupted: bool = False

    def start(self, role: str) -> None:
        """Fork a process into a role."""
        process = FORK.Process(target=roles.live, args=(role, self.stage, os.getpid()), name=role)
        process.start()
        assert process.pid is not None
        self.playing[process.pid] = (role, process)

    def replace_dead(self) -> None:
        """Start the roles anew whose processes are gone."""
        for pid, (role, process) in list(self.playing.items()):
            if not process.is_alive():
                self.counts["restarts"] += 1
                self.stopped.pop(pid, None)
                del self.playing[pid]
                self.start(role)

    def hurt(self) -> None:
        """Kill one process, or stop it for longer than its lease."""
        # is_alive() also takes leave of a process that has ended, whose number may be another's by now.
        awake = [pid for pid, (_, process) in self.playing.items() if pid not in self.stopped and process.is_alive()]
        if not awake:
            return
        pid = self.chance.choice(awake)
        if self.chance.random() < _STOPPED_SHARE:
            os.kill(pid, signal.SIGSTOP)
            self.stopped[pid] = time.monotonic() + _STOP_S
            self.counts["stops"] += 1
        else:
            os.kill(pid, signal.SIGKILL)
            self.counts["kills"] += 1

    def wake(self, *, everybody: bool = False) -> None:
        """Let those go on that were stopped long enough."""
        for pid, until in list(self.stopped.items()):
            if everybody or time.monotonic() > until:
                del self.stopped[pid]
                if pid in self.playing and self.playing[pid][1].is_alive():
                    os.kill(pid, signal.SIGCONT)

    def interrupt(self, *_: object) -> None:
        """Remember a signal; one that was raised as an error amid a fork would be lost."""
        self.is_interrupted = True

    def wait(self, seconds: float) -> None:
        """Sleep; raises KeyboardInterrupt when there was a signal."""
        time.sleep(seconds)
        if self.is_interrupted:
            raise KeyboardInterrupt

    def tell(self, when: str) -> None:
        """Give a sign of life now and then."""
        if time.monotonic() > self.tell_at:
            self.tell_at = time.monotonic() + _TELL_EVERY_S
            done = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
            sys.stderr.write(f"{when}: {done}\n")

    def end(self) -> None:
        """Kill everybody and wait for it."""
        for _, process in self.playing.values():
            process.kill()
        for _, process in self.playing.values():
            process.join()
        self.playing.clear()


@dataclass(frozen=True)
class Plan:
    """What a soak is asked to do.

    Attributes
    ----------
    seconds : how long objects change and processes die
    drain_s : how long it may then take until all is quiet
    """

    seconds: float
    objects: int
    store: str
    ledger: str
    seed: int
    kills: bool = True
    drain_s: float = 900.0


@dataclass(frozen=True)
class Outcome:
    """What a soak came to."""

    counts: Counter[str]
    seconds: dict[str, float]
    verdict: check.Verdict


def soak(plan: Plan, folder: Path) -> Outcome:
    """Play a soak in an empty folder and look at what is left."""
    warm()
    with set_stage(folder, plan.store, plan.ledger) as stage:
        with _company(stage, plan.seed) as company:
            seconds = {"storm": _storm(plan, company), "drain": _drain(plan, company)}
        verdict = check.check(stage)
        return Outcome(company.counts + verdict.counts, seconds, verdict)


@contextmanager
def _company(stage: Stage, seed: int) -> Iterator[Company]:
    company = Company(stage, random.Random(seed))
    before = {number: signal.signal(number, company.interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield company
    finally:
        company.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def _storm(plan: Plan, company: Company) -> float:
    """Change, play and kill; returns how long it took, from the first process to the last change."""
    args = (company.stage, os.getpid(), plan.objects, plan.seconds, plan.seed)
    mutator = FORK.Process(target=roles.mutate, args=args, daemon=True)
    mutator.start()
    while mutator.is_alive() and not _has_begun(company.stage):
        company.wait(0.1)
    started = time.monotonic()
    for role, n in CAST.items():
        for _ in range(n):
            company.start(role)
    while mutator.is_alive():
        company.wait(company.chance.uniform(*_KILL_EVERY_S))
        if plan.kills:
            company.hurt()
        company.wake()
        company.replace_dead()
        company.tell(f"{time.monotonic() - started:.0f} s of {plan.seconds:.0f} s")
    company.wait(0)  # a signal to all ends the mutator first
    assert mutator.exitcode == 0, "the mutator failed; its error is above"
    return time.monotonic() - started


def _has_begun(stage: Stage) -> bool:
    return stage.journal.exists() and '"begun"' in stage.journal.read_text(encoding="utf-8")


def _drain(plan: Plan, company: Company) -> float:
    """Play on without kills until nothing is left to do; returns how long it took."""
    company.wake(everybody=True)
    started = time.monotonic()
    prober = FORK.Process(target=check.wait_until_quiet, args=(company.stage, os.getpid()), daemon=True)
    prober.start()
    while prober.is_alive() and time.monotonic() < started + plan.drain_s:
        company.replace_dead()
        company.tell(f"coming to rest for {time.monotonic() - started:.0f} s")
        company.wait(0.1)
    prober.kill()
    prober.join()
    return time.monotonic() - started


def show(plan: Plan, outcome: Outcome) -> None:
    """Print what happened and what is wrong."""
    console = Console()
    facts = Table(
        "what", "number", title=f"soak: {plan.objects} objects, {plan.store}, {plan.ledger}, seed {plan.seed}"
    )
    for name, n in sorted(outcome.counts.items()):
        facts.add_row(name, f"{n:,}")
    for name, s in outcome.seconds.items():
        facts.add_row(f"seconds of the {name}", f"{s:.1f}")
    facts.add_row("versions per second", f"{outcome.counts['versions'] / sum(outcome.seconds.values()):.1f}")
    console.print(facts)
    wrong = Table("violation", title=f"VIOLATIONS: {len(outcome.verdict.violations)}")
    for violation in outcome.verdict.violations[:_SHOWN]:
        wrong.add_row(violation)
    console.print(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when a rule is violated, 130 after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=600, help="how long objects change and processes die")
    parser.add_argument("--objects", type=int, default=10_000, help="object versions written")
    parser.add_argument("--store", choices=("folder", "moto", "rclone"), default="folder")
    parser.add_argument("--ledger", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-kills", dest="kills", action="store_false", help="for the speed without")
    parser.add_argument("--folder", type=Path, help="play in this empty folder and leave it; default: a temporary one")
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = Plan(**options)
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mm-soak-")))
        try:
            outcome = soak(plan, place)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            return 130
    show(plan, outcome)
    return 1 if outcome.verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
