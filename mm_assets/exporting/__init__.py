"""A published index → stores of others: ``open_contents`` reads it, and it is written as Parquet, Lance or to Qdrant."""

from mm_assets.exporting.contents import EXPORTED, Contents, open_contents
from mm_assets.exporting.files import write_lance, write_parquet
from mm_assets.exporting.qdrant import Collection, write_qdrant

__all__ = ["EXPORTED", "Collection", "Contents", "open_contents", "write_lance", "write_parquet", "write_qdrant"]
