"""``mm ingest``: progress and summary of what ``runs.ingest`` does, and a line for each change that is watched.

Put here: bars and sentences. Keep out: the order of work.
"""

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mm_assets.cli.options import config_option, examples, json_option
from mm_assets.cli.output import counted, print_json, print_table, printable

if TYPE_CHECKING:
    from mm_assets.cli.runs import Summary

Report = Callable[[str, int, int | None], None]
_SAY_NEWS_S, _SAY_AGAIN_S = 10.0, 60.0
_TROUBLE = {"alarm", "failed", "given_up"}
_PHASES = {"discover": "listing", "process": "processing", "refresh": "tables and indexes"}


@examples("mm ingest", "mm ingest my-bucket --json | jq .n_rows", "mm ingest --watch --interval 300")
@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--no-refresh", is_flag=True, help="Leave tables and indexes as they are.")
@click.option("--watch", is_flag=True, help="Go on with all that changes, by events and listings, until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(1.0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch: from the end of a listing to the next.",
)
@json_option
@config_option
@click.pass_context
def ingest(
    context: click.Context,
    sources: tuple[str, ...],
    *,
    no_refresh: bool,
    watch: bool,
    interval_s: float,
    as_json: bool,
    config: Path | None,
) -> None:
    """List, process what is new, publish.

    SOURCE is an alias; without one, all sources are listed. Each run is a run of Dagster and shows in its UI. It can be
    stopped at any moment, by Ctrl-C or SIGTERM, and started again. Objects that cannot be processed are told and do not
    fail the command; a source that does not answer does (exit code 1), after the work on the others is done, and so do
    deletions that wait for a person. A folder or bucket that does not exist is a wrong setting: nothing is done (exit
    code 2).

    With --watch it goes on: events are taken from the inbox and from queues, sources are listed again and again, tables
    are published when enough has changed. A line tells each change; a service that fails is told and tried again. It
    ends by Ctrl-C or SIGTERM, with exit code 0.
    """
    if not watch and context.get_parameter_source("interval_s") is not ParameterSource.DEFAULT:
        msg = "--interval is of use with --watch only"
        raise click.UsageError(msg)
    with ended_by_sigterm():
        if watch:
            run_watch(config, sources, refresh=not no_refresh, interval_s=interval_s, as_json=as_json)
            return
        summary = run_ingest(config, sources, refresh=not no_refresh)
    if as_json:
        print_json(to_dict(summary))
    else:
        print_summary(summary)
    if summary.failed_runs or summary.failed_sources or summary.alarms:
        raise click.exceptions.Exit(1)


def run_ingest(config: Path | None, aliases: Sequence[str] = (), *, refresh: bool = True) -> "Summary":
    """Ingest with progress on stderr."""
    import dagster as dg

    from mm_assets.cli import runs

    try:
        with progress() as report:
            return runs.ingest(config, aliases=aliases or None, refresh=refresh, on_progress=report)
    except dg.DagsterExecutionInterruptedError as error:
        raise KeyboardInterrupt from error


def run_watch(
    config: Path | None, aliases: Sequence[str] = (), *, refresh: bool = True, interval_s: float = 60.0, as_json: bool
) -> None:
    """Watch until Ctrl-C or SIGTERM, which is the end that is meant."""
    import dagster as dg

    from mm_assets.cli import watching

    say = _say_json if as_json else _say
    try:
        watching.watch(config, aliases=aliases or None, refresh=refresh, interval_s=interval_s, say=say)
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        click.echo("Stopped; what was under way was given back.", err=True)


def _say(what: str, text: str, **_: Any) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')}  {printable(text)}", err=what in _TROUBLE)


def _say_json(what: str, text: str, **facts: Any) -> None:
    print_json({"at": datetime.now(UTC), "what": what, "text": text, **facts})


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does.

    Both are set, since Dagster gives SIGTERM what it finds for SIGINT, and that is to be ignored in a process that a
    script started in the background.
    """
    former = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def progress() -> Iterator[Report]:
    """Show progress on stderr: bars on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                for earlier in tasks.values():  # a phase begins when the one before is over
                    bars.update(earlier, total=bars.tasks[earlier].completed)
                tasks[phase] = bars.add_task(_PHASES.get(phase, phase), total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield report


class _Lines:
    """Progress as lines: one for each phase, then news after ten seconds, and a sign of life each minute."""

    def __init__(self) -> None:
        self._said: tuple[str, int] = ("", 0)
        self._said_at = 0.0

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        waited_s = time.monotonic() - self._said_at
        is_news = (phase, done) != self._said
        if phase == self._said[0] and waited_s < (_SAY_NEWS_S if is_news else _SAY_AGAIN_S):
            return
        self._said, self._said_at = (phase, done), time.monotonic()
        click.echo(f"{_PHASES.get(phase, phase)}: {done}" + (f" of {total}" if total is not None else ""), err=True)


def to_dict(summary: "Summary") -> dict[str, Any]:
    """Return plain values for JSON."""
    fields = {field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)}
    fields["discoveries"] = [dataclasses.asdict(found) for found in summary.discoveries]
    fields["counts"] = [
        {"step": step, "state": state, "reason": reason, "n_objects": n}
        for (step, state, reason), n in sorted(summary.counts.items(), key=str)
    ]
    return fields


def print_summary(summary: "Summary") -> None:
    """Say what was found, done and published, and what failed."""
    for found in summary.discoveries:
        click.echo(
            f"{found.alias}: {found.n_listed} listed, {found.n_new} new, {found.n_changed} changed, {found.n_gone} gone"
            + (f", {found.n_revived} back again" if found.n_revived else "")
            + (f", {found.n_refused} keys that cannot be stored" if found.n_refused else "")
        )
        if found.stopped_by:
            click.echo(f"{found.alias}: {printable(found.stopped_by)}", err=True)
        if found.n_unanswered:
            click.echo(f"{found.alias}: {found.n_unanswered} missing objects cannot be described; they stay", err=True)
    for alarm in summary.alarms.values():
        click.echo(f"ALARM: {alarm}", err=True)
    if not (summary.n_runs or summary.failed_runs):
        click.echo(f"Nothing to do ({summary.seconds:.1f} s).")
    else:
        _print_work(summary)
    failures = {f"{alias} was not listed": error for alias, error in summary.failed_sources.items()}
    failures |= {f"run {run_id} failed": error for run_id, error in summary.failed_runs.items()}
    for what, error in failures.items():
        click.echo(f"{what}: {printable(error)}", err=True)
    if summary.n_waiting:
        click.echo(f"{summary.n_waiting} objects wait for another try; run `mm ingest` again, `mm status` tells why.")


def _print_work(summary: "Summary") -> None:
    print_table(("step", "done", "skipped", "dead", "waiting"), per_step(summary.counts))
    if summary.n_rows:
        click.echo()
        print_table(("table", "rows"), sorted(summary.n_rows.items()))
    dead = [(step, reason, n) for (step, state, reason), n in summary.counts.items() if state == "dead"]
    for step, reason, n in sorted(dead, key=str):
        click.echo(f"given up in {step}: {n} ({reason})")
    left_out = {
        reason: n for (step, state, reason), n in summary.counts.items() if (step, state) == ("segments", "skipped")
    }
    for reason, n in sorted(left_out.items(), key=str):
        click.echo(f"left out in segments: {n} ({reason})")
    done, runs = counted(summary.n_processed, "object"), counted(summary.n_runs, "run")
    click.echo(f"{done} in {runs}, {summary.seconds:.1f} s.")
    if summary.is_refreshed:
        click.echo(f"Parquet: {summary.lake_uri.rstrip('/')}/tables/")


def per_step(counts: Any) -> list[tuple[str, int, int, int, int]]:
    """Sum counts to one row for each step: done, skipped, dead, waiting."""
    columns = {"done": 0, "skipped": 1, "dead": 2}
    rows: dict[str, list[int]] = {}
    for (step, state, _), n in counts.items():
        rows.setdefault(step, [0, 0, 0, 0])[columns.get(state, 3)] += n
    return [(step, *numbers) for step, numbers in sorted(rows.items())]  # type: ignore[misc]
