"""The job that publishes tables and rebuilds what is frozen for the collection, and its schedule.

Put here: refresh of collection assets. Keep out: per-object assets.
"""

import dagster as dg

from jobs.pods import SMALL
from mm_assets.assets.collection import COLLECTION
from mm_assets.assets.dead_letters import dead_letters
from mm_assets.assets.removals import removals

refresh_job = dg.define_asset_job(
    "refresh_job",
    selection=dg.AssetSelection.assets(*COLLECTION, dead_letters, removals),
    tags=SMALL,
    executor_def=dg.in_process_executor,
    description="Tables, indexes, cluster model, baseline, taxonomy, judgements, reports, removals, and their checks.",
)
refresh_schedule = dg.ScheduleDefinition(
    name="refresh_schedule",
    job=refresh_job,
    cron_schedule="0 3 * * *",
    description="A refresh each night, whatever has changed; refresh_needed_sensor asks for more when there is enough.",
)
