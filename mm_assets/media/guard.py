"""The owner's side: hand a file to a guarded child, get segments back or the reason why not.

Put here: starting and stopping the worker, and what a child's end means. Keep out: decoding; nothing here opens media.
"""

import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from mm_assets.errors import ObjectError, Reason, ServiceError
from mm_assets.limits import MediaLimits
from mm_assets.media.segments import SEGMENT_SCHEMA, MediaFacts
from mm_assets.media.worker import (
    ERROR_NAME,
    EXIT_OBJECT,
    EXIT_SERVICE,
    FACTS_NAME,
    LOG_NAME,
    SEGMENTS_NAME,
    Ending,
)

# The worker sees no variable of ours: no keys, no proxies. Threads and arenas are bounded because the limit on
# address space counts each one's reserve.
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a process with threads can neither fork safely nor leave the network
}
_START_S = 120.0
_BACKSTOP_S = 30.0  # beyond the child's own wall-clock limit, the worker itself is taken to hang
_STOP_S = 5.0
_MAX_REPORT_BYTES = 64 << 10
_FACTS = TypeAdapter(MediaFacts)
_ENDING = TypeAdapter(Ending)


@dataclass(frozen=True, slots=True)
class DecodedMedia:
    """What decoding brought.

    Attributes
    ----------
    segments : Arrow IPC stream in ``segments.SEGMENT_SCHEMA``, for ``segments.read_segments``
    ending : what it cost: peak memory, CPU and wall-clock seconds
    """

    facts: MediaFacts
    segments: Path
    ending: Ending


class MediaWorker:
    """One decoding slot: a worker process, started at first use, that decodes one object at a time.

    A context manager; use it from one thread at a time. A worker that died is replaced at the next object.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        self.is_isolated: bool | None = None  # whether its children are without network; known once started
        self.is_confined: bool | None = None  # whether they reach no file but their own; known once started
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the worker and any child."""
        self.close()

    def decode(self, file: Path, folder: Path) -> DecodedMedia:
        """Decode one file.

        Parameters
        ----------
        file : named ``<object_id>.bin``, so that its name tells decoders nothing
        folder : private to this object; made if missing; results and the child's log are written there

        Raises
        ------
        ObjectError
            corrupt, unsupported, too_large: permanent. timeout, out_of_memory, crashed: another try may end otherwise.
        ServiceError
            The worker itself failed, or the disk is full; the object is not at fault.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        job = {"file": str(file.absolute()), "folder": str(folder.absolute())}
        ending = _ENDING.validate_python(self._ask(job))
        _raise_for(ending, folder, self.limits)
        return DecodedMedia(_read_facts(folder), _checked_segments(folder), ending)

    def close(self) -> None:
        """End the worker process; by closing its input first, then by force."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its child is killed with it by the kernel
            process.wait()

    def _ask(self, job: dict[str, str]) -> Any:
        try:
            process = self._process or self._start()
            self._process = process
            return _exchange(process, json.dumps(job), self.limits.wall_s + _BACKSTOP_S)
        except BaseException:  # also Ctrl-C: the next answer would belong to this question
            self.close()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-m", "mm_assets.media.worker"]
        self._process = process = subprocess.Popen(  # noqa: S603 - a constant command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_ENVIRONMENT,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
        answer = _exchange(process, self.limits.model_dump_json(), _START_S)
        self.is_isolated, self.is_confined = bool(answer["is_isolated"]), bool(answer["is_confined"])
        return process


def _exchange(process: subprocess.Popen[bytes], message: str, timeout_s: float) -> Any:
    """Send one line, return the answer's line as JSON."""
    if process.stdin is None or process.stdout is None:
        msg = "the worker has no pipes"
        raise ServiceError(msg)
    try:
        process.stdin.write(message.encode() + b"\n")
        line = _read_line(process.stdout.fileno(), time.monotonic() + timeout_s)
    except OSError as error:
        msg = f"the media worker ended (exit {process.poll()}); it is started anew for the next try"
        raise ServiceError(msg) from error
    return json.loads(line)


def _read_line(descriptor: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
            msg = "the media worker gave no answer in time"
            raise TimeoutError(msg)
        piece = os.read(descriptor, 4_096)
        if not piece:
            msg = "the media worker closed its output"
            raise BrokenPipeError(msg)
        line += piece
    return line


def _raise_for(ending: Ending, folder: Path, limits: MediaLimits) -> None:
    """Turn a child's end, unless it was a good one, into the error that says why."""
    if ending.is_timeout or ending.signal == signal.SIGXCPU:
        limit = f"{limits.wall_s:.0f} s" if ending.is_timeout else f"{limits.cpu_s} CPU seconds"
        raise ObjectError(Reason.TIMEOUT, f"decoding took longer than {limit}")
    if ending.exit_code == EXIT_OBJECT:
        raise _reported_error(folder)
    if ending.exit_code == EXIT_SERVICE:
        msg = f"decoding could not write its results: {_log_tail(folder)}"
        raise ServiceError(msg)
    if ending.exit_code == 0:
        return
    log = _log_tail(folder)
    how = signal.Signals(ending.signal).name if ending.signal else f"exit code {ending.exit_code}"
    is_memory = "bad_alloc" in log or "MemoryError" in log
    raise ObjectError(Reason.OUT_OF_MEMORY if is_memory else Reason.CRASHED, f"the decoder ended by {how}: {log}")


def _reported_error(folder: Path) -> ObjectError:
    try:
        report = json.loads(_read_report(folder / ERROR_NAME))
        return ObjectError(Reason(report["reason"]), str(report["message"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return ObjectError(Reason.CRASHED, f"the decoder left no readable report: {error}")


def _read_facts(folder: Path) -> MediaFacts:
    try:
        return _FACTS.validate_json(_read_report(folder / FACTS_NAME))
    except (OSError, ValidationError) as error:
        raise ObjectError(Reason.CRASHED, f"the decoder left no readable facts: {error}") from error


def _checked_segments(folder: Path) -> Path:
    """Return the path of the segments when it is an ordinary file with the right schema."""
    file = folder / SEGMENTS_NAME
    if file.is_symlink() or not file.is_file():
        raise ObjectError(Reason.CRASHED, "the decoder left no segments")
    try:
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
            is_expected = stream.schema == SEGMENT_SCHEMA
    except (OSError, pa.ArrowException) as error:
        raise ObjectError(Reason.CRASHED, f"the decoder left no readable segments: {error}") from error
    if not is_expected:
        raise ObjectError(Reason.CRASHED, "the decoder left segments of another schema")
    return file


def _read_report(file: Path, *, from_end: bool = False) -> bytes:
    """Read 64 KiB of an ordinary file; no links, no devices, for the child's folder is not trusted."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            msg = f"{file.name} is not an ordinary file"
            raise OSError(msg)
        if from_end:
            stream.seek(max(0, os.fstat(descriptor).st_size - _MAX_REPORT_BYTES))
        return stream.read(_MAX_REPORT_BYTES)


def _log_tail(folder: Path) -> str:
    """Return the end of what the child wrote to stderr."""
    try:
        return _read_report(folder / LOG_NAME, from_end=True).decode("utf-8", "replace").strip()[-500:]
    except OSError:
        return ""
