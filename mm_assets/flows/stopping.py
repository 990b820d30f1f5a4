"""What SIGTERM and Ctrl-C do to a worker: a short group is finished, and claims are given back within seconds.

Put here: signals. Keep out: what is finished and given back. Whatever handler is installed (Dagster's, Python's) keeps
its say: it is called later, never replaced.
"""

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Never

_FINISH_S = 5.0  # Kubernetes kills 30 s after SIGTERM
_STOPS = {signal.SIGTERM, signal.SIGINT}
_LOG = logging.getLogger(__name__)


@contextmanager
def giving_back(give_back: Callable[[], object]) -> Iterator[None]:
    """Call ``give_back`` at most five seconds after SIGTERM or Ctrl-C, unless the block has ended before.

    It is called in a thread, since Python calls no handler while the main thread is inside C code: a model may stay
    there for minutes (and lets other threads run meanwhile). Without effect outside the main thread, where no handler
    runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, former, give_back), name="stopping", daemon=True)
    watcher.start()
    try:
        with _ending_by_exception():
            yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(writer)  # the watcher reads the end
        watcher.join()
        os.close(reader)


def _watch(reader: int, former: int, give_back: Callable[[], object]) -> None:
    """Read the numbers of signals, which Python's C code writes the moment they arrive."""
    while numbers := os.read(reader, 64):
        if former >= 0:
            with suppress(OSError):
                os.write(former, numbers)
        if not _STOPS & set(numbers):
            continue
        select.select([reader], [], [], _FINISH_S)  # the block's end or another signal
        try:
            give_back()
        except Exception:  # noqa: BLE001  a database that is down: the leases end by themselves
            _LOG.exception("claims could not be given back; they are free again when their leases end")


@contextmanager
def _ending_by_exception() -> Iterator[None]:
    """Let SIGTERM raise where it would end the process without a word, so that the block is left in good order."""
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _: FrameType | None) -> Never:
    sys.exit(128 + number)


@contextmanager
def noting() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGTERM or Ctrl-C came since it was last asked, whichever handler took it.

    Dagster's handler forgets what comes within a run and outside its steps. Always says no outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield lambda: _has_come(reader, former)
    finally:
        signal.set_wakeup_fd(former)
        os.close(writer)
        os.close(reader)


def _has_come(reader: int, former: int) -> bool:
    """Read the numbers of signals, and pass them on to whoever noted them before."""
    try:
        numbers = os.read(reader, 4096)
    except BlockingIOError:
        return False
    if former >= 0:
        with suppress(OSError):
            os.write(former, numbers)
    return bool(_STOPS & set(numbers))


@contextmanager
def finishing() -> Iterator[None]:
    """Let SIGTERM wait until the block is over, five seconds at most; then the installed handler does what it does."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[int] = []
    # A second signal, from whomever, is the end of waiting.
    again = threading.Timer(_FINISH_S, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True

    def wait(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            handler(number, frame)
        else:
            again.start()

    signal.signal(signal.SIGTERM, wait)
    try:
        yield
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, handler)
        if len(received) == 1:
            handler(signal.SIGTERM, None)
