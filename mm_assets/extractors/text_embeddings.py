"""text_embeddings: what is said, shown and written as vectors, by the text side of an open_clip model.

Put here: cutting texts into pieces that the model can read, and rows of these. Keep out: which texts there are
(``wording``), loading the model (``clip_models``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import pyarrow as pa

from mm_assets.extractors.base import Extractor
from mm_assets.extractors.clip_models import Vectors, load_clip
from mm_assets.identity import item_id
from mm_assets.wording import SEGMENT_COLUMNS, texts_of


class TextEmbeddingExtractor(Extractor):
    """Unit vectors of texts; a text that is longer than the model reads is cut into pieces of whole words.

    Uses the model of ``visual_embeddings`` unless the pack has a card of its own for this step: any model of open_clip,
    of which only the text side is used. The first ``max_pieces`` of a text are embedded (with the 77 tokens of CLIP
    some 3,000 words); the rest is found by its words alone.
    """

    step = "text_embeddings"
    code_version = "1"
    packages = ("torch", "open_clip")
    takes = frozenset({"scene", "image", "page", "audio"})
    columns = SEGMENT_COLUMNS
    reads = ("segments", "transcripts", "ocr_text")
    model_of = "visual_embeddings"
    defaults: ClassVar[Mapping[str, Any]] = {"precision": "fp32", "max_pieces": 64}

    def gather(self, results: Mapping[str, pa.Table]) -> pa.Table:
        """Return one row for each text, as the text index has them, in ``wording.SCHEMA``."""
        return texts_of(results)

    def _load(self) -> None:
        self._clip = load_clip(self.card, self.place, self.params["precision"])

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Give unit vectors, shape (n, dim), of texts: a query in words."""
        self.load()
        return self._clip.encode_texts(texts, self.place.batch_size, self.card.dim)

    def _extract(self, segments: pa.Table) -> pa.Table:
        cut = [self._cut(text) for text in segments["text"].to_pylist()]
        owners = [row for row, pieces in enumerate(cut) for _ in pieces]
        pieces = [piece for of_text in cut for piece in of_text]
        text_ids = segments["text_id"].to_pylist()
        ids = [item_id(text_ids[row], n) for row, of_text in enumerate(cut) for n in range(len(of_text))]
        flat = pa.array(self.encode_texts(pieces).reshape(-1), pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.card.dim)
        return self._rows(segments, owners, {"piece_id": ids, "text": pieces, "vector": vectors})

    def _cut(self, text: str) -> list[str]:
        pieces = cut_words(text.split(), self._clip.count_tokens, self._clip.max_tokens)
        return list(islice(pieces, self.params["max_pieces"]))


def cut_words(words: Sequence[str], count: Callable[[str], int], most: int) -> Iterator[str]:
    """Yield runs of whole words with at most so many tokens; a longer word is a piece of its own, of which less is read.

    Parameters
    ----------
    count : tokens of a word; those of a run are taken for their sum, as CLIP's are
    """
    run: list[str] = []
    n_tokens = 0
    for word in words:
        n = count(word)
        if run and n_tokens + n > most:
            yield " ".join(run)
            run, n_tokens = [], 0
        run.append(word)
        n_tokens += n
    if run:
        yield " ".join(run)
