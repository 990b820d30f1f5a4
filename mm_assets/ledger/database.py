"""Opening the ledger's database.

Put here: engines, pragmas, creation of tables. Keep out: what the rows mean.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from mm_assets.errors import ConfigError
from mm_assets.ledger.catalog import Catalog
from mm_assets.ledger.objects import ObjectBook
from mm_assets.ledger.tables import FACTS, METADATA
from mm_assets.ledger.work import WorkBook

_BUSY_TIMEOUT_S = 60


class Ledger:
    """One database with its three books.

    Parameters
    ----------
    url : SQLAlchemy URL, ``sqlite:///file`` or ``postgresql+psycopg2://…``

    Attributes
    ----------
    objects : object versions, listings, deletions
    work : what is wanted, claimed, done and dead
    catalog : published recipes, generations, shard files, facts

    Raises
    ------
    ConfigError
        The database cannot be opened; names the setting.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self._engine = _create_engine(url)
        try:
            METADATA.create_all(self._engine)
        except SQLAlchemyError as error:
            msg = f"the ledger at {self.url} cannot be opened ({error.__cause__ or error}); check `ledger_url` and `state`"
            raise ConfigError(msg) from error
        self.objects = ObjectBook(self._engine)
        self.work = WorkBook(self._engine)
        self.catalog = Catalog(self._engine)

    def close(self) -> None:
        """Release all connections."""
        self._engine.dispose()

    def bind_lake(self, lake_id: str) -> None:
        """Remember the lake at first use; refuse another one later, since 'done' would then be untrue."""
        with self._engine.begin() as connection:
            known = connection.scalar(select(FACTS.c.value).where(FACTS.c.name == "lake_id"))
            if known is None:
                connection.execute(FACTS.insert().values(name="lake_id", value=lake_id))
            elif known != lake_id:
                msg = f"this ledger belongs to lake {known}, but `lake.uri` leads to {lake_id}; use another `state`"
                raise ConfigError(msg)

    def check(self) -> str:
        """Say which database answers, and its version."""
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "sqlite":
                return f"SQLite {connection.scalar(select(func.sqlite_version()))}"
            return f"PostgreSQL {connection.scalar(select(func.version()))}"


def _create_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not open transactions of its own
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_S * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    """Writers take the lock first, since a reader that becomes one would fail without waiting; readers take none."""
    reads = connection.get_execution_options().get("mm_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
