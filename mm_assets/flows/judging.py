"""Judgements: cheap functions of kept vectors and frozen generations; never stored per object, always derivable.

Put here: vectors → rows of tags, cluster assignments and anomaly scores, on arrival and at a refresh alike.
Keep out: building the generations.
"""

import logging
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.flows.generations import BASELINE, CLUSTERS, TAXONOMY, Frozen, load_frozen
from mm_assets.flows.workspace import Workspace
from mm_assets.schemas import TABLES
from mm_assets.vectors import Floats, from_arrow

_LOG = logging.getLogger(__name__)
_IDS = ("object_id", "bucket", "key", "etag", "segment_id", "start_s", "end_s", "page_number")


class Judge:
    """Judges the vectors of one batch as they arrive, against what was frozen when the batch began."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._frozen: Frozen | None = None

    def judge(self, name: str, vectors: Mapping[str, pa.Table]) -> dict[str, dict[str, pa.Table]]:
        """Return object_id → judgement → rows for these results of visual_embeddings.

        They are written under this name as well, one file for each kind, for who cannot wait for the next publish; like
        results, while the objects are under work.
        """
        tables = [table for table in vectors.values() if table.num_rows]
        if not tables:
            return {}
        try:
            frozen = self._frozen = self._frozen or load_frozen(
                self._workspace, self._workspace.recipes["visual_embeddings"]
            )
        except ObjectNotFoundError as error:  # results do not wait for what a publish derives again, or fails by
            _LOG.warning("nothing is judged on arrival: %s", error)
            return {}
        judged = judge_vectors(frozen, pa.concat_tables(tables), self._workspace)
        for judgement, rows in judged.items():
            if rows.num_rows:
                self._workspace.lake.write_judgements(judgement, rows["generation"][0].as_py(), name, rows)
        return {
            object_id: {kind: rows.filter(pc.equal(rows["object_id"], object_id)) for kind, rows in judged.items()}
            for object_id in vectors
        }


def judge_vectors(frozen: Frozen, vectors: pa.Table, workspace: Workspace) -> dict[str, pa.Table]:
    """Return name → rows for rows of visual_embeddings; a judgement without its generation is left out."""
    matrix = from_arrow(vectors["vector"])
    judged = {name: judge(frozen, vectors, matrix, workspace) for name, judge in JUDGEMENTS.items()}
    return {name: rows for name, rows in judged.items() if rows is not None}


def _tags(frozen: Frozen, vectors: pa.Table, matrix: Floats, _: Workspace) -> pa.Table | None:
    if frozen.taxonomy is None:
        return None
    found = frozen.taxonomy.judge(matrix)
    values = {name: found[name] for name in ("tag", "tag_group", "similarity")}
    return _rows("tags", vectors.take(found["row"]), values, frozen.generations[TAXONOMY])


def _clusters(frozen: Frozen, vectors: pa.Table, matrix: Floats, _: Workspace) -> pa.Table | None:
    if frozen.clusters is None:
        return None
    labels, strengths = frozen.clusters.assign(vectors["segment_id"].to_pylist(), matrix)
    names = [*frozen.clusters.cluster_names(), None]
    values = {
        "space": pa.repeat(pa.scalar("visual"), len(labels)),
        "cluster_id": pa.array([names[label] for label in labels], pa.string()),
        "confidence": pa.array(strengths, pa.float32()),
    }
    return _rows("cluster_assignments", vectors, values, frozen.generations[CLUSTERS])


def _anomalies(frozen: Frozen, vectors: pa.Table, matrix: Floats, workspace: Workspace) -> pa.Table | None:
    if frozen.baseline is None:
        return None
    distance, score = frozen.baseline.score(vectors["segment_id"].to_pylist(), matrix)
    values = {
        "space": pa.repeat(pa.scalar("visual"), len(score)),
        "distance": pa.array(distance, pa.float32()),
        "anomaly_score": pa.array(score, pa.float32()),
        "is_anomaly": pa.array(score >= workspace.settings.refresh.anomaly_percentile),
    }
    return _rows("anomaly_scores", vectors, values, frozen.generations[BASELINE])


_Judge = Callable[[Frozen, pa.Table, Floats, Workspace], pa.Table | None]
JUDGEMENTS: Mapping[str, _Judge] = {"tags": _tags, "cluster_assignments": _clusters, "anomaly_scores": _anomalies}


def _rows(table: str, vectors: pa.Table, values: Mapping[str, pa.Array], generation: str) -> pa.Table:
    columns = {name: vectors[name] for name in _IDS} | dict(values)
    columns["generation"] = pa.repeat(pa.scalar(generation), vectors.num_rows)
    schema = TABLES[table].arrow_schema()
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)
