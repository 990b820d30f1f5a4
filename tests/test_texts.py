"""The text index: what is a word, what is found, filters, replacing, damage."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_assets.errors import ConfigError, SchemaError
from mm_assets.texts import (
    MOST_WORDS,
    Text,
    TextIndex,
    extend_texts,
    mark_words,
    parse_question,
    places_of,
    update_texts,
    words_of,
)

TEXTS = [
    Text(1, 0, "said", "The red car stops here."),
    Text(2, 0, "shown", "A blue car; red house"),
    Text(3, 1, "said", "Ça va très bien, merci"),
    Text(4, 1, "shown", "東京へ行きます"),
    Text(5, 1, "said", "don't stop the music"),
    Text(6, 1, "said", "redder than red"),
]


@pytest.fixture
def index(tmp_path: Path) -> TextIndex:
    """Index six short texts in two groups."""
    assert update_texts(tmp_path, [], TEXTS) == 6
    return TextIndex.open(tmp_path)


def ids_of(index: TextIndex, question: str, **options: object) -> list[int]:
    """Return the ids of the answers, best first."""
    ids: list[int] = index.search(parse_question(question), 10, **options)[1].tolist()  # type: ignore[arg-type]
    return ids


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("red car", {1, 2, 6}),
        ('"red car"', {1}),
        ("RED", {1, 2, 6}),
        ("re*", {1, 2, 6}),
        ("redd*", {6}),
        ("tres", {3}),
        ("ca", {3}),
        ("東京", {4}),
        ("京東", set()),
        ("don't", {5}),
        ('"stop the mu*"', {5}),
        ('bien "red car"', {1}),
        ("kind:said", set()),
        ("music OR nothing", {5}),
        ("-red +car", {1, 2, 6}),
        ('"red', {1, 2, 6}),
    ],
)
def test_search_finds_words_phrases_and_beginnings(index: TextIndex, question: str, expected: set[int]) -> None:
    """Case and accents do not matter, a phrase is needed, and no sign has a meaning of tantivy's own."""
    assert set(ids_of(index, question)) == expected


def test_search_puts_first_what_has_more_of_the_question(index: TextIndex) -> None:
    """Scores fall, and who has both words stands before who has one."""
    scores, ids = index.search(parse_question("red car"), 10)
    assert (np.diff(scores) <= 0).all()
    assert ids.tolist()[-1] == 6


def test_search_filters_by_kind_and_by_ids(index: TextIndex) -> None:
    """Before the best are taken, so that k answers come however few are allowed."""
    assert ids_of(index, "red", kinds=["said"]) == [6, 1]
    assert ids_of(index, "red", allowed=np.array([1, 5, 99])) == [1]
    assert ids_of(index, "red", allowed=np.empty(0, np.int64)) == []
    assert index.search(parse_question("red"), 1, allowed=np.array([2]))[1].tolist() == [2]


def test_a_wide_filter_is_looked_through(tmp_path: Path) -> None:
    """More ids than are named to tantivy: as many answers come, from however far down they are."""
    update_texts(tmp_path, [], (Text(n, 0, "said", "word " * (1 + n % 50)) for n in range(24_000)))
    index, allowed = TextIndex.open(tmp_path), np.arange(12_000, 24_000)
    scores, ids = index.search(parse_question("word"), 500, allowed=allowed)
    everything, of = index.search(parse_question("word"), 24_000)
    expected = everything[np.isin(of, allowed)][:500]
    assert len(ids) == 500
    assert np.isin(ids, allowed).all()
    np.testing.assert_allclose(scores, expected)


def test_update_replaces_groups(tmp_path: Path) -> None:
    """All texts of a group make way for the new ones; other groups stay."""
    update_texts(tmp_path, [], TEXTS)
    assert update_texts(tmp_path, [0], [Text(10, 0, "said", "a new red thing")]) == 5
    index = TextIndex.open(tmp_path)
    assert set(ids_of(index, "red")) == {10, 6}
    assert ids_of(index, "house") == []


def test_extending_counts_words_over_both_and_changes_nothing(tmp_path: Path) -> None:
    """New texts are ranked as if they had been there; the folder is as it was, and a copy is not left behind."""
    old = [Text(n, 0, "said", f"word{n} common") for n in range(50)]
    update_texts(tmp_path / "old", (), old)
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    new = [Text(100, 9, "said", "rare common"), Text(101, 9, "said", "common common")]

    extended = extend_texts(tmp_path / "old", new)

    update_texts(tmp_path / "whole", (), [*old, *new])
    whole = TextIndex.open(tmp_path / "whole")
    for question in ("rare common", "word7 rare"):
        terms = parse_question(question)
        scores, ids = extended.search(terms, 60)
        expected_scores, expected_ids = whole.search(terms, 60)
        assert dict(zip(ids.tolist(), scores.tolist(), strict=True)) == pytest.approx(
            dict(zip(expected_ids.tolist(), expected_scores.tolist(), strict=True))
        )
    assert {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before
    assert extend_texts(None, new).search(parse_question("rare"), 5)[1].tolist() == [100]


def test_an_empty_index_answers_with_nothing(tmp_path: Path) -> None:
    """As before the first word is heard."""
    assert update_texts(tmp_path, [], []) == 0
    assert ids_of(TextIndex.open(tmp_path), "red") == []


@pytest.mark.parametrize("question", ["", "  ", "...", '""', "*", "\x00", "🙂"])
def test_a_question_without_a_word_is_an_error(question: str) -> None:
    """It says what can be asked."""
    with pytest.raises(ConfigError, match="no word in"):
        parse_question(question)


@given(text=st.text(max_size=200))
def test_every_word_of_a_text_finds_it_alone(text: str) -> None:
    """What is indexed and what is asked are taken apart in the same way."""
    words = words_of(text)
    assert all(words_of(word) == [word] for word in words)
    for term in parse_question(text) if words else []:
        assert set(term.words) <= set(words)


def test_a_long_question_is_cut(index: TextIndex) -> None:
    """Ten thousand words cost no more than the first few."""
    assert len(parse_question("red " * 10_000)) == 64
    assert ids_of(index, "red " * 10_000)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_file_is_an_error(tmp_path: Path, share: float) -> None:
    """It does not answer with less."""
    update_texts(tmp_path, [], TEXTS)
    file = tmp_path / "meta.json"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(SchemaError, match="tantivy"):
        TextIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("squar*", [4]),
        ('"red cir*"', [1, 2]),
        ('"red circle" squ*', [1, 2, 4]),
        ("red", [1, 3]),
        ('"red square"', [3, 4]),
        ('"red triangle"', []),
    ],
)
def test_a_word_stands_where_it_begins_and_a_phrase_where_all_of_it_does(question: str, expected: list[int]) -> None:
    """Also over several pieces, and where a piece holds more than one word."""
    pieces = ["A", "Red", "circle;", "a réd", "square."]
    found = places_of(parse_question(question), pieces)
    assert [place for place, words in enumerate(found) if words] == expected


def test_mark_words_shows_the_part_with_most_of_them() -> None:
    """Words are marked as they are written, and what is left out is told by dots."""
    text = f"{'x ' * 200}the Réd car and red cars {'y ' * 200}"
    marked = mark_words(text, parse_question("red car*"))
    assert "the **Réd** **car** and **red** **cars** y" in marked
    assert marked.startswith("…")
    assert marked.endswith("…")
    assert mark_words("short", parse_question("other")) == "short"


def test_beginnings_that_overlap_are_marked_once() -> None:
    """A text of one word is full of them, and a phrase is no longer than a question."""
    assert mark_words("a a a a", parse_question('"a a a"')) == "**a** **a** **a** **a**"
    [term] = parse_question(f'"{"a " * 900}"')
    assert term.words == ("a",) * MOST_WORDS
