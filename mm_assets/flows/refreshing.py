"""Building what is frozen for the collection: indexes, cluster model, baseline, taxonomy.

Put here: published table → generation in the lake → pointer in the ledger. Keep out: the mathematics.

A generation is named by what determined it, so building from the same rows is no new generation and writes nothing.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.anomalies import fit_baseline
from mm_assets.clustering import fit_clusters
from mm_assets.errors import ConfigError
from mm_assets.flows.generations import BASELINE, CLUSTERS, SPACES, TAXONOMY, Space, table_of
from mm_assets.flows.locking import held
from mm_assets.flows.publishing import stale_judgement_shards, stale_step_shards, withdrawn_shards
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.indexing import build_index
from mm_assets.lake import to_parquet
from mm_assets.ledger.catalog import PUBLISH_LOCK
from mm_assets.retrieval import Encoder
from mm_assets.tagging import Taxonomy
from mm_assets.vectors import Floats, from_arrow

_CODE_VERSION = "1"  # raised by hand when a build from the same rows would come out differently


@dataclass(frozen=True, slots=True)
class Built:
    """The outcome of building one generation.

    Attributes
    ----------
    is_new : False when the current generation was already made from the same rows
    """

    name: str
    generation: str
    is_new: bool
    manifest: Mapping[str, Any]


def needs_refresh(workspace: Workspace) -> bool:
    """Whether tables or what is built from them lag behind the results, or versions that left are still there."""
    published = workspace.ledger.catalog.published()
    if any(published.get(step) != recipe for step, recipe in workspace.recipes.items()):
        return True
    if workspace.ledger.removals.n_leaving() or withdrawn_shards(workspace):
        return True
    return bool(stale_step_shards(workspace) or stale_judgement_shards(workspace) or lagging(workspace))


def lagging(workspace: Workspace) -> list[str]:
    """Return the current generations that would be made of other rows now."""
    current = workspace.ledger.catalog.generations()
    return [name for name, manifest in current.items() if manifest["made_of"] != _made_of(workspace, name)]


def _made_of(workspace: Workspace, name: str) -> str:
    """Name what a generation would be made of now: the files of its table, and the settings; reads no row."""
    refresh = workspace.settings.refresh
    options = [refresh.exact_index_rows, refresh.min_recall, refresh.min_cluster_size, refresh.anomaly_neighbours]
    known = workspace.ledger.catalog.shard_files().values()
    files = [f"{file.shard} {file.fingerprint}" for file in known if file.name == table_of(name)]
    marks = [_read_taxonomy(workspace).digest] if name == TAXONOMY else sorted(files)
    return short_hash(*map(str, options), *marks)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _as_publisher(build: Callable[Concatenate[Workspace, _P], _T]) -> Callable[Concatenate[Workspace, _P], _T]:
    """Let one process at a time build from the tables; raises BusyError while another publishes."""

    @wraps(build)
    def locked(workspace: Workspace, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with held(workspace, PUBLISH_LOCK):
            return build(workspace, *args, **kwargs)

    return locked


@_as_publisher
def build_vector_index(workspace: Workspace, space: Space) -> Built:
    """Build the index of a space from its published table, unless the current one was made from the same rows."""
    ids, vectors, recipes = _points(workspace, space)
    options = workspace.settings.refresh
    marks = [str(options.exact_index_rows), str(options.min_recall)]

    def build(generation: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        index = build_index(ids, vectors, exact_rows=options.exact_index_rows, min_recall=options.min_recall)
        facts = {"kind": index.kind, "recall_at_10": index.recall, "parameters": dict(index.parameters)}
        rows = pa.table({"item_id": pa.array(ids, pa.string())})
        return facts, {"index.faiss": index.to_bytes(), "rows.parquet": to_parquet(rows, {"generation": generation})}

    return _build(workspace, space.generation_name, ids, recipes, marks, vectors.shape, build)


@_as_publisher
def build_cluster_model(workspace: Workspace) -> Built:
    """Cluster the visual space, unless the current model was made from the same rows."""
    ids, vectors, recipes = _points(workspace, SPACES["visual"])
    size = workspace.settings.refresh.min_cluster_size

    def build(_: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        model = fit_clusters(ids, vectors, min_cluster_size=size)
        n_noise = int((model.labels < 0).sum())
        facts = {"n_clusters": len(model.cluster_names()), "n_noise": n_noise, "min_cluster_size": size}
        return facts, {"model.parquet": _model_file(model.to_table())}

    return _build(workspace, CLUSTERS, ids, recipes, [str(size)], vectors.shape, build)


@_as_publisher
def build_anomaly_baseline(workspace: Workspace) -> Built:
    """Freeze the baseline of the visual space, unless the current one was made from the same rows."""
    ids, vectors, recipes = _points(workspace, SPACES["visual"])
    k = workspace.settings.refresh.anomaly_neighbours

    def build(_: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        baseline = fit_baseline(ids, vectors, n_neighbours=k)
        return {"n_neighbours": k}, {"model.parquet": _model_file(baseline.to_table())}

    return _build(workspace, BASELINE, ids, recipes, [str(k)], vectors.shape, build)


@_as_publisher
def freeze_taxonomy(workspace: Workspace) -> Built:
    """Encode the taxonomy's prompts, unless the current one was made from the same file and model."""
    extractor = workspace.extractors["visual_embeddings"]
    encoder = cast("Encoder", extractor)  # the visual extractor has a text side
    recipe = workspace.recipes["visual_embeddings"]
    current = workspace.ledger.catalog.generation(TAXONOMY)
    if workspace.ledger.catalog.published().get("visual_embeddings") != recipe:
        # The tables still show another model's vectors: its taxonomy stays until they are replaced.
        return Built(TAXONOMY, current["generation"] if current else "", False, current or {"n_rows": 0})
    taxonomy = _read_taxonomy(workspace)

    def build(_: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        encoder.load()
        frozen = taxonomy.freeze(encoder.encode_texts)
        return {"digest": taxonomy.digest}, {"model.parquet": _model_file(frozen.to_table())}

    return _build(workspace, TAXONOMY, [], {recipe}, [taxonomy.digest], (0, extractor.card.dim or 0), build)


def _read_taxonomy(workspace: Workspace) -> Taxonomy:
    file = workspace.settings.refresh.taxonomy or workspace.pack.taxonomy
    try:
        return Taxonomy.from_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"taxonomy {file} cannot be read ({error.strerror}); set `refresh.taxonomy`"
        raise ConfigError(msg) from error


def _points(workspace: Workspace, space: Space) -> tuple[list[str], Floats, set[str]]:
    """Read the ids and vectors of a space from its published table."""
    rows = workspace.lake.read_table(space.table, list(dict.fromkeys([space.item_column, "vector", "recipe"])))
    if rows is None:  # a new step whose recipe is not complete yet
        dim = workspace.extractors[space.table].card.dim or 1
        return [], np.empty((0, dim), np.float32), set()
    return rows[space.item_column].to_pylist(), from_arrow(rows["vector"]), set(rows["recipe"].unique().to_pylist())


_Build = Callable[[str], tuple[dict[str, Any], dict[str, bytes]]]


def _build(
    workspace: Workspace,
    name: str,
    ids: list[str],
    recipes: set[str],
    marks: list[str],
    shape: tuple[int, ...],
    build: _Build,
) -> Built:
    generation = short_hash(name, _CODE_VERSION, *marks, *sorted(recipes), *sorted(ids))
    made_of = _made_of(workspace, name)
    current = workspace.ledger.catalog.generation(name)
    if current is not None and current["generation"] == generation:
        _point(workspace, name, {**current, "made_of": made_of})
        return Built(name, generation, False, current)
    facts, files = build(generation)
    manifest = {"name": name, "generation": generation, "recipes": sorted(recipes), "n_rows": len(ids), "dim": shape[1]}
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())}
    manifest |= facts | {"made_of": made_of, "sha256": digests}
    workspace.lake.write_generation(name, manifest, files)
    _point(workspace, name, manifest)
    return Built(name, generation, True, manifest)


def _point(workspace: Workspace, name: str, manifest: Mapping[str, Any]) -> None:
    """Make both pointers name this build, where they do not.

    The ledger's comes last: a kill in between leaves it behind, and the same build is pointed to again.
    """
    if workspace.lake.current_generation(name) != manifest:
        workspace.lake.point_to_generation(name, manifest)
    if workspace.ledger.catalog.generation(name) != manifest:
        workspace.ledger.catalog.set_generation(name, manifest)


def _model_file(table: pa.Table) -> bytes:
    """Encode a frozen model; its own metadata stays."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
