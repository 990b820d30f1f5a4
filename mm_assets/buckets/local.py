"""A folder as a store: the key is the relative path, byte for byte.

Put here: what a file system needs to behave like a bucket. Keep out: what a bucket does by itself.

An ETag is a hash of size, modification time, change time and inode. Reading the content instead would read every
object at every listing. The change time cannot be set by programs, so an overwrite in place is seen even where the
modification time was put back; the inode tells a file that was renamed over another. Not seen: a second overwrite in
place, of the same size, within one tick of the kernel's clock (up to 10 ms) after the first was listed. Seen as new
though the bytes are old: chmod, chown, a new hard link, a copy to another disk, a mount that renumbers its inodes.

Symbolic links are neither listed nor followed: one that leads outside must not be, and what one inside leads to is
listed under its own name.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from mm_assets.buckets.base import Download, ObjectChangedError, ObjectNotFoundError, Page, StoredObject
from mm_assets.buckets.streams import save_stream
from mm_assets.buckets.walks import Names, Walk
from mm_assets.errors import ConfigError, MmAssetsError, ObjectError, Reason, ServiceError
from mm_assets.identity import normalize_etag, short_hash

# Files are written here and renamed: never listed, on the same file system, and free of the keys' lengths.
STAGING_FOLDER = ".mm_assets_tmp"
_STALE_STAGING_S = 86_400
_MAX_NAME_BYTES = 255  # NAME_MAX of Linux
_MAX_RENAMES = 100
_FIRST_MOMENT, _LAST_MOMENT = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}  # the last one: a socket
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_INEXPRESSIBLE = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL}
_IN_THE_WAY = {errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY}


class LocalStore:
    """Objects in a folder.

    Parameters
    ----------
    folder : where the objects lie
    uri : name in messages; default: the folder
    create : a missing folder is an empty store that the first write makes (a lake); otherwise it is a ConfigError,
        because an unmounted disk must not look like a source whose objects were all deleted

    Attributes
    ----------
    folder : absolute, links resolved
    """

    def __init__(self, folder: Path, uri: str = "", *, create: bool = False) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._create = create
        self._names = Names(os.fsencode(self.folder), self._scan)
        self.uri = uri or str(folder)

    def check(self, *, writes: bool = False) -> None:
        """Look whether the folder is there, readable and (``writes``) writable; removes leftovers older than a day."""
        if self.folder.exists() or not self._create:
            with self._translated():
                next(self._scan(b""), None)
        if writes:
            with self._translated(is_write=True):
                self.abort_stale_uploads(_STALE_STAGING_S)
                self._stage().unlink()

    def list_page(self, after: str = "", limit: int = 1_000, prefix: str = "") -> Page:
        """List files in the order of their keys' bytes.

        Costs one ``lstat`` for each file returned and one scan of each folder on the way; large folders are scanned
        again only when they changed.
        """
        walk = Walk(self._names, after, prefix)
        with self._translated():
            objects = tuple(islice(self._describe_all(walk), limit))
            skipped = tuple(walk.skipped)
            if len(objects) == limit and next(walk, None) is not None:
                return Page(objects, objects[-1].key, skipped)
        self._names.forget()
        return Page(objects, None, tuple(walk.skipped))

    def head(self, key: str) -> StoredObject:
        """Describe one file."""
        with self._translated(), self._open(key) as file:
            return _to_stored(key, os.fstat(file.fileno()))

    def download(
        self, key: str, target: Path, *, etag: str | None = None, accept: Callable[[bytes], bool] | None = None
    ) -> Download:
        """Copy one file and see that it did not change meanwhile."""
        with self._translated(), self._open(key) as file:
            stored = _to_stored(key, os.fstat(file.fileno()))
            if etag is not None and stored.etag != normalize_etag(etag):
                raise _changed(self.uri)
            saved = save_stream(stored, file.read, target, accept)
            if _etag(os.fstat(file.fileno())) != stored.etag or (
                saved.is_complete and saved.n_bytes != stored.size_bytes
            ):
                target.unlink()
                raise _changed(self.uri)
            return saved

    def read(self, key: str) -> bytes:
        """Return one file's bytes."""
        with self._translated(), self._open(key) as file:
            return file.read()

    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """Return a part of one file."""
        if length <= 0:
            return b""
        with self._translated(), self._open(key) as file:
            found = os.fstat(file.fileno())
            if start >= found.st_size or (etag is not None and _etag(found) != normalize_etag(etag)):
                raise _changed(self.uri)
            file.seek(start)
            return file.read(length)

    def read_tail(self, key: str, length: int) -> tuple[StoredObject, bytes]:
        """Describe one file and return its end."""
        with self._translated(), self._open(key) as file:
            stored = _to_stored(key, os.fstat(file.fileno()))
            file.seek(max(0, stored.size_bytes - length))
            return stored, file.read(length)

    def put(self, key: str, data: bytes) -> str:
        """Write one file: staged, synced, renamed, folder synced."""
        return self._write(key, lambda file: file.write(data))

    def upload(self, key: str, file: Path) -> str:
        """Copy a file into the store the same way."""
        with file.open("rb") as source:
            return self._write(key, lambda staged: shutil.copyfileobj(source, staged, 1 << 20))

    def delete(self, key: str) -> None:
        """Remove one file, then the folders that it leaves empty."""
        path = self._path(key)
        with self._translated(is_write=True), suppress(ObjectNotFoundError):
            self._refuse_links(path)
            with suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()
                    self._prune(path.parent)

    def erase(self, key: str, *, keep_current: bool = False) -> bool:
        """Remove one file; a folder keeps no versions."""
        if not keep_current:
            self.delete(key)
        return True

    def abort_stale_uploads(self, older_than_s: float) -> int:
        """Remove staged files that killed writers left."""
        n_removed = 0
        with self._translated(is_write=True):
            for leftover in (self.folder / STAGING_FOLDER).glob("*"):
                with suppress(FileNotFoundError):
                    if time.time() - leftover.lstat().st_mtime > older_than_s:
                        leftover.unlink()
                        n_removed += 1
        return n_removed

    def _path(self, key: str) -> Path:
        """Return the file of a key; refuses keys that are no relative path or lead elsewhere."""
        segments = key.split("/")
        is_hostile = "\x00" in key or any("\ud800" <= char <= "\udfff" for char in key)
        if is_hostile or segments[0] == STAGING_FOLDER or not {"", ".", ".."}.isdisjoint(segments):
            msg = f"{self.uri}: a folder cannot hold this key (empty, '.' or '..' segments, NUL, or a reserved name)"
            raise ObjectError(Reason.POLICY, msg)
        if len(key) > _MAX_NAME_BYTES // 4 and any(len(name.encode()) > _MAX_NAME_BYTES for name in segments):
            # Said here, too, because with a parent that is missing the file system would only say that it is absent.
            msg = f"{self.uri}: the file system cannot hold a name of over {_MAX_NAME_BYTES} bytes; store it under a shorter key"
            raise ObjectError(Reason.POLICY, msg)
        return self.folder / key

    def _refuse_links(self, path: Path) -> None:
        if os.path.realpath(path.parent) != str(path.parent):
            raise ObjectNotFoundError(self.uri)

    @contextmanager
    def _open(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        self._refuse_links(path)
        # O_NONBLOCK: opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ObjectNotFoundError(self.uri)
            yield os.fdopen(descriptor, "rb", buffering=0, closefd=False)
        finally:
            os.close(descriptor)

    def _write(self, key: str, fill: Callable[[BinaryIO], object]) -> str:
        path = self._path(key)
        with self._translated(is_write=True):
            staged = self._stage()
            try:
                with staged.open("r+b") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                    self._rename(staged, path)
                    return _etag(os.fstat(file.fileno()))  # the rename itself moved the change time
            finally:
                staged.unlink(missing_ok=True)

    def _stage(self) -> Path:
        """Make an empty file with the rights that the umask gives."""
        folder = self.folder / STAGING_FOLDER
        folder.mkdir(parents=self._create, exist_ok=True)
        staged = folder / uuid4().hex
        staged.touch(exist_ok=False)
        return staged

    def _rename(self, staged: Path, path: Path) -> None:
        for _ in range(_MAX_RENAMES):
            # A delete elsewhere may prune the folder that was just made: make it again.
            there = self._refuse_a_way_out(path.parent)  # before anything is made beyond a link
            with suppress(FileNotFoundError), self._pruning(path, there):
                _make_folders(path.parent)
                self._refuse_a_way_out(path.parent)
                staged.replace(path)
                _sync_folder(path.parent)
                return
        msg = f"{self.uri}: folders vanish faster than they can be made; is something else cleaning up there?"
        raise ServiceError(msg)

    @contextmanager
    def _pruning(self, path: Path, there: Path) -> Iterator[None]:
        """Remove what was made between a folder that was there and a file that could not be put below it."""
        try:
            yield
        except OSError:
            made = next(place for place in path.parents if os.path.isdir(place))  # noqa: PTH112  Path raises on long names
            if made.is_relative_to(there):
                self._prune(made, there)
            raise

    def _refuse_a_way_out(self, folder: Path) -> Path:
        """Return the nearest folder that is there already; raises ObjectError when a link leads to it."""
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if os.path.realpath(there) != str(there):
            raise ObjectError(Reason.POLICY, f"{self.uri}: this key leads through a symbolic link; remove the link")
        return there

    def _prune(self, folder: Path, up_to: Path | None = None) -> None:
        while folder != (up_to or self.folder):
            try:
                folder.rmdir()
            except OSError:  # not empty, or somebody else was faster
                break
            folder = folder.parent
        _sync_folder(folder)

    def _scan(self, folder: bytes) -> Iterator[bytes]:
        """Yield the names in a folder (relative to the root, b'' or ending in '/'): files, and folders ending in '/'."""
        try:
            entries = os.scandir(os.fsencode(self.folder) + b"/" + folder)
        except (FileNotFoundError, NotADirectoryError):
            if folder or (self._create and not self.folder.exists()):
                return  # removed while the walk was on its way, or a lake that nothing was written to yet
            raise
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if folder + entry.name != STAGING_FOLDER.encode():
                        yield folder + entry.name + b"/"
                elif entry.is_file(follow_symlinks=False):
                    yield folder + entry.name

    def _describe_all(self, names: Iterator[str]) -> Iterator[StoredObject]:
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                found = (self.folder / name).lstat()
                if stat.S_ISREG(found.st_mode):
                    yield _to_stored(name, found)

    @contextmanager
    def _translated(self, *, is_write: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(error, is_write=is_write) from error

    def _translate(self, error: OSError, *, is_write: bool) -> MmAssetsError | ObjectNotFoundError:
        what = f"{self.uri}: {error.strerror}"
        if error.errno in _FORBIDDEN:
            return ConfigError(f"{what} ({error.filename!r}); give this user the right, or choose another folder")
        if error.errno in _INEXPRESSIBLE:
            return ObjectError(
                Reason.POLICY, f"{what}; the file system cannot hold this key, store it under a shorter one"
            )
        if not self.folder.is_dir() and not (self._create and not self.folder.exists()):
            return ConfigError(f"{self.uri} is not a folder; is the disk mounted? Correct `uri`, or make the folder")
        if is_write and error.errno in _IN_THE_WAY:
            return ObjectError(Reason.POLICY, f"{what}; a folder cannot hold both 'a' and 'a/b', rename one of them")
        if error.errno in _ABSENT:
            return ObjectNotFoundError(self.uri)
        return ServiceError(f"{what} ({error.filename!r}); a later try may succeed")


def _etag(found: os.stat_result) -> str:
    facts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return short_hash(*map(str, facts))


def _to_stored(key: str, found: os.stat_result) -> StoredObject:
    return StoredObject(key, _etag(found), found.st_size, to_moment(found.st_mtime_ns))


def to_moment(ns: int) -> datetime:
    """Return the moment so many nanoseconds after the epoch; file systems go beyond the years 1 to 9999, dates do not."""
    try:
        return datetime.fromtimestamp(ns / 1e9, tz=UTC)
    except (OverflowError, ValueError):
        return _LAST_MOMENT if ns > 0 else _FIRST_MOMENT


def _changed(uri: str) -> ObjectChangedError:
    return ObjectChangedError(f"{uri}: the object is another version now")


def _make_folders(folder: Path) -> None:
    """Make a folder and its parents so that they outlive a power cut."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        with suppress(FileExistsError, FileNotFoundError):
            place.mkdir()
            _sync_folder(place.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
