"""An index together with the vectors that came since it was made.

Put here: one answer from both. Keep out: where either comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mm_assets.indexing.parts import Part
from mm_assets.indexing.searching import Selection, VectorIndex, best_of
from mm_assets.vectors import Floats, Ids, as_unit_vectors


@dataclass(frozen=True)
class GrownSelection:
    """Vectors that a search may answer with: those of the index, and those that came since."""

    indexed: Selection
    late: Ids


class GrownIndex:
    """Answers as ``VectorIndex`` does; what came since it was made is compared vector by vector.

    Attributes
    ----------
    rows : of both
    """

    def __init__(self, index: VectorIndex, parts: Sequence[Part]) -> None:
        self._index = index
        self.rows = index.rows.extended(parts)
        is_late = self.rows.part_numbers >= len(index.rows.parts)
        self._late: Ids = self.rows.ids[is_late]

    def select(self, ids: npt.ArrayLike) -> GrownSelection:
        """Prepare a filter: vector ids in any order, known or not, repeated or not."""
        wanted = np.asarray(ids, np.int64)
        return GrownSelection(self._index.select(wanted), self._late[np.isin(self._late, wanted)])

    def search(self, queries: Floats, k: int, within: GrownSelection | None = None) -> tuple[Floats, Ids]:
        """Return each query's k most similar vectors, of those selected; as ``VectorIndex.search`` does."""
        similarity, ids = self._index.search(queries, k, within.indexed if within is not None else None)
        late = self._late if within is None else within.late
        if not len(late):
            return similarity, ids
        compared = np.vecdot(self.rows.gather(late), as_unit_vectors(queries)[:, None])
        all_ids = np.concatenate([ids, np.broadcast_to(late, compared.shape)], axis=1)
        return best_of(np.concatenate([similarity, compared], axis=1), all_ids, k)
