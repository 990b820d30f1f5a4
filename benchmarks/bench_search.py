"""What a search costs and finds: our index beside two of FAISS, hnswlib, lancedb and qdrant's local mode, in one run.

Run with ``python benchmarks/bench_search.py [--n 1000000]``. The others take part where they are installed
(``pip install hnswlib lancedb qdrant-client``). Put here: data, measurements, the table. Keep out: how searching works,
and how the others are used (``search_peers``).

Each contender is built in one process, which stores it, and asked in another, which opens it: CPU seconds of all their
threads, of which ours, FAISS and hnswlib are given one. Those that can search more widely do so until they find as much
as ours. The vectors are drawn from 2,000 groups of very different size in a space of lower rank, with a common direction
and noise, as those of CLIP are; queries are drawn in the same way and are not among them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from search_peers import DIM, PEERS, Contender, K, Search

from mm_assets.indexing import INDEX_FILE, Part, Rows, VectorIndex, build_index, building, update_index, write_part
from mm_assets.vectors import Floats, as_vector_ids, to_arrow

N_QUERIES, TIMES = 200, 4
N_GROUPS, RANK = 2_000, 96
ROWS_PER_PART = 50_000


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


def as_of_texts(queries: Floats) -> Floats:
    """Return queries that ask for the same and are as unlike all vectors as texts are unlike pictures: cosines below .4."""
    random = np.random.default_rng(8)
    common = random.normal(size=DIM)
    noise = 0.3 * random.normal(size=queries.shape) / np.sqrt(DIM)
    asked = 0.3 * queries + 0.95 * common / np.linalg.norm(common) + noise
    return (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)


def names(start: int, end: int) -> list[str]:
    """Return the ids of items."""
    return [f"item-{row}" for row in range(start, end)]


def cpu_s(do: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returned."""
    before = time.process_time()
    found = do()
    return time.process_time() - before, found


def median_ms(search: Callable[[Floats], np.ndarray], queries: Floats) -> tuple[float, np.ndarray]:
    """Return the median CPU milliseconds of single queries, of each the least of four times, and all answers; -1 is none."""
    costs, answers = np.empty((TIMES, len(queries))), np.full((len(queries), K), -1)
    for times in costs:
        for row, query in enumerate(queries):
            seconds, found = cpu_s(lambda query=query: search(query[None]))
            times[row] = 1_000 * seconds
            answers[row, : len(found)] = found
    return float(np.median(costs.min(axis=0))), answers


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


def build_ours(vectors: Floats, folder: Path) -> None:
    """Write the vectors as parts, and their index."""
    parts = write_parts(folder, vectors)
    min_recall = json.loads((folder / "options.json").read_text())["min_recall"]
    index = build_index(Rows.of_parts(parts, DIM), exact_rows=0, min_recall=min_recall)
    index.save(folder)
    names_of_parts = [part.name for part in parts]
    (folder / "index.json").write_text(json.dumps({"parts": names_of_parts, "parameters": index.parameters}))


def reopen(folder: Path, *, to_change: bool = False) -> VectorIndex:
    """Open what ``build_ours`` stored."""
    stored = json.loads((folder / "index.json").read_text())
    parts = [Part(name, folder / f"{name}.arrow") for name in stored["parts"]]
    return VectorIndex.open(folder, parts, stored["parameters"], to_change=to_change)


def open_ours(folder: Path) -> Search:
    """Search, without knowing yet which row an id is of."""
    index = reopen(folder)
    return lambda query, _: index.search(query, K)[1][0]


def rows_of_ids(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what tells the rows of our ids."""
    ids = as_vector_ids(names(0, n))
    order = np.argsort(ids)
    ascending = ids[order]
    return lambda found: np.where(found < 0, -1, order[np.searchsorted(ascending, found)])


def measure_filters(index: VectorIndex, vectors: Floats, groups: np.ndarray, queries: Floats) -> Iterator[list[str]]:
    """Yield a row for all, and for each selectivity, of rows at random and of whole groups: cost to prepare, cost, recall."""
    random, n = np.random.default_rng(5), len(vectors)
    ids, to_rows = as_vector_ids(names(0, n)), rows_of_ids(n)
    for kind, asked in (("all", queries), ("all, queries as of texts", as_of_texts(queries))):
        cost, found = median_ms(lambda query: index.search(query, K)[1][0], asked)
        is_right = recall(to_rows(found), vectors, asked, true_worst(vectors, asked))
        yield [kind, "", f"{cost:.2f}", f"{is_right:.3f}"]
    by_group = np.argsort(random.random(N_GROUPS)[groups], kind="stable")
    for share in (0.5, 0.1, 0.01, 0.001):
        for kind, order in (("random", random.permutation(n)), ("whole groups", by_group)):
            rows = order[: int(n * share)]
            worst = true_worst(vectors[rows], queries)
            prepare, within = cpu_s(lambda rows=rows: index.select(ids[rows]))
            cost, found = median_ms(lambda query, within=within: index.search(query, K, within)[1][0], queries)
            is_right = recall(to_rows(found), vectors, queries, worst)
            yield [f"{share:.1%} {kind}", f"{1_000 * prepare:.0f}", f"{cost:.2f}", f"{is_right:.3f}"]


def measure_changes(folder: Path, n: int) -> float:
    """Return the CPU seconds to add 10,000 vectors to a stored index, without measuring its recall by 400 exact searches."""
    index, same = reopen(folder, to_change=True), reopen(folder, to_change=True)
    more, _ = draw(10_000, seed=9)
    added = write_parts(folder, more, start=10 * n)
    rows = Rows.of_parts([*index.rows.parts, *added], DIM)
    with patch.object(building, "_RECALL_QUERIES", 1):
        seconds, _ = cpu_s(lambda: update_index(index, rows, exact_rows=0, min_recall=0.0))
        measuring, _ = cpu_s(lambda: update_index(same, same.rows, exact_rows=0, min_recall=0.0))
    return seconds - measuring


OURS = "mm_assets"
CONTENDERS = {OURS: Contender("faiss", build_ours, open_ours), **PEERS}


# -- one contender, in processes of its own ----------------------------------------------------------------------------


def own_mib() -> float:
    """Return the memory that is this process's alone and cannot be read again from a file."""
    return kib("smaps_rollup", "Private_Dirty") / 1024


def peak_mib() -> float:
    """Return the most memory that this process had, pages of mapped files included."""
    return kib("status", "VmHWM") / 1024  # not getrusage's, which begins with that of the process that started it


def kib(file: str, name: str) -> int:
    """Return a figure that the kernel keeps of this process."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def build(contender: Contender, folder: Path, n: int) -> dict[str, float]:
    """Build and store."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")[:n]
    seconds, _ = cpu_s(lambda: contender.build(vectors, folder))
    return {"build_s": seconds, "build_mib": peak_mib()}


def ask(name: str, folder: Path, n: int, target: float) -> dict[str, float]:
    """Open and ask, more and more widely until enough is found."""
    contender = CONTENDERS[name]
    queries, worst = np.load(folder / "queries.npy"), np.load(folder / f"worst-{n}.npy")
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")[:n]
    to_rows = rows_of_ids(n) if name == OURS else np.asarray
    had = own_mib()
    opening, search = cpu_s(lambda: contender.open(folder))
    for width in contender.widths:
        cost, found = median_ms(lambda query, width=width: search(query, width), queries)
        right = recall(to_rows(found), vectors, queries, worst)
        if right >= target:
            break
    own = own_mib() - had
    return {"open_ms": 1_000 * opening, "ms": cost, "recall": right, "width": width, "own_mib": own}


def in_own_process(step: str, name: str, folder: Path, n: int, target: float) -> dict[str, float]:
    """Run a step by itself; its last line is the figures."""
    command = [sys.executable, __file__, "--step", step, "--peers", name, "--n", str(n), "--target", str(target)]
    done = subprocess.run([*command, "--folder", str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(name: str, folder: Path, n: int, target: float) -> dict[str, float]:
    """Return all figures of a contender."""
    n = min(n, CONTENDERS[name].most or n)
    worst = folder / f"worst-{n}.npy"
    if not worst.exists():
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")[:n]
        np.save(worst, true_worst(vectors, np.load(folder / "queries.npy")))
    figures = [in_own_process(step, name, folder, n, target) for step in ("build", "ask")]
    return {"n": n, **figures[0], **figures[1]}


def run_step(arguments: argparse.Namespace) -> int:
    """Be the process of one step."""
    import faiss

    faiss.omp_set_num_threads(1)
    warnings.simplefilter("ignore")  # qdrant's about its local mode
    name, n = arguments.peers, arguments.n
    import_module(CONTENDERS[name].module)  # before the clock starts
    if arguments.step == "build":
        figures = build(CONTENDERS[name], arguments.folder, n)
    else:
        figures = ask(name, arguments.folder, n, arguments.target)
    print(json.dumps(figures))
    return 0


# -- all of them ---------------------------------------------------------------------------------------------------------


def compare(folder: Path, wanted: Sequence[str], n: int, console: Console) -> Table:
    """Return a table of ours and of those that are wanted and installed."""
    columns = (
        "index",
        "vectors",
        "build core-s",
        "build MiB",
        "open ms",
        "ms a query",
        "recall@10",
        "width",
        "own MiB",
    )
    table, target = Table(*columns, title=f"{n:,} × {DIM}"), 0.0
    for name in (OURS, *wanted):
        if find_spec(CONTENDERS[name].module) is None:
            console.print(f"{name} is not installed")
            continue
        f = measure(name, folder, n, target)
        print(f"{name}: {json.dumps(f)}", file=sys.stderr, flush=True)  # the table comes hours later
        target = target or f["recall"]
        cost = [f"{f['build_s']:.1f}", f"{f['build_mib']:.0f}", f"{f['open_ms']:.1f}", f"{f['ms']:.3f}"]
        table.add_row(name, f"{f['n']:,}", *cost, f"{f['recall']:.3f}", f"{f['width'] or ''}", f"{f['own_mib']:.0f}")
    return table


def read_arguments() -> argparse.Namespace:
    """Read the command line; ``--step``, ``--folder`` and ``--target`` are for processes that this one starts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--min-recall", type=float, default=0.995)
    parser.add_argument("--peers", default=",".join(list(CONTENDERS)[1:]), help="which others, by name")
    parser.add_argument("--step", choices=("build", "ask"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    arguments = read_arguments()
    if arguments.step:
        return run_step(arguments)
    import faiss

    faiss.omp_set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        measure_vectors(Path(name), arguments, console)
    return 0


def measure_vectors(folder: Path, arguments: argparse.Namespace, console: Console) -> None:
    """Compare, and measure what only ours is asked: filters, and adding to it."""
    vectors, groups = draw(arguments.n, seed=1)
    queries, _ = draw(N_QUERIES, seed=2)
    for file, array in (("vectors", vectors), ("queries", queries)):
        np.save(folder / f"{file}.npy", array)
    (folder / "options.json").write_text(json.dumps({"min_recall": arguments.min_recall}))
    console.print(compare(folder, list(filter(None, arguments.peers.split(","))), arguments.n, console))
    index = reopen(folder)
    filters = Table("allowed", "prepare ms", "ms a query", "recall@10", title="filtered, ours")
    for row in measure_filters(index, vectors, groups, queries):
        filters.add_row(*row)
    console.print(filters)
    console.print(
        f"codes {(folder / INDEX_FILE).stat().st_size / 1e6:.0f} MB in {index.parameters['n_lists']} lists, of which a query "
        f"looks at {index.n_codes(queries, K):,.0f} on average; 10,000 added in {measure_changes(folder, arguments.n):.2f} core-s"
    )


if __name__ == "__main__":
    sys.exit(main())
