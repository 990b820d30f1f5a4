"""Looking at single objects: what HEAD says of keys that an event named or a listing missed.

Put here: HEADs and what they mean for one source; its pause when a daily cap is used up. Keep out: what is then written.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mm_assets.buckets.base import BreakerOpenError, DailyCapError, ObjectNotFoundError
from mm_assets.flows.asking import answers
from mm_assets.flows.selecting import Selection
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import SeenObject

_JITTER_S = 600.0  # not everybody comes back in the first second of a new day


@dataclass(slots=True)
class Looked:
    """What HEAD said; keys that stand nowhere here were not reached in time.

    Attributes
    ----------
    there : key → the version that is there and ours to process
    absent : keys without an object, or with one that the settings leave out
    failed : key → what came instead of an answer
    stopped_by : a cap or an open breaker, after which no further key was asked for
    """

    there: dict[str, SeenObject] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)
    stopped_by: BreakerOpenError | DailyCapError | None = None

    @property
    def answered(self) -> set[str]:
        """The keys that stand somewhere here."""
        return {*self.there, *self.absent, *self.failed}


def look(workspace: Workspace, alias: str, keys: Sequence[str], *, ends_at: float) -> Looked:
    """Ask for each key, eight at a time, until the time (by ``time.monotonic``) is over; keys are distinct."""
    looked, selection = Looked(), Selection.of(workspace, alias)
    for key, said in answers(workspace.sources[alias].head, keys, ends_at=ends_at):
        if isinstance(said, BreakerOpenError | DailyCapError):
            looked.stopped_by = said
            break
        if isinstance(said, ObjectNotFoundError):
            looked.absent.append(key)
        elif isinstance(said, Exception):  # an unexpected one, too: one key does not hold up the others
            looked.failed[key] = said
        elif seen := selection.pick([said]).seen:
            looked.there[key] = seen[0]
        else:
            looked.absent.append(key)
    return looked


def pause(workspace: Workspace, alias: str, cap: DailyCapError) -> float:
    """Leave a source alone until its cap is lifted; returns when that is, in seconds since the epoch."""
    until = cap.resets_at + random.uniform(0.0, _JITTER_S)  # noqa: S311  no secret is made of it
    workspace.ledger.objects.pause(alias, until, str(cap))
    return until
