"""A database that refuses, hangs or is busy: told as what it is, and told in time."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from mm_assets.ledger import Ledger, LedgerUnavailableError
from mm_assets.ledger.inbox import Hint

HINT = Hint("e", "b2", "source", "key")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open an empty ledger, on SQLite and on PostgreSQL in turn."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def test_database_that_only_reads_is_unavailable(ledger: Ledger) -> None:
    """A server that became a standby, or a disk that was mounted read-only, may write again."""
    is_sqlite = ledger.url.get_backend_name() == "sqlite"
    with ledger._engine.connect() as connection:
        only_reads = "PRAGMA query_only=1" if is_sqlite else "SET default_transaction_read_only=on"
        connection.execute(text(only_reads))
        connection.commit()
    with pytest.raises(LedgerUnavailableError, match="a retry helps"):
        ledger.inbox.add([HINT])


def test_connections_that_are_all_in_use_are_unavailable(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than connections: the last one is told to come again."""
    monkeypatch.setattr(ledger._engine.pool, "_timeout", 0.05)
    reader = ledger._engine.execution_options(mm_reads=True)
    with ExitStack() as held:
        for _ in range(15):  # five are kept, and ten more may be made
            held.enter_context(reader.connect())
        with pytest.raises(LedgerUnavailableError, match="in use"):
            ledger.inbox.add([HINT])
    assert ledger.inbox.add([HINT]) == 1


def test_check_waits_for_no_writer(ledger: Ledger) -> None:
    """Whether the database answers does not depend on a long transaction."""
    with ledger._engine.begin():
        started = time.monotonic()
        assert ledger.check().startswith(("SQLite 3", "PostgreSQL"))
        assert time.monotonic() - started < 5


def test_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver would wait for it for ever."""
    monkeypatch.setattr("mm_assets.ledger.database._CONNECT_WITHIN_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.listen()
        started = time.monotonic()
        with pytest.raises(LedgerUnavailableError):
            Ledger(f"postgresql+psycopg2://user@127.0.0.1:{mute.getsockname()[1]}/none")
        assert time.monotonic() - started < 10


def test_database_in_memory_can_be_opened() -> None:
    """It has one connection for each thread, and no pool to wait for."""
    ledger = Ledger("sqlite:///:memory:")
    assert ledger.check().startswith("SQLite")
    ledger.close()


def test_cancelling_no_step_changes_nothing(ledger: Ledger) -> None:
    """A source whose steps were all taken out of the settings has nothing to cancel."""
    assert ledger.tasks.cancel("0" * 32, {}) == 0


def test_waiting_is_counted_as_a_failure_only_where_it_is_one(ledger: Ledger) -> None:
    """A source that is paused says nothing about its keys."""
    ledger.inbox.add([HINT])
    for is_failure, fails in ((False, 0), (True, 1), (False, 1)):
        ledger.inbox.put_off(ledger.inbox.waiting(1)[0].inbox_ids, -1.0, is_failure=is_failure)
        assert ledger.inbox.waiting(1)[0].fails == fails
