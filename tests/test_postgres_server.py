"""The tests' own PostgreSQL server, and the option that puts every ledger on it."""

from collections.abc import Callable
from pathlib import Path

import postgres_server
import pytest
from places import Place
from postgres_server import PostgresMissingError, empty_database, find_binaries, fresh_database
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from mm_assets.ledger import Ledger


def _tables(url: str) -> list[str]:
    return inspect(create_engine(url, poolclass=NullPool)).get_table_names()


def test_a_fresh_database_is_empty_and_gone_afterwards(postgres: str) -> None:
    """Each database is empty, apart from its siblings, and dropped although somebody is still connected."""
    with fresh_database(postgres) as one, fresh_database(postgres) as other:
        ledger = Ledger(one)
        assert "objects" in _tables(one)
        assert _tables(other) == []
    ledger.close()
    with create_engine(postgres, poolclass=NullPool).connect() as connection:
        left = connection.scalars(text("SELECT datname FROM pg_database WHERE datname LIKE 'ledger%'")).all()
    assert one.split("/")[-1].split("?")[0] not in left


def test_a_database_can_be_emptied(postgres: str) -> None:
    """Emptying drops every table and leaves a database that can be filled again."""
    with fresh_database(postgres) as url:
        Ledger(url).close()
        empty_database(url)
        assert _tables(url) == []
        Ledger(url).close()


def test_the_server_sorts_as_a_language_does(postgres: str) -> None:
    """The server does not sort by bytes, so that a query that relies on the bytes' order fails here too."""
    with create_engine(postgres, poolclass=NullPool).connect() as connection:
        if int(connection.scalar(text("SHOW server_version_num")) or 0) < 150_000:
            pytest.skip("PostgreSQL before 15 has no language of its own for a cluster")
        assert connection.scalar(text("SELECT 'a' < 'B'"))


def test_missing_binaries_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a server the error names the script that installs one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres_server, "_INSTALLED", tmp_path)

    with pytest.raises(PostgresMissingError, match=r"scripts/install_programs\.sh postgresql"):
        find_binaries()


def test_binaries_are_found_in_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no Debian package put them, the binaries of PATH are used."""
    monkeypatch.setattr(postgres_server, "_INSTALLED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o700)

    assert find_binaries() == tmp_path


def test_a_lost_ledger_is_an_empty_one(make_workspace: Callable[..., Place]) -> None:
    """What a place calls losing its ledger leaves one that knows nothing, whatever the database."""
    place = make_workspace()
    place.open().ledger.catalog.publish({"segments": "recipe"})

    place.lose_ledger()

    assert place.open().ledger.catalog.published() == {}
