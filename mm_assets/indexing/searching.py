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
# The neighbours that a filter leaves are farther and more scattered: so many times as many lists and candidates.
_PROBES_UNDER_A_FILTER, _CANDIDATES_UNDER_A_FILTER = 4, 2
_ROWS_UNDER_A_FILTER = 0.02  # of the rows in so many lists must be allowed ones; measured November 2026 at 1,000,000
_LIST, _NUMBER = "list", "number"


@dataclass(frozen=True)
class Selection:
    """Vectors that a search may answer with; made by ``VectorIndex.select`` once for many searches.

    Attributes
    ----------
    places : ascending, of ``VectorIndex.rows``
    bits : (⌈numbers / 8⌉,) uint8, FAISS's number n is bit n mod 8 of byte n div 8
    selector : FAISS's form of the bits; it keeps only a pointer to them
    lists : lists of the inverted file that hold any of them, ascending
    n_in_lists : how many of them each of these lists holds
    """

    places: Ids
    bits: npt.NDArray[np.uint8] = field(repr=False)
    selector: Any = field(repr=False)
    lists: Ids
    n_in_lists: Ids
    centroids: Floats = field(repr=False)


class VectorIndex:
    """Vectors under 64-bit ids, searched by cosine; made by ``build_index``, ``update_index`` or ``open``.

    Searching is safe from several threads.

    Parameters
    ----------
    faiss_index : ``IndexFlatIP`` or ``IndexIVFRaBitQ``
    lists : (n,) the list that holds each of ``rows.ids``; 0 without lists
    numbers : (n,) under which FAISS holds each of ``rows.ids``. Small ones, as whether they are selected is then looked up
        in bits: of a set of 64-bit ids, each that is selected costs a microsecond (November 2026).

    Attributes
    ----------
    parameters : what it was built with and measured at, JSON types only: ``kind`` (``exact``: every vector is compared;
        ``ivf``: inverted file of RaBitQ codes, the best candidates compared by their vectors), ``dim``,
        ``recall_at_10``, ``n_lists``, ``n_probes``, ``n_candidates`` (compared for ten answers), ``n_trained`` (rows at
        the time the lists were made), ``n_changed`` (rows added and removed since), ``seed``, ``faiss_version``
    """

    def __init__(
        self, faiss_index: Any, rows: Rows, lists: Numbers, numbers: Numbers, parameters: Mapping[str, Any]
    ) -> None:
        self.faiss_index = faiss_index
        self.rows = rows
        self.lists = lists
        self.numbers = numbers
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
        return VectorIndex(self.faiss_index, self.rows, self.lists, self.numbers, self.parameters | dict(changed))

    def select(self, ids: npt.ArrayLike) -> Selection:
        """Prepare a filter: vector ids in any order, known or not, repeated or not."""
        places = rows_of(self.rows.known(np.asarray(ids, np.int64)), self.rows.ids)
        lists, counts = np.unique(self.lists[places], return_counts=True)
        bits = bits_of(self.numbers[places], len(self._places))
        return Selection(places, bits, selector_of(bits), lists.astype(np.int64), counts, self._centroids[lists])

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
        n_there = self.n_rows if within is None else len(within.places)
        n_found = min(max(k, 0), n_there)
        similarity = np.full((len(matrix), max(k, 0)), -np.inf, np.float32)
        ids = np.full(similarity.shape, -1, np.int64)
        if n_found and len(matrix):
            similarity[:, :n_found], ids[:, :n_found] = self._search(matrix, n_found, within)
        return similarity, ids

    def _search(self, queries: Floats, k: int, within: Selection | None) -> tuple[Floats, Ids]:
        """Return exactly k answers to each query; there are as many."""
        if within is not None and len(within.places) <= max(_COMPARED_ROWS, k):
            return self._compare_all(queries, k, within.places)
        if self.kind == "exact":
            return self._ask_exact(queries, k, within)
        n_there = self.n_rows if within is None else len(within.places)
        times = 1 if within is None else _CANDIDATES_UNDER_A_FILTER
        n = min(n_there, times * max(self.parameters["n_candidates"], _CANDIDATES_PER_ANSWER * k))
        guesses, candidates = self._ask_lists(queries, n, within, self._probes_for(k))
        short = (candidates[:, :k] < 0).any(axis=1)  # FAISS puts what it did not find last
        if short.any():
            n_lists = self.parameters["n_lists"]
            guesses[short], candidates[short] = self._ask_lists(queries[short], n, within, n_lists)
        best = [self._best(*asked, k) for asked in zip(queries, guesses, candidates, strict=True)]
        return np.concatenate([similarity for similarity, _ in best]), np.concatenate([ids for _, ids in best])

    def _probes_for(self, k: int) -> int:
        times = max(1.0, k / MEASURED_AT) ** _PROBES_EXPONENT
        return int(min(np.ceil(self.parameters["n_probes"] * times), self.parameters["n_lists"]))

    def _ask_exact(self, queries: Floats, k: int, within: Selection | None) -> tuple[Floats, Ids]:
        import faiss

        parameters: Any = faiss.SearchParameters()
        if within is not None:
            parameters.sel = within.selector
        similarity, numbers = self.faiss_index.search(queries, k, params=parameters)
        return similarity, self._ids_at(self._places[numbers])

    def _ask_lists(self, queries: Floats, n: int, within: Selection | None, n_probes: int) -> tuple[Floats, Ids]:
        """Return n candidates for each query, what their codes say of the cosine, and places; -1 where there are fewer."""
        import faiss

        parameters: Any = faiss.IVFRaBitQSearchParameters()
        if within is None:
            lists, similarity = _nearest_lists(queries, self._centroids, n_probes)
        else:
            n_lists = _PROBES_UNDER_A_FILTER * n_probes
            n_rows = _ROWS_UNDER_A_FILTER * n_lists * self.n_rows / self.parameters["n_lists"]
            lists, similarity = _nearest_selected_lists(queries, within, n_lists, n_rows)
            parameters.sel = within.selector
        parameters.nprobe = lists.shape[1]
        found, scores = np.empty((len(queries), n), np.int64), np.empty((len(queries), n), np.float32)
        given = [faiss.swig_ptr(array) for array in (queries, lists, similarity, scores, found)]
        # FAISS's own wrapper refuses parameters, and so filters.
        self.faiss_index.search_preassigned_c(len(queries), given[0], n, *given[1:], False, parameters)
        return scores, self._places[found]

    def _best(self, query: Floats, guesses: Floats, places: Ids, k: int) -> tuple[Floats, Ids]:
        """Return (1, k) cosines and ids of the best of some candidates, which come in the order of the guesses.

        Those that are far from being among the k best are not compared; how wrong the guesses are, the first ones tell,
        which are compared in any case.
        """
        n_first = min(max(_FEWEST_COMPARED, 2 * k), int(np.count_nonzero(places >= 0)))
        similarity = self.rows.compare(query, places[:n_first])
        error = np.std(similarity - guesses[:n_first])
        worst = np.partition(similarity, -k)[-k]
        n = n_first + int(np.count_nonzero(guesses[n_first:] >= worst - _DOUBT * error))
        similarity = np.concatenate([similarity, self.rows.compare(query, places[n_first:n])])
        return best_of(similarity[None], self.rows.ids[places[None, :n]], k)

    def _compare_all(self, queries: Floats, k: int, places: Ids) -> tuple[Floats, Ids]:
        similarity = np.array([self.rows.compare(query, places) for query in queries])
        return best_of(similarity, self._ids_at(np.broadcast_to(places, similarity.shape)), k)

    def _ids_at(self, places: Ids) -> Ids:
        """Return the ids of rows, -1 where there is none."""
        return np.where(places < 0, -1, self.rows.ids[places])

    @cached_property
    def _places(self) -> Ids:
        """Place of each of FAISS's numbers among the rows; the last one, which is -1's, is -1."""
        places = np.full(self.numbers.max(initial=-1) + 2, -1, np.int64)
        places[self.numbers] = np.arange(len(self.numbers))
        return places

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
        """Write ``index.faiss``, which FAISS opens by itself, and ``rows.arrow``: each vector's id, FAISS's number, place."""
        import faiss

        faiss.write_index(self.faiss_index, str(folder / INDEX_FILE))
        places = self.rows.places().append_column(_LIST, pa.array(self.lists, pa.int32()))
        write_rows(folder / ROWS_FILE, places.append_column(_NUMBER, pa.array(self.numbers, pa.int32())))

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
        if not {_LIST, _NUMBER} <= set(places.schema.names):
            raise SchemaError(_INDEX, f"{_LIST} and {_NUMBER}", "an index of an earlier version; run `mm ingest`")
        if (index.d, index.ntotal) != (parameters["dim"], places.num_rows):
            expected = f"{places.num_rows} vectors of dimension {parameters['dim']}"
            raise SchemaError(_INDEX, expected, f"{index.ntotal} of dimension {index.d}")
        lists, numbers = (single(places[name]).to_numpy() for name in (_LIST, _NUMBER))
        return cls(index, Rows.open(places, parts, index.d), lists, numbers, parameters)


def bits_of(numbers: Numbers, n: int) -> npt.NDArray[np.uint8]:
    """Return n bits, of which those with these numbers are set."""
    is_set = np.zeros(n, bool)
    is_set[numbers] = True
    return np.packbits(is_set, bitorder="little")


def selector_of(bits: npt.NDArray[np.uint8]) -> Any:
    """Return FAISS's form of bits, which must live as long as it."""
    import faiss

    return faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))


def _similarities(queries: Floats, centroids: Floats) -> Floats:
    """Return (n, m) cosines of queries to centroids, for one query in less time than FAISS takes (November 2026).

    Row by row, not as a product of matrices: BLAS would wake its threads for it, which then wait in a loop for the next
    one, and so take a core beside each search.
    """
    found: Floats = np.vecdot(centroids, queries[:, None])
    return found


def _nearest_lists(queries: Floats, centroids: Floats, n_lists: int) -> tuple[Ids, Floats]:
    """Return the (n, n_lists) lists that are nearest to each query, in any order, and their similarity."""
    similarity = _similarities(queries, centroids)
    lists = np.argpartition(-similarity, n_lists - 1, axis=1)[:, :n_lists].astype(np.int64)
    return np.ascontiguousarray(lists), np.take_along_axis(similarity, lists, 1)


def _nearest_selected_lists(queries: Floats, within: Selection, n_lists: int, n_rows: float) -> tuple[Ids, Floats]:
    """Choose the lists to visit: the nearest of those with selected vectors, until enough of them lie there.

    Parameters
    ----------
    n_lists : visit at least as many
    n_rows : and as many selected vectors

    Returns
    -------
    lists, similarity : (n, m), -1 where a query needs fewer than the one that needs most
    """
    similarity = _similarities(queries, within.centroids)
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
