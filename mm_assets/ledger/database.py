"""Opening the ledger's database.

Put here: engines, pragmas, the books. Keep out: tables, and what the rows mean.
"""

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from mm_assets.errors import ConfigError
from mm_assets.ledger.catalog import Catalog
from mm_assets.ledger.comparing import ComparingBook
from mm_assets.ledger.creating import create_tables
from mm_assets.ledger.dead import DeadBook
from mm_assets.ledger.inbox import Inbox
from mm_assets.ledger.keys import KeyBook
from mm_assets.ledger.locks import LockBook
from mm_assets.ledger.meters import MeterBook
from mm_assets.ledger.objects import ObjectBook
from mm_assets.ledger.removals import RemovalBook
from mm_assets.ledger.restoring import RestoringBook
from mm_assets.ledger.tables import FACTS
from mm_assets.ledger.tasks import TaskBook
from mm_assets.ledger.transactions import LedgerPool, LedgerUnavailableError, insert_into, retried, translate_errors
from mm_assets.ledger.urls import show_url
from mm_assets.ledger.watches import WatchBook
from mm_assets.ledger.work import WorkBook

_BUSY_TIMEOUT_S = 60
_CONNECT_WITHIN_S = 10  # the driver's own patience has no end
# Ids are random, so that a page of a listing touches as many pages of the file: written back for every 32 MiB of them, a
# million objects take half the time (2026-11).
_BULK_PRAGMAS = ("cache_size=-16384", "wal_autocheckpoint=8000")
_LAKE_ID = select(FACTS.c.value).where(FACTS.c.name == "lake_id")


class Ledger:
    """One database with its books.

    Parameters
    ----------
    url : SQLAlchemy URL, ``sqlite:///file`` or ``postgresql+psycopg2://…``

    Attributes
    ----------
    objects : object versions, listings, deletions
    work : what is wanted, claimed, done and dead
    catalog : published recipes, generations, shard files
    locks : who lists and who publishes
    inbox : events that wait
    meters : counters of all processes
    dead : dead letters
    removals : versions that leave
    restoring : filling an empty ledger again
    comparing : long reads in the order of listings
    tasks : cancelling the work on single versions
    keys : who may ask the server for what
    watches : standing queries, their matches, and what of them was told

    Raises
    ------
    ConfigError
        The database cannot be opened; names the setting.
    LedgerUnavailableError
        The server does not answer; so do all methods of all books, and each can be repeated as it was.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
        except (ArgumentError, ValueError):  # whose message may hold the password
            msg = "`ledger_url` cannot be read; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
            raise ConfigError(msg) from None
        self._engine = _create_engine(url)
        try:
            create_tables(self._engine)
        except (SQLAlchemyError, LedgerUnavailableError) as error:
            if isinstance(error, LedgerUnavailableError) and not self._is_file:
                raise
            msg = f"the ledger at {self.shown_url} cannot be opened ({error.__cause__ or error}); check `ledger_url` and `state`"
            raise ConfigError(msg) from error
        self.objects = ObjectBook(self._engine)
        self.work = WorkBook(self._engine)
        self.catalog = Catalog(self._engine)
        self.locks = LockBook(self._engine)
        self.inbox = Inbox(self._engine)
        self.meters = MeterBook(self._engine)
        self.dead = DeadBook(self._engine)
        self.removals = RemovalBook(self._engine)
        self.restoring = RestoringBook(self._engine)
        self.comparing = ComparingBook(self._engine)
        self.tasks = TaskBook(self._engine)
        self.keys = KeyBook(self._engine)
        self.watches = WatchBook(self._engine)

    @property
    def shown_url(self) -> str:
        """The URL for people, without its secrets."""
        return show_url(self.url)

    @property
    def _is_file(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Release all connections."""
        self._engine.dispose()

    def bound_lake(self) -> str | None:
        """Return the id of the lake that this ledger belongs to; None before its first use."""
        with self._engine.execution_options(mm_reads=True).connect() as connection:
            return connection.scalar(_LAKE_ID)

    @retried
    def bind_lake(self, lake_id: str | None = None) -> str:
        """Remember the lake at first use; refuse another one later, since 'done' would then be untrue.

        Parameters
        ----------
        lake_id : None for a lake without one: of many processes that begin at once, the first to get here names it

        Returns
        -------
        The lake's id.
        """
        known = self.bound_lake()
        if known is None:
            with self._engine.begin() as connection:
                first = insert_into(connection, FACTS).values(name="lake_id", value=lake_id or uuid.uuid4().hex)
                connection.execute(first.on_conflict_do_nothing())
                known = str(connection.scalar(_LAKE_ID))
        if lake_id not in {None, known}:
            msg = f"this ledger belongs to lake {known}, but `lake.uri` leads to {lake_id}; use another `state`"
            raise ConfigError(msg)
        return known

    def check(self) -> str:
        """Say which database answers, and its version; reads a table and waits for no writer."""
        name, version = ("SQLite", func.sqlite_version()) if self._is_file else ("PostgreSQL", func.version())
        n_facts = select(func.count()).select_from(FACTS).scalar_subquery()
        with self._engine.execution_options(mm_reads=True).connect() as connection:
            return f"{name} {connection.execute(select(version, n_facts)).one()[0]}"


def _create_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_pre_ping=True, poolclass=LedgerPool, **_driver_options(parsed))
    else:
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        pool = {"poolclass": LedgerPool} if parsed.database and parsed.database != ":memory:" else {}
        engine = create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False}, **pool)
        event.listen(engine, "connect", _prepare_sqlite)
        if pool:
            _refuse_lost_file(engine, Path(parsed.database or ""))
        event.listen(engine, "begin", _begin_immediate)
    translate_errors(engine)
    return engine


def _driver_options(url: URL) -> dict[str, Any]:
    if url.get_driver_name() != "psycopg2":
        return {}
    connecting = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_WITHIN_S}
    # Without the mode, the driver sends the rows of one statement one by one and waits for each.
    return {"executemany_mode": "values_plus_batch", "connect_args": connecting}


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own
    pragmas = ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_S * 1000}", *_BULK_PRAGMAS)
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def _refuse_lost_file(engine: Engine, path: Path) -> None:
    """Take no connection once the file was removed or replaced: what it is told would be lost with it."""
    opened: list[tuple[int, int] | None] = []

    def remember(*_: Any) -> None:
        if not opened:
            opened.append(_identify(path))

    def compare(*_: Any) -> None:
        if opened and _identify(path) != opened[0]:
            msg = f"the ledger's file {path} was removed or replaced; stop this process and start it again"
            raise LedgerUnavailableError(msg)

    event.listen(engine, "connect", remember)
    event.listen(engine, "do_connect", compare)  # or SQLite would make an empty file
    event.listen(engine, "checkout", compare)


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _begin_immediate(connection: Connection) -> None:
    """Writers take the lock first, since a reader that becomes one would fail without waiting; readers take none."""
    reads = connection.get_execution_options().get("mm_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
