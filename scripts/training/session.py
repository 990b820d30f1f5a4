"""One training run: its length, its progress lines, its checkpoints, and the end by Ctrl-C.

Put here: what the loops of all models share.
Keep out: models, data, losses (each trainer's own modules).
"""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from training.archives import write_whole

INTERRUPTED = 130
"""Exit status of a program that was stopped by Ctrl-C."""
REPORT_EVERY_S = 60.0
"""CPU seconds between two progress lines, each of which comes with a checkpoint."""
_NO_STEPS = "the run has ended before its first step: give more --minutes or --steps"


class Learner(Protocol):
    """A model in training."""

    name: str

    def step(self, progress: float) -> Mapping[str, float]:
        """Take one step of the optimiser at this share of the run, 0…1, and give the losses."""

    def evaluate(self) -> Mapping[str, float]:
        """Measure on data that training does not see."""

    def state(self) -> dict[str, Any]:
        """Give all that `restore` needs to go on; a pool of earlier pictures may fill anew."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`."""

    def export(self, folder: Path) -> list[Path]:
        """Write the files of the pack into the folder."""


@dataclass(slots=True)
class Budget:
    """The length of a run: CPU minutes of this process, or a number of steps, which makes it repeatable exactly."""

    minutes: float
    steps: int | None = None
    n_done: int = 0
    _spent_s: float = 0.0
    _started_s: float = field(default_factory=time.process_time)

    @property
    def spent_s(self) -> float:
        """CPU seconds of all parts of the run so far."""
        return self._spent_s + time.process_time() - self._started_s

    @property
    def progress(self) -> float:
        """Share of the run that is over, 0…1."""
        done = self.n_done / self.steps if self.steps is not None else self.spent_s / (60 * self.minutes)
        return min(1.0, done)

    def restore(self, n_done: int, spent_s: float) -> None:
        """Go on where an earlier process has stopped."""
        self.n_done, self._spent_s, self._started_s = n_done, spent_s, time.process_time()


def cosine(progress: float, floor: float = 0.02) -> float:
    """Give the share of the learning rate at this point of the run: from 1 down to `floor` along half a cosine."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def group_by_decay(parameters: list[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Give the parameters as two groups: weights decay, biases and scales do not."""
    weights = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def run_session(learner: Learner, budget: Budget, folder: Path, *, is_resumed: bool = False) -> int:
    """Train to the end of the budget, or to Ctrl-C, and write the model's files.

    The first Ctrl-C ends the run after the step that is under way: a checkpoint and the files are written, and
    `is_resumed` goes on from there. A second one ends the program at once; the last checkpoint stays whole.

    Returns
    -------
    Exit status: 0, or 130 when the run was interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{learner.name}.checkpoint"
    if is_resumed:
        load_checkpoint(checkpoint, learner, budget)
    elif checkpoint.exists():
        sys.exit(f"{checkpoint} is there already: go on with --resume, or remove it")
    with stopping_on_interrupt() as interrupts:
        _train(learner, budget, checkpoint, interrupts)
    files = learner.export(folder)
    print(
        f"{learner.name}: {'stopped' if interrupts else 'done'}, wrote {', '.join(f.name for f in files)}", flush=True
    )
    return INTERRUPTED if interrupts else 0


def _train(learner: Learner, budget: Budget, checkpoint: Path, interrupts: list[int]) -> None:
    report_at_s = budget.spent_s + REPORT_EVERY_S
    losses: Mapping[str, float] | None = None
    while budget.progress < 1 and not interrupts:
        losses = learner.step(budget.progress)
        budget.n_done += 1
        if budget.spent_s >= report_at_s:
            _report(learner, budget, losses)
            save_checkpoint(checkpoint, learner, budget)
            report_at_s = budget.spent_s + REPORT_EVERY_S
    if budget.n_done == 0:
        sys.exit(_NO_STEPS)
    save_checkpoint(checkpoint, learner, budget)
    if losses is not None and not interrupts:
        _report(learner, budget, losses)


def _report(learner: Learner, budget: Budget, losses: Mapping[str, float]) -> None:
    """Print one line of JSON."""
    head = {"model": learner.name, "step": budget.n_done, "cpu_s": round(budget.spent_s)}
    figures = {name: round(float(value), 4) for name, value in {**losses, **learner.evaluate()}.items()}
    print(json.dumps({**head, "progress_frac": round(budget.progress, 3), **figures}), flush=True)


def save_checkpoint(path: Path, learner: Learner, budget: Budget) -> None:
    """Write a checkpoint; a kill leaves the one before."""
    record = {"n_done": budget.n_done, "spent_s": budget.spent_s, "learner": learner.state()}
    with write_whole(path) as part:
        torch.save(record, part)


def load_checkpoint(path: Path, learner: Learner, budget: Budget) -> None:
    """Read what `save_checkpoint` wrote; ends the program when there is nothing to go on with."""
    if not path.is_file():
        sys.exit(f"{path} does not exist: nothing to resume")
    record = torch.load(path, weights_only=True)
    learner.restore(record["learner"])
    budget.restore(record["n_done"], record["spent_s"])


@contextmanager
def stopping_on_interrupt() -> Iterator[list[int]]:
    """Give a list that the first Ctrl-C fills; the second one raises KeyboardInterrupt as ever."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
