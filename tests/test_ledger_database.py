"""The database below the ledger: creation, upgrades, faults, locks."""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from postgres_server import fresh_database
from sqlalchemy import create_engine, event, inspect, make_url, select, text
from sqlalchemy.pool import NullPool

import mm_assets.ledger as ledger_package
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import (
    Claim,
    Finished,
    Ledger,
    LedgerUnavailableError,
    LostCursorError,
    Refusal,
    SeenObject,
    ShardFile,
)
from mm_assets.ledger.tables import OBJECTS, WORK
from mm_assets.ledger.transactions import CollisionError
from mm_assets.ledger.urls import show_url

RECIPES = {"segments": "r1", "faces": "r2"}
NEEDS = {"faces": {"segments": "r1"}}


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open an empty ledger, on SQLite and on PostgreSQL in turn."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def _seen(key: str, etag: str = "e") -> SeenObject:
    return SeenObject(ObjectVersion("b", key, etag), 10, 0.0)


def _fill(ledger: Ledger, n: int) -> None:
    seen = [_seen(f"k{number:04}") for number in range(n)]
    ledger.objects.record_page("b", seen, at=ledger.objects.scan("b"), after=None, shard_objects=100)
    ledger.work.open_work("b", RECIPES, n)


def _plan(ledger: Ledger, size: int = 10) -> list[str]:
    planned = ledger.work.plan(RECIPES, needs=NEEDS, aliases=["b"], size=size, max_tries=3, planner="p")
    return [batch.batch_id for batch in planned]


def _claim(ledger: Ledger, batch_id: str, owner: str) -> list[Claim]:
    return ledger.work.claim_batch(batch_id, owner, recipes=RECIPES, lease_s=60, max_claims=8)


def _at_once(n: int, call: Callable[[int], Any]) -> list[Any]:
    """Call from n threads that start together."""
    gate = threading.Barrier(n)

    def run(number: int) -> Any:
        gate.wait()
        return call(number)

    with ThreadPoolExecutor(n) as threads:
        return list(threads.map(run, range(n)))


# -- creation and upgrade ---------------------------------------------------------------------------------------------


def test_many_processes_may_open_a_new_ledger_at_once(ledger_url: str) -> None:
    """One makes the tables, the others find them; the first lake is everybody's."""

    def open_one(number: int) -> str:
        opened = Ledger(ledger_url)
        try:
            opened.bind_lake(f"lake {number}")
        except ConfigError:
            return "another's"
        finally:
            opened.close()
        return "mine"

    assert sorted(_at_once(8, open_one)) == ["another's"] * 7 + ["mine"]


def test_opening_a_ledger_waits_for_no_writer(tmp_path: Path) -> None:
    """Commands that only look can be run during a long transaction."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    first = Ledger(url)
    with first._engine.begin():
        second = Ledger(url)
        assert second.objects.paused() == {}
        second.close()
    first.close()


_FIRST_RELEASE = """
CREATE TABLE objects (object_id VARCHAR(32) NOT NULL PRIMARY KEY, alias VARCHAR(63) NOT NULL, key TEXT NOT NULL,
    etag TEXT NOT NULL, version_id TEXT NOT NULL, partition_key TEXT NOT NULL UNIQUE, size_bytes BIGINT NOT NULL,
    modified_at FLOAT NOT NULL, place BIGINT NOT NULL, shard INTEGER NOT NULL, state VARCHAR(16) NOT NULL,
    first_seen_at FLOAT NOT NULL, seen_pass INTEGER NOT NULL, in_dagster BOOLEAN NOT NULL);
CREATE INDEX objects_by_key ON objects (alias, key);
CREATE TABLE work (object_id VARCHAR(32) NOT NULL, step VARCHAR(63) NOT NULL, recipe VARCHAR(32) NOT NULL,
    state VARCHAR(16) NOT NULL, reason TEXT, error TEXT, n_rows BIGINT, tries INTEGER NOT NULL, claims INTEGER NOT NULL,
    token BIGINT NOT NULL, owner TEXT, lease_until FLOAT, not_before FLOAT NOT NULL, batch_id VARCHAR(32),
    changed_at FLOAT NOT NULL, PRIMARY KEY (object_id, step, recipe));
CREATE INDEX work_by_state ON work (state, step);
CREATE TABLE scans (alias VARCHAR(63) NOT NULL PRIMARY KEY, after TEXT NOT NULL, pass_number INTEGER NOT NULL,
    n_seen BIGINT NOT NULL, pages BIGINT NOT NULL, finished_at FLOAT, alarm TEXT, deletions_confirmed BOOLEAN NOT NULL);
CREATE TABLE facts (name VARCHAR(63) NOT NULL PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO scans VALUES ('b', '', 4, 0, 3, 1.0, NULL, false);
INSERT INTO facts VALUES ('next_place', '2'), ('lake_id', 'lake');
"""
_OLD_OBJECT = "INSERT INTO objects VALUES (:id, 'b', :key, 'e', '', :id, 10, 0, :place, 0, :state, 0, 3, false)"
_OLD_WORK = "INSERT INTO work VALUES (:id, 'segments', 'r1', 'done', NULL, NULL, 5, 0, 0, 1, NULL, NULL, 0, NULL, 1)"


def _make_first_release(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in _FIRST_RELEASE.split(";\n"):
            if statement.strip():
                connection.execute(text(statement))
        for place, (key, state) in enumerate([("live", "live"), ("old", "superseded")]):
            row = {"id": _seen(key).version.object_id, "key": key, "place": place, "state": state}
            connection.execute(text(_OLD_OBJECT), row)
        connection.execute(text(_OLD_WORK), {"id": _seen("live").version.object_id})


def test_a_ledger_of_the_first_release_goes_on(ledger_url: str) -> None:
    """Nothing is found or done again; what had left is swept; the second opening changes nothing."""
    _make_first_release(ledger_url)
    for _ in range(2):
        ledger = Ledger(ledger_url)
        ledger.bind_lake("lake")
        ledger.work.want("b", RECIPES)
        assert list(ledger.objects.live_at_key("b", ["live", "old"])) == ["live"]
        assert [known.version.key for known in ledger.removals.leaving(10)] == ["old"]
        assert ledger.work.counts(RECIPES) == {("segments", "done", None): 1, ("faces", "wanted", None): 1}
        ledger.close()

    ledger = Ledger(ledger_url)
    at = ledger.objects.scan("b")
    delta = ledger.objects.record_page("b", [_seen("live"), _seen("new")], at=at, after=None, shard_objects=3)
    assert (delta.n_new, at.pass_number) == (1, 4)
    assert ledger.work.open_work("b", RECIPES, 10) == 2
    ledger.close()


def test_names_refused_before_an_upgrade_count_as_met(ledger_url: str) -> None:
    """When they were met was not noted then: a pass that was under way does not take them for renamed."""
    ledger = Ledger(ledger_url)
    ledger.objects.scan("b")
    ledger.objects.refuse([Refusal("f" * 16, "b", "name", "policy", "no key can hold it")], seen_pass=1)
    with ledger._engine.begin() as connection:
        connection.execute(text("UPDATE scans SET pass_number = 7"))
        connection.execute(text("ALTER TABLE refusals DROP COLUMN seen_pass"))
        connection.execute(text("UPDATE facts SET value = '3' WHERE name = 'schema'"))
    ledger.close()

    upgraded = Ledger(ledger_url)

    assert upgraded.objects.forget_refusals("b", 7, 10) == []
    assert upgraded.objects.forget_refusals("b", 8, 10) == ["f" * 16]
    upgraded.close()


def test_an_upgraded_ledger_has_the_tables_of_a_new_one(ledger_url: str, tmp_path: Path) -> None:
    """No column and no index is left behind."""

    def look(url: str) -> dict[str, tuple[set[str], set[str]]]:
        ledger = Ledger(url)
        seen = inspect(ledger._engine)
        found = {
            name: ({c["name"] for c in seen.get_columns(name)}, {str(i["name"]) for i in seen.get_indexes(name)})
            for name in seen.get_table_names()
        }
        ledger.close()
        return {
            name: (columns, {i for i in indexes if i.startswith(name[:4])})
            for name, (columns, indexes) in found.items()
        }

    _make_first_release(ledger_url)
    upgraded, new = look(ledger_url), look(f"sqlite:///{tmp_path / 'new.db'}")
    ignored = {
        index for _, indexes in upgraded.values() for index in indexes if index.endswith("_key") and "live" not in index
    }

    assert {name: (c, i - ignored) for name, (c, i) in upgraded.items()} == new


def test_a_ledger_of_a_later_release_is_refused(ledger_url: str) -> None:
    """An older program would misread it."""
    ledger = Ledger(ledger_url)
    with ledger._engine.begin() as connection:
        connection.execute(text("UPDATE facts SET value = '999' WHERE name = 'schema'"))
    ledger.close()

    with pytest.raises(ConfigError, match="later release"):
        Ledger(ledger_url)


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_locked_database_is_a_service_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that never ends is waited for, and then named as what it is: a retry helps."""
    monkeypatch.setattr("mm_assets.ledger.database._BUSY_TIMEOUT_S", 0.05)
    first, second = (Ledger(f"sqlite:///{tmp_path / 'l.db'}") for _ in range(2))
    with first._engine.begin(), pytest.raises(LedgerUnavailableError, match=r"locked.*a retry helps"):
        second.objects.pause("b", 1.0, "")

    second.objects.pause("b", 1.0, "")
    first.close()
    second.close()


def test_a_damaged_file_names_the_way_out(tmp_path: Path) -> None:
    """The ledger can be made again from what the lake holds."""
    path = tmp_path / "l.db"
    path.write_bytes(b"this is no database" * 1_000)
    with pytest.raises(ConfigError, match=r"not a database.*mm rebuild-ledger"):
        Ledger(f"sqlite:///{path}")


def test_damage_found_later_names_the_way_out(tmp_path: Path) -> None:
    """A page that was overwritten shows when it is read."""
    path = tmp_path / "l.db"
    ledger = Ledger(f"sqlite:///{path}")
    _fill(ledger, 300)
    ledger.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(path.read_bytes())
    content[8_192:] = b"\xff" * len(content[8_192:])
    path.write_bytes(bytes(content))

    with pytest.raises(ConfigError, match=r"damaged.*mm rebuild-ledger"):
        Ledger(f"sqlite:///{path}").objects.n_missing("b")


@pytest.fixture
def on_postgresql(postgres: str) -> Iterator[Ledger]:
    """Open an empty ledger on PostgreSQL."""
    with fresh_database(postgres) as url:
        opened = Ledger(url)
        yield opened
        opened.close()


def _end_sessions(ledger: Ledger) -> None:
    """Do what a failover does to open connections."""
    engine = create_engine(ledger.url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_a_connection_lost_between_transactions_is_replaced(on_postgresql: Ledger) -> None:
    """A failover while nothing was asked is not noticed."""
    on_postgresql.objects.scan("b")
    _end_sessions(on_postgresql)

    assert on_postgresql.objects.scan("b").pass_number == 1


def test_a_connection_lost_in_a_transaction_loses_the_whole_of_it(on_postgresql: Ledger) -> None:
    """The page is not stored, the cursor not moved, and the same call works afterwards."""
    at = on_postgresql.objects.scan("b")
    _fail_once(on_postgresql, "INSERT INTO objects", lambda: _end_sessions(on_postgresql))

    with pytest.raises(LedgerUnavailableError, match="a retry helps") as caught:
        on_postgresql.objects.record_page("b", [_seen("a")], at=at, after="a", shard_objects=3)

    assert isinstance(caught.value, ServiceError)
    assert (on_postgresql.objects.scan("b"), on_postgresql.objects.n_live("b")) == (at, 0)
    assert on_postgresql.objects.record_page("b", [_seen("a")], at=at, after="a", shard_objects=3).n_new == 1


def test_a_page_whose_commit_was_not_answered_is_not_stored_twice(on_postgresql: Ledger) -> None:
    """Asked again, the ledger says that the cursor has moved; the lister goes on from there."""
    at = on_postgresql.objects.scan("b")
    on_postgresql.objects.record_page("b", [_seen("a")], at=at, after="a", shard_objects=3)

    with pytest.raises(LostCursorError):
        on_postgresql.objects.record_page("b", [_seen("a")], at=at, after="a", shard_objects=3)

    assert on_postgresql.objects.scan("b").after == "a"


def test_an_end_whose_commit_was_not_answered_is_accepted_again(ledger: Ledger) -> None:
    """Asked again with the same token it is not written twice, and is not taken for another's."""
    _fill(ledger, 1)
    [claim] = _claim(ledger, _plan(ledger)[0], "h/1/x")
    ends = [
        Finished(claim.known.object_id, "segments", "r1", claim.tokens["segments"], "done", n_rows=3),
        Finished(claim.known.object_id, "faces", "r2", claim.tokens["faces"], "dead", "corrupt", counts_as_try=True),
    ]

    assert ledger.work.finish(ends, RECIPES) == [True, True]
    assert ledger.work.finish(ends, RECIPES) == [True, True]

    rows = {row["step"]: row for row in ledger.work.states(claim.known.object_id)}
    assert (rows["segments"]["n_rows"], rows["faces"]["tries"]) == (3, 1)


def _fail_once(ledger: Ledger, beginning: str, act: Callable[[], None]) -> None:
    """Act before the first statement that begins so."""
    acted: list[str] = []

    def before(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(beginning) and not acted:
            acted.append(statement)
            act()

    event.listen(ledger._engine, "before_cursor_execute", before)


def test_a_deadlock_is_tried_again(on_postgresql: Ledger) -> None:
    """PostgreSQL ends one of two transactions that wait for each other; ours is repeated."""
    _fill(on_postgresql, 2)
    first, second = sorted(_seen(key).version.object_id for key in ("k0000", "k0001"))
    tries: list[str] = []

    def before(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        tries.extend([statement] if statement.startswith("SELECT count(*)") else [])

    event.listen(on_postgresql._engine, "before_cursor_execute", before)
    other = create_engine(on_postgresql.url, poolclass=NullPool)
    lock = select(WORK).where(WORK.c.step == "faces").with_for_update()
    with ThreadPoolExecutor(1) as thread, other.begin() as connection:
        connection.execute(lock.where(WORK.c.object_id == second)).all()
        ours = thread.submit(on_postgresql.work.want_again, "faces", "r2", [first, second])
        time.sleep(0.3)  # ours holds the first and waits for the second
        connection.execute(lock.where(WORK.c.object_id == first)).all()
        connection.rollback()
        ours.result(10)

    assert len(tries) == 2


def test_a_collision_that_does_not_end_is_a_service_error(
    on_postgresql: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five tries the caller hears of it."""
    monkeypatch.setattr("mm_assets.ledger.transactions._WAITS_S", (0.0,) * 4)
    tries: list[str] = []

    def before(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE scans"):
            tries.append(statement)
            connection.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40001'; END $$")

    event.listen(on_postgresql._engine, "before_cursor_execute", before)

    with pytest.raises(CollisionError, match="planted"):
        on_postgresql.objects.pause("b", 1.0, "")
    assert len(tries) == 5


# -- many at once -------------------------------------------------------------------------------------------------------


def test_no_row_is_claimed_twice_by_many_workers(ledger_url: str) -> None:
    """Workers with connections of their own fall upon the same batches."""
    ledger = Ledger(ledger_url)
    _fill(ledger, 120)
    batches = _plan(ledger)

    def work(number: int) -> list[tuple[str, str, int]]:
        mine = Ledger(ledger_url)
        claims = [c for batch in batches for c in _claim(mine, batch, f"h/{number}/{number:08}")]
        mine.close()
        return [(c.known.object_id, step, token) for c in claims for step, token in c.tokens.items()]

    claimed = [row for rows in _at_once(12, work) for row in rows]

    assert len(claimed) == len(set(claimed)) == 240
    assert {token for _, _, token in claimed} == {1}
    ledger.close()


def test_planners_at_once_share_no_object(ledger_url: str) -> None:
    """A sensor and a command may plan at the same moment; no batch is empty, no object is in two."""
    ledger = Ledger(ledger_url)
    _fill(ledger, 60)

    def plan(_: int) -> list[str]:
        mine = Ledger(ledger_url)
        planned = _plan(mine, size=7)
        mine.close()
        return planned

    planned = [ledger.work.objects_of(batch) for batches in _at_once(4, plan) for batch in batches]

    assert all(planned)
    assert sorted(known.version.key for objects in planned for known in objects) == [f"k{i:04}" for i in range(60)]
    ledger.close()


def test_listers_and_events_at_once_keep_one_live_version(ledger_url: str) -> None:
    """Each writes its own version of the same keys; one wins, each place belongs to one key, one lister moves on."""
    ledger = Ledger(ledger_url)
    at = ledger.objects.scan("b")

    def write(number: int) -> bool:
        mine = Ledger(ledger_url)
        seen = [_seen(f"k{i}", str(number)) for i in range(20)]
        try:
            if number < 4:
                mine.objects.record_page("b", seen, at=at, after=f"m{number}", shard_objects=3)
            else:
                mine.objects.record_hinted("b", seen, [], shard_objects=3)
        except LostCursorError:
            return False
        finally:
            mine.close()
        return True

    written = _at_once(8, write)

    assert (sum(written[:4]), sum(written[4:])) == (1, 4)
    with ledger._engine.connect() as connection:
        rows = connection.execute(select(OBJECTS)).all()
    live = [row for row in rows if row.state == "live"]
    assert sorted(row.key for row in live) == sorted(f"k{i}" for i in range(20))
    assert {row.etag for row in live} <= {str(number) for number, wrote in enumerate(written) if wrote}
    assert sorted({row.place for row in rows}) == list(range(20))
    ledger.close()


def test_sources_listed_at_once_share_no_place(ledger_url: str) -> None:
    """Places are given out to all sources from one row."""
    Ledger(ledger_url).close()

    def list_one(number: int) -> None:
        mine = Ledger(ledger_url)
        seen = [SeenObject(ObjectVersion(f"s{number}", f"k{i}", "e"), 1, 0.0) for i in range(10)]
        mine.objects.record_page(f"s{number}", seen, at=mine.objects.scan(f"s{number}"), after=None, shard_objects=3)
        mine.close()

    _at_once(6, list_one)

    ledger = Ledger(ledger_url)
    with ledger._engine.connect() as connection:
        assert sorted(connection.scalars(select(OBJECTS.c.place))) == list(range(60))
    ledger.close()


# -- locks --------------------------------------------------------------------------------------------------------------


def test_a_lock_has_one_holder(ledger: Ledger) -> None:
    """Others are told who; given back, it is free at once; tokens rise."""
    locks = ledger.locks
    first = locks.take("list:b", "one", 60)
    assert first is not None
    assert locks.take("list:b", "two", 60) is None
    assert locks.take("list:c", "two", 60) is not None
    assert (locks.holder("list:b"), locks.is_held("list:b", first)) == ("one", True)

    locks.release("list:b", first)
    assert (locks.holder("list:b"), locks.is_held("list:b", first)) == (None, False)
    assert not locks.renew("list:b", first, 60)

    second = locks.take("list:b", "two", 60)
    assert second is not None
    assert second > first


def test_a_lock_whose_lease_ended_can_be_taken(ledger: Ledger) -> None:
    """The old holder can neither renew it nor give the new holder's lock back."""
    locks = ledger.locks
    old = locks.take("publish", "dead", -1)
    assert old is not None
    new = locks.take("publish", "next", 60)
    assert new is not None
    assert new > old

    assert not locks.renew("publish", old, 60)
    locks.release("publish", old)

    assert locks.is_held("publish", new)
    assert locks.renew("publish", new, 60)


def test_a_late_renewal_keeps_a_lock_that_nobody_took(ledger: Ledger) -> None:
    """A holder that stalled goes on where nothing happened meanwhile."""
    token = ledger.locks.take("publish", "slow", -1)
    assert token is not None
    assert not ledger.locks.is_held("publish", token)

    assert ledger.locks.renew("publish", token, 60)
    assert ledger.locks.is_held("publish", token)


def test_of_many_that_take_a_lock_one_gets_it(ledger_url: str) -> None:
    """Also the first time, when there is no row yet."""
    Ledger(ledger_url).close()

    def take(number: int) -> int | None:
        mine = Ledger(ledger_url)
        token = mine.locks.take("publish", str(number), 60)
        mine.close()
        return token

    assert [token for token in _at_once(8, take) if token is not None] == [1]


def test_a_file_of_an_overtaken_publisher_is_written_again(ledger: Ledger) -> None:
    """Two may have written the same file, and nobody knows in which order; the next publish settles it."""
    old = ledger.locks.take("publish", "slow", -1)
    new = ledger.locks.take("publish", "next", 60)
    ledger.catalog.set_shard_file(ShardFile("t", 0, "right", 5), new)
    assert ledger.catalog.shard_files()["t", 0].fingerprint == "right"

    ledger.catalog.set_shard_file(ShardFile("t", 0, "late", 4), old)

    assert ledger.catalog.shard_files()["t", 0].fingerprint == "overtaken"


# -- plans ----------------------------------------------------------------------------------------------------------------


def test_what_is_asked_often_reads_no_whole_table(tmp_path: Path) -> None:
    """Among a million rows, planning, claims and pages cost what they touch; SQLite says which index it takes."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.db'}")
    _fill(ledger, 50)
    asked: set[tuple[str, Any]] = set()

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            asked.add((statement, tuple(parameters)))

    event.listen(ledger._engine, "before_cursor_execute", note)
    [batch] = _plan(ledger, size=50)
    claims = _claim(ledger, batch, "h/1/x")
    ledger.work.finish([Finished(claims[0].known.object_id, "segments", "r1", 1, "done", n_rows=1)], RECIPES)
    ledger.work.renew("h/1/x", 60)
    ledger.work.release("h/1/x")
    ledger.work.release_batches([batch])
    ledger.work.release_expired()
    ledger.work.complete("segments", "r1", ["b"])
    ledger.work.n_changed_since(time.time())
    ledger.work.open_work("b", RECIPES, 10)
    ledger.objects.record_hinted("b", [_seen("k0000", "2"), _seen("new")], [], shard_objects=3)
    ledger.objects.retire("b", [_seen("new").version.object_id], [])
    ledger.objects.live_at_key("b", ["new"])
    event.remove(ledger._engine, "before_cursor_execute", note)

    with ledger._engine.connect() as connection:
        plans = {
            (statement, step[3])
            for statement, parameters in asked
            for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        }
    scanned = [(step, statement) for statement, step in plans if step.startswith(("SCAN objects", "SCAN work"))]
    assert len(asked) > 20
    assert scanned == []
    ledger.close()


@pytest.mark.parametrize("url", ["user:hunter2@/none?host={}", "user@/none?password=hunter2&host={}"])
def test_a_password_is_not_shown(tmp_path: Path, url: str) -> None:
    """Messages go to logs; a URL may hold a password before the host or among its parameters."""
    with pytest.raises(LedgerUnavailableError, match="ledger_url") as caught:
        Ledger("postgresql+psycopg2://" + url.format(tmp_path))

    assert "hunter2" not in str(caught.value)
    assert "user" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql://u@h/db?password=hunter2&sslmode=require", "postgresql://u@h/db?password=***&sslmode=require"),
        (
            "postgresql://u:hunter2@h/db?PASSWORD=hunter2&password=hunter2",
            "postgresql://u:***@h/db?PASSWORD=***&password=***",
        ),
        ("postgresql://u@h/db?password=hunter2&password=hunter2", "postgresql://u@h/db?password=***"),
        ("postgresql://h/db?passfile=hunter2", "postgresql://h/db?passfile=***"),
        ("postgresql://h/db?sslkey=hunter2&sslpassword=hunter2", "postgresql://h/db?sslkey=***&sslpassword=***"),
        ("postgresql://h/db?keepalives=1&connect_timeout=5", "postgresql://h/db?connect_timeout=5&keepalives=1"),
        ("sqlite:////tmp/ledger.db", "sqlite:////tmp/ledger.db"),
    ],
)
def test_a_shown_url_has_no_secret(url: str, shown: str) -> None:
    """Passwords and keys are masked wherever they stand; what helps to find the database stays."""
    assert show_url(make_url(url)) == shown


def test_a_url_is_nowhere_shown_as_it_is() -> None:
    """Every message about the ledger's place uses the masked form."""
    code = Path(ledger_package.__file__).parent.parent
    bare = re.compile(r"render_as_string|\{\s*(?:\w+\.)*(?:ledger|engine|self)\.url\s*[}!:]")
    found = {file.name for file in code.rglob("*.py") if bare.search(file.read_text(encoding="utf-8"))}
    assert found == {"urls.py"}


def test_a_file_that_was_removed_takes_no_more(tmp_path: Path) -> None:
    """A process that still holds it open would write where nobody will ever look."""
    file = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{file}")
    assert "SQLite" in ledger.check()
    for one in tmp_path.glob("ledger.db*"):
        one.rename(tmp_path / f"lost-{one.name}")

    with pytest.raises(LedgerUnavailableError, match="removed or replaced"):
        ledger.check()
    other = Ledger(f"sqlite:///{file}")
    with pytest.raises(LedgerUnavailableError, match="removed or replaced"):
        ledger.check()
    assert "SQLite" in other.check()
    ledger.close()
    other.close()


def test_a_url_that_cannot_be_read_names_the_setting() -> None:
    """And not its password."""
    with pytest.raises(ConfigError, match="`ledger_url` cannot be read") as caught:
        Ledger("postgresql://user:secret@host:port/name")
    assert "secret" not in str(caught.value)
