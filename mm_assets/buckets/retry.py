"""Try again where another attempt may mend it, not sooner than the server asks and not for ever.

boto3's own attempts ignore the standard ``Retry-After`` header and are over in a fraction of a second, so clients are
built with one attempt and this is the only retry on the way to a store.

Put here: when to try again. Keep out: which failure is worth it (the store translates its errors).
"""

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from mm_assets.errors import ServiceError

T = TypeVar("T")


class TransientError(ServiceError):
    """A failure that another attempt may mend.

    Parameters
    ----------
    message : what was tried and what came back
    retry_after_s : seconds that the server asked to wait; 0 when it did not
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RetriesExhaustedError(ServiceError):
    """The service kept failing for the whole budget; work that needs it is put off, no object is to blame."""


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with full jitter, within a budget of time.

    Attributes
    ----------
    budget_s : seconds from the first failure to giving up; a long download that breaks late still gets a second try
    base_s, ceiling_s : the n-th wait is drawn from 0 … min(ceiling_s, base_s · 2ⁿ)
    clock, sleep, draw : replaced by tests; ``draw(low, high)`` returns a number between both

    References
    ----------
    Full jitter: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    budget_s: float = 300.0
    base_s: float = 0.5
    ceiling_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[float, float], float] = random.uniform

    def run(self, attempt: Callable[[], T]) -> T:
        """Return what ``attempt`` returns, trying again on TransientError; raises RetriesExhaustedError."""
        give_up_at: float | None = None
        for n_failed in itertools.count():
            try:
                return attempt()
            except TransientError as error:
                now = self.clock()
                give_up_at = now + self.budget_s if give_up_at is None else give_up_at
                wait_s = max(error.retry_after_s, self._backoff_s(n_failed))
                if now + wait_s > give_up_at:
                    raise self._exhausted(error, n_failed + 1) from error
            self.sleep(wait_s)
        raise AssertionError  # the count never ends

    def _backoff_s(self, n_failed: int) -> float:
        # Beyond 2**20 the ceiling holds anyway, and the power would outgrow a float.
        return self.draw(0.0, min(self.ceiling_s, self.base_s * 2 ** min(n_failed, 20)))

    def _exhausted(self, error: TransientError, n_attempts: int) -> RetriesExhaustedError:
        msg = f"{error} (gave up after {n_attempts} attempts within {self.budget_s:.0f} s; a later run tries again)"
        return RetriesExhaustedError(msg)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float:
    """Return the seconds that a ``Retry-After`` header asks for: a number or an HTTP date; 0 when it cannot be read."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (OverflowError, ValueError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
