"""Building what is frozen for the collection: indexes, cluster model, baseline, taxonomy.

Put here: published table → generation in the lake → pointer in the ledger. Keep out: the mathematics.

A generation is named by what determined it, so building from the same rows is no new generation and writes nothing.
"""

import hashlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm_assets.anomalies import fit_baseline
from mm_assets.clustering import fit_clusters
from mm_assets.errors import ConfigError
from mm_assets.flows.generations import BASELINE, CLUSTERS, TAXONOMY, tables_of
from mm_assets.flows.indexes import make_index, make_text_index, open_rows, store_parts
from mm_assets.flows.locking import held
from mm_assets.flows.publishing import stale_judgement_shards, stale_step_shards
from mm_assets.flows.scratch import scratch
from mm_assets.flows.showing import withdrawn_shards
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import short_hash
from mm_assets.indexing import INDEX_FILE, ROWS_FILE, write_rows
from mm_assets.ledger.catalog import PUBLISH_LOCK
from mm_assets.retrieval import Encoder
from mm_assets.spaces import SPACES, WORDS, Space
from mm_assets.tagging import Taxonomy
from mm_assets.vectors import Floats, from_arrow

_CODE_VERSION = "5"  # raised by hand when a build from the same rows would come out differently


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
    files = [f"{file.name} {file.shard} {file.fingerprint}" for file in known if file.name in tables_of(name)]
    marks = [_read_taxonomy(workspace).digest] if name == TAXONOMY else sorted(files)
    return short_hash(_CODE_VERSION, *map(str, options), *marks)


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
    """Make the index of a space from its published table, unless the current one was made from the same rows.

    The current one is changed where it is of the same model and settings: rows that came or left cost what they are,
    not what the whole is.
    """
    name, options = space.generation_name, workspace.settings.refresh
    current = _current(workspace, name)
    with scratch() as folder:
        parts = list(store_parts(workspace, space, current, folder))
        recipes = sorted({recipe for part in parts for recipe in part["recipes"]})
        marks = [str(options.exact_index_rows), str(options.min_recall), *(part["name"] for part in parts)]
        base = current if current is not None and current["recipes"] == recipes else None

        def build() -> tuple[dict[str, Any], Files]:
            index = make_index(workspace, open_rows(workspace, space, parts, dim, folder), base)
            index.save(folder)
            facts = {"kind": index.kind, "recall_at_10": index.recall, "parameters": index.parameters}
            if base is not None and index.parameters["n_changed"]:
                facts["base"] = base["generation"]
            return facts, {file: folder / file for file in (INDEX_FILE, ROWS_FILE)}

        n_rows = sum(part["n_rows"] for part in parts)
        dim = parts[0]["dim"] if parts else workspace.extractors[space.table].card.dim or 1
        plan = _Plan(name, recipes, marks, n_rows, dim, {"parts": parts})
        return _build(workspace, plan, build)


@_as_publisher
def build_text_index(workspace: Workspace) -> Built:
    """Make the index over what is said and shown, unless the current one was made from the same rows.

    Shards that changed are replaced in the current one.
    """
    current = _current(workspace, WORDS.generation_name)
    with scratch() as folder:
        parts = list(store_parts(workspace, WORDS, current, folder))
        recipes = {recipe for part in parts for recipe in part["recipes"]}

        def build() -> tuple[dict[str, Any], Files]:
            rows = open_rows(workspace, WORDS, parts, 0, folder)
            files = make_text_index(workspace, parts, rows, current, folder)
            write_rows(folder / ROWS_FILE, rows.places())
            facts = {"base": current["generation"]} if current is not None else {}
            return facts, {ROWS_FILE: folder / ROWS_FILE, **files}

        marks, n_rows = [part["name"] for part in parts], sum(part["n_rows"] for part in parts)
        plan = _Plan(WORDS.generation_name, recipes, marks, n_rows, 0, {"parts": parts})
        return _build(workspace, plan, build)


def _current(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """Return the current generation, unless an earlier version of this code made it."""
    current = workspace.ledger.catalog.generation(name)
    return current if current is not None and current.get("code_version") == _CODE_VERSION else None


@_as_publisher
def build_cluster_model(workspace: Workspace) -> Built:
    """Cluster the visual space, unless the current model was made from the same rows."""
    ids, vectors, recipes = _points(workspace)
    size = workspace.settings.refresh.min_cluster_size

    def build() -> tuple[dict[str, Any], Files]:
        model = fit_clusters(ids, vectors, min_cluster_size=size)
        n_noise = int((model.labels < 0).sum())
        facts = {"n_clusters": len(model.cluster_names()), "n_noise": n_noise, "min_cluster_size": size}
        return facts, {"model.parquet": _model_file(model.to_table())}

    return _build(workspace, _Plan(CLUSTERS, recipes, [str(size), *sorted(ids)], *vectors.shape), build)


@_as_publisher
def build_anomaly_baseline(workspace: Workspace) -> Built:
    """Freeze the baseline of the visual space, unless the current one was made from the same rows."""
    ids, vectors, recipes = _points(workspace)
    k = workspace.settings.refresh.anomaly_neighbours

    def build() -> tuple[dict[str, Any], Files]:
        baseline = fit_baseline(ids, vectors, n_neighbours=k)
        return {"n_neighbours": k}, {"model.parquet": _model_file(baseline.to_table())}

    return _build(workspace, _Plan(BASELINE, recipes, [str(k), *sorted(ids)], *vectors.shape), build)


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

    def build() -> tuple[dict[str, Any], Files]:
        encoder.load()
        frozen = taxonomy.freeze(encoder.encode_texts)
        return {"digest": taxonomy.digest}, {"model.parquet": _model_file(frozen.to_table())}

    n_tags = sum(1 for _ in taxonomy.members())
    return _build(workspace, _Plan(TAXONOMY, {recipe}, [taxonomy.digest], n_tags, extractor.card.dim or 0), build)


def _read_taxonomy(workspace: Workspace) -> Taxonomy:
    file = workspace.settings.refresh.taxonomy or workspace.pack.taxonomy
    try:
        return Taxonomy.from_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"taxonomy {file} cannot be read ({error.strerror}); set `refresh.taxonomy`"
        raise ConfigError(msg) from error


def _points(workspace: Workspace) -> tuple[list[str], Floats, set[str]]:
    """Read the ids and vectors of the visual space from its published table."""
    space = SPACES["visual"]
    rows = workspace.lake.read_table(space.table, list(dict.fromkeys([space.item_column, "vector", "recipe"])))
    if rows is None:  # a new step whose recipe is not complete yet
        dim = workspace.extractors[space.table].card.dim or 1
        return [], np.empty((0, dim), np.float32), set()
    return rows[space.item_column].to_pylist(), from_arrow(rows["vector"]), set(rows["recipe"].unique().to_pylist())


Files = Mapping[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a generation is to be made of.

    Attributes
    ----------
    marks : what determines it beside its name and recipes
    facts : what its manifest says beside, known before it is built
    """

    name: str
    recipes: Collection[str]
    marks: Sequence[str]
    n_rows: int
    dim: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Name what it is made of; two generations of one origin give the same answers."""
        return short_hash(self.name, _CODE_VERSION, *self.marks, *sorted(self.recipes))


def _build(workspace: Workspace, plan: _Plan, build: Callable[[], tuple[dict[str, Any], Files]]) -> Built:
    name, made_of = plan.name, _made_of(workspace, plan.name)
    current = workspace.ledger.catalog.generation(name)
    if current is not None and current.get("origin") == plan.origin:
        _point(workspace, name, {**current, **plan.facts, "made_of": made_of})
        return Built(name, current["generation"], False, current)
    facts, files = build()
    # What was made by changing another build differs from one that was made at once.
    generation = short_hash(plan.origin, facts["base"]) if "base" in facts else plan.origin
    named = {"name": name, "generation": generation, "origin": plan.origin, "code_version": _CODE_VERSION}
    manifest = named | {"recipes": sorted(plan.recipes), "n_rows": plan.n_rows, "dim": plan.dim}
    manifest |= {
        **plan.facts,
        **facts,
        "made_of": made_of,
        "sha256": {file: _digest(data) for file, data in sorted(files.items())},
    }
    workspace.lake.write_generation(name, manifest, files)
    _point(workspace, name, manifest)
    return Built(name, generation, True, manifest)


def _digest(data: bytes | Path) -> str:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
