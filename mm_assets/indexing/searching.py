"""Nearest vectors, of all or of those a filter allows.

Put here: searching an index, and its file format. Keep out: building and changing one, where it is stored, and joining
ids back to rows.

FAISS says which vectors may be nearest; above a size it holds one bit for each of their dimensions (RaBitQ, Gao and
Long 2024) in an inverted file, of which it looks at the lists that are about as near as the nearest ones (Chen et al.
2021, SPANN). What is nearest is then decided by the vectors themselves, mapped into memory.
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
_INDEX = "vector index"  # the name in messages
_COMPARED_ROWS = 2_000  # so few allowed vectors are compared without asking FAISS: 4 MB of 512 dimensions
# So many times FAISS's error may a candidate lie below the last answer and still be compared: of 2,000 answers from
# 1,000,000 vectors as many were found with 2 as with 3, with 1.5 two fewer (November 2026). As errors count what the first
# candidates are wrong by, which are wrong by more than others: they come first because FAISS takes them for better than
# they are.
_DOUBT = 2.0
# So many candidates are asked for at first; where even the last one may be an answer, once more for so many.
_FEWEST_CANDIDATES, _CANDIDATES_PER_ANSWER = 200, 4
_MANY_CANDIDATES, _MANY_PER_ANSWER = 3_200, 8
_FEWEST_COMPARED = 100
_FEWEST_ROWS, _ROWS_PER_ANSWER = 200, 2  # in the nearest lists, from which the margin is counted
# The neighbours that a filter leaves are farther and more scattered: so many times the margin and the candidates, but no
# more than a tenth of the lists, unless the margin itself takes more. Of 1,000,000 vectors, recall is .99 and more so where
# 10, 1 and .1 % are left, at random or by whole groups of like ones; .98 where half of the groups are (November 2026).
_MARGIN_UNDER_A_FILTER, _CANDIDATES_UNDER_A_FILTER, _LISTS_UNDER_A_FILTER = 1.25, 4, 0.1
_USUAL_MARGIN = 2.0  # of an index that was made when a number of lists was visited
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
        ``recall_at_10``, ``n_lists``, ``margin`` (lists are visited that are so much less similar to the query than the
        nearest ones, in standard deviations over the lists that may hold answers), ``n_trained`` (rows at the time the lists were made), ``n_changed`` (rows added and removed
        since), ``seed``, ``faiss_version``
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
            The queries are not unit vectors of this dimension, or FAISS holds fewer vectors in a list than the index says.
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
        best = [self._search_lists(query, k, within) for query in queries]
        return np.concatenate([similarity for similarity, _ in best]), np.concatenate([ids for _, ids in best])

    def _search_lists(self, query: Floats, k: int, within: Selection | None) -> tuple[Floats, Ids]:
        """Return (1, k) answers to a (dim,) query, from the lists that are near it."""
        lists, similarity, n_there = self._lists_to_visit(query, k, within)
        first = max(_FEWEST_CANDIDATES, _CANDIDATES_PER_ANSWER * k)
        if within is not None:
            first *= _CANDIDATES_UNDER_A_FILTER
        many = max(first, _MANY_CANDIDATES, _MANY_PER_ANSWER * k)
        for n in sorted({min(first, n_there), min(many, n_there)}):
            guesses, places = self._ask_lists(query, n, lists, similarity, within)
            compared, n_compared = self._compare_best(query, guesses, places, k)
            if n_compared < n:
                break
        return best_of(compared[None], self.rows.ids[places[None, :n_compared]], k)

    def _lists_to_visit(self, query: Floats, k: int, within: Selection | None) -> tuple[Ids, Floats, int]:
        """Return lists, how similar they are, and how many vectors lie there that may be answers: k at least.

        These are the nearest ones, which together hold some vectors for each answer, and those that are not much less
        similar than the last of these. So recall is much the same for ten answers and for hundreds.
        """
        centroids, sizes = self._centroids, self._list_sizes
        if within is not None:
            centroids, sizes = within.centroids, within.n_in_lists
        order, similarity, n_there = _sort_lists(query, centroids, sizes)
        n_least = _first_with(n_there, max(_FEWEST_ROWS, _ROWS_PER_ANSWER * k))
        margin = self.parameters["margin"] * similarity.std()
        n = _n_within(similarity, n_least, margin * (1 if within is None else _MARGIN_UNDER_A_FILTER))
        if within is not None:
            tenth = int(_LISTS_UNDER_A_FILTER * self.parameters["n_lists"])
            n = min(n, max(tenth, n_least, _n_within(similarity, 1, margin)))
        lists = order[:n] if within is None else within.lists[order[:n]]
        return lists, similarity[:n], int(n_there[n - 1])

    def n_codes(self, queries: Floats, k: int) -> float:
        """Return how many codes a search of all vectors looks at, on average."""
        return float(np.mean([self._lists_to_visit(query, k, None)[2] for query in queries]))

    def _ask_exact(self, queries: Floats, k: int, within: Selection | None) -> tuple[Floats, Ids]:
        import faiss

        parameters: Any = faiss.SearchParameters()
        if within is not None:
            parameters.sel = within.selector
        similarity, numbers = self.faiss_index.search(queries, k, params=parameters)
        return similarity, self._ids_at(self._places[numbers])

    def _ask_lists(
        self, query: Floats, n: int, lists: Ids, similarity: Floats, within: Selection | None
    ) -> tuple[Floats, Ids]:
        """Return (n,) candidates: what their codes say of the cosine, descending, and places."""
        import faiss

        parameters: Any = faiss.IVFRaBitQSearchParameters()
        parameters.nprobe = len(lists)
        if within is not None:
            parameters.sel = within.selector
        found, guesses = np.empty(n, np.int64), np.empty(n, np.float32)
        given = [faiss.swig_ptr(array) for array in (query, lists, similarity, guesses, found)]
        # FAISS's own wrapper refuses parameters, and so filters.
        self.faiss_index.search_preassigned_c(1, given[0], n, *given[1:], False, parameters)
        if found[-1] < 0:  # FAISS puts what it did not find last
            raise SchemaError(_INDEX, f"{n} vectors in {len(lists)} lists", f"{np.count_nonzero(found >= 0)}")
        return guesses, self._places[found]

    def _compare_best(self, query: Floats, guesses: Floats, places: Ids, k: int) -> tuple[Floats, int]:
        """Return the cosines of the first candidates, and how many these are: all that may well be among the k best.

        How wrong the guesses are, the very first ones tell, which are compared in any case.
        """
        n_first = min(max(_FEWEST_COMPARED, 2 * k), len(places))
        similarity = self.rows.compare(query, places[:n_first])
        error = np.sqrt(np.mean((similarity - guesses[:n_first]) ** 2))
        worst = np.partition(similarity, -k)[-k]
        n = n_first + int(np.count_nonzero(guesses[n_first:] >= worst - _DOUBT * error))
        if n == n_first:
            return similarity, n
        return np.concatenate([similarity, self.rows.compare(query, places[n_first:n])]), n

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

    @cached_property
    def _list_sizes(self) -> Ids:
        """(n_lists,) vectors in each list."""
        return np.bincount(self.lists, minlength=self.parameters["n_lists"])

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
        return cls(index, Rows.open(places, parts, index.d), lists, numbers, {"margin": _USUAL_MARGIN, **parameters})


def bits_of(numbers: Numbers, n: int) -> npt.NDArray[np.uint8]:
    """Return n bits, of which those with these numbers are set."""
    is_set = np.zeros(n, bool)
    is_set[numbers] = True
    return np.packbits(is_set, bitorder="little")


def selector_of(bits: npt.NDArray[np.uint8]) -> Any:
    """Return FAISS's form of bits, which must live as long as it."""
    import faiss

    return faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))


def _sort_lists(query: Floats, centroids: Floats, sizes: Ids) -> tuple[Ids, Floats, Ids]:
    """Return lists, nearest first, their similarity, and how many vectors lie in each and those before it.

    Row by row, not as a product of matrices: BLAS would wake its threads for it, which then wait in a loop for the next
    one, and so take a core beside each search. FAISS takes longer for one query.
    """
    similarity: Floats = np.vecdot(centroids, query)
    order = np.argsort(-similarity)
    return order, similarity[order], np.cumsum(sizes[order])


def _first_with(n_there: Ids, n_rows: int) -> int:
    """Return how many lists hold so many vectors; all where there are not as many."""
    return min(int(np.searchsorted(n_there, n_rows)) + 1, len(n_there))


def _n_within(similarity: Floats, n: int, margin: float) -> int:
    """Return how many lists are at most so much less similar than the n-th."""
    return int(np.count_nonzero(similarity >= similarity[n - 1] - margin))


def best_of(similarity: Floats, ids: Ids, k: int) -> tuple[Floats, Ids]:
    """Return the k best, the lower id first among equals."""
    order = np.lexsort((ids, -similarity), axis=-1)[:, :k]
    rows = np.arange(len(order))[:, None]
    return similarity[rows, order], ids[rows, order]
