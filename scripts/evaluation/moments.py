"""Moments: whether a scene's caption finds the scene.

Put here: figures of search by words.
Keep out: any model; the search is handed in.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

from world.truth import MediaObject, SceneTruth

from evaluation.figures import Figure, share

RECALL_TARGET = 0.9
N_ANSWERS = 5


class Answer(Protocol):
    """Where a search says that something is seen."""

    @property
    def key(self) -> str:
        """Give the key of the object."""

    @property
    def start_s(self) -> float | None:
        """Give the start, None for an image."""

    @property
    def end_s(self) -> float | None:
        """Give the end, None for an image."""


Search: TypeAlias = Callable[[str], Sequence[Answer]]
"""Text → answers, best first."""


def measure_moments(objects: Sequence[MediaObject], search: Search) -> list[Figure]:
    """Ask for each scene by its full caption; an answer is right in the scene's object at a time of the scene."""
    ranks: list[int | None] = []
    worst: list[str] = []
    for item, scene in _captioned(objects):
        answers = list(search(scene.caption))[:N_ANSWERS]
        rank = next((k for k, answer in enumerate(answers, 1) if is_right(answer, item, scene)), None)
        ranks.append(rank)
        if rank != 1:
            worst.append(f"{scene.caption!r} ({item.key}): rank {rank or f'above {N_ANSWERS}'}")
    first = sum(rank == 1 for rank in ranks)
    some = sum(rank is not None for rank in ranks)
    return [
        share("text_to_moment_recall_at_1", first, len(ranks), target=RECALL_TARGET, worst=worst),
        share(f"text_to_moment_recall_at_{N_ANSWERS}", some, len(ranks)),
    ]


def _captioned(objects: Sequence[MediaObject]) -> Iterator[tuple[MediaObject, SceneTruth]]:
    for item in objects:
        for scene in item.scenes:
            if scene.caption:
                yield item, scene


def is_right(answer: Answer, item: MediaObject, scene: SceneTruth) -> bool:
    """Say whether an answer is in the scene's object and more than half of the shorter time is common to both.

    An image has no time. A neighbour that begins one frame early shares a moment with the scene, and is still wrong.
    """
    if answer.key != item.key:
        return False
    if scene.start_s is None or scene.end_s is None or answer.start_s is None or answer.end_s is None:
        return scene.start_s is None and answer.start_s is None
    common_s = min(answer.end_s, scene.end_s) - max(answer.start_s, scene.start_s)
    return common_s > min(answer.end_s - answer.start_s, scene.end_s - scene.start_s) / 2
