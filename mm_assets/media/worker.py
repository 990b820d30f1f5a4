"""The guarded side: a process that has the decoders loaded and forks a child for each object.

Run as ``python -I -m mm_assets.media.worker``; one JSON message a line on stdin and stdout. The child decodes hostile
bytes, writes files into its folder and ends; the process that forked it never touches them, waits, kills at the limit
and tells how it ended. When stdin closes (the owner closed it, or died) all ends.

Put here: fork, limits, supervision. Keep out: what the outcome means, which the owner decides (``guard``).
"""

import errno
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Never

from mm_assets.errors import ObjectError, Reason
from mm_assets.limits import MediaLimits
from mm_assets.media.decode import decode_file
from mm_assets.media.sandbox import (
    adopt_orphans,
    can_confine,
    die_with,
    leave_network,
    limit_resources,
    prefer_as_victim,
    refuse_new_privileges,
    stay_in,
)
from mm_assets.media.segments import SegmentWriter

SEGMENTS_NAME, FACTS_NAME, ERROR_NAME, LOG_NAME = "segments.arrow", "facts.json", "error.json", "stderr.txt"
EXIT_OBJECT, EXIT_SERVICE = 65, 75  # EX_DATAERR and EX_TEMPFAIL of sysexits.h
_PRELOADED = (
    "av",
    "numpy",
    "cv2",
    "scenedetect",
    "scenedetect.common",
    "PIL.Image",
    "PIL.ImageOps",
    "pypdfium2",
    "soundfile",
)
_MAX_MESSAGE = 2_000
_CHECKOUT = Path(__file__).parents[2]
# What Python and the decoders may read while they decode: libraries, fonts, time zones, and no process's files.
_LIBRARIES = tuple(
    Path(place)
    for place in (
        *("/usr", "/lib", "/lib64", "/etc/fonts", "/etc/localtime", "/dev/null", "/dev/urandom"),
        *(sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])),
        # A checkout may hold settings with keys; of it the package is enough.
        *(place for place in sys.path if place and (Path(place).name == "site-packages" or Path(place) != _CHECKOUT)),
    )
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended.

    Attributes
    ----------
    exit_code : None when a signal ended it
    signal : None when it exited
    is_timeout : it was killed at the wall-clock limit
    max_rss_bytes : peak of resident memory, the loaded libraries (shared with the worker) included
    """

    exit_code: int | None
    signal: int | None
    is_timeout: bool
    max_rss_bytes: int
    cpu_s: float
    wall_s: float


def main() -> None:
    """Load the decoders, then serve one object after another until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's business; it closes stdin
    limits = MediaLimits.model_validate_json(sys.stdin.buffer.readline())
    _preload()
    refuse_new_privileges()
    adopt_orphans()
    _answer({"is_isolated": leave_network(), "is_confined": can_confine()})
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        _answer(asdict(_run(Path(job["file"]), Path(job["folder"]), limits)))


def _preload() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    import cv2
    from PIL import Image

    cv2.setNumThreads(1)
    Image.init()
    gc.freeze()


def _answer(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def _run(file: Path, folder: Path, limits: MediaLimits) -> Ending:
    started = time.monotonic()
    owner = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_child(owner, file, folder, limits)
    is_timeout = _wait(pid, started + limits.wall_s)
    _, status, usage = os.wait4(pid, 0)
    _end_orphans()
    code = os.waitstatus_to_exitcode(status)
    return Ending(
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        is_timeout=is_timeout,
        max_rss_bytes=usage.ru_maxrss * 1_024,
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.monotonic() - started,
    )


def _wait(pid: int, deadline: float) -> bool:
    """Wait for the child's end, kill it and its group at the deadline; True when that was needed.

    The child is not reaped here, so its number cannot have been given to another process when its group is killed.
    """
    child = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(child, select.POLLIN)
        poll.register(sys.stdin.fileno(), 0)  # hang-up is always reported: the owner is gone
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1_000)
        has_ended = any(fd == child for fd, _ in events)
        if not has_ended:
            _kill(pid)
            if events:
                os.waitpid(pid, 0)  # its own children are this process's from here on
                _end_orphans()
                os._exit(0)
            poll.unregister(sys.stdin.fileno())
            poll.poll()
        _kill_group(pid)
        return not has_ended
    finally:
        os.close(child)


def _kill(pid: int) -> None:
    _kill_group(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _end_orphans() -> None:
    """Kill what the child left behind, whatever group or session it moved to: it is this process's child by now."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with suppress(FileNotFoundError):  # a kernel that does not list them
        while left := children.read_text(encoding="ascii").split():
            for pid in map(int, left):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _be_child(owner: int, file: Path, folder: Path, limits: MediaLimits) -> Never:
    """Decode one object and exit; never returns to the worker's own loop."""
    try:
        _enter(owner, file, folder, limits)
        code = _decode(file, limits)
    except OSError:  # its folder or its log cannot be used; the object was not looked at
        traceback.print_exc()
        code = EXIT_SERVICE
    except BaseException:  # noqa: BLE001 - a forked child must not fall back into its parent's loop
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
    os._exit(code)


def _enter(owner: int, file: Path, folder: Path, limits: MediaLimits) -> None:
    os.setsid()
    die_with(owner)
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for target, source in ((0, nothing), (1, nothing), (2, log)):
        os.dup2(source, target)
    os.closerange(3, 256)
    prefer_as_victim()
    limit_resources(limits)
    if not stay_in(folder, [file, *_LIBRARIES]) and can_confine():
        msg = "the kernel offers Landlock and refuses it"
        raise OSError(msg)


def _decode(file: Path, limits: MediaLimits) -> int:
    try:
        with SegmentWriter(Path(SEGMENTS_NAME)) as out:
            facts = decode_file(file, limits, out)
        Path(FACTS_NAME).write_text(json.dumps(facts.to_dict()), encoding="utf-8")
    except ObjectError as error:
        return _report(error)
    except MemoryError:
        return _report(ObjectError(Reason.OUT_OF_MEMORY, f"decoding needs more than {limits.memory_bytes >> 20} MiB"))
    except OSError as error:
        return _report_os_error(error, limits)
    return 0


def _report_os_error(error: OSError, limits: MediaLimits) -> int:
    if error.errno == errno.EFBIG:
        return _report(ObjectError(Reason.TOO_LARGE, f"segments take more than {limits.output_bytes >> 20} MiB"))
    if error.errno == errno.ENOMEM:
        return _report(ObjectError(Reason.OUT_OF_MEMORY, f"decoding needs more than {limits.memory_bytes >> 20} MiB"))
    traceback.print_exc()
    return EXIT_SERVICE


def _report(error: ObjectError) -> int:
    message = {"reason": error.reason.value, "message": error.message[:_MAX_MESSAGE]}
    Path(ERROR_NAME).write_text(json.dumps(message), encoding="utf-8")
    return EXIT_OBJECT


if __name__ == "__main__":
    main()
