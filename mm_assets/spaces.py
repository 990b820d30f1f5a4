"""What is searched: the vector spaces and the texts, which tables their items come from, and what their indexes are called.

Put here: names. Keep out: anything that opens a table or an index.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Space:
    """What one index is over.

    Attributes
    ----------
    tables : steps whose tables hold its items; the first one's recipe is the index's
    item_column : column that names an item
    """

    name: str
    tables: tuple[str, ...]
    item_column: str

    @property
    def table(self) -> str:
        """The table that holds the vectors."""
        return self.tables[0]

    @property
    def generation_name(self) -> str:
        """Name of its index among the generations."""
        return f"indexes/{self.name}"


SPACES: Mapping[str, Space] = {
    "visual": Space("visual", ("visual_embeddings",), "segment_id"),
    "face": Space("face", ("faces",), "face_id"),
    "text": Space("text", ("text_embeddings",), "piece_id"),
}
WORDS = Space("words", ("transcripts", "ocr_text", "segments"), "text_id")
ALL_SPACES = (*SPACES.values(), WORDS)
