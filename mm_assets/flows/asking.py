"""Asking a store many things at once, and not waiting longer than there is time.

Put here: threads between a flow and a store. Keep out: what is asked, and what the answers mean.

A store bears failures of its service for minutes; a tick of a sensor has forty seconds. So a flow waits for answers, not
for threads: those are daemons, and what they did not bring in time is asked again by a later call.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

from mm_assets.errors import ServiceError

Q = TypeVar("Q")
A = TypeVar("A")
_THREADS = 8


class LateError(ServiceError):
    """A store was asked and did not answer in time; another call may fare better."""

    def __init__(self) -> None:
        super().__init__("the store did not answer in the time of this call; a later one asks again")


def answers(
    ask: Callable[[Q], A], questions: Sequence[Q], *, ends_at: float, n_threads: int = _THREADS
) -> Iterator[tuple[Q, A | Exception]]:
    """Yield each question with its answer, or with the error it raised, in the order in which they arrive.

    Parameters
    ----------
    ends_at : by ``time.monotonic``; what is under way then is given LateError, what was not begun is left out
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    given: SimpleQueue[tuple[int, A | Exception]] = SimpleQueue()
    under_way: set[int] = set()
    is_over = threading.Event()
    for number in range(len(questions)):
        waiting.put(number)

    def work() -> None:
        while not is_over.is_set():
            try:
                number = waiting.get_nowait()
            except Empty:
                return
            under_way.add(number)
            given.put((number, _answer(ask, questions[number])))

    for _ in range(min(n_threads, len(questions))):
        threading.Thread(target=work, name="asking", daemon=True).start()
    try:
        for _ in questions:
            number, said = given.get(timeout=_left_s(ends_at))
            under_way.discard(number)
            yield questions[number], said
    except Empty:
        is_over.set()
        yield from [(questions[number], LateError()) for number in sorted(under_way)]
    finally:
        is_over.set()


def answer(ask: Callable[[], A], *, ends_at: float) -> A:
    """Return one answer, in time; raises LateError, and what ``ask`` raises."""
    if ends_at == float("inf"):
        return ask()
    for _, said in answers(lambda _: ask(), [None], ends_at=ends_at, n_threads=1):
        if isinstance(said, Exception):
            raise said
        return said
    raise LateError


def _left_s(ends_at: float) -> float | None:
    return None if ends_at == float("inf") else max(0.0, ends_at - time.monotonic())


def _answer(ask: Callable[[Q], A], question: Q) -> A | Exception:
    try:
        return ask(question)
    except Exception as error:  # noqa: BLE001  it is raised, or judged, where it is waited for
        return error
