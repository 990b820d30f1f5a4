"""What a question of words and look costs over a million scenes: words by BM25, vectors, fusion, ten rows.

Run with ``python benchmarks/bench_hybrid.py [--n 1000000]``. Put here: scenes with something said in each, questions of
several kinds, and the parts of a question in the retriever's order. Keep out: vectors, which ``bench_search`` draws.

Words follow Zipf's law as Mandelbrot wrote it, over 200,000 words. The words of a question are looked for as a phrase in
what is said and shown, and one by one in what is said; the text has the look of a vector drawn for it. SQLite's FTS5 is
asked for the same words. The model's own part, encoding the question, is left out.
"""

import argparse
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bench_search import DIM, N_QUERIES, ROWS_PER_PART, TIMES, cpu_s, draw
from rich.console import Console
from rich.table import Table

from mm_assets.identity import item_id, segment_id
from mm_assets.indexing import Part, Rows, VectorIndex, build_index, write_part
from mm_assets.retrieval import Question
from mm_assets.retrieval.answers import to_rows
from mm_assets.retrieval.fusing import choose, fuse
from mm_assets.retrieval.signals import VisualSignal, WordSignal
from mm_assets.texts import Text, TextIndex, update_texts
from mm_assets.vectors import Floats, to_arrow
from mm_assets.wording import PIECES, SAID

N_CANDIDATES = 100
N_WORDS, SCENES_PER_OBJECT, SCENE_S = 200_000, 50, 5.0
# From which to which rank the words of a question are drawn.
RANKS = {
    "two words": ((1_000, 20_000), (1_000, 20_000)),
    "three, one of them frequent": ((20, 200), (500, 5_000), (5_000, 50_000)),
    "a rare word": ((30_000, 150_000),),
}
AS_SAID = "a phrase of two, and three words, as often as they are said"
VOCABULARY = np.array([f"w{rank}" for rank in range(N_WORDS)], object)


class GivenVectors:
    """Stands for the model: its n-th text has the n-th vector."""

    def __init__(self, vectors: Floats) -> None:
        self._vectors, self._n_given = vectors, 0

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return the next vectors, whatever the texts."""
        self._n_given += len(texts)
        return self._vectors[(self._n_given - np.arange(len(texts))) % len(self._vectors)]


def draw_texts(n: int, seed: int) -> list[list[str]]:
    """Draw texts of 5 to 30 words."""
    random = np.random.default_rng(seed)
    weights = np.cumsum(1 / (np.arange(N_WORDS) + 2.7) ** 1.07)
    lengths = random.integers(5, 31, n)
    words = VOCABULARY[np.searchsorted(weights, random.random(lengths.sum()) * weights[-1])]
    return [part.tolist() for part in np.split(words, np.cumsum(lengths)[:-1])]


def places(start: int, end: int) -> dict[str, Any]:
    """Return the columns that say where scenes are."""
    objects = [f"{row // SCENES_PER_OBJECT:032x}" for row in range(start, end)]
    scenes = [row % SCENES_PER_OBJECT for row in range(start, end)]
    return {
        "object_id": objects,
        "bucket": ["films"] * len(objects),
        "key": [f"films/2026/{name}.mp4" for name in objects],
        "etag": objects,
        "segment_id": [segment_id(name, "scene", scene) for name, scene in zip(objects, scenes, strict=True)],
        "start_s": SCENE_S * np.array(scenes, float),
        "end_s": SCENE_S * (np.array(scenes, float) + 1),
        "page_number": pa.nulls(len(objects), pa.int32()),
    }


def spoken(texts: Sequence[Sequence[str]], at: dict[str, Any]) -> pa.Table:
    """Return a text for each scene, its words spread over it."""
    lengths = np.array([len(words) for words in texts])
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    ordinals = np.arange(firsts[-1]) - np.repeat(firsts[:-1], lengths)
    starts = np.repeat(at["start_s"], lengths) + SCENE_S * ordinals / np.repeat(lengths, lengths)
    nothing = pa.nulls(len(starts), pa.float32())
    flat = pa.array([word for words in texts for word in words])
    pieces = pa.StructArray.from_arrays([flat, starts, starts + 0.2, *[nothing] * 4], fields=list(PIECES.value_type))
    said = {"kind": [SAID] * len(texts), "text": [" ".join(words) for words in texts]}
    ids = {"text_id": [item_id(name, 0) for name in at["segment_id"]]}
    return pa.table({**ids, **at, **said, "pieces": pa.ListArray.from_arrays(firsts.astype(np.int32), pieces)})


def write_scenes(folder: Path, n: int) -> tuple[list[Part], list[Part]]:
    """Write the rows behind both indexes."""
    vectors, _ = draw(n, seed=1)
    looks, words = [], []
    for number, start in enumerate(range(0, n, ROWS_PER_PART)):
        at = places(start, min(n, start + ROWS_PER_PART))
        looks.append(Part(f"looks-{number}", folder / f"looks-{number}.arrow"))
        words.append(Part(f"words-{number}", folder / f"words-{number}.arrow"))
        write_part(
            looks[-1].file, pa.table(at | {"vector": to_arrow(vectors[start : start + ROWS_PER_PART])}), "segment_id"
        )
        write_part(words[-1].file, spoken(draw_texts(len(at["key"]), seed=number), at), "text_id")
    return looks, words


def open_signals(folder: Path, n: int, min_recall: float) -> tuple[VisualSignal, WordSignal]:
    """Build both indexes, and open them as a search does."""
    looks, words = write_scenes(folder, n)
    index = build_index(Rows.of_parts(looks, DIM), exact_rows=0, min_recall=min_recall)
    index.save(folder)
    update_texts(folder / "texts", [], _texts(words))
    queries, _ = draw(N_QUERIES, seed=2)
    look = VisualSignal(VectorIndex.open(folder, looks, index.parameters), GivenVectors(queries))
    return look, WordSignal(TextIndex.open(folder / "texts"), Rows.of_parts(words))


def _texts(parts: Sequence[Part]) -> Iterator[Text]:
    for number, part in enumerate(parts):
        columns = (part.rows[name].to_pylist() for name in ("vector_id", "kind", "text"))
        yield from (Text(text_id, number, kind, text) for text_id, kind, text in zip(*columns, strict=True))


def draw_questions() -> dict[str, list[Question]]:
    """Draw questions of each kind; the last ones have an answer, and words that are asked for as often as they are said."""
    random = np.random.default_rng(7)
    found: dict[str, list[Question]] = {}
    for kind, ranks in RANKS.items():
        texts = [" ".join(VOCABULARY[random.integers(*of)] for of in ranks) for _ in range(N_QUERIES)]
        found[kind] = [Question(text=text, said=text) for text in texts]
    found[AS_SAID] = []
    for words in draw_texts(ROWS_PER_PART, seed=0)[:N_QUERIES]:
        first = int(random.integers(len(words) - 1))
        said = " ".join(random.choice(words, 3, replace=False))
        found[AS_SAID].append(Question(text=" ".join(words[first : first + 2]), said=said))
    return found


class Fts5:
    """The same words in SQLite's full text index."""

    def __init__(self, file: Path, parts: Sequence[Part]) -> None:
        self._sqlite = sqlite3.connect(file)
        self._sqlite.execute("CREATE VIRTUAL TABLE texts USING fts5(text, content='')")
        for part in parts:
            rows = zip(part.ids.tolist(), part.rows["text"].to_pylist(), strict=True)
            self._sqlite.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", rows)
        self._sqlite.execute("INSERT INTO texts (texts) VALUES ('optimize')")
        self._sqlite.commit()

    def rank(self, question: Question) -> None:
        """Ask for a phrase and for any of the words."""
        for asked in (f'"{question.text}"', " OR ".join(question.said.split())):
            query = "SELECT rowid, rank FROM texts WHERE texts MATCH ? ORDER BY rank LIMIT ?"
            self._sqlite.execute(query, (asked, N_CANDIDATES)).fetchall()


def measure_hybrid(folder: Path, n: int, min_recall: float) -> Table:
    """Return a table of CPU milliseconds of each kind of question: medians, each question the least of several times."""
    look, words = open_signals(folder, n, min_recall)
    fts5 = Fts5(folder / "fts5", words.rows.parts)
    parts = ("vectors", "words", "fusion", "ten rows", "all")
    table = Table("question", *parts, "all, 95th percentile", "words by FTS5", title=f"ms a question, {n:,} of each")
    for kind, questions in draw_questions().items():
        costs = measure(questions, lambda question: ask(look, words, question))
        other = measure(questions, lambda question: {"words": 1_000 * cpu_s(lambda: fts5.rank(question))[0]})
        medians = [f"{np.median(costs[part]):.2f}" for part in parts]
        tail = f"{np.percentile(costs['all'], 95):.2f}"
        table.add_row(kind, *medians, tail, f"{np.median(other['words']):.2f}")
    return table


def measure(
    questions: Sequence[Question], cost_of: Callable[[Question], Mapping[str, float]]
) -> Mapping[str, Sequence[float]]:
    """Return part → what it costs in each question, the least of several times, after one that is not counted."""
    times = [[cost_of(question) for question in questions] for _ in range(TIMES + 1)][1:]
    return {part: [min(cost[part] for cost in same) for same in zip(*times, strict=True)] for part in times[0][0]}


def ask(look: VisualSignal, words: WordSignal, question: Question) -> dict[str, float]:
    """Return what each part of a question costs, as ``retrieval.retriever`` puts them together."""
    costs: dict[str, float] = {}

    def timed(part: str, do: Callable[[], Any]) -> Any:
        seconds, found = cpu_s(do)
        costs[part] = 1_000 * seconds
        return found

    signals = timed("vectors", lambda: look.rank(question, N_CANDIDATES, None))
    signals += timed("words", lambda: words.rank(question, N_CANDIDATES, None))
    chosen = timed(
        "fusion", lambda: choose(fuse(signals, question), question, lambda _: np.empty((0, DIM), np.float32))
    )
    timed("ten rows", lambda: to_rows(chosen, lambda alias, key: f"s3://{alias}/{key}", None))
    return costs | {"all": sum(costs.values())}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=1_000_000, help="scenes, each with a vector and a text")
    parser.add_argument("--min-recall", type=float, default=0.995)
    arguments = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        Console().print(measure_hybrid(Path(name), arguments.n, arguments.min_recall))
    return 0


if __name__ == "__main__":
    sys.exit(main())
