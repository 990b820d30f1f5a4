"""Nearest vectors, of all or of those a filter allows.

Put here: searching an index, and its file format. Keep out: building and changing one, where it is stored, and joining
ids back to rows.

FAISS says which vectors may be nearest; above a size it holds one bit for each of their dimensions (RaBitQ, Gao and
Long 2024) in an inverted file. What is nearest is then decided by the vectors themselves, mapped into memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mm_assets.errors import SchemaError
from mm_assets.indexing.parts import Numbers, Part, Rows, read_rows, single, write_rows
from mm_assets.vectors import Floats, Ids, as_unit_vectors, rows_of

INDEX_FILE = "index.faiss"
ROWS_FILE = "rows.arrow"
MEASURED_AT = 10  # recall is measured for this many answers
_INDEX = "vector index"  # the name in messages
_COMPARED_ROWS = 2_000  # so few allowed vectors are compared without asking FAISS: 4 MB of 512 dimensions
# More answers than recall was measured at need more lists and candidates, but not in proportion: of 1,000,000 vectors,
# with 32 lists and 800 candidates for ten, recall@100 is .988 and recall@2000 .977 so (November 2026).
_CANDIDATES_PER_ANSWER = 8
_PROBES_EXPONENT = 1 / 3
_FEWEST_COMPARED = 50
# So many standard deviations of FAISS's error may a candidate lie below the last answer and still be compared: of
# 1,000,000 vectors no answer was lost at 4, one of 1,000 at 3, of 100,000 one of 2,000 at 4. Of 800 candidates for ten
# answers, 90 to 390 are compared (November 2026).
_DOUBT = 4.0
_PROBES_UNDER_A_FILTER = 2  # times as many: the neighbours that it leaves are farther and more scattered
_ROWS_UNDER_A_FILTER = 0.125  # of the rows in so many lists must be allowed ones; measured November 2026 at 1,000,000
_LIST = "list"


@dataclass(frozen=True)
class Selection:
    """Vectors that a search may answer with; made by ``VectorIndex.select`` once for many searches.

    Attributes
    ----------
    ids : ascending, all in the index
    lists : lists of the inverted file that hold any of them, ascending
    n_in_lists : how many of them each of these lists holds
    """

    ids: Ids
    lists: Ids
    n_in_lists: Ids
    centroids: Floats = field(repr=False)

    @cached_property
    def selector(self) -> Any:
        """FAISS's form of the ids; it keeps only a pointer to it, so it must live as long as the search."""
        import faiss

        return faiss.IDSelectorBatch(self.ids)


class VectorIndex:
    """Vectors under 64-bit ids, searched by cosine; made by ``build_index``, ``update_index`` or ``open``.

    Searching is safe from several threads.

    Parameters
    ----------
    faiss_index : ``IndexIDMap2`` of a flat index, or ``IndexIVFRaBitQ``
    lists : (n,) number of the list that holds each of ``rows.ids``; 0 without lists

    Attributes
    ----------
    parameters : what it was built with and measured at, JSON types only: ``kind`` (``exact``: every vector is compared;
        ``ivf``: inverted file of RaBitQ codes, the best candidates compared by their vectors), ``dim``,
        ``recall_at_10``, ``n_lists``, ``n_probes``, ``n_candidates`` (compared for ten answers), ``n_trained`` (rows at
        the time the lists were made), ``n_changed`` (rows added and removed since), ``seed``, ``faiss_version``
    """

    def __init__(self, faiss_index: Any, rows: Rows, lists: Numbers, parameters: Mapping[str, Any]) -> None:
        self.faiss_index = faiss_index
        self.rows = rows
        self.lists = lists
        self.parameters: dict[str, Any] = dict(parameters)

    @property
    def kind(self) -> str:
        """``exact`` or ``ivf``."""
        return str(self.parameters["kind"])

    @property
    def recall(self) -> float:
        """recall@10 as measured when it was made, 0…1."""
        return float(self.parameters["recall_at_10"])

    @property
    def n_rows(self) -> int:
        """Number of vectors that search can find."""
        return len(self.rows)

    def with_parameters(self, changed: Mapping[str, Any]) -> "VectorIndex":
        """Return the same vectors and codes, searched in another way."""
        return VectorIndex(self.faiss_index, self.rows, self.lists, self.parameters | dict(changed))

    def select(self, ids: npt.ArrayLike) -> Selection:
        """Prepare a filter: vector ids in any order, known or not, repeated or not."""
        known = self.rows.known(np.asarray(ids, np.int64))
        lists, counts = np.unique(self.lists[rows_of(known, self.rows.ids)], return_counts=True)
        return Selection(known, lists.astype(np.int64), counts, self._centroids[lists])

    def search(self, queries: Floats, k: int, within: Selection | None = None) -> tuple[Floats, Ids]:
        """Return each query's k most similar vectors, of those selected.

        The filter works inside the search: however few are selected, k of them are found.

        Parameters
        ----------
        queries : (n, dim) unit vectors

        Returns
        -------
        similarity : (n, k) float32 cosine, descending, -inf where there is no k-th
        vector_ids : (n, k) int64, -1 where there is no k-th

        Raises
        ------
        SchemaError
            The queries are not unit vectors of this dimension.
        """
        matrix = as_unit_vectors(queries, self.parameters["dim"])
        n_there = self.n_rows if within is None else len(within.ids)
        n_found = min(max(k, 0), n_there)
        similarity = np.full((len(matrix), max(k, 0)), -np.inf, np.float32)
        ids = np.full(similarity.shape, -1, np.int64)
        if n_found and len(matrix):
            similarity[:, :n_found], ids[:, :n_found] = self._search(matrix, n_found, within)
        return similarity, ids

    def _search(self, queries: Floats, k: int, within: Selection | None) -> tuple[Floats, Ids]:
        """Return exactly k answers to each query; there are as many."""
        if within is not None and len(within.ids) <= max(_COMPARED_ROWS, k):
            return self._compare_all(queries, k, within.ids)
        if self.kind == "exact":
            return self._ask_exact(queries, k, within)
        n_there = self.n_rows if within is None else len(within.ids)
        n = min(n_there, max(self.parameters["n_candidates"], _CANDIDATES_PER_ANSWER * k))
        guesses, candidates = self._ask_lists(queries, n, within, self._probes_for(k))
        short = (candidates[:, :k] < 0).any(axis=1)  # FAISS puts what it did not find last
        if short.any():
            n_lists = self.parameters["n_lists"]
            guesses[short], candidates[short] = self._ask_lists(queries[short], n, within, n_lists)
        compared = [self._compare(*asked, k) for asked in zip(queries, guesses, candidates, strict=True)]
        return best_of(np.array(compared), candidates, k)

    def _probes_for(self, k: int) -> int:
        times = max(1.0, k / MEASURED_AT) ** _PROBES_EXPONENT
        return int(min(np.ceil(self.parameters["n_probes"] * times), self.parameters["n_lists"]))

    def _ask_exact(self, queries: Floats, k: int, within: Selection | None) -> tuple[Floats, Ids]:
        import faiss

        parameters: Any = faiss.SearchParameters()
        if within is not None:
            parameters.sel = within.selector
        similarity, ids = self.faiss_index.search(queries, k, params=parameters)
        return similarity, ids

    def _ask_lists(self, queries: Floats, n: int, within: Selection | None, n_probes: int) -> tuple[Floats, Ids]:
        """Return n candidates for each query, by what their codes say of the cosine; -1 where the visited lists hold fewer."""
        import faiss

        parameters: Any = faiss.IVFRaBitQSearchParameters()
        parameters.nprobe = n_probes
        if within is None:
            guesses, ids = self.faiss_index.search(queries, n, params=parameters)
            return guesses, ids
        n_lists = _PROBES_UNDER_A_FILTER * n_probes
        n_rows = _ROWS_UNDER_A_FILTER * n_lists * self.n_rows / self.parameters["n_lists"]
        lists, similarity = _nearest_lists(queries, within, n_lists, n_rows)
        parameters.nprobe, parameters.sel = lists.shape[1], within.selector
        found, scores = np.empty((len(queries), n), np.int64), np.empty((len(queries), n), np.float32)
        given = [faiss.swig_ptr(array) for array in (queries, lists, similarity, scores, found)]
        # FAISS's own wrapper refuses parameters, and so filters.
        self.faiss_index.search_preassigned_c(len(queries), given[0], n, *given[1:], False, parameters)
        return scores, found

    def _compare(self, query: Floats, guesses: Floats, candidates: Ids, k: int) -> Floats:
        """Return the cosines of candidates by their vectors, -inf for those that are far from being among the k best.

        The first ones are compared in any case: they tell how wrong the guesses are.
        """
        similarity = np.full(len(candidates), -np.inf, np.float32)
        first = np.flatnonzero(candidates[: max(_FEWEST_COMPARED, 2 * k)] >= 0)
        similarity[first] = self.rows.compare(query, candidates[first])
        error = np.std(similarity[first] - guesses[first])
        worst = np.partition(similarity[first], -k)[-k]
        rest = len(first) + np.flatnonzero(guesses[len(first) :] >= worst - _DOUBT * error)
        similarity[rest] = self.rows.compare(query, candidates[rest])
        return similarity

    def _compare_all(self, queries: Floats, k: int, ids: Ids) -> tuple[Floats, Ids]:
        similarity = np.array([self.rows.compare(query, ids) for query in queries])
        return best_of(similarity, np.broadcast_to(ids, similarity.shape), k)

    @cached_property
    def _centroids(self) -> Floats:
        """(n_lists, dim) centres of the lists; nothing without lists."""
        import faiss

        if self.kind == "exact":
            return np.zeros((1, self.parameters["dim"]), np.float32)
        quantizer = faiss.downcast_index(self.faiss_index.quantizer)
        found: Floats = quantizer.reconstruct_n(0, quantizer.ntotal)
        return found

    def save(self, folder: Path) -> None:
        """Write ``index.faiss``, which FAISS opens by itself, and ``rows.arrow``, which says where each vector lies."""
        import faiss

        faiss.write_index(self.faiss_index, str(folder / INDEX_FILE))
        write_rows(folder / ROWS_FILE, self.rows.places().append_column(_LIST, pa.array(self.lists, pa.int32())))

    @classmethod
    def open(
        cls, folder: Path, parts: Sequence[Part], parameters: Mapping[str, Any], *, to_change: bool = False
    ) -> "VectorIndex":
        """Undo ``save``: maps the files into memory, which takes milliseconds whatever their size.

        Parameters
        ----------
        parts : those that it was made of, in the same order
        to_change : read the codes, so that ``update_index`` can change them

        Raises
        ------
        SchemaError
            A file is not an index, or not the one that the parameters describe.
        """
        import faiss

        flags = 0 if to_change or parameters["kind"] == "exact" else faiss.IO_FLAG_MMAP_IFC
        try:
            index = faiss.read_index(str(folder / INDEX_FILE), flags)
        except RuntimeError as error:
            raise SchemaError(_INDEX, "a FAISS index", str(folder / INDEX_FILE)) from error
        places = read_rows(folder / ROWS_FILE)
        if (index.d, index.ntotal) != (parameters["dim"], places.num_rows) or _LIST not in places.schema.names:
            expected = f"{places.num_rows} vectors of dimension {parameters['dim']}"
            raise SchemaError(_INDEX, expected, f"{index.ntotal} of dimension {index.d}")
        lists = single(places[_LIST]).to_numpy()
        return cls(index, Rows.open(places, parts, index.d), lists, parameters)


def _nearest_lists(queries: Floats, within: Selection, n_lists: int, n_rows: float) -> tuple[Ids, Floats]:
    """Choose the lists to visit: the nearest of those with selected vectors, until enough of them lie there.

    Parameters
    ----------
    n_lists : visit at least as many
    n_rows : and as many selected vectors

    Returns
    -------
    lists, similarity : (n, m), -1 where a query needs fewer than the one that needs most
    """
    # Not by BLAS, whose threads wait for each other longer than one of them takes for a query or two.
    similarity = np.einsum("qd,ld->ql", queries, within.centroids)
    order = np.argsort(-similarity, axis=1)
    n_seen = np.cumsum(within.n_in_lists[order], axis=1)
    wanted = np.maximum((n_seen < n_rows).sum(axis=1) + 1, n_lists).clip(max=len(within.lists))
    order = order[:, : wanted.max()]
    lists = np.where(np.arange(order.shape[1]) < wanted[:, None], within.lists[order], -1)
    return np.ascontiguousarray(lists), np.ascontiguousarray(np.take_along_axis(similarity, order, 1))


def best_of(similarity: Floats, ids: Ids, k: int) -> tuple[Floats, Ids]:
    """Return the k best, the lower id first among equals."""
    order = np.lexsort((ids, -similarity), axis=-1)[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(ids, order, 1)
