"""Other indexes as ``bench_search`` builds and asks them, in the ways that their own documentation shows.

Put here: libraries that somebody may take instead of ours. Keep out: measuring them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mm_assets.vectors import Floats, to_arrow

DIM, K = 512, 10
Search = Callable[[Floats, int], np.ndarray]  # (1, dim) and a width → rows of ten vectors


@dataclass(frozen=True)
class Contender:
    """An index to compare.

    Attributes
    ----------
    module : library that it needs
    build : vectors → files in a folder
    open : the folder → a search
    widths : how widely it searches, ascending; one where that is not to choose
    most : so many vectors at most are given to it, beyond it takes too long
    """

    module: str
    build: Callable[[Floats, Path], None]
    open: Callable[[Path], Search]
    widths: Sequence[int] = (0,)
    most: int | None = None


def build_flat(vectors: Floats, folder: Path) -> None:
    """Keep all vectors."""
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    faiss.write_index(index, str(folder / "flat.faiss"))


def open_flat(folder: Path) -> Search:
    """Compare with all."""
    import faiss

    index = faiss.read_index(str(folder / "flat.faiss"))
    return lambda query, _: index.search(query, K)[1][0]


def build_lists(vectors: Floats, folder: Path) -> None:
    """Keep RaBitQ codes in as many lists as FAISS advises, trained on as few vectors, and all vectors to compare the best."""
    import faiss

    n_lists = int(4 * len(vectors) ** 0.5)
    index = faiss.index_factory(DIM, f"IVF{n_lists},RaBitQ,RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[: 39 * n_lists])
    index.add(vectors)
    faiss.write_index(index, str(folder / "lists.faiss"))


def open_lists(folder: Path) -> Search:
    """Visit lists, and compare a hundred; the width is ``nprobe``."""
    import faiss

    index = faiss.read_index(str(folder / "lists.faiss"))

    def search(query: Floats, width: int) -> np.ndarray:
        lists = faiss.IVFRaBitQSearchParameters()
        lists.nprobe = width
        asked = faiss.IndexRefineSearchParameters(k_factor=10, base_index_params=lists)
        return index.search(query, K, params=asked)[1][0]

    return search


def build_graph(vectors: Floats, folder: Path) -> None:
    """Build hnswlib's graph, of its default degree."""
    import hnswlib

    index = hnswlib.Index("ip", DIM)
    index.init_index(len(vectors), ef_construction=200, M=16)
    index.set_num_threads(1)
    index.add_items(vectors)
    index.save_index(str(folder / "graph.hnsw"))


def open_graph(folder: Path) -> Search:
    """Walk the graph; the width is ``ef``."""
    import hnswlib

    index = hnswlib.Index("ip", DIM)
    index.load_index(str(folder / "graph.hnsw"))
    index.set_num_threads(1)

    def search(query: Floats, width: int) -> np.ndarray:
        index.set_ef(width)
        return index.knn_query(query, K)[0][0].astype(np.int64)

    return search


def build_lancedb(vectors: Floats, folder: Path) -> None:
    """Store a table with an index of lancedb's default kind, IVF_PQ."""
    import lancedb

    rows = pa.table({"row": np.arange(len(vectors)), "vector": to_arrow(vectors)})
    lancedb.connect(folder / "lancedb").create_table("vectors", rows).create_index(metric="cosine")


def open_lancedb(folder: Path) -> Search:
    """Visit lists, and compare the best of them by their vectors; the width is ``nprobes``."""
    import lancedb

    table = lancedb.connect(folder / "lancedb").open_table("vectors")

    def search(query: Floats, width: int) -> np.ndarray:
        asked = (
            table.search(query[0]).distance_type("cosine").nprobes(width).refine_factor(max(10, width // 4)).limit(K)
        )
        return asked.select(["row", "_distance"]).to_arrow()["row"].to_numpy()

    return search


def build_qdrant(vectors: Floats, folder: Path) -> None:
    """Store a collection of the client without a server."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder / "qdrant"))
    client.create_collection("vectors", vectors_config=models.VectorParams(size=DIM, distance=models.Distance.COSINE))
    client.upload_collection("vectors", vectors, ids=range(len(vectors)))
    client.close()


def open_qdrant(folder: Path) -> Search:
    """Compare with all, in numpy."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder / "qdrant"))
    return lambda query, _: np.array([p.id for p in client.query_points("vectors", query=query[0].tolist()).points])


PEERS = {
    "FAISS flat": Contender("faiss", build_flat, open_flat),
    "FAISS IVF RaBitQ": Contender("faiss", build_lists, open_lists, widths=(16, 32, 64, 128, 256)),
    "hnswlib": Contender("hnswlib", build_graph, open_graph, widths=(32, 64, 128, 256, 512, 1024)),
    "lancedb": Contender("lancedb", build_lancedb, open_lancedb, widths=(8, 16, 32, 64, 128, 256, 512)),
    "qdrant (local mode)": Contender("qdrant_client", build_qdrant, open_qdrant, most=20_000),
}
