"""Vectors for tests, drawn by code that knows which belong together.

Put here: unit vectors and item ids. Keep out: assertions.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mm_assets.indexing import Part, Rows, write_part
from mm_assets.vectors import Floats, to_arrow

STRANGER = -1


def unit(matrix: npt.ArrayLike) -> Floats:
    """Scale each row to length 1."""
    rows = np.asarray(matrix, np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def names(n: int, prefix: str = "item") -> list[str]:
    """Return n ids, the first ones the same for every n."""
    return [f"{prefix}-{i}" for i in range(n)]


def grouped(
    n: int, dim: int, n_groups: int, *, spread: float = 0.4, seed: int = 0, has_strangers: bool = False
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Draw vectors around centres that depend on the number of groups alone; every tenth may belong to none.

    Returns
    -------
    vectors : (n, dim) unit vectors
    groups : (n,) each one's group, -1 for strangers
    """
    random = np.random.default_rng(seed)
    centres = unit(np.random.default_rng(n_groups).normal(size=(n_groups, dim)))
    groups = random.integers(0, n_groups, n)
    matrix = centres[groups] + spread * random.normal(size=(n, dim)) / np.sqrt(dim)
    if has_strangers:
        groups[::10] = STRANGER
        matrix[::10] = random.normal(size=matrix[::10].shape)
    return unit(matrix), groups


def part_rows(item_ids: Sequence[str], matrix: Floats) -> pa.Table:
    """Return rows as a part takes them."""
    return pa.table({"item_id": pa.array(item_ids, pa.string()), "vector": to_arrow(matrix)})


def stored(item_ids: Sequence[str], matrix: Floats, n_parts: int = 1) -> Rows:
    """Write the vectors into so many parts and map them; the files go, the maps stay."""
    bounds = np.linspace(0, len(item_ids), n_parts + 1).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for start, end in pairwise(bounds):
            file = Path(folder) / f"{start}.arrow"
            write_part(file, part_rows(item_ids[start:end], matrix[start:end]), "item_id")
            parts.append(Part(hashlib.sha256(file.read_bytes()).hexdigest(), file))
            assert len(parts[-1].ids) == end - start
        return Rows.of_parts(parts, matrix.shape[1])
