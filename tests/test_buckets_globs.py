"""Which keys a glob takes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_assets.buckets.base import StoredObject
from mm_assets.buckets.globs import Glob, is_folder_marker, is_selected


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        ("**", ["a", "a//b", "/a", "a\nb", ""], []),
        ("*", ["a", "a.b", ""], ["a/b"]),
        ("**/*.mp4", ["a.mp4", "x/a.mp4", "x/y/.mp4", "/a.mp4"], ["a.MP4", "a.mp4/x", "amp4"]),
        ("photos/**", ["photos/", "photos/a/b"], ["photos", "photosx/a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b", "a//b"], ["ab", "a/xb", "a/b/c"]),
        ("a**b", ["ab", "a/x/b"], ["ab/"]),
        ("a?c", ["abc", "a\u00e9c"], ["a/c", "ac", "ae\u0301c"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x", "x"]),
        ("[!a-c]x", ["dx", "-x"], ["ax", "/x"]),
        ("[]a]x", ["]x", "ax"], ["[x"]),
        ("[a-]x", ["-x", "ax"], ["bx"]),
        ("x[*]y", ["x*y"], ["xzy"]),
        ("[ab", ["[ab"], ["a"]),
        ("a.b+(c)|d", ["a.b+(c)|d"], ["axb+(c)|d", "a.bb(c)"]),
        ("\\w", ["\\w"], ["a"]),
    ],
)
def test_glob_takes_what_its_words_say(pattern: str, taken: list[str], left: list[str]) -> None:
    """``*`` and ``?`` stay in a segment, ``**`` crosses, brackets choose, everything else is itself, case included."""
    glob = Glob(pattern)
    assert [key for key in taken if not glob.matches(key)] == []
    assert [key for key in left if glob.matches(key)] == []


def test_exclude_wins_over_include() -> None:
    """A key is selected by any include and no exclude; without an include nothing is."""
    assert is_selected("a/b.mp4", ["x", "**/*.mp4"], ["c/**"])
    assert not is_selected("c/b.mp4", ["**/*.mp4"], ["c/**"])
    assert not is_selected("a", [])


def test_folder_marker_is_an_empty_key_with_a_slash() -> None:
    """Only the empty object ending in '/' is a marker."""
    now = StoredObject("a/", "e", 0, None)  # type: ignore[arg-type]
    assert is_folder_marker(now)
    assert not is_folder_marker(StoredObject("a/", "e", 1, now.modified_at))
    assert not is_folder_marker(StoredObject("a", "e", 0, now.modified_at))


def matches_slowly(pattern: str, key: str, at: int = 0, cut: int = 0) -> bool:
    """Say by plain recursion whether ``pattern[at:]`` takes ``key[cut:]``."""
    if at == len(pattern):
        return cut == len(key)
    ends = range(cut, len(key) + 1)
    stars = len(pattern[at:]) - len(pattern[at:].lstrip("*"))
    if stars == 0:
        is_taken = cut < len(key) and (key[cut] != "/" if pattern[at] == "?" else key[cut] == pattern[at])
        return is_taken and matches_slowly(pattern, key, at + 1, cut + 1)
    if stars == 1:
        return any(matches_slowly(pattern, key, at + 1, end) for end in ends if "/" not in key[cut:end])
    after = at + stars
    if pattern[after : after + 1] == "/" and pattern[at - 1 : at] in ("", "/"):
        return any(matches_slowly(pattern, key, after + 1, end) for end in ends if end == cut or key[end - 1] == "/")
    return any(matches_slowly(pattern, key, after, end) for end in ends)


@given(
    st.lists(st.sampled_from(["a", "b", "/", "?", "*", "**", "**/"]), max_size=8).map("".join),
    st.text("ab/", max_size=9),
)
def test_glob_agrees_with_a_slow_reference(pattern: str, key: str) -> None:
    """The automaton and a recursive definition take the same keys."""
    assert Glob(pattern).matches(key) == matches_slowly(pattern, key)


@given(st.text(), st.text())
def test_glob_never_fails(pattern: str, key: str) -> None:
    """Any text is a pattern, and a text without wild cards takes itself alone."""
    Glob(pattern).matches(key)
    if not set(pattern) & set("*?["):
        assert Glob(pattern).matches(key) == (pattern == key)


@pytest.mark.parametrize("pattern", ["*a" * 30 + "*b", "**/" * 30 + "*b", "**a" * 30 + "b", "*a" + "?" * 40])
def test_glob_is_fast_on_hostile_keys(pattern: str) -> None:
    """What takes a backtracking matcher for ever takes milliseconds here; 50 of the longest keys within seconds."""
    started = time.process_time()
    for number in range(50):
        Glob(pattern).matches(f"{number}" + "a" * 500 + "/a" * 250)
    assert time.process_time() - started < 8
