"""What every transaction on the ledger shares: faults of the database, deadlocks, and what two dialects spell differently.

Put here: how errors of the driver become ours, tries after a deadlock, taking turns, ON CONFLICT. Keep out: the rows.
"""

import random
import time
import zlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from sqlalchemy import Engine, Table, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.ledger.urls import show_url

_P = ParamSpec("_P")
_R = TypeVar("_R")
# PostgreSQL's codes for "another transaction was in the way": serialization failure, deadlock.
_COLLISIONS = frozenset({"40001", "40P01"})
_READ_ONLY = "25006"  # PostgreSQL's: the server is a standby, or was made read-only
_WAITS_S = (0.02, 0.1, 0.5, 2.0)
# SQLite's names, as they begin, for what another try may mend, and for what none will.
_PASSING = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_PROTOCOL",
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
    "SQLITE_NOMEM",
)
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class LedgerUnavailableError(ServiceError):
    """The database does not answer or did not say whether it committed; every call can be repeated as it was."""


class CollisionError(LedgerUnavailableError):
    """Two transactions waited for each other and this one was undone."""


class LedgerPool(QueuePool):
    """Connections that threads share; that all are in use for long is no error of a driver, so it is translated here."""

    def connect(self) -> PoolProxiedConnection:
        """Lend a connection; raises LedgerUnavailableError."""
        try:
            return super().connect()
        except PoolTimeoutError as error:
            msg = f"all connections to the ledger are in use ({error}); nothing is lost, a retry helps"
            raise LedgerUnavailableError(msg) from error


def translate_errors(engine: Engine) -> None:
    """Make faults of the database ours, for all books: ServiceError where a retry helps, ConfigError for damage."""
    event.listen(engine, "handle_error", _translate)


def _translate(context: ExceptionContext) -> None:
    if context.is_pre_ping:
        return  # the pool looks for another connection by itself
    error = context.original_exception
    place = show_url(context.engine.url) if context.engine is not None else "the ledger"
    said = str(error).strip().partition("\n")[0]
    if getattr(error, "pgcode", None) in _COLLISIONS:
        msg = f"the ledger at {place} undid a transaction that collided with another ({said}); a retry helps"
        raise CollisionError(msg) from error
    if str(getattr(error, "sqlite_errorname", "")).startswith(_DAMAGED):
        msg = f"the ledger at {place} is damaged ({said}); move it away and run `mm rebuild-ledger`: nothing is computed again"
        raise ConfigError(msg) from error
    if _may_pass(context):
        msg = (
            f"the ledger at {place} does not answer ({said}); nothing is lost, a retry helps; `ledger_url` leads there"
        )
        raise LedgerUnavailableError(msg) from error


def _may_pass(context: ExceptionContext) -> bool:
    if context.dialect.name == "sqlite":
        return str(getattr(context.original_exception, "sqlite_errorname", "")).startswith(_PASSING)
    driver, error = context.dialect.dbapi, context.original_exception
    return (
        context.is_disconnect
        or getattr(error, "pgcode", None) == _READ_ONLY
        or isinstance(
            error,
            (getattr(driver, "OperationalError"), getattr(driver, "InterfaceError")),  # noqa: B009  mypy knows no names of a driver
        )
    )


def retried(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Repeat a method that is one transaction when the database undid it for a collision."""

    @wraps(method)
    def repeat(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for wait_s in _WAITS_S:
            try:
                return method(*args, **kwargs)
            except CollisionError:
                time.sleep(wait_s * random.random())  # noqa: S311  jitter
        return method(*args, **kwargs)

    return repeat


def take_turn(connection: Connection, name: str) -> None:
    """Wait until no other transaction has this turn; it ends with the transaction. SQLite's writers always take turns."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(zlib.crc32(f"mm_assets/{name}".encode()))))


def insert_into(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that knows ON CONFLICT, which both dialects spell alike."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
