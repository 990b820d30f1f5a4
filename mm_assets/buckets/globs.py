"""Which keys are wanted: include and exclude globs on raw keys.

``*`` and ``?`` stay within one ``/``-separated segment, ``**`` crosses segments, ``**/`` at the start of a segment also
stands for nothing (``**/*.mp4`` takes ``a.mp4``), ``[a-z]`` and ``[!a-z]`` take one character that is no ``/``.
Case-sensitive; a literal ``*``, ``?`` or ``[`` is written ``[*]``, ``[?]``, ``[[]``.

Put here: selection by key. Keep out: regular expressions from users, whose backtracking a hostile key makes endless.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mm_assets.buckets.base import StoredObject

_MAX_CACHED_STEPS = 20_000
# A "[" that is never closed is a plain character; a "]" directly after "[" or "[!" is a member.
_PARTS = re.compile(
    r"(?P<folders>(?:\A|(?<=/))\*\*+/)|(?P<all>\*\*+)|(?P<segment>\*)|(?P<one>\?)"
    r"|\[(?P<negated>!?)(?P<members>\][^\]]*|[^\]]+)\]|(?P<char>.)",
    re.DOTALL,
)
_MEMBERS = re.compile(r"(.)-(.)|(.)", re.DOTALL)


def is_selected(key: str, include: Sequence[str], exclude: Sequence[str] = ()) -> bool:
    """Return whether any glob of ``include`` and none of ``exclude`` matches the whole key."""
    wanted = any(compile_glob(pattern).matches(key) for pattern in include)
    return wanted and not any(compile_glob(pattern).matches(key) for pattern in exclude)


def is_folder_marker(stored: StoredObject) -> bool:
    """Return whether this is the empty object by which consoles show a folder; it holds nothing to process."""
    return stored.size_bytes == 0 and stored.key.endswith("/")


@dataclass(frozen=True, slots=True)
class _Token:
    """A place in a pattern: which characters it takes, and where the automaton stands then.

    Attributes
    ----------
    repeats : taking a character stays at this place
    jumps : how many places ahead can be reached without a character
    """

    takes: Callable[[str], bool]
    repeats: bool = False
    jumps: tuple[int, ...] = ()


class Glob:
    """One glob, matched by an automaton whose steps are computed when first needed (as in RE2).

    The places reached in the pattern are a bit mask, and each character of a key is looked at once: no key can make
    a match slow, and no pattern can make the cache large.
    """

    def __init__(self, pattern: str) -> None:
        self._tokens = [token for part in _PARTS.finditer(pattern) for token in _to_tokens(part)]
        self._start = self._follow_jumps(1)
        self._end = 1 << len(self._tokens)
        self._steps: dict[tuple[int, str], int] = {}

    def matches(self, key: str) -> bool:
        """Return whether the whole key matches; linear in its length."""
        reached = self._start
        for char in key:
            step = self._steps.get((reached, char))
            reached = self._step(reached, char) if step is None else step
        return bool(reached & self._end)

    def _step(self, reached: int, char: str) -> int:
        moved = 0
        for place, token in enumerate(self._tokens):
            if reached >> place & 1 and token.takes(char):
                moved |= 1 << (place if token.repeats else place + 1)
        if len(self._steps) >= _MAX_CACHED_STEPS:
            self._steps.clear()
        return self._steps.setdefault((reached, char), self._follow_jumps(moved))

    def _follow_jumps(self, reached: int) -> int:
        for place, token in enumerate(self._tokens):
            if reached >> place & 1:
                for jump in token.jumps:
                    reached |= 1 << (place + jump)
        return reached


@lru_cache(maxsize=1_024)
def compile_glob(pattern: str) -> Glob:
    """Return the automaton of a glob."""
    return Glob(pattern)


def _to_tokens(part: re.Match[str]) -> list[_Token]:
    every = _Token(lambda _: True, repeats=True, jumps=(1,))
    if part["folders"]:  # nothing at all, or anything that ends in "/"
        return [_Token(lambda _: False, jumps=(1, 3)), every, _Token("/".__eq__)]
    if part["all"]:
        return [every]
    if part["segment"]:
        return [_Token("/".__ne__, repeats=True, jumps=(1,))]
    if part["one"]:
        return [_Token("/".__ne__)]
    if part["members"]:
        return [_Token(_one_of(part["members"], is_negated=bool(part["negated"])))]
    return [_Token(part["char"].__eq__)]


def _one_of(members: str, *, is_negated: bool) -> Callable[[str], bool]:
    ranges = [(low or one, high or one) for low, high, one in _MEMBERS.findall(members)]
    return lambda char: char != "/" and any(low <= char <= high for low, high in ranges) != is_negated
