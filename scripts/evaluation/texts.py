"""Text on screen and on pages: words read against words written.

Put here: figures of the table ocr_text.
Keep out: where on the picture a word stands; spoken words (speech).
"""

from collections import Counter
from collections.abc import Sequence

from evaluation.figures import Figure, Row, share
from evaluation.views import Rows, View
from evaluation.words import words_of

RECALL_TARGET = 0.9


def measure_texts(views: Sequence[View], rows: Sequence[Row]) -> list[Figure]:
    """Measure frames and pages apart; a word counts as often as it is written, the order does not matter."""
    found_in = Rows(rows)
    frames = [view for view in views if view.kind != "page"]
    pages = [view for view in views if view.kind == "page"]
    return [
        *_measure("ocr_word", frames, found_in, RECALL_TARGET),
        *(_measure("ocr_page_word", pages, found_in, None) if pages else []),
    ]


def _measure(name: str, views: Sequence[View], found_in: Rows, target: float | None) -> list[Figure]:
    n_right = n_true = n_read = 0
    cases: list[tuple[int, str]] = []
    for view in views:
        true = Counter(words_of(" ".join(view.scene.texts)))
        read = Counter(words_of(" ".join(row["text"] for row in found_in.of(view))))
        n_right += (true & read).total()
        n_true += true.total()
        n_read += read.total()
        lost, strange = sorted((true - read).elements()), sorted((read - true).elements())
        if lost or strange:
            cases.append((len(lost) + len(strange), f"{view.place}: lost {lost}, made up {strange}"))
    worst = [text for _, text in sorted(cases, reverse=True)]
    return [
        share(f"{name}_recall", n_right, n_true, target=target, worst=worst),
        share(f"{name}_precision", n_right, n_read),
    ]
