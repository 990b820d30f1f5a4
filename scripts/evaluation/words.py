"""Words: normal form and alignment of what was said or written with what was understood.

Put here: what speech and text on screen have in common.
Keep out: figures (speech, texts).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NUMBERS = dict(enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")))
_SPOKEN = {str(number): word for number, word in _NUMBERS.items()}


def words_of(text: str) -> list[str]:
    """Give the words in lower case without punctuation; numbers up to ten are spelt out."""
    bare = re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))
    return [_SPOKEN.get(word, word) for word in bare]


@dataclass(frozen=True, slots=True)
class Alignment:
    """The cheapest way from true to understood words.

    Attributes
    ----------
    n_errors : words left out, put in or changed
    pairs : (index of the true word, index of the understood word) of equal words
    """

    n_errors: int
    pairs: tuple[tuple[int, int], ...]


def align(true: Sequence[str], said: Sequence[str]) -> Alignment:
    """Align two sequences of words by edit distance (Levenshtein 1966)."""
    costs = _edit_costs(true, said)
    pairs = []
    i, j = len(true), len(said)
    while i and j:
        if true[i - 1] == said[j - 1] and costs[i, j] == costs[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif costs[i, j] == costs[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
        elif costs[i, j] == costs[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return Alignment(int(costs[-1, -1]), tuple(reversed(pairs)))


def _edit_costs(true: Sequence[str], said: Sequence[str]) -> npt.NDArray[np.int64]:
    costs = np.zeros((len(true) + 1, len(said) + 1), np.int64)
    costs[:, 0], costs[0] = np.arange(len(true) + 1), np.arange(len(said) + 1)
    for i, word in enumerate(true, 1):
        for j, other in enumerate(said, 1):
            changed = costs[i - 1, j - 1] + (word != other)
            costs[i, j] = min(changed, costs[i - 1, j] + 1, costs[i, j - 1] + 1)
    return costs
