"""The job that publishes tables and rebuilds what is frozen for the collection, and its schedule.

Put here: refresh of collection assets. Keep out: per-object assets.
"""

import dagster as dg

from jobs.pods import SMALL
from mm_assets.assets.collection import COLLECTION

refresh_job = dg.define_asset_job(
    "refresh_job",
    selection=dg.AssetSelection.assets(*COLLECTION),
    tags=SMALL,
    executor_def=dg.in_process_executor,
    description="Tables, indexes, cluster model, baseline, taxonomy, judgements, report, and their checks.",
)
refresh_schedule = dg.ScheduleDefinition(
    name="refresh_schedule",
    job=refresh_job,
    cron_schedule="0 3 * * *",
    description="A refresh each night, whatever has changed; refresh_needed_sensor asks for more when there is enough.",
)
