"""What a search costs and finds: our index beside FAISS flat, hnswlib, lancedb and qdrant's local mode, in one run.

Run with ``python benchmarks/bench_search.py [--n 1000000]``; the others take part where they are installed
(``pip install hnswlib lancedb qdrant-client``). Put here: data, measurements, the table. Keep out: how searching works.

CPU seconds of one thread. The vectors are drawn from 2,000 groups of very different size in a space of lower rank, with
a common direction and noise, as those of CLIP are; queries are drawn in the same way and are not among them.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from mm_assets.indexing import INDEX_FILE, Part, Rows, VectorIndex, build_index, update_index, write_part
from mm_assets.vectors import Floats, as_vector_ids, to_arrow

DIM, K, N_QUERIES = 512, 10, 200
N_GROUPS, RANK = 2_000, 96
ROWS_PER_PART = 50_000
MOST = {"hnswlib": 1_000_000, "lancedb": 1_000_000, "qdrant (local mode)": 20_000}  # beyond, its build takes too long
Search = Callable[[Floats], np.ndarray]  # (1, dim) → ids of ten rows


def draw(n: int, seed: int) -> tuple[Floats, np.ndarray]:
    """Draw unit vectors and the group of each."""
    shape = np.random.default_rng(0)
    basis = np.linalg.qr(shape.normal(size=(DIM, RANK)))[0] / np.sqrt(1 + 0.15 * np.arange(RANK))
    centres = shape.normal(size=(N_GROUPS, RANK))
    common = shape.normal(size=DIM)
    weights = 1 / np.arange(1, N_GROUPS + 1) ** 0.7
    random = np.random.default_rng(seed)
    groups = random.choice(N_GROUPS, n, p=weights / weights.sum())
    vectors = np.empty((n, DIM), np.float32)
    for start in range(0, n, 100_000):
        part = groups[start : start + 100_000]
        latent = centres[part] + 0.6 * random.normal(size=(len(part), RANK))
        rows = latent @ basis.T / 2 + common / np.linalg.norm(common) + 0.015 * random.normal(size=(len(part), DIM))
        vectors[start : start + len(part)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors, groups


def names(start: int, end: int) -> list[str]:
    """Return the ids of items."""
    return [f"item-{row}" for row in range(start, end)]


def cpu_s(do: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returned."""
    before = time.process_time()
    found = do()
    return time.process_time() - before, found


def median_ms(search: Search, queries: Floats) -> tuple[float, np.ndarray]:
    """Return the median CPU milliseconds of single queries, after as many to warm up, and all answers."""
    for query in queries[:50]:
        search(query[None])
    costs, answers = [], []
    for query in queries:
        seconds, found = cpu_s(lambda query=query: search(query[None]))
        costs.append(1_000 * seconds)
        answers.append(found)
    return float(np.median(costs)), np.array(answers)


def recall(answers: np.ndarray, vectors: Floats, queries: Floats, worst: np.ndarray) -> float:
    """Return the share of answers that are as similar as the true tenth."""
    found = np.einsum("qkd,qd->qk", vectors[answers.clip(min=0)], queries)
    return float(((answers >= 0) & (found >= worst[:, None] - 1e-5)).mean())


def true_worst(vectors: Floats, queries: Floats) -> np.ndarray:
    """Return the similarity of each query's tenth nearest vector."""
    import faiss

    found, _ = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)
    return found[:, -1]


# -- ours --------------------------------------------------------------------------------------------------------------


def write_parts(folder: Path, vectors: Floats, start: int = 0) -> list[Part]:
    """Write vectors as parts."""
    parts = []
    for first in range(0, len(vectors), ROWS_PER_PART):
        rows = vectors[first : first + ROWS_PER_PART]
        file = folder / f"{start + first}.arrow"
        items = names(start + first, start + first + len(rows))
        write_part(file, pa.table({"item_id": items, "vector": to_arrow(rows)}), "item_id")
        parts.append(Part(file.stem, file))
    return parts


def measure_ours(folder: Path, vectors: Floats, min_recall: float) -> tuple[dict[str, Any], list[Part], dict[str, Any]]:
    """Build, and store."""
    parts = write_parts(folder, vectors)
    seconds, index = cpu_s(lambda: build_index(Rows.of_parts(parts, DIM), exact_rows=0, min_recall=min_recall))
    index.save(folder)
    size = (folder / INDEX_FILE).stat().st_size
    return {"build": seconds, "mb": size / 1e6}, parts, index.parameters


def opened(folder: Path, parts: list[Part], parameters: dict[str, Any]) -> tuple[float, VectorIndex]:
    """Open what is stored; CPU milliseconds of the best of five."""
    return min((cpu_s(lambda: VectorIndex.open(folder, parts, parameters)) for _ in range(5)), key=lambda item: item[0])


def measure_memory(folder: Path, n_parts: int, parameters: dict[str, Any]) -> float:
    """Return MiB of memory of its own that a fresh process has after 200 queries, less what it had before it opened."""
    code = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]
from bench_search import *
import faiss; faiss.omp_set_num_threads(1)
def own():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith(("Private_Dirty", "Private_Clean", "Anonymous")) and "Dirty" in line) / 1024
folder = Path({str(folder)!r})
parts = sorted((Part(file.stem, file) for file in folder.glob("[0-9]*.arrow")), key=lambda part: int(part.name))[:{n_parts}]
queries = np.load(folder / "queries.npy")
before = own()
index = VectorIndex.open(folder, parts, {parameters!r})
for query in queries: index.search(query[None], K)
print(own() - before)
"""
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def measure_filters(index: VectorIndex, vectors: Floats, groups: np.ndarray, queries: Floats) -> Iterator[list[str]]:
    """Yield a row for each selectivity, of rows at random and of whole groups: cost to prepare, cost, recall."""
    random, n = np.random.default_rng(5), len(vectors)
    ids = as_vector_ids(names(0, n))
    place = {int(item): row for row, item in enumerate(ids)}
    by_group = np.argsort(random.random(N_GROUPS)[groups], kind="stable")
    for share in (0.5, 0.1, 0.01, 0.001):
        for kind, order in (("random", random.permutation(n)), ("whole groups", by_group)):
            rows = order[: int(n * share)]
            worst = true_worst(vectors[rows], queries)
            prepare, within = cpu_s(lambda rows=rows: _prepared(index, ids[rows]))
            cost, found = median_ms(lambda query, within=within: index.search(query, K, within)[1][0], queries)
            answers = np.vectorize(place.get)(found)
            is_right = recall(answers, vectors, queries, worst)
            yield [f"{share:.1%} {kind}", f"{1_000 * prepare:.0f}", f"{cost:.2f}", f"{is_right:.3f}"]


def _prepared(index: VectorIndex, ids: np.ndarray) -> Any:
    within = index.select(ids)
    within.selector  # noqa: B018  made at first use
    return within


def measure_changes(folder: Path, parts: list[Part], parameters: dict[str, Any], n: int) -> float:
    """Return the CPU seconds to add 10,000 vectors to a stored index, without measuring its recall again."""
    index = VectorIndex.open(folder, parts, parameters, to_change=True)
    more, _ = draw(10_000, seed=9)
    added = write_parts(folder, more, start=10 * n)
    rows = Rows.of_parts([*parts, *added], DIM)
    seconds, _ = cpu_s(lambda: update_index(index, rows, exact_rows=0, min_recall=0.0))
    measuring, _ = cpu_s(
        lambda: update_index(
            _reopened(folder, parts, parameters), Rows.of_parts(parts, DIM), exact_rows=0, min_recall=0.0
        )
    )
    return seconds - measuring


def _reopened(folder: Path, parts: list[Part], parameters: dict[str, Any]) -> VectorIndex:
    return VectorIndex.open(folder, parts, parameters, to_change=True)


# -- the others --------------------------------------------------------------------------------------------------------


def faiss_flat(vectors: Floats, _: Path) -> Search:
    """Compare with all."""
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    return lambda query: index.search(query, K)[1][0]


def hnswlib_graph(vectors: Floats, _: Path) -> Search:
    """Walk a graph, as wide as it takes for a recall like ours."""
    import hnswlib

    index = hnswlib.Index("ip", DIM)
    index.init_index(len(vectors), ef_construction=100, M=16)
    index.set_num_threads(1)
    index.add_items(vectors)
    index.set_ef(128)
    return lambda query: index.knn_query(query, K)[0][0].astype(np.int64)


def lancedb_table(vectors: Floats, folder: Path) -> Search:
    """IVF_PQ on disk, refined."""
    import lancedb

    table = lancedb.connect(folder / "lance").create_table(
        "vectors", pa.table({"row": np.arange(len(vectors)), "vector": to_arrow(vectors)})
    )
    table.create_index(metric="cosine", vector_column_name="vector")
    return lambda query: np.array(
        [row["row"] for row in table.search(query[0]).metric("cosine").nprobes(32).refine_factor(10).limit(K).to_list()]
    )


def qdrant_local(vectors: Floats, _: Path) -> Search:
    """Qdrant's client without a server."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection("vectors", vectors_config=models.VectorParams(size=DIM, distance=models.Distance.COSINE))
    client.upload_collection("vectors", vectors, ids=range(len(vectors)))
    return lambda query: np.array(
        [p.id for p in client.query_points("vectors", query=query[0].tolist(), limit=K).points]
    )


PEERS: dict[str, tuple[str, Callable[[Floats, Path], Search]]] = {
    "FAISS flat": ("faiss", faiss_flat),
    "hnswlib": ("hnswlib", hnswlib_graph),
    "lancedb": ("lancedb", lancedb_table),
    "qdrant (local mode)": ("qdrant_client", qdrant_local),
}


def measure_peer(name: str, vectors: Floats, queries: Floats, folder: Path) -> list[str] | None:
    """Return a row of the table; None where it is not installed."""
    module, build = PEERS[name]
    if find_spec(module) is None:
        return None
    used = vectors[: MOST.get(name, len(vectors))]
    seconds, search = cpu_s(lambda: build(used, folder))
    cost, answers = median_ms(search, queries[:50])
    right = recall(answers, used, queries[:50], true_worst(used, queries[:50]))
    return [name, f"{len(used):,}", f"{seconds:.1f}", f"{cost:.3f}", f"{right:.3f}"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--min-recall", type=float, default=0.995)
    parser.add_argument(
        "--peers", default="FAISS flat,hnswlib,lancedb,qdrant (local mode)", help="which others, by name"
    )
    arguments = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(1)
    console, (vectors, groups) = Console(), draw(arguments.n, seed=1)
    queries, _ = draw(N_QUERIES, seed=2)
    table = Table(
        "index", "vectors", "build core-s", "ms a query", "recall@10", title=f"{arguments.n:,} × {DIM}, one thread"
    )
    filters = Table("allowed", "prepare ms", "ms a query", "recall@10", title="filtered, ours")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "queries.npy", queries)
        facts, parts, parameters = measure_ours(folder, vectors, arguments.min_recall)
        opening, index = opened(folder, parts, parameters)
        cost, found = median_ms(lambda query: index.search(query, K)[1][0], queries)
        place = {int(item): row for row, item in enumerate(as_vector_ids(names(0, arguments.n)))}
        right = recall(np.vectorize(place.get)(found), vectors, queries, true_worst(vectors, queries))
        table.add_row("mm_assets", f"{arguments.n:,}", f"{facts['build']:.1f}", f"{cost:.3f}", f"{right:.3f}")
        for row in measure_filters(index, vectors, groups, queries):
            filters.add_row(*row)
        memory = measure_memory(folder, len(parts), parameters)
        adding = measure_changes(folder, parts, parameters, arguments.n)
        for peer in filter(None, arguments.peers.split(",")):
            row = measure_peer(peer, vectors, queries, folder)
            table.add_row(*row) if row else console.print(f"{peer} is not installed")
    console.print(table, filters)
    console.print(
        f"codes {facts['mb']:.0f} MB, opened in {1_000 * opening:.1f} ms, {memory:.0f} MiB of its own after {N_QUERIES} "
        f"queries, 10,000 added in {adding:.2f} core-s, {parameters['n_probes']} of {parameters['n_lists']} lists visited, "
        f"{parameters['n_candidates']} candidates compared; peak of this process "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
