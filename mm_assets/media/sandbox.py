"""What a decoding process gives up: network, new privileges, memory, time, files.

Put here: calls to the Linux kernel. Keep out: decoding, and who waits for whom.
"""

import ctypes
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from mm_assets.settings import MediaLimits

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
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
