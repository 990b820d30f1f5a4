"""Jobs that process object versions; each selects the whole multi_asset, which steps run stands in the batch.

Put here: per-object jobs. Keep out: collection assets, which must not share a run with them.
"""

import dagster as dg

from jobs.pods import CPU, GPU
from mm_assets.assets.per_object import process_objects

_SELECTION = dg.AssetSelection.assets(process_objects)

ingest_job = dg.define_asset_job(
    "ingest_job",
    selection=_SELECTION,
    tags=GPU,
    executor_def=dg.in_process_executor,
    description="All steps of a batch of object versions: decode, models, judgements on arrival.",
)
decode_job = dg.define_asset_job(
    "decode_job",
    selection=_SELECTION,
    tags=CPU,
    executor_def=dg.in_process_executor,
    description="The steps that need no accelerator: decode, OCR, quality. For clusters that split by device.",
)
infer_job = dg.define_asset_job(
    "infer_job",
    selection=_SELECTION,
    tags=GPU,
    executor_def=dg.in_process_executor,
    description="The models, from segments that are already in the lake. For clusters that split by device.",
)
