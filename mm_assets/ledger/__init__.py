"""The ledger: what is known, wanted, claimed, tried, done and dead, in one SQL database.

Put here: transactions on SQLite or PostgreSQL through SQLAlchemy Core. Keep out: buckets, files, models. One
transaction moves a cursor and its rows together; the whole can be filled again from sources and lake.
"""

from mm_assets.ledger.batches import Batch
from mm_assets.ledger.catalog import PUBLISH_LOCK, Catalog, ShardFile
from mm_assets.ledger.database import Ledger
from mm_assets.ledger.objects import ObjectBook, Refusal
from mm_assets.ledger.scans import LostCursorError, Scan
from mm_assets.ledger.tables import FORBIDDEN, NO_INPUT, SEGMENTS_DEAD, WAITS_FOR_INPUT
from mm_assets.ledger.transactions import LedgerUnavailableError
from mm_assets.ledger.versions import KnownObject, PageDelta, SeenObject
from mm_assets.ledger.watches import KnownMatch, Match, Watch
from mm_assets.ledger.work import Claim, Finished, WorkBook

__all__ = [
    "FORBIDDEN",
    "NO_INPUT",
    "PUBLISH_LOCK",
    "SEGMENTS_DEAD",
    "WAITS_FOR_INPUT",
    "Batch",
    "Catalog",
    "Claim",
    "Finished",
    "KnownMatch",
    "KnownObject",
    "Ledger",
    "LedgerUnavailableError",
    "LostCursorError",
    "Match",
    "ObjectBook",
    "PageDelta",
    "Refusal",
    "Scan",
    "SeenObject",
    "ShardFile",
    "Watch",
    "WorkBook",
]
