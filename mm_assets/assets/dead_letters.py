"""Dead letters as an asset of their own, and the check that there are not too many.

Put here: declarations and metadata for Dagster's pages. Keep out: replaying and dropping, which are a person's
(``mm dlq``).
"""

import dagster as dg

from mm_assets.extractors.registry import known_steps
from mm_assets.flows import dead_letters as letters_flow
from mm_assets.flows.recipes import DECODING_STEPS
from mm_assets.ledger.dead import DeadFilter
from mm_assets.resources.workspace import WorkspaceResource


@dg.asset(
    description="What was given up after the allowed tries, one row per object and step, with its reason.",
    group_name="reports",
    kinds={"parquet"},
    owners=["team:mm-assets"],
    deps=[*DECODING_STEPS, *known_steps()],
)
def dead_letters(workspace: WorkspaceResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """One row per dead letter; key: object_id and step; made from the ledger; refreshed with the tables."""
    with workspace.open(check=False) as opened:
        found = opened.ledger.dead.letters(DeadFilter(recipes=opened.recipes))
        key = letters_flow.write_dead_letters(opened, found)
        uri = f"{opened.lake.uri.rstrip('/')}/{key}"
    reasons = {str(reason): sum(letter.reason == reason for letter in found) for reason in {x.reason for x in found}}
    by_reason = dg.MetadataValue.json(dict(sorted(reasons.items())))
    return dg.MaterializeResult(metadata={"dagster/row_count": len(found), "dagster/uri": uri, "by_reason": by_reason})


@dg.asset_check(asset=dead_letters, description="There are no more dead letters than `runs.dead_letter_alarm` allows.")
def dead_letters_are_few(workspace: WorkspaceResource) -> dg.AssetCheckResult:
    """Count them in the ledger."""
    with workspace.open(check=False) as opened:
        depth = opened.ledger.dead.depth(opened.recipes)
        allowed = opened.settings.runs.dead_letter_alarm
    n = sum(depth.values())
    return dg.AssetCheckResult(
        passed=n <= allowed,
        metadata={"n_dead": n, "allowed": allowed, "by_reason": dg.MetadataValue.json(dict(sorted(depth.items())))},
        description="" if n <= allowed else "`mm dlq list` shows them, `mm dlq replay --reason …` tries again",
    )
