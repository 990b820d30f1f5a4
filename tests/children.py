"""Processes that tests kill: each runs the real pipeline with fake extractors, until its moment has come.

The product knows nothing of this: the moments are calls that are wrapped in the child before it begins. Children are
forked from a server process that has imported everything, so that each starts in milliseconds.

Put here: what runs inside a child. Keep out: tests, and who is killed when.
"""

import importlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOADED = [
    "boto3",
    "faiss",
    "hdbscan",
    "psycopg2",
    "pyarrow.parquet",
    "sklearn.neighbors",
    "mm_assets.flows.refreshing",
    "mm_assets.resources.s3",
    "mm_assets.resources.workspace",
    "preloaded",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class Moment:
    """A call at which something happens to the process.

    Attributes
    ----------
    target : ``module:Class.method``
    place : before | within (a commit to the database is about to be made) | after
    nth : which of the calls, from 1
    commit : which of the commits from the call's begin on, for ``within``
    act : kill | stop (SIGSTOP)
    """

    target: str
    place: str = "after"
    nth: int = 1
    commit: int = 1
    act: str = "kill"

    def __str__(self) -> str:
        """Give the test's id."""
        commit = f" commit {self.commit}" if self.commit > 1 else ""
        return f"{self.place} {self.target.rpartition(':')[2]} {self.nth}{commit}"


def start(run: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a child."""
    process = _CONTEXT.Process(target=run, args=arguments, daemon=True)
    process.start()
    return process


def end(process: BaseProcess, seconds: float = 60.0) -> int:
    """Wait for a child; returns its exit code, −9 for SIGKILL."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        msg = f"the child was still at work after {seconds} s"
        raise AssertionError(msg)
    return process.exitcode


def arrange(moment: Moment) -> None:
    """Let this process meet its moment."""
    module, _, path = moment.target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), itertools.count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        is_due = next(calls) == moment.nth
        if is_due and moment.place == "before":
            _act(moment)
        if is_due and moment.place == "within":
            _act_at_commit(moment)
        try:
            return original(*arguments, **options)
        finally:
            if is_due and moment.place == "after":
                _act(moment)

    setattr(owner, name, call)


def _act(moment: Moment) -> None:
    os.kill(os.getpid(), signal.SIGKILL if moment.act == "kill" else signal.SIGSTOP)


def _act_at_commit(moment: Moment) -> None:
    from sqlalchemy import Engine, event

    commits = itertools.count(1)
    event.listen(Engine, "commit", lambda _: _act(moment) if next(commits) == moment.commit else None)


def _open(config: str) -> Any:
    from fakes import open_fake_workspace
    from rig import impatient

    from mm_assets.settings import load_settings

    return impatient(open_fake_workspace(load_settings(Path(config))))


def ingest(config: str, *moments: Moment) -> None:
    """Do everything once: hints, listing, processing, refresh."""
    from rig import run_once

    workspace = _open(config)
    for moment in moments:
        arrange(moment)
    run_once(workspace)


def work_for_ever(config: str) -> None:
    """Do everything again and again; what the others did meanwhile is no failure."""
    from rig import run_once

    from mm_assets.errors import ServiceError

    workspace = _open(config)
    while True:
        try:
            run_once(workspace)
        except ServiceError:  # another one lists or publishes, or its sweep took what this one was about to read
            time.sleep(0.05)


def ingest_in_c(config: str) -> None:
    """Ingest with a model that is inside C code for minutes, where Python calls no handler."""
    import hashlib

    import fakes

    def stay(*_: Any) -> None:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)

    fakes.FakeVision._extract = stay  # type: ignore[assignment,method-assign]
    ingest(config)


def ingest_over_a_killer(config: str, word: str) -> None:
    """Ingest with a model that takes the whole process with it when it meets a certain key."""
    import fakes

    extract = fakes.FakeVision._extract

    def die_over(self: Any, segments: Any) -> Any:
        if any(word in key for key in segments["key"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return extract(self, segments)

    fakes.FakeVision._extract = die_over  # type: ignore[method-assign]
    ingest(config)


# -- Dagster -----------------------------------------------------------------------------------------------------------


def _driver(config: str, home: str) -> Any:
    """Open a Dagster instance that outlives this process, as the daemon and the code server do."""
    import dagster as dg
    from dagster_driver import Driver
    from fakes import FakeWorkspaceResource

    resource = FakeWorkspaceResource(config_file=config)
    return Driver(None, dg.DagsterInstance.local_temp(home), None), resource  # type: ignore[arg-type]


def tick(config: str, home: str, moment: Moment) -> None:
    """Evaluate the sensor that lists."""
    driver, resource = _driver(config, home)
    arrange(moment)
    driver.tick("bucket_objects_sensor", resource=resource)


def run_batch(config: str, home: str, batch_id: str, moment: Moment | None = None) -> None:
    """Run a batch as Dagster's step process does."""
    from mm_assets.ledger import Batch

    driver, resource = _driver(config, home)
    if moment is not None:
        arrange(moment)
    assert driver.run("ingest_job", Batch(batch_id, "bulk", (), 0), resource=resource).success
