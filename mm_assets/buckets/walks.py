"""The files of a folder tree in the order of their keys' bytes, from any key on.

Put here: the walk, and the names that it keeps so that pages of a large folder do not each read it again. Keep out:
what a file is to a store.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

_LARGE_NAMES = 1_000  # a smaller folder is read again for less than a page costs
_MAX_KEPT = 8
# A folder that changed just now may change again within one tick of its clock, and its time would not show it.
_SETTLED_NS = 2_000_000_000


class Names:
    """Sorted names in folders; those of large folders are kept while the folder's time stands still.

    Parameters
    ----------
    root : folder that the others are relative to
    scan : yields the names in a folder (relative to the root, b'' or ending in '/'): files, and folders ending in '/'
    """

    def __init__(self, root: bytes, scan: Callable[[bytes], Iterator[bytes]]) -> None:
        self._root, self._scan = root, scan
        self._kept: dict[bytes, tuple[tuple[int, ...], Sequence[bytes]]] = {}

    def of(self, folder: bytes) -> Sequence[bytes]:
        """Return the names in a folder, in order."""
        stamp = self._stamp(folder)
        kept_stamp, names = self._kept.get(folder, (None, ()))
        if stamp is not None and stamp == kept_stamp:
            return names
        names = sorted(self._scan(folder))
        self._kept.pop(folder, None)
        if stamp is not None and len(names) > _LARGE_NAMES:
            self._keep(folder, stamp, names)
        return names

    def forget(self) -> None:
        """Forget all names: a pass has come to its end."""
        self._kept.clear()

    def _keep(self, folder: bytes, stamp: tuple[int, ...], names: Sequence[bytes]) -> None:
        for oldest in list(self._kept)[: 1 - _MAX_KEPT]:
            self._kept.pop(oldest, None)
        self._kept[folder] = (stamp, names)

    def _stamp(self, folder: bytes) -> tuple[int, ...] | None:
        """Return what changes with the folder's names; None while that cannot be relied on."""
        try:
            found = os.lstat(self._root + b"/" + folder)
        except OSError:  # reading the folder says what is wrong with it
            return None
        is_settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev) if is_settled else None


class Walk(Iterator[str]):
    """The keys after ``after`` that start with ``prefix``, in byte order; folders that hold none are not entered.

    Attributes
    ----------
    skipped : names met so far that are no UTF-8 and so have no key; lone surrogates stand for the wrong bytes
    """

    def __init__(self, names: Names, after: str, prefix: str) -> None:
        self._names, self._after, self._prefix = names, after.encode("utf-8"), prefix.encode("utf-8")
        self._levels: list[Iterator[bytes]] | None = None
        self.skipped: list[str] = []

    def __next__(self) -> str:
        if self._levels is None:
            self._levels = [self._wanted(b"")]
        while self._levels:
            name = next(self._levels[-1], None)
            if name is None:
                self._levels.pop()
            elif name.endswith(b"/"):
                self._levels.append(self._wanted(name))
            elif (key := _decoded(name)) is not None:
                return key
            else:
                self.skipped.append(name.decode("utf-8", "surrogateescape"))
        raise StopIteration

    def _wanted(self, folder: bytes) -> Iterator[bytes]:
        """Yield the names in a folder that may lead to wanted keys; finding the first costs a bisection."""
        # A folder sorts by its name and "/", because that is how its keys go on: the one that leads to the first
        # wanted key is the last name before it.
        names = self._names.of(folder)
        start = max(0, bisect_left(names, max(self._after, self._prefix)) - 1)
        for name in islice(names, start, None):
            if self._is_wanted(name):
                yield name
            elif name > self._prefix and name > self._after:
                return

    def _is_wanted(self, name: bytes) -> bool:
        if name.endswith(b"/"):
            is_below = name.startswith(self._prefix) or self._prefix.startswith(name)
            return is_below and (name > self._after or self._after.startswith(name))
        return name.startswith(self._prefix) and name > self._after


def _decoded(name: bytes) -> str | None:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None
