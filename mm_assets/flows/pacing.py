"""When something is due: the rules that sensors and ``mm ingest --watch`` share.

Put here: comparing clocks and counts. Keep out: asking for runs, and doing what is due.
"""

import time
from dataclasses import dataclass

from mm_assets.flows.refreshing import needs_refresh
from mm_assets.flows.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Due:
    """Whether it is time, and why or why not."""

    is_due: bool
    why: str


def refresh_due(workspace: Workspace, asked_at: float = 0.0) -> Due:
    """Compare what is done with what was published or asked for last.

    Parameters
    ----------
    asked_at : seconds since the epoch, of the last request: a refresh that fails, or that waits for a recipe to be
        complete, is due again only when as much has changed or as long has passed once more
    """
    refresh = workspace.settings.refresh
    last_at = max(workspace.ledger.catalog.last_published_at(), asked_at)
    n_changed = workspace.ledger.work.n_changed_since(last_at)
    waited_s = time.time() - last_at
    if n_changed < refresh.min_changed and waited_s < refresh.max_wait_s:
        return Due(False, f"{n_changed} objects changed, {waited_s:.0f} s since the last refresh")
    if not needs_refresh(workspace):
        return Due(False, "everything is published")
    return Due(True, f"{n_changed} objects changed")
