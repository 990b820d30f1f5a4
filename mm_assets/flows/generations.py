"""The frozen builds that judgements are made against: their names, and loading them.

Put here: name → object in memory. Keep out: building them (refreshing does) and using them (judging does).
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.anomalies import Baseline
from mm_assets.clustering import ClusterModel
from mm_assets.flows.workspace import Workspace
from mm_assets.indexing import VectorIndex
from mm_assets.tagging import FrozenTaxonomy

TAXONOMY = "taxonomies/visual"
CLUSTERS = "clusters/visual"
BASELINE = "baselines/visual"


@dataclass(frozen=True, slots=True)
class Space:
    """A vector space: the table that holds its points, and the column that names them."""

    name: str
    table: str
    item_column: str

    @property
    def generation_name(self) -> str:
        """Name of its index among the generations."""
        return f"indexes/{self.name}"


SPACES: Mapping[str, Space] = {
    "visual": Space("visual", "visual_embeddings", "segment_id"),
    "face": Space("face", "faces", "face_id"),
}


# Those that hold vectors of objects; a taxonomy holds those of its own prompts.
OF_OBJECTS = (*(space.generation_name for space in SPACES.values()), CLUSTERS, BASELINE)


def table_of(name: str) -> str:
    """Return the table whose vectors a generation is made of, or made for."""
    return next((space.table for space in SPACES.values() if space.generation_name == name), SPACES["visual"].table)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What vectors are judged against, each with its generation; None where nothing is built yet."""

    generations: Mapping[str, str]
    taxonomy: FrozenTaxonomy | None
    clusters: ClusterModel | None
    baseline: Baseline | None


def load_frozen(workspace: Workspace, recipe: str) -> Frozen:
    """Load what vectors of this recipe can be judged against; what was made of another model's vectors is left out."""
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
    return pq.read_table(io.BytesIO(data))


def load_index(workspace: Workspace, space: Space) -> tuple[VectorIndex, dict[str, Any]] | None:
    """Load the current index of a space and its manifest; None where none is built."""
    manifest = workspace.ledger.catalog.generation(space.generation_name)
    if manifest is None:
        return None
    data = workspace.lake.read_generation(space.generation_name, manifest["generation"], "index.faiss")
    return VectorIndex.from_bytes(data, manifest["parameters"]), manifest
