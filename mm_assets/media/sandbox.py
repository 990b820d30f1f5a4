"""What a decoding process gives up: network, files, new privileges, memory, time.

Put here: calls to the Linux kernel. Keep out: decoding, and who waits for whom.
"""

import ctypes
import os
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mm_assets.limits import MediaLimits

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
# Landlock, by the numbers of <linux/landlock.h>: rights on files by version of the interface (1: the first thirteen).
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FIRST_RIGHTS, _REFER, _TRUNCATE, _IOCTL_DEV = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
_ALL_TCP, _ALL_SCOPES = 0b11, 0b11  # bind and connect; abstract Unix sockets and signals beyond the process's own
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_MAX_OPEN_FILES = 64
_CPU_GRACE_S = 5
_libc = ctypes.CDLL(None, use_errno=True)


def leave_network() -> bool:
    """Move to a network namespace without interfaces, for this process and all it forks; only while single-threaded.

    Returns
    -------
    False where the kernel or the container forbids it.
    """
    return any(_libc.unshare(flags) == 0 for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET))


def refuse_new_privileges() -> None:
    """Make setuid programs and file capabilities without effect from here on."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ended, so that none gets out of reach."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def can_confine() -> bool:
    """Return whether the kernel can keep a process to its files."""
    return _landlock_version() >= 1


def _landlock_version() -> int:
    return int(_libc.syscall(_LANDLOCK_CREATE, None, 0, _VERSION_FLAG))


def stay_in(folder: Path, readable: Iterable[Path]) -> bool:
    """Allow no file but those in a folder, and to read those below some others; no TCP, no signals to others.

    The kernel's Landlock then also refuses to look into other processes: their memory and environment hold keys.

    Returns
    -------
    False where the kernel lacks it.
    """
    version = _landlock_version()
    if version < 1:
        return False
    rights = _FIRST_RIGHTS
    rights |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_IOCTL_DEV if version >= 5 else 0)
    fields = (rights, _ALL_TCP if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    ruled = (ctypes.c_uint64 * 3)(*fields)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _libc.syscall(_LANDLOCK_CREATE, ruled, size, 0)
    if ruleset < 0:
        return False
    try:
        for place, allowed in [(folder, rights), *((place, rights & _READ) for place in readable)]:
            _allow(ruleset, place, allowed)
        return bool(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


class _Beneath(ctypes.Structure):
    """``struct landlock_path_beneath_attr``."""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _allow(ruleset: int, place: Path, allowed: int) -> None:
    with suppress(OSError):  # what is not there needs no rule
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            if not place.is_dir():
                allowed &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
            rule = _Beneath(allowed, descriptor)
            _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(descriptor)


def die_with(parent_pid: int) -> None:
    """Be killed when the parent ends; ends at once when it already has."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def limit_resources(limits: MediaLimits) -> None:
    """Bound memory (beyond what the loaded libraries take), CPU time, size of written files, open files; no core dumps."""
    memory = _address_space_bytes() + limits.memory_bytes
    for kind, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + _CPU_GRACE_S),
        (resource.RLIMIT_FSIZE, limits.output_bytes, limits.output_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, allowed = resource.getrlimit(kind)
        ceiling = hard if allowed == resource.RLIM_INFINITY else min(hard, allowed)
        resource.setrlimit(kind, (min(soft, ceiling), ceiling))


def prefer_as_victim() -> None:
    """Let the kernel's out-of-memory killer take this process before the one that waits for it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()
