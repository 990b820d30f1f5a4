"""Speech: words and times of the transcripts against what was spoken when.

Put here: figures of the table transcripts.
Keep out: alignment of words (words).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from world.truth import MediaObject

from evaluation.figures import MAX_WORST, Figure, Row, spread
from evaluation.words import Alignment, align, words_of

WORD_ERROR_TARGET = 0.05


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A true word: its sentence, and the second at which it begins where that is known."""

    text: str
    sentence: int
    onset_s: float | None


@dataclass(frozen=True, slots=True)
class _Heard:
    """An understood word with its own second and that of its utterance; the own one is None where words are not timed."""

    text: str
    utterance_s: float
    onset_s: float | None


@dataclass(frozen=True, slots=True)
class _Hearing:
    """One object: what was said, what was understood, and how they lie beside each other."""

    item: MediaObject
    spoken: list[_Spoken]
    heard: list[_Heard]
    alignment: Alignment


def measure_speech(objects: Sequence[MediaObject], rows: Sequence[Row]) -> list[Figure]:
    """Measure all objects in which somebody speaks, and whatever is understood where nobody does."""
    hearings = [_hear(item, [row for row in rows if row["key"] == item.key]) for item in objects]
    kinds = sorted({hearing.item.media_kind for hearing in hearings if hearing.spoken})
    return [
        _word_error_rate("word_error_rate", hearings, WORD_ERROR_TARGET),
        *(_word_error_rate(f"word_error_rate_{k}", [h for h in hearings if h.item.media_kind == k]) for k in kinds),
        spread("utterance_start_error_s", [error for hearing in hearings for error in _start_errors(hearing)]),
        spread("word_onset_error_s", [error for hearing in hearings for error in _onset_errors(hearing)]),
    ]


def _hear(item: MediaObject, rows: Sequence[Row]) -> _Hearing:
    spoken = [word for number in range(len(item.speech)) for word in _spoken_words(item, number)]
    heard = [word for row in sorted(rows, key=lambda row: row["start_s"]) for word in _heard_words(row)]
    alignment = align([word.text for word in spoken], [word.text for word in heard])
    return _Hearing(item, spoken, heard, alignment)


def _spoken_words(item: MediaObject, number: int) -> list[_Spoken]:
    """Give a sentence's words; the truth knows the onsets of most of them."""
    sentence = item.speech[number]
    texts = words_of(sentence.text)
    timed = [(text, word.start_s) for word in sentence.words for text in words_of(word.word)]
    known = {i: timed[j][1] for i, j in align(texts, [text for text, _ in timed]).pairs}
    return [_Spoken(text, number, known.get(k)) for k, text in enumerate(texts)]


def _heard_words(row: Row) -> list[_Heard]:
    """Give an utterance's words: its text, with the times that lie beside it."""
    texts = words_of(row["text"])
    timed = [(text, word["start_s"]) for word in row["words"] or () for text in words_of(word["text"])]
    known = {i: timed[j][1] for i, j in align(texts, [text for text, _ in timed]).pairs}
    return [_Heard(text, row["start_s"], known.get(k)) for k, text in enumerate(texts)]


def _word_error_rate(name: str, hearings: Sequence[_Hearing], target: float | None = None) -> Figure:
    n_words = sum(len(hearing.spoken) for hearing in hearings)
    n_errors = sum(hearing.alignment.n_errors for hearing in hearings)
    faulty = sorted((h for h in hearings if h.alignment.n_errors), key=lambda h: -h.alignment.n_errors)
    worst = [case for hearing in faulty for case in _faults(hearing)] if target is not None else []
    value = n_errors / n_words if n_words else 0.0
    counts = f"{n_errors} errors in {n_words} words; {len(faulty)} of {len(hearings)} objects have some"
    return Figure(name, value, n_words, counts, target, is_error=True, worst=tuple(worst[:MAX_WORST]))


def _faults(hearing: _Hearing) -> Iterator[str]:
    """Give the stretches between equal words that are not the same."""
    edges = [(-1, -1), *hearing.alignment.pairs, (len(hearing.spoken), len(hearing.heard))]
    for (i, j), (next_i, next_j) in pairwise(edges):
        said = " ".join(word.text for word in hearing.spoken[i + 1 : next_i])
        understood = " ".join(word.text for word in hearing.heard[j + 1 : next_j])
        if said or understood:
            yield f"{hearing.item.key}: said {said!r}, understood {understood!r}"


def _start_errors(hearing: _Hearing) -> Iterator[float]:
    """Compare each sentence's start with that of the utterance in which its first understood word is."""
    seen: set[int] = set()
    for i, j in hearing.alignment.pairs:
        number = hearing.spoken[i].sentence
        if number not in seen:
            seen.add(number)
            yield hearing.heard[j].utterance_s - hearing.item.speech[number].start_s


def _onset_errors(hearing: _Hearing) -> Iterator[float]:
    for i, j in hearing.alignment.pairs:
        told, got = hearing.spoken[i].onset_s, hearing.heard[j].onset_s
        if told is not None and got is not None:
            yield got - told
