"""The composition root: all of Dagster's definitions in one place.

Put here: the list of what there is. Keep out: settings, clients and models: nothing is read or opened at import.
"""

import warnings

import dagster as dg

# Dagster marks backfill policies as beta; the behaviour we rely on is tested.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from jobs.ingest import decode_job, infer_job, ingest_job  # noqa: E402  after the filter
from jobs.refresh import refresh_job, refresh_schedule  # noqa: E402
from mm_assets.assets.collection import COLLECTION  # noqa: E402
from mm_assets.assets.dead_letters import dead_letters  # noqa: E402
from mm_assets.assets.per_object import process_objects  # noqa: E402
from mm_assets.assets.removals import removals  # noqa: E402
from mm_assets.checks import CHECKS  # noqa: E402
from mm_assets.resources.workspace import WorkspaceResource  # noqa: E402
from sensors.bucket_events import bucket_events_sensor  # noqa: E402
from sensors.bucket_objects import bucket_objects_sensor  # noqa: E402
from sensors.queued_events import queued_events_sensor  # noqa: E402
from sensors.refresh_needed import refresh_needed_sensor  # noqa: E402


def build_defs(workspace: WorkspaceResource | None = None) -> dg.Definitions:
    """Build the definitions, with another workspace for tests and for the command line."""
    return dg.Definitions(
        assets=[process_objects, *COLLECTION, dead_letters, removals],
        asset_checks=CHECKS,
        jobs=[ingest_job, decode_job, infer_job, refresh_job],
        schedules=[refresh_schedule],
        sensors=[bucket_objects_sensor, bucket_events_sensor, queued_events_sensor, refresh_needed_sensor],
        resources={"workspace": workspace or WorkspaceResource()},
        executor=dg.in_process_executor,
    )


defs = build_defs()
