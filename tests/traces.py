"""What the lake holds of one version, wherever it is.

Put here: looking into every file. Keep out: what should be there.
"""

from pathlib import Path

import pyarrow.parquet as pq


def traces(lake: Path, object_id: str) -> set[str]:
    """Return the files that name or hold a version, whatever they are, but for receipts and erasures."""
    found = set()
    for file in lake.rglob("*"):
        name = file.relative_to(lake).as_posix()
        if not file.is_file() or name.startswith(("receipts/", "erasures/")):
            continue
        if object_id in name or object_id.encode() in _plain(file):
            found.add(name)
    return found


def _plain(file: Path) -> bytes:
    if file.suffix != ".parquet":
        return file.read_bytes()
    return str(pq.read_table(file, partitioning=None).to_pydict()).encode()
