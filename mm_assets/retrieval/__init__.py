"""Questions → ranked moments: ``Retriever`` answers a ``Question``, ``open_tables`` gives DuckDB the published tables."""

from mm_assets.retrieval.questions import Question
from mm_assets.retrieval.retriever import Answer, Models, Retriever
from mm_assets.retrieval.signals import Encoder
from mm_assets.retrieval.tables import NothingPublishedError, open_tables

__all__ = ["Answer", "Encoder", "Models", "NothingPublishedError", "Question", "Retriever", "open_tables"]
