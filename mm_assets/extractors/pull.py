"""Fetching the weights of a pack: the only code that does, and only by an explicit command.

Put here: download, check, put in place. Keep out: any call during a run.
"""

import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import yaml

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.extractors.packs import LOCK_NAME, PackFile, WeightFile, find_pack, read_lock, read_pack, weights_folder
from mm_assets.extractors.weights import sha256_of

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with the files' names, the bytes so far, and all bytes where the server tells."""
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def pull_pack(name: str, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Fetch what is missing of a pack's weights; files that are there and right are kept.

    Parameters
    ----------
    name : of a pack, or the path of its folder
    folder : the models folder (``Settings.models_folder``)

    Returns
    -------
    The files fetched now.

    Raises
    ------
    ServiceError
        The server failed; a later try may help, nothing half-fetched is left in place.
    ConfigError
        What was fetched is not what the pack says, or an address is not https.
    """
    home = find_pack(name)
    pack = read_pack(home)
    weights = weights_folder(home, pack, folder)
    lock = read_lock(weights)
    fetched: dict[str, str] = {}
    for files in _missing(pack, weights, lock):
        fetched.update(_fetch(files, weights, progress or _silent))
        unpinned = {path: digest for path, digest in (lock | fetched).items() if pack.files[path].sha256 is None}
        _write_lock(weights, unpinned)
    return [weights / path for path in fetched]


def _missing(pack: PackFile, weights: Path, lock: Mapping[str, str]) -> list[dict[str, WeightFile]]:
    """Files to fetch, each with the digest to expect; members of one archive are together, to fetch it once."""
    wanted: dict[str, dict[str, WeightFile]] = {}
    for path, file in sorted(pack.files.items()):
        expected = file.sha256 or lock.get(path)
        if file.url is not None and not _is_right(weights / path, expected):
            group = file.url if file.member is not None else path
            wanted.setdefault(group, {})[path] = file.model_copy(update={"sha256": expected})
    return list(wanted.values())


def _silent(_name: str, _done: int, _total: int | None) -> None:
    pass


def _is_right(path: Path, expected: str | None) -> bool:
    return expected is not None and path.is_file() and sha256_of(path) == expected


def _fetch(files: Mapping[str, WeightFile], weights: Path, progress: Progress) -> dict[str, str]:
    """Fetch one address beside the weights, and place each file in one step after its check; return the digests."""
    weights.mkdir(parents=True, exist_ok=True)
    url = str(next(iter(files.values())).url)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=weights) as scratch:
        part = Path(scratch) / "part"
        _download(url, part, lambda done, total: progress(", ".join(files), done, total))
        return {path: _place(path, file, part, weights) for path, file in files.items()}


def _place(path: str, file: WeightFile, part: Path, weights: Path) -> str:
    source = part if file.member is None else _unzip(part, file.member, part.with_name("member"))
    actual = sha256_of(source)
    if file.sha256 is not None and actual != file.sha256:
        msg = (
            f"{file.url} gave {path} with SHA-256 {actual}, expected {file.sha256}: do not use it, see who replaced it"
        )
        raise ConfigError(msg)
    target = weights / path
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    return actual


def _download(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    _check_url(url)
    request = urllib.request.Request(url, headers={"User-Agent": "mm-assets"})  # noqa: S310  # https, checked above
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer, part.open("wb") as out:  # noqa: S310
            _check_url(answer.url)
            total = int(answer.headers["Content-Length"]) if answer.headers.get("Content-Length") else None
            done = 0
            while chunk := answer.read(_CHUNK_BYTES):
                done += out.write(chunk)
                progress(done, total)
    except (OSError, urllib.error.URLError) as error:
        msg = f"fetching {url} failed: {error}; try `mm models pull` again"
        raise ServiceError(msg) from error
    if total is not None and done != total:
        msg = f"fetching {url} ended after {done} of {total} bytes; try `mm models pull` again"
        raise ServiceError(msg)


def _check_url(url: str) -> None:
    """Only https, also after redirects; plain http to this machine, for mirrors and tests."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL_HOSTS):
        msg = f"{url}: weights are fetched over https only"
        raise ConfigError(msg)


def _unzip(archive: Path, member: str, target: Path) -> Path:
    """Copy one member out; its name in the archive never becomes a path."""
    try:
        with zipfile.ZipFile(archive) as package, package.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, _CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        msg = f"the archive holds no readable {member}: {error}"
        raise ConfigError(msg) from error
    return target


def _write_lock(weights: Path, digests: Mapping[str, str]) -> None:
    text = "# SHA-256 of what `mm models pull` fetched; loads check against it. Delete with the weights.\n"
    part = weights / (LOCK_NAME + ".part")
    part.write_text(text + yaml.safe_dump(dict(sorted(digests.items()))), encoding="utf-8")
    part.replace(weights / LOCK_NAME)
