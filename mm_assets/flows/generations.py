"""The frozen builds that judgements are made against: their names, and loading them.

Put here: name → object in memory. Keep out: building them (refreshing does) and using them (judging does).
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from mm_assets.anomalies import Baseline
from mm_assets.clustering import ClusterModel
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import read_parquet
from mm_assets.spaces import ALL_SPACES, SPACES
from mm_assets.tagging import FrozenTaxonomy

TAXONOMY = "taxonomies/visual"
CLUSTERS = "clusters/visual"
BASELINE = "baselines/visual"


# Those that hold vectors or texts of objects; a taxonomy holds those of its own prompts.
OF_OBJECTS = (*(space.generation_name for space in ALL_SPACES), CLUSTERS, BASELINE)


def tables_of(name: str) -> tuple[str, ...]:
    """Return the tables that a generation is made of, or made for."""
    of_spaces = {space.generation_name: space.tables for space in ALL_SPACES}
    return of_spaces.get(name, SPACES["visual"].tables)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What vectors are judged against, each with its generation; None where nothing is built yet."""

    generations: Mapping[str, str]
    taxonomy: FrozenTaxonomy | None
    clusters: ClusterModel | None
    baseline: Baseline | None


def load_frozen(workspace: Workspace, recipe: str) -> Frozen:
    """Load what vectors of this recipe can be judged against; what was made of another model's vectors is left out.

    Raises
    ------
    ObjectNotFoundError
        The lake has no such build: it is damaged, or the ledger is from a backup.
    """
    tables = {name: _load_table(workspace, name, recipe) for name in (TAXONOMY, CLUSTERS, BASELINE)}
    manifests = workspace.ledger.catalog.generations()
    return Frozen(
        {name: manifest["generation"] for name, manifest in manifests.items()},
        FrozenTaxonomy.from_table(tables[TAXONOMY]) if tables[TAXONOMY] is not None else None,
        ClusterModel.from_table(tables[CLUSTERS]) if tables[CLUSTERS] is not None else None,
        Baseline.from_table(tables[BASELINE]) if tables[BASELINE] is not None else None,
    )


def _load_table(workspace: Workspace, name: str, recipe: str) -> pa.Table | None:
    manifest = workspace.ledger.catalog.generation(name)
    if manifest is None or recipe not in manifest["recipes"]:
        return None
    data = workspace.lake.read_generation(name, manifest["generation"], "model.parquet")
    return read_parquet(io.BytesIO(data))
