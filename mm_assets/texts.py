"""Full text over what is said and shown: words → items by BM25 (Robertson and Zaragoza 2009; k1 1.2, b .75), by tantivy.

Put here: building, changing and asking a text index, and marking what was found. Keep out: where the texts come from,
and joining ids back to rows.

A word is a run of letters and digits, without case and accents; each ideograph and kana is a word of its own, so that
phrases work where no spaces are written. Nothing is stemmed: the languages are not known.
"""

import re
import shutil
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mm_assets.errors import ConfigError, SchemaError
from mm_assets.vectors import Floats, Ids

_INDEX = "text index"  # the name in messages
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_PIECE = re.compile(r'"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+)')
_LONGEST_WORD = 64  # what is longer is no word that anybody types
MOST_WORDS = 64  # of a question, and of a phrase; the rest says nothing new
_LISTED_IDS = 10_000  # so few allowed items are named to tantivy; of more, what it finds is looked through
_WRITER_BYTES = 64 << 20
_SNIPPET_CHARS = 160
_MARK = "**"


@dataclass(frozen=True, slots=True)
class Text:
    """One document.

    Attributes
    ----------
    text_id : own 64-bit id of the item
    group : number under which it is replaced together with others, e.g. its shard
    kind : what it is, e.g. ``said`` or ``shown``
    """

    text_id: int
    group: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Term:
    """Words that stand next to each other.

    Attributes
    ----------
    is_needed : an answer has them; otherwise they count where they are
    is_prefix : the last word may go on
    """

    words: tuple[str, ...]
    is_needed: bool = False
    is_prefix: bool = False


def words_of(text: str) -> list[str]:
    """Return the words of a text, as they are indexed and asked for."""
    is_ascii = text.isascii()
    if is_ascii and text.isalnum():  # one word, as most pieces of speech are
        return [text[:_LONGEST_WORD].lower()]
    plain = text.lower() if is_ascii else _without_case_and_accents(text)
    return [word[:_LONGEST_WORD] for word in _WORD.findall(plain)]


def _without_case_and_accents(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFC", "".join(char for char in folded if not unicodedata.combining(char)))


def parse_question(question: str) -> list[Term]:
    """Read ``words``, ``"a phrase"`` (needed) and ``begin*``; any other sign is no word.

    Raises
    ------
    ConfigError
        There is no word in it.
    """
    terms = []
    for match in _PIECE.finditer(question):
        text = match["phrase"] if match["phrase"] is not None else match["word"]
        words = tuple(words_of(text)[:MOST_WORDS])
        if words:
            terms.append(Term(words, match["phrase"] is not None, text.endswith("*")))
    if not terms:
        msg = f'no word in {question[:40]!r}; ask for words, a "phrase in quotes", or begin*'
        raise ConfigError(msg)
    return terms[:MOST_WORDS]


class TextIndex:
    """Texts under 64-bit ids; made by ``open``. Searching is safe from several threads."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._searcher = index.searcher()
        self._kinds = {kind for kind, _ in self._searcher.terms_with_prefix("kind", "")}

    @classmethod
    def open(cls, folder: Path) -> "TextIndex":
        """Open what ``update_texts`` wrote; the files are mapped, which takes milliseconds whatever their size.

        Raises
        ------
        SchemaError
            A file is missing or damaged.
        """
        import tantivy

        try:
            index = tantivy.Index.open(str(folder))
            index.config_reader(reload_policy="manual")
            return cls(index)
        except (ValueError, OSError) as error:
            raise SchemaError(_INDEX, "files of tantivy", str(error).partition("\n")[0]) from error

    @property
    def n_texts(self) -> int:
        """Number of texts that search can find."""
        return int(self._searcher.num_docs)

    def search(
        self, terms: Sequence[Term], k: int, *, kinds: Sequence[str] = (), allowed: Ids | None = None
    ) -> tuple[Floats, Ids]:
        """Return the k best texts.

        Parameters
        ----------
        kinds : only texts of these kinds; all when empty
        allowed : ids to choose from, ascending and unique, known or not; None for all

        Returns
        -------
        score : (m,) BM25, descending; m ≤ k
        text_ids : (m,) int64
        """
        n_texts = self.n_texts
        if k < 1 or n_texts == 0 or (allowed is not None and len(allowed) == 0):
            return np.empty(0, np.float32), np.empty(0, np.int64)
        is_listed = allowed is not None and len(allowed) <= _LISTED_IDS
        query = self._query(terms, kinds, allowed.tolist() if is_listed and allowed is not None else None)
        limit = min(k, n_texts)
        while True:
            score, ids = self._ask(query, limit)
            is_right = np.isin(ids, allowed) if allowed is not None and not is_listed else np.ones(len(ids), bool)
            if is_right.sum() >= k or len(ids) < limit or limit == n_texts:
                return score[is_right][:k], ids[is_right][:k]
            limit = min(4 * limit, n_texts)

    def _ask(self, query: Any, limit: int) -> tuple[Floats, Ids]:
        hits = self._searcher.search(query, limit, count=False).hits
        ids = self._searcher.fast_field_values("text_id", [address for _, address in hits]) if hits else []
        return np.array([score for score, _ in hits], np.float32), np.array(ids, np.uint64).astype(np.int64)

    def _query(self, terms: Sequence[Term], kinds: Sequence[str], ids: list[int] | None) -> Any:
        import tantivy

        schema, occur = self._index.schema, tantivy.Occur
        parts = [(occur.Must if term.is_needed else occur.Should, self._term(term)) for term in terms]
        query = tantivy.Query.boolean_query(parts)
        members = []
        if kinds and not self._kinds <= set(kinds):
            of_kinds = [(occur.Should, tantivy.Query.term_query(schema, "kind", kind)) for kind in kinds]
            members.append(tantivy.Query.boolean_query(of_kinds))
        if ids is not None:
            members.append(tantivy.Query.term_set_query(schema, "text_id", ids))
        for these in members:
            filtered = (occur.Must, tantivy.Query.const_score_query(these, 0.0))
            query = tantivy.Query.boolean_query([(occur.Must, query), filtered])
        return query

    def _term(self, term: Term) -> Any:
        import tantivy

        schema, words = self._index.schema, list[Any](term.words)
        if len(words) == 1 and term.is_prefix:
            return tantivy.Query.regex_query(schema, "words", f"{re.escape(words[0])}.*")
        if len(words) == 1:
            return tantivy.Query.term_query(schema, "words", words[0])
        if term.is_prefix:
            return tantivy.Query.phrase_prefix_query(schema, "words", words)
        return tantivy.Query.phrase_query(schema, "words", words)


def update_texts(folder: Path, groups: Iterable[int], texts: Iterable[Text]) -> int:
    """Put texts into the index in a folder, which may be empty, in place of all those of some groups.

    Returns
    -------
    Number of texts that it holds now.

    Raises
    ------
    OSError
        The disk is full or fails; a retry may help, with a new copy of the folder.
    """
    import tantivy

    folder.mkdir(parents=True, exist_ok=True)
    index = tantivy.Index(_schema(), path=str(folder))
    writer = index.writer(_WRITER_BYTES, 1)
    for group in groups:  # as a query: as a term, tantivy 0.27 takes a number for a signed one, and finds none
        writer.delete_documents_by_query(tantivy.Query.term_query(index.schema, "group", group))
    for text in texts:
        document = tantivy.Document()
        document.add_unsigned("text_id", text.text_id)
        document.add_unsigned("group", text.group)
        document.add_text("kind", text.kind)
        document.add_text("words", " ".join(words_of(text.text)))
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return int(index.searcher().num_docs)


def extend_texts(folder: Path | None, texts: Iterable[Text]) -> TextIndex:
    """Return an index of the texts in a folder and some more; the folder stays as it is.

    Words are counted over all of them, so scores of both compare. Costs what the new texts cost: the files of the old
    ones are linked, where the file system can.
    """
    with TemporaryDirectory(prefix="mm_assets-texts-") as copy:
        for file in folder.iterdir() if folder is not None else ():
            if file.suffix != ".lock":
                _link_or_copy(file, Path(copy) / file.name)
        update_texts(Path(copy), (), texts)
        return TextIndex.open(Path(copy))  # maps the files, which last as long as they are mapped


def _link_or_copy(file: Path, target: Path) -> None:
    """Share a file that is never changed; tantivy replaces its two lists of files, and changes neither in place."""
    try:
        target.hardlink_to(file)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def _schema() -> Any:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("text_id", indexed=True, fast=True)
    builder.add_unsigned_field("group", indexed=True)
    builder.add_text_field("kind", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("words", tokenizer_name="whitespace", index_option="position")
    return builder.build()


def stand_in(words: Sequence[str], terms: Sequence[Term]) -> bool:
    """Whether all terms, needed or not, stand in a text, given as ``words_of`` it; each anywhere in it."""
    return all(any(True for _ in _starts_of(term, words)) for term in terms)


def places_of(terms: Sequence[Term], pieces: Sequence[str]) -> list[set[int]]:
    """Return for each piece of a text which of the terms' words stand in it, as numbers; of a phrase all or none.

    A phrase may go over several pieces.
    """
    words, owners = _words_of_pieces(pieces)
    found, first = [set[int]() for _ in pieces], 0
    for term in terms:
        for start in _starts_of(term, words):
            for word in range(len(term.words)):
                found[owners[start + word]].add(first + word)
        first += len(term.words)
    return found


def _words_of_pieces(pieces: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return all words, and of each the piece that it is in."""
    of_pieces = [words_of(piece) for piece in pieces]
    owners = [place for place, words in enumerate(of_pieces) for _ in words]
    return [word for words in of_pieces for word in words], owners


def _starts_of(term: Term, words: Sequence[str]) -> Iterator[int]:
    """Yield the places in a text where a term begins."""
    n = len(term.words)
    is_open = n == 1 and term.is_prefix
    for start, word in enumerate(words):
        if (is_open or word == term.words[0]) and _stands_at(words[start : start + n], term):
            yield start


def mark_words(text: str, terms: Sequence[Term]) -> str:
    """Return the part of a text with most of the words asked for, each marked ``**so**``; its start without any."""
    found = _asked_in(list(re.finditer(r"\w+", text)), terms) if terms else []
    start = _densest(found)
    start = 0 if start < _SNIPPET_CHARS // 4 else start - _SNIPPET_CHARS // 4
    end = min(len(text), start + _SNIPPET_CHARS)
    marked, at = [], start
    for match in found:
        if start <= match.start() and match.end() <= end:
            marked += [text[at : match.start()], _MARK, match[0], _MARK]
            at = match.end()
    inside = " ".join("".join([*marked, text[at:end]]).split())
    return f"{'…' if start else ''}{inside}{'…' if end < len(text) else ''}"


def _asked_in(runs: Sequence["re.Match[str]"], terms: Sequence[Term]) -> list["re.Match[str]"]:
    """Return the runs of letters that a term asks for, of a phrase only where all of it stands.

    A page of one word has as many beginnings of a phrase as words: each is looked at, and no word noted twice.
    """
    words, owners = _words_of_pieces([run[0] for run in runs])
    asked: set[int] = set()
    for term in terms:
        noted = 0
        for start in _starts_of(term, words):
            end = start + len(term.words)
            asked.update(owners[max(start, noted) : end])
            noted = end
    return [runs[place] for place in sorted(asked)]


def _stands_at(words: Sequence[str], term: Term) -> bool:
    if term.is_prefix:
        return tuple(words[:-1]) == term.words[:-1] and words[-1].startswith(term.words[-1])
    return tuple(words) == term.words


def _densest(found: Sequence["re.Match[str]"]) -> int:
    """Return where the stretch of a snippet's length with most of these begins."""
    starts = [match.start() for match in found]
    counts = [bisect_left(starts, start + _SNIPPET_CHARS // 2) - place for place, start in enumerate(starts)]
    return starts[counts.index(max(counts))] if counts else 0
