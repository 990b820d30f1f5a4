"""Which recipes and tables are shown, and which published files no longer belong.

Put here: deciding it, from ledger and settings. Keep out: rows and files, which ``publishing`` writes.
"""

from collections.abc import Collection

from mm_assets.flows.judging import JUDGEMENTS
from mm_assets.flows.recipes import Extractors, upstream
from mm_assets.flows.workspace import Workspace
from mm_assets.schemas import TABLES, Table
from mm_assets.spaces import SPACES

STATES = "step_states"
INDEXED = "indexed_vectors"
Key = tuple[str, int]  # table, shard


def promote_recipes(workspace: Workspace) -> dict[str, str]:
    """Show the current recipes once they are complete; returns what changed.

    Steps that read each other change together, so that rows of two models are never mixed in an answer. A source that
    left the settings holds nothing up: its rows stay shown until a recipe changes, and leave the tables with the old one.
    """
    aliases = [source.alias for source in workspace.settings.sources]
    for alias in aliases:  # work that nobody asked for yet must not look complete
        workspace.ledger.work.want(alias, workspace.recipes_of(alias))
    published = workspace.ledger.catalog.published()
    changed = {step: recipe for step, recipe in workspace.recipes.items() if published.get(step) != recipe}
    ready = {}
    for group in _connected(set(changed), workspace.extractors):
        is_first = all(step not in published for step in group)
        if is_first or all(workspace.ledger.work.complete(step, changed[step], aliases) for step in group):
            ready.update({step: changed[step] for step in group})
    if ready:
        workspace.ledger.catalog.publish(ready)
    shown = workspace.ledger.catalog.published()
    if (
        workspace.lake.published() != shown
    ):  # the lake's copy comes last: a kill in between leaves it to the next publish
        workspace.lake.write_published(shown)
    return ready


def shown_recipes(workspace: Workspace) -> dict[str, str]:
    """Return step → published recipe, of the steps that some source still asks for."""
    return {s: r for s, r in workspace.ledger.catalog.published().items() if s in workspace.recipes}


def shown_tables(workspace: Workspace) -> set[str]:
    """Return the tables that are published: of the steps that some source asks for, and what is judged by them."""
    tables = {*shown_recipes(workspace), STATES}
    if SPACES["visual"].table in tables:
        tables |= set(JUDGEMENTS)
    return tables | ({INDEXED} if tables & {space.table for space in SPACES.values()} else set())


def withdrawn_shards(workspace: Workspace, files: Collection[Key] | None = None) -> list[Key]:
    """Return the published files of shards without a live object, and of tables that are not shown any more.

    Shard 0 stays, so that a glob finds a schema.

    Parameters
    ----------
    files : (table, shard) of the files there are; None for those that the ledger knows
    """
    live, shown = workspace.ledger.objects.live_shards() | {0}, shown_tables(workspace)
    known = workspace.ledger.catalog.shard_files() if files is None else files
    return sorted(key for key in known if key[1] not in live or key[0] not in shown)


def is_listed(workspace: Workspace) -> bool:
    """Whether every source was listed to its end since this ledger began: only then is what it does not know not there."""
    scans = (workspace.ledger.objects.scan(source.alias) for source in workspace.settings.sources)
    return not workspace.ledger.restoring.is_under_way() and all(scan.finished_at is not None for scan in scans)


def _connected(steps: set[str], extractors: Extractors) -> list[set[str]]:
    """Group steps that reach each other through changed steps."""
    groups: list[set[str]] = []
    for step in sorted(steps):
        near = {step, *(set(upstream(step, extractors)) & steps)}
        touching = [group for group in groups if group & near]
        groups = [group for group in groups if group not in touching] + [near.union(*touching)]
    return groups


def step_table(workspace: Workspace, step: str) -> Table:
    """Return the table of a step, also of an extractor that was plugged in."""
    return workspace.extractors[step].table if step in workspace.extractors else TABLES[step]
