"""The ledger: what is known, wanted, claimed, tried, done and dead, in one SQL database.

Put here: transactions on SQLite or PostgreSQL through SQLAlchemy Core. Keep out: buckets, files, models. One
transaction moves a cursor and its rows together; the whole can be filled again from sources and lake.
"""

from mm_assets.ledger.catalog import Catalog, ShardFile
from mm_assets.ledger.database import Ledger
from mm_assets.ledger.objects import KnownObject, ObjectBook, PageDelta, SeenObject
from mm_assets.ledger.work import Batch, Claim, Finished, WorkBook

__all__ = [
    "Batch",
    "Catalog",
    "Claim",
    "Finished",
    "KnownObject",
    "Ledger",
    "ObjectBook",
    "PageDelta",
    "SeenObject",
    "ShardFile",
    "WorkBook",
]
