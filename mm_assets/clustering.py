"""HDBSCAN over a nearest-neighbour graph, frozen so that later vectors can be assigned to its clusters.

Put here: fitting clusters, assigning to them, their table. Keep out: matching clusters from one fit to the next, names
given by people, and where a model is stored.

HDBSCAN: Campello, Moulavi, Sander (2013), "Density-based clustering based on hierarchical density estimates". The graph
takes the place of all pairs: 20,000 × 64 vectors cost 4 core-seconds against 24 of the package (November 2026), with nearly
the same labels. The last two stages, single linkage and the condensed tree, are the package's own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mm_assets.errors import ConfigError
from mm_assets.identity import short_hash
from mm_assets.vectors import (
    Floats,
    Ids,
    as_unit_vectors,
    as_vector_ids,
    from_arrow,
    nearest,
    nearest_others,
    parameters_of,
    rows_of,
    to_arrow,
)

NOISE = -1
# Adjusted Rand index against the package on 8,000 rows, November 2026: 30 neighbours .87-.97, 64 .79-1, 100 .97-1.
_NEIGHBOURS = 100
_MIN_NEIGHBOURS = 30
_MAX_EDGES = 30_000_000  # 2 GB of memory; beyond 300,000 rows each has fewer neighbours
# Equal vectors are at distance 0 and would have infinite density. Half precision alone moves a vector by ten times this.
_RESOLUTION = 1e-3
_METADATA = b"mm_assets.cluster_model"

Labels = npt.NDArray[np.int32]
Edges = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClusterModel:
    """The vectors of one fit with their clusters. Rows are in the order of their vector ids, whatever the input's order.

    Attributes
    ----------
    item_ids : (n,) what each vector belongs to
    vectors : (n, d) unit vectors
    labels : (n,) place of the cluster in ``cluster_names()``, -1 for noise
    strengths : (n,) 0…1, how deep in its cluster; 0 for noise
    core_distances : (n,) Euclidean distance to the ``min_samples``-th neighbour; infinite when there are too few rows
    """

    item_ids: tuple[str, ...]
    vectors: Floats
    labels: Labels
    strengths: Floats
    core_distances: Floats
    min_cluster_size: int
    min_samples: int

    def cluster_names(self) -> list[str]:
        """Return the id of each cluster, by label: a hash of the item nearest its centre, so never a counter."""
        return list(self._names)

    def assign(self, item_ids: Sequence[str], vectors: Floats) -> tuple[Labels, Floats]:
        """Return the cluster of each vector: that of the row it is nearest to by mutual reachability.

        Rows of the fit keep what they have. Others become noise where that distance is larger than the largest core
        distance in the cluster. Exact; costs one comparison with each row of the fit.

        Returns
        -------
        labels : (n,) int32 as in the model
        strengths : (n,) float32 0…1; that of the row it is nearest to, less in proportion as it is farther from it than
            that row's own neighbours are

        Raises
        ------
        SchemaError
            Not unit vectors of this dimension, or ids not unique.
        """
        matrix = as_unit_vectors(vectors, self.vectors.shape[1])
        own = rows_of(as_vector_ids(item_ids, len(matrix)), self._vector_ids)
        is_own = own >= 0
        labels, strengths = _all_noise(len(matrix))
        labels[is_own], strengths[is_own] = self.labels[own[is_own]], self.strengths[own[is_own]]
        labels[~is_own], strengths[~is_own] = self._assign_new(matrix[~is_own])
        return labels, strengths

    def to_table(self) -> pa.Table:
        """One row per vector, with the parameters in the schema's metadata; ``cluster_id`` is null for noise."""
        names = [*self._names, None]
        columns = {
            "item_id": pa.array(self.item_ids, pa.string()),
            "label": pa.array(self.labels),
            "cluster_id": pa.array([names[label] for label in self.labels], pa.string()),
            "confidence": pa.array(self.strengths),
            "core_distance": pa.array(self.core_distances),
            "vector": to_arrow(self.vectors),
        }
        parameters = {"min_cluster_size": self.min_cluster_size, "min_samples": self.min_samples}
        return pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(parameters)})

    @classmethod
    def from_table(cls, table: pa.Table) -> "ClusterModel":
        """Undo ``to_table``, bit for bit."""
        parameters = json.loads(parameters_of(table, _METADATA))
        return cls(
            item_ids=tuple(table["item_id"].to_pylist()),
            vectors=from_arrow(table["vector"]),
            labels=table["label"].to_numpy(),
            strengths=table["confidence"].to_numpy(),
            core_distances=table["core_distance"].to_numpy(),
            **parameters,
        )

    def _assign_new(self, matrix: Floats) -> tuple[Labels, Floats]:
        labels, strengths = _all_noise(len(matrix))
        if not self._names:
            return labels, strengths
        distance, rows = nearest(matrix, self.vectors, 2 * self.min_samples)
        own_core = distance[:, min(self.min_samples, distance.shape[1]) - 1]
        reach = np.maximum(np.maximum(distance, self.core_distances[rows]), own_core[:, None])
        best = reach.argmin(axis=1)[:, None]
        reach, rows = np.take_along_axis(reach, best, 1)[:, 0], np.take_along_axis(rows, best, 1)[:, 0]
        is_within = (self.labels[rows] != NOISE) & (reach <= self._radii[self.labels[rows]])
        near, reach = rows[is_within], np.maximum(reach[is_within], _RESOLUTION)
        labels[is_within] = self.labels[near]
        strengths[is_within] = self.strengths[near] * np.minimum(
            1, np.maximum(self.core_distances[near], _RESOLUTION) / reach
        )
        return labels, strengths

    @cached_property
    def _vector_ids(self) -> Ids:
        return as_vector_ids(self.item_ids)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        members = np.flatnonzero(self.labels != NOISE)
        if members.size == 0:
            return ()
        central = members[_central_rows(self.vectors[members], self.labels[members])]
        return tuple(short_hash("cluster", self.item_ids[row]) for row in central)

    @cached_property
    def _radii(self) -> Floats:
        radii = np.zeros(len(self._names), np.float32)
        is_member = self.labels != NOISE
        np.maximum.at(radii, self.labels[is_member], self.core_distances[is_member])
        return radii


def fit_clusters(
    item_ids: Sequence[str], vectors: Floats, *, min_cluster_size: int, min_samples: int | None = None
) -> ClusterModel:
    """Find the clusters of a collection; deterministic, and independent of the order of the rows.

    Parameters
    ----------
    item_ids : one unique id for each vector
    vectors : (n, d) unit vectors; not written to
    min_cluster_size : smaller groups are noise, at least 2; with fewer rows than this all is noise
    min_samples : neighbours that make a row dense, at least 1; None for ``min_cluster_size``

    Raises
    ------
    SchemaError
        Not unit vectors, or ids not unique.
    ConfigError
        A parameter out of its range.
    """
    min_samples = min_cluster_size if min_samples is None else min_samples
    if min_cluster_size < 2 or min_samples < 1:
        msg = f"min_cluster_size {min_cluster_size} must be at least 2 and min_samples {min_samples} at least 1"
        raise ConfigError(msg)
    matrix = as_unit_vectors(vectors)
    order = np.argsort(as_vector_ids(item_ids, len(matrix)), kind="stable")
    matrix = matrix[order]
    labels, strengths = _all_noise(len(matrix))
    cores = np.full(len(matrix), np.inf, np.float32)
    if len(matrix) >= min_cluster_size:
        labels, strengths, cores = _fit(matrix, min_cluster_size, min_samples)
    ids = tuple(item_ids[row] for row in order)
    return ClusterModel(ids, matrix, labels, strengths, cores, min_cluster_size, min_samples)


def _all_noise(n: int) -> tuple[Labels, Floats]:
    return np.full(n, NOISE, np.int32), np.zeros(n, np.float32)


def _fit(matrix: Floats, min_cluster_size: int, min_samples: int) -> tuple[Labels, Floats, Floats]:
    from hdbscan._hdbscan_linkage import label as single_linkage
    from hdbscan.hdbscan_ import _tree_to_labels

    n_neighbours = max(_MIN_NEIGHBOURS, 2 * min_samples, min(_NEIGHBOURS, _MAX_EDGES // len(matrix)))
    distance, neighbours = nearest_others(matrix, n_neighbours)
    cores = distance[:, min(min_samples, distance.shape[1]) - 1].copy()
    tree = _spanning_tree(matrix, cores, n_neighbours, (distance, neighbours))
    labels, strengths = _tree_to_labels(matrix, single_linkage(tree), min_cluster_size=min_cluster_size)[:2]
    return labels.astype(np.int32), strengths.astype(np.float32), cores


def _spanning_tree(matrix: Floats, cores: Floats, n_neighbours: int, graph: tuple[Floats, Ids] | None = None) -> Edges:
    """Return n - 1 edges (row, row, mutual reachability), ascending, that join all rows.

    Where the neighbour graph falls apart, its components are joined through one central row of each, by the same
    method, above all edges within them. A component has more rows than neighbours, so this ends soon.
    """
    from scipy.sparse.csgraph import connected_components

    n = len(matrix)
    distance, neighbours = graph or nearest_others(matrix, n_neighbours)
    edges = _mutual_reachability(distance, neighbours, cores)
    tree = _minimum_forest(edges, n)
    n_components, component = connected_components(_as_graph(tree, tree[:, 2], n), directed=False)
    if n_components == 1:
        return tree
    central = _central_rows(matrix, component)
    bridges = _spanning_tree(matrix[central], cores[central], n_neighbours)
    bridges[:, :2] = central[bridges[:, :2].astype(np.int64)]
    bridges[:, 2] = np.maximum(bridges[:, 2], tree[-1, 2])
    return np.concatenate([tree, bridges])


def _mutual_reachability(distance: Floats, neighbours: Ids, cores: Floats) -> Edges:
    """Return each edge once, the lower row first, in ascending order of (distance, row, row)."""
    rows = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    others, lengths = neighbours.ravel(), distance.ravel()
    is_found = others >= 0
    rows, others, lengths = rows[is_found], others[is_found], lengths[is_found]
    lengths = np.maximum(np.maximum(lengths, np.maximum(cores[rows], cores[others])), np.float32(_RESOLUTION))
    low, high = np.minimum(rows, others), np.maximum(rows, others)
    first = np.unique(low * len(neighbours) + high, return_index=True)[1]
    low, high, lengths = low[first], high[first], lengths[first]
    order = np.lexsort((high, low, lengths))
    return np.column_stack([low[order], high[order], lengths[order]]).astype(np.float64)


def _minimum_forest(edges: Edges, n: int) -> Edges:
    """Kruskal's order as weights: ranks are unique, so ties have one answer and no weight is 0 (which scipy drops)."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    ranks = minimum_spanning_tree(_as_graph(edges, np.arange(1.0, len(edges) + 1), n)).data
    return edges[np.sort(ranks).astype(np.int64) - 1]


def _as_graph(edges: Edges, weights: npt.NDArray[np.float64], n: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((weights, edges[:, :2].astype(np.int32).T), shape=(n, n))


def _central_rows(matrix: Floats, part: npt.NDArray[np.int32]) -> Ids:
    """Return for each part, numbered from 0, the row most similar to its mean; the lower row among equals."""
    order = np.argsort(part, kind="stable")
    starts = np.searchsorted(part[order], np.arange(part.max() + 1))
    means = np.add.reduceat(matrix[order], starts, axis=0)
    similarity = np.einsum("nd,nd->n", matrix, means[part])
    return np.lexsort((-similarity, part))[starts].astype(np.int64)
