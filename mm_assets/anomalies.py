"""How strange a vector is: distance to its k-th neighbour in a frozen baseline, and its rank among the baseline's own.

Put here: fitting a baseline, scoring against it, its table. Keep out: limits and reasons, which the flows apply, and
faults of the media, which the quality extractor finds.

k-th neighbour distance: Ramaswamy, Rastogi, Shim (2000), "Efficient algorithms for mining outliers from large data
sets". It finds what is rare, not what is rare but repeated: k + 1 near-equal strangers are neighbours to each other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from mm_assets.errors import ConfigError
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

_METADATA = b"mm_assets.anomaly_baseline"


@dataclass(frozen=True, eq=False)
class Baseline:
    """A sample of a collection with each row's own distance, taken without the row itself. Rows ascend by vector id.

    Attributes
    ----------
    vector_ids : (n,) ``identity.vector_id`` of the items
    vectors : (n, d) unit vectors
    distances : (n,) cosine distance to the k-th nearest other row, 0…2
    n_neighbours : k; with fewer than k + 1 rows the farthest other row is taken
    """

    vector_ids: Ids
    vectors: Floats
    distances: Floats
    n_neighbours: int

    def score(self, item_ids: Sequence[str], vectors: Floats) -> tuple[Floats, Floats]:
        """Return how far and how strange each vector is.

        A row of the baseline has the distance it was given at the fit, so it is never its own neighbour; an equal
        vector of another item is. Exact; costs one comparison with each row of the baseline.

        Returns
        -------
        distance : (n,) float32 cosine distance to the k-th neighbour, 0…2; 0 when the baseline has no other row
        anomaly_score : (n,) float32 share of the baseline's own distances below it, 0…1, higher is stranger

        Raises
        ------
        SchemaError
            Not unit vectors of this dimension, or ids not unique.
        """
        matrix = as_unit_vectors(vectors, self.vectors.shape[1])
        own = rows_of(as_vector_ids(item_ids, len(matrix)), self.vector_ids)
        # As many neighbours as the baseline's own rows have, so that the distances compare.
        k = min(self.n_neighbours, max(1, len(self.vector_ids) - 1))
        is_own = own >= 0
        distance = np.empty(len(matrix), np.float32)
        distance[is_own] = self.distances[own[is_own]]
        distance[~is_own] = _kth_cosine_distance(nearest(matrix[~is_own], self.vectors, k)[0])
        below = np.searchsorted(self._ascending, distance, side="left")
        return distance, (below / max(1, len(self.distances))).astype(np.float32)

    def to_table(self) -> pa.Table:
        """One row per vector, with k in the schema's metadata."""
        columns = {
            "vector_id": pa.array(self.vector_ids),
            "distance": pa.array(self.distances),
            "vector": to_arrow(self.vectors),
        }
        return pa.table(columns).replace_schema_metadata({_METADATA: json.dumps({"n_neighbours": self.n_neighbours})})

    @classmethod
    def from_table(cls, table: pa.Table) -> "Baseline":
        """Undo ``to_table``, bit for bit."""
        parameters = json.loads(parameters_of(table, _METADATA))
        return cls(
            vector_ids=table["vector_id"].to_numpy(),
            vectors=from_arrow(table["vector"]),
            distances=table["distance"].to_numpy(),
            **parameters,
        )

    @cached_property
    def _ascending(self) -> Floats:
        return np.sort(self.distances)


def fit_baseline(item_ids: Sequence[str], vectors: Floats, *, n_neighbours: int, max_rows: int = 100_000) -> Baseline:
    """Freeze a sample of the collection; deterministic, and independent of the order of the rows.

    Parameters
    ----------
    item_ids : one unique id for each vector; ids are hashed, and the lowest hashes are the sample
    vectors : (n, d) unit vectors; not written to
    n_neighbours : k, at least 1
    max_rows : size of the sample, at least 2

    Raises
    ------
    SchemaError
        Not unit vectors, or ids not unique.
    ConfigError
        A parameter out of its range.
    """
    if n_neighbours < 1 or max_rows < 2:
        msg = f"n_neighbours {n_neighbours} must be at least 1 and max_rows {max_rows} at least 2"
        raise ConfigError(msg)
    matrix = as_unit_vectors(vectors)
    ids = as_vector_ids(item_ids, len(matrix))
    sample = np.argsort(ids)[:max_rows]
    distances = _kth_cosine_distance(nearest_others(matrix[sample], n_neighbours)[0])
    return Baseline(ids[sample], matrix[sample], distances, n_neighbours)


def _kth_cosine_distance(distance: Floats) -> Floats:
    """Cosine distance of the last column: between unit vectors, half the square of the Euclidean one."""
    if distance.shape[1] == 0:
        return np.zeros(len(distance), np.float32)
    return np.minimum(distance[:, -1] ** 2 / 2, np.float32(2))
