"""``mm ingest`` from discovery to refresh: the same Dagster jobs as on a cluster, executed here.

Put here: the order of runs and what is counted. Keep out: printing, and the work itself.

Every run is on the configured Dagster instance and shows in its UI. Ctrl-C gives back what was claimed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import dagster as dg

from mm_assets.cli.opening import read_settings
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.flows.discovery import Discovery, discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.planning import free_lost_work, plan_batches
from mm_assets.flows.processing import repeating
from mm_assets.flows.refreshing import needs_refresh
from mm_assets.flows.stopping import noting
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Batch, KnownObject
from mm_assets.partitions import hold_keys
from mm_assets.resources.workspace import WorkspaceResource, open_workspace
from mm_assets.settings import Settings, load_settings

_POLL_S = 0.5
_BATCHES_AT_ONCE = 8  # planned together; what Ctrl-C leaves of them is freed
# Called with (phase, done, total); the phases are discover, process, refresh. The total is None while unknown.
OnProgress = Callable[[str, int, int | None], None]
_DAGSTER_YAML = """\
# Written once by mm_assets; yours to change.
telemetry:
  enabled: false
concurrency:
  pools: {granularity: run, default_limit: 1}
retention:
  sensor: {purge_after_days: {skipped: 1, success: 7, failure: 30}}
"""

# Dagster would copy what a step prints through two more processes, which also hear Ctrl-C and say so at length.
_UNCOPIED = {
    "module_name": "dagster._core.storage.noop_compute_log_manager",
    "class_name": "NoOpComputeLogManager",
    "config_yaml": "{}",
}


@dataclass
class Summary:
    """What an ingest did.

    Attributes
    ----------
    n_processed : object versions that were in a run which did its work, each counted once
    failed_sources : aliases of sources that could not be listed to the end, with the error; the others went on
    alarms : alias → why its deletions wait for a person
    failed_runs : ids of Dagster runs that failed, with their error
    n_waiting : live object versions with work left (another try later, or a failed run)
    counts : (step, state, reason) → live object versions, after it
    n_rows : table → published rows, after it
    """

    discoveries: list[Discovery] = field(default_factory=list)
    n_runs: int = 0
    n_processed: int = 0
    failed_sources: dict[str, str] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    failed_runs: dict[str, str] = field(default_factory=dict)
    n_waiting: int = 0
    counts: Mapping[tuple[str, str, str | None], int] = field(default_factory=dict)
    n_rows: dict[str, int] = field(default_factory=dict)
    is_refreshed: bool = False
    seconds: float = 0.0
    lake_uri: str = ""


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """Open Dagster's storage, with a default configuration at first use."""
    home = settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists():
        config.write_text(_DAGSTER_YAML, encoding="utf-8")
    instance = dg.DagsterInstance.from_config(str(home))
    ref = instance.get_ref()
    logs = ref.compute_logs_data
    if logs.class_name != "LocalComputeLogManager":  # somebody chose where they go
        return instance
    instance.dispose()
    return dg.DagsterInstance.from_ref(ref._replace(compute_logs_data=logs._replace(**_UNCOPIED)))


def ingest(
    config_file: Path | None,
    *,
    aliases: Sequence[str] | None = None,
    refresh: bool = True,
    on_progress: OnProgress = lambda *_: None,
) -> Summary:
    """Discover, process and refresh until nothing is left that can be done now.

    Parameters
    ----------
    aliases : sources to list; None for all. Work that was wanted before is done in any case.
    refresh : publish tables and rebuild what is frozen, if anything changed

    Raises
    ------
    ConfigError
        Before any work.
    ServiceError
        A store failed beyond its retries; what is done stays done.
    """
    started = time.monotonic()
    workspace = open_workspace(read_settings(config_file, for_sources=True))
    with closing(workspace), Runner(workspace, config_file, on_progress) as runner:
        runner.check()
        runner.discover(aliases or [source.alias for source in workspace.settings.sources])
        runner.process()
        if refresh and needs_refresh(workspace):
            runner.refresh("mm ingest")
        return runner.finish(started)


def refresh(config_file: Path | None, reason: str, on_progress: OnProgress = lambda *_: None) -> Summary:
    """Run the refresh job alone, whether it is due or not."""
    started = time.monotonic()
    workspace = open_workspace(read_settings(config_file))
    with closing(workspace), Runner(workspace, config_file, on_progress) as runner:
        runner.refresh(reason)
        return runner.finish(started)


class Runner:
    """Runs of Dagster in this process, one after the other.

    Dagster's storage and definitions are opened by the first run: an ingest with nothing to do needs neither.
    """

    def __init__(
        self, workspace: Workspace, config_file: Path | None, on_progress: OnProgress = lambda *_: None
    ) -> None:
        self._workspace = workspace
        self._config_file = config_file
        self._on_progress = on_progress
        self._summary = Summary(lake_uri=workspace.lake.uri)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @cached_property
    def _instance(self) -> dg.DagsterInstance:
        return self._exits.enter_context(open_instance(self._workspace.settings))

    @cached_property
    def _defs(self) -> dg.Definitions:
        from mm_assets.definitions import build_defs

        return build_defs(WorkspaceResource(config_file=str(self._config_file) if self._config_file else ""))

    @property
    def _aliases(self) -> list[str]:
        return [source.alias for source in self._workspace.settings.sources]

    @property
    def failed_runs(self) -> Mapping[str, str]:
        """Ids of the runs that failed, with their error."""
        return self._summary.failed_runs

    def check(self) -> None:
        """Look whether the models are there; raises ConfigError."""
        for extractor in self._workspace.extractors.values():
            extractor.check()

    def discover(self, aliases: Sequence[str]) -> None:
        """Look at what events named, then list these sources to the end."""
        drain_inbox(self._workspace)
        n_before = 0
        for alias in aliases:
            try:
                self._summary.discoveries.append(self._list(alias, n_before))
            except ServiceError as error:
                self._summary.failed_sources[alias] = str(error)
                continue
            n_before += self._summary.discoveries[-1].n_listed
        free_lost_work(self._workspace)

    def _list(self, alias: str, n_before: int) -> Discovery:
        if alias in self._workspace.unreachable:
            raise ServiceError(self._workspace.unreachable[alias])
        return discover(self._workspace, alias, on_page=partial(self._count_listed, n_before))

    def _count_listed(self, n_before: int, n: int) -> None:
        self._on_progress("discover", n_before + n, None)

    def process(self) -> None:
        """Run batches until nothing is left that can be done now, or a run fails."""
        over = set[str]()
        total = self._count_waiting()
        while self.process_some(_BATCHES_AT_ONCE, over, total) and not self._summary.failed_runs:
            pass
        self._summary.n_processed = len(over)

    def process_some(self, limit: int, over: set[str], total: int = 0) -> int:
        """Plan at most so many batches and run them, one after the other.

        Parameters
        ----------
        over : ids of object versions that were in a batch before; those of these batches are added. A version comes
            again where a step reads what others found.
        total : versions that waited at the beginning, for progress

        Returns
        -------
        number of versions in batches that were run; of two waves they count twice

        Raises
        ------
        ConfigError
            The settings changed: a run reads them anew, and would not do what is planned here.
        """
        self._check_settings()
        work = self._workspace.ledger.work
        planned = [(job, b) for job, bs in plan_batches(self._workspace, limit=limit).items() for b in bs]
        n_run = 0
        try:
            for job, batch in planned:
                if objects := work.objects_of(batch.batch_id):  # none where all were overwritten or deleted since
                    n_run += self._run_batch(job, batch, objects, over, total)
        finally:
            work.release_batches([batch.batch_id for _, batch in planned])
        return n_run

    def _run_batch(self, job: str, batch: Batch, objects: Sequence[KnownObject], over: set[str], total: int) -> int:
        from mm_assets.assets.per_object import bulk_config

        hold_keys(self._instance, self._workspace, objects)
        ids = {known.object_id for known in objects}
        report = partial(self._count_processed, batch.batch_id, len(over), len(ids - over), total)
        with repeating(_POLL_S, report):
            key = objects[0].partition_key if batch.lane == "single" else None  # its failure is then red on it alone
            tags = {"mm_assets/batch": batch.batch_id, "mm_assets/lane": batch.lane}
            if not self._execute(job, run_config=bulk_config(batch.batch_id), tags=tags, partition_key=key):
                return 0
        over |= ids
        return len(ids)

    def _count_waiting(self) -> int:
        recipes = dict(self._workspace.recipes)
        return self._workspace.ledger.work.n_waiting(recipes, self._aliases) if recipes else 0

    def _check_settings(self) -> None:
        if load_settings(self._config_file) != self._workspace.settings:
            msg = "the settings were changed while this ran; start it again, it goes on where it stopped"
            raise ConfigError(msg)

    def _count_processed(self, batch_id: str, n_before: int, n_new: int, total: int) -> None:
        """Report how much of a batch is over, from the ledger, while its run goes on."""
        left = self._workspace.ledger.work.n_open_objects(batch_id)
        done = n_before + max(0, n_new - left)
        self._on_progress("process", done, max(total, done))

    def refresh(self, reason: str) -> None:
        """Publish and rebuild what lags behind."""
        self._on_progress("refresh", 0, 1)
        self._summary.is_refreshed = self._execute("refresh_job", tags={"mm_assets/reason": reason})
        self._on_progress("refresh", 1, 1)

    def _execute(
        self,
        job: str,
        *,
        tags: Mapping[str, str],
        run_config: Mapping[str, Any] | None = None,
        partition_key: str | None = None,
    ) -> bool:
        """Run a job; returns whether it did its work, which for a last try may be to give the object up."""
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        with noting() as is_to_stop:
            result = self._defs.resolve_job_def(job).execute_in_process(
                instance=self._instance,
                run_config={**(run_config or {}), **quiet},
                partition_key=partition_key,
                tags=dict(tags),
                raise_on_error=False,
            )
            self._summary.n_runs += 1
            if _was_interrupted(result):
                self._instance.report_run_canceled(result.dagster_run, "Ctrl-C")
                raise KeyboardInterrupt
            if is_to_stop():
                raise KeyboardInterrupt
        if result.success or _is_given_up(result):
            return True
        self._summary.failed_runs[result.run_id] = _first_error(result)
        return False

    def finish(self, started: float) -> Summary:
        """Count what there is now."""
        ledger, recipes = self._workspace.ledger, dict(self._workspace.recipes)
        scans = {found.alias: ledger.objects.scan(found.alias) for found in self._summary.discoveries}
        self._summary.alarms = {alias: scan.waiting_alarm for alias, scan in scans.items() if scan.waiting_alarm}
        self._summary.counts = ledger.work.counts(recipes, self._aliases) if recipes else {}
        self._summary.n_waiting = self._count_waiting()
        for (table, _), file in ledger.catalog.shard_files().items():
            self._summary.n_rows[table] = self._summary.n_rows.get(table, 0) + file.n_rows
        self._summary.seconds = time.monotonic() - started
        return self._summary


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether the run ended by Ctrl-C, which Dagster reports as an error of its step."""
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    return any(error is not None and error.cls_name == "DagsterExecutionInterruptedError" for error in errors)


def _is_given_up(result: dg.ExecuteInProcessResult) -> bool:
    """Whether the run is red because a last try failed: that is a dead letter, not a failed run."""
    from mm_assets.assets.per_object import FAILURES

    failures = [event.step_failure_data.user_failure_data for event in result.all_events if event.is_step_failure]
    return bool(failures) and all(failure is not None and FAILURES in failure.metadata for failure in failures)


def _first_error(result: dg.ExecuteInProcessResult) -> str:
    """Return the innermost message of the first failed step."""
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None and error.cause is not None:
                error = error.cause
            return error.message.strip() if error is not None else "failed without an error"
    return "failed before its first step"
