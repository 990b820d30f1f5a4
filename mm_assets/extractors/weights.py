"""What was loaded is what the card says: SHA-256 of weight files.

Put here: checking files against digests. Keep out: cards and packs, fetching.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from mm_assets.errors import ConfigError

_CHUNK_BYTES = 1 << 20
_known: dict[tuple[str, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file; read once for each (path, size, time of change, inode) of this process."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        _known[key] = digest.hexdigest()
    return _known[key]


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raise ConfigError unless each file is there and has its SHA-256."""
    for name, expected in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            msg = f"weight file {path} is missing; fetch it with `mm models pull <pack>` or restore the pack's folder"
            raise ConfigError(msg)
        if (actual := sha256_of(path)) != expected:
            msg = (
                f"weight file {path} has SHA-256 {actual}, the card says {expected}: it was changed or is incomplete; "
                "delete it and fetch it again with `mm models pull <pack>`, or correct the pack's card"
            )
            raise ConfigError(msg)


def refuse_other_files(folder: Path, allowed: Iterable[Path], pattern: str = "*") -> None:
    """Raise ConfigError when a folder that a library searches by itself holds a file that no digest covers."""
    others = sorted(set(folder.glob(pattern)) - set(allowed))
    if others:
        msg = f"{folder} holds {', '.join(path.name for path in others)}, which no card covers; move it away"
        raise ConfigError(msg)
