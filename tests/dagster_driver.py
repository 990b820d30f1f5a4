"""What the daemon does, in the test's own process: ticks, runs, and the states that Dagster's pages show.

Put here: driving Dagster. Keep out: assertions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from fakes import FakeWorkspaceResource
from places import Place

from mm_assets.definitions import build_defs
from mm_assets.flows.discovery import discover
from mm_assets.flows.planning import plan_batches
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Batch
from mm_assets.partitions import OBJECTS, hold_keys

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Driver:
    """One place, its workspace, and a Dagster instance."""

    place: Place
    instance: dg.DagsterInstance
    workspace: Workspace

    def plan(self, job: str = "ingest_job") -> list[Batch]:
        """Discover, plan, and tell Dagster the keys."""
        for source in self.workspace.settings.sources:
            discover(self.workspace, source.alias)
        batches = plan_batches(self.workspace)[job]
        for batch in batches:
            hold_keys(self.instance, self.workspace, self.workspace.ledger.work.objects_of(batch.batch_id))
        return batches

    def run(self, job: str, batch: Batch | None = None, **options: Any) -> dg.ExecuteInProcessResult:
        """Execute a job in this process; a batch makes it the bulk lane."""
        resource = options.pop("resource", None) or self.place.resource()
        config = {"ops": {"process_batch": {"config": {"batch_id": batch.batch_id}}}} if batch else {}
        return (
            build_defs(resource)
            .resolve_job_def(job)
            .execute_in_process(instance=self.instance, run_config={**config, **QUIET}, raise_on_error=False, **options)
        )

    def ingest(self, resource: FakeWorkspaceResource | None = None) -> list[dg.ExecuteInProcessResult]:
        """Plan everything and run every batch; returns these runs. What reads their results is run as well."""
        results = []
        for batch in self.plan():
            result = self.run("ingest_job", batch, resource=resource)
            results += [] if self.reads(batch) else [result]
        planned = self.plan()
        for batch in filter(self.reads, planned):
            self.run("ingest_job", batch, resource=resource)
        # What failed is not tried again here.
        self.workspace.ledger.work.release_batches([batch.batch_id for batch in planned if not self.reads(batch)])
        return results

    def reads(self, batch: Batch) -> bool:
        """Whether a batch is of steps that read the results of others."""
        return set(batch.steps) <= self.workspace.reads().keys()

    def tick(self, sensor: str, cursor: str | None = None, resource: FakeWorkspaceResource | None = None) -> Any:
        """Evaluate a sensor as the daemon does; returns its SensorExecutionData."""
        resource = resource or self.place.resource()
        defs = build_defs(resource)
        context = dg.build_sensor_context(
            instance=self.instance, cursor=cursor, definitions=defs, resources={"workspace": resource}
        )
        with dg.partition_loading_context(dynamic_partitions_store=self.instance):
            return defs.get_repository_def().get_sensor_def(sensor).evaluate_tick(context)

    def execute(self, request: Any, resource: FakeWorkspaceResource | None = None) -> dg.ExecuteInProcessResult:
        """Execute what a sensor asked for."""
        return (
            build_defs(resource or self.place.resource())
            .resolve_job_def(request.job_name)
            .execute_in_process(
                instance=self.instance,
                run_config={**request.run_config, **QUIET},
                partition_key=request.partition_key,
                tags=dict(request.tags),
                raise_on_error=False,
            )
        )

    def key(self, name: str) -> str:
        """Partition key of the live version of a file."""
        [known] = [item for item in self.workspace.ledger.objects.find(name) if item.state == "live"]
        return known.partition_key

    def statuses(self, asset: str, names: Iterable[str]) -> dict[str, str]:
        """Give file → MATERIALIZED, FAILED, IN_PROGRESS or MISSING, as Dagster's pages do."""
        with dg.partition_loading_context(dynamic_partitions_store=self.instance):
            found = self.instance.get_status_by_partition(
                dg.AssetKey(asset), [self.key(name) for name in names], OBJECTS
            )
        return {name: _name((found or {}).get(self.key(name))) for name in names}


def _name(status: Any) -> str:
    return "MISSING" if status is None else str(status.name)


def events_of(result: dg.ExecuteInProcessResult, kind: str) -> Sequence[dg.DagsterEvent]:
    """Events of one kind of a run."""
    return [event for event in result.all_events if event.event_type_value == kind]


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, set[str]]:
    """Asset → partitions that a run materialized."""
    found: dict[str, set[str]] = {}
    for event in events_of(result, "ASSET_MATERIALIZATION"):
        key = event.asset_key
        if key is not None:
            found.setdefault(key.to_user_string(), set()).add(event.partition or "")
    return found


def range_tags(first: str, last: str) -> Mapping[str, str]:
    """Tags with which Dagster starts a backfill's run over a range of partitions."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
