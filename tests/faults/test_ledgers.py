"""Databases that fail, forget or lie behind, and lakes that lose files."""

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from children import ingest, start
from flow_driver import process, refresh
from postgres_server import empty_database
from rig import Rig, alternately, everywhere, pairwise, run_once
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from mm_assets.errors import MmAssetsError
from mm_assets.flows.discovery import discover
from mm_assets.flows.rebuilding import rebuild
from mm_assets.flows.verifying import find_differences, repair

on_postgresql = pytest.mark.parametrize("rig", [("moto", "postgresql")], ids=["moto-postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("rig", [("moto", "sqlite")], ids=["moto-sqlite"], indirect=True)
MEDIA = ("picture0.png", "picture1.png", "sound.wav", "broken.png", "notes.txt")


# -- faults of the database --------------------------------------------------------------------------------------------


def _as_root(url: str, statement: str) -> None:
    engine = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


@pytest.mark.fault(27)
@on_postgresql
def test_connections_that_the_server_cuts_lose_nothing(rig: Rig) -> None:
    """All connections are cut every 100 ms while everything is done; what failed is done by the next run."""
    rig.add(*MEDIA)
    rig.open()
    name = make_url(rig.ledger_url).database
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608  our own name
    n_failed = 0
    for _ in range(3):
        worker = start(ingest, str(rig.place.config_file))
        while worker.exitcode is None:
            _as_root(rig.ledger_url, cut)
            worker.join(0.1)
        n_failed += worker.exitcode != 0
    rig.settle(rig.open())

    assert n_failed > 0
    assert rig.violations() == []


@pytest.mark.fault(27)
@pairwise
@pytest.mark.parametrize("nth", [2, 5, 9, 14, 30])
def test_a_commit_whose_outcome_is_unknown_is_repeated(rig: Rig, nth: int) -> None:
    """A failover after the commit and before its answer: the same call again changes nothing twice."""
    rig.add("picture0.png", "broken.png")
    workspace = rig.open()
    count, usual = iter(range(10_000)), workspace.ledger._engine.dialect.do_commit

    def commit(connection: Any) -> None:
        usual(connection)
        if next(count) == nth:
            driver: Any = workspace.ledger._engine.dialect.dbapi
            raise driver.OperationalError(_LOST)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace.ledger._engine.dialect, "do_commit", commit)
        with suppress(MmAssetsError, OperationalError):
            run_once(workspace)
    rig.execute("UPDATE work SET lease_until = 1 WHERE state = 'claimed'")  # time passes
    rig.settle(workspace)

    assert next(count) > nth
    assert rig.violations() == []
    assert max(row["tries"] for row in rig.rows("SELECT tries FROM work")) <= 1


_LOST = "server closed the connection unexpectedly"


@pytest.mark.fault(27)
@on_postgresql
def test_deadlocks_are_tried_again(rig: Rig) -> None:
    """The server undoes one of two transactions that wait for each other; the call is made again."""
    rig.add("picture0.png")
    workspace = rig.open()
    discover(workspace, "source")
    writes = iter(range(10_000))

    def collide(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> Any:
        is_write = statement.startswith(("UPDATE", "INSERT")) and not many
        return (_DEADLOCK, ()) if is_write and next(writes) in {1, 4, 9, 15} else (statement, parameters)

    engine: Engine = workspace.ledger._engine
    event.listen(engine, "before_cursor_execute", collide, retval=True)
    run_once(workspace)
    event.remove(engine, "before_cursor_execute", collide)
    rig.settle(workspace)

    assert next(writes) > 15
    assert rig.violations() == []


_DEADLOCK = "DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$"


@pytest.mark.fault(27)
@on_sqlite
def test_a_database_that_another_process_locks_is_waited_for(rig: Rig) -> None:
    """Somebody else's transaction of two seconds delays a run and does not fail it."""
    rig.add("picture0.png")
    workspace = rig.open()
    holder = create_engine(rig.ledger_url, poolclass=NullPool)
    with holder.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        free = threading.Timer(2.0, connection.rollback)
        free.start()
        discover(workspace, "source")
        free.join()
    rig.settle(workspace)

    assert rig.violations() == []


def _copy_ledger(rig: Rig, work: Path) -> Callable[[], None]:
    """Back the ledger up; returns what restores it."""
    url = make_url(rig.ledger_url)
    if url.get_backend_name() == "sqlite":
        source, backup = Path(str(url.database)), work / "backup.db"
        shutil.copyfile(source, backup)

        def restore() -> None:
            for file in source.parent.glob(f"{source.name}*"):
                file.unlink()
            shutil.copyfile(backup, source)

        return restore
    copy = f"{url.database}_backup"
    _as_root(rig.ledger_url, f"CREATE DATABASE {copy} TEMPLATE {url.database}")

    def swap() -> None:
        _as_root(rig.ledger_url, f"DROP DATABASE {url.database} WITH (FORCE)")
        _as_root(rig.ledger_url, f"ALTER DATABASE {copy} RENAME TO {url.database}")

    return swap


@pytest.mark.fault(27)
@everywhere
def test_a_ledger_restored_from_an_old_backup_catches_up(rig: Rig, tmp_path: Path) -> None:
    """What happened since is found by the listing, and results that are in the lake are kept."""
    rig.add("picture0.png", "picture1.png", "picture2.png")
    workspace = rig.open()
    rig.settle(workspace)
    rig.place.close()
    restore = _copy_ledger(rig, tmp_path)
    workspace = rig.open()
    rig.put("picture0.png", rig.drawn("picture4.png"))
    rig.delete("picture1.png")
    rig.add("picture3.png")
    rig.settle(workspace)
    assert rig.violations() == []
    rig.place.close()
    restore()
    n_read = _n_read(rig)

    rig.settle(rig.open())

    assert rig.violations() == []
    assert _n_read(rig) == n_read


def _n_read(rig: Rig) -> int:
    """Count how often bodies of source objects were asked for."""
    return sum(e.request.bucket == rig.source for e in rig.proxy.asked("GetObject"))


@pytest.mark.fault(28)
@everywhere
def test_a_wiped_ledger_is_filled_again_and_nothing_is_computed_again(rig: Rig) -> None:
    """Sources and lake are enough: no body is read from the source, no result is written."""
    rig.add(*MEDIA)
    workspace = rig.open()
    rig.settle(workspace)
    before, n_read = rig.rows(_ENDS), _n_read(rig)
    files = rig.evidence().names
    _lose_ledger(rig)
    workspace = rig.open()
    n_asked = len(rig.proxy.log)

    rebuild(workspace)
    rig.settle(workspace)

    assert rig.rows(_ENDS) == before
    assert _n_read(rig) == n_read
    puts = [e.request.key for e in rig.proxy.log[n_asked:] if e.request.method == "PUT"]
    assert [key for key in puts if key.startswith(("results/", "tables/", "indexes/", "dead_letters/"))] == []
    assert rig.evidence().names == files
    assert rig.violations() == []


_ENDS = """
SELECT o.key, w.step, w.recipe, w.state, w.reason, w.n_rows FROM work w JOIN objects o USING (object_id)
WHERE o.state = 'live' ORDER BY o.key, w.step, w.recipe
"""


def _lose_ledger(rig: Rig) -> None:
    """Close what is open and delete the ledger, as an accident would."""
    rig.place.close()
    url = make_url(rig.ledger_url)
    if url.get_backend_name() == "postgresql":
        empty_database(rig.ledger_url)
        return
    file = Path(str(url.database))
    for part in file.parent.glob(f"{file.name}*"):
        part.unlink()


# -- faults of the lake ------------------------------------------------------------------------------------------------


def _damage(rig: Rig, name: str) -> None:
    data = rig.client.get_object(Bucket=rig.lake, Key=name)["Body"].read()
    middle = len(data) // 2
    rig.client.put_object(Bucket=rig.lake, Key=name, Body=data[:middle] + bytes(64) + data[middle + 64 :])


def _remove(rig: Rig, name: str) -> None:
    rig.client.delete_object(Bucket=rig.lake, Key=name)


LOSSES = {
    "result_gone": (_remove, "results/faces/"),
    "segments_gone": (_remove, "results/segments/"),
    "result_damaged": (_damage, "results/visual_embeddings/"),
    "table_gone": (_remove, "tables/faces/"),
    "table_damaged": (_damage, "tables/segments/"),
    "index_gone": (_remove, "indexes/visual/"),
    "index_damaged": (_damage, "indexes/face/"),
    "record_gone": (_remove, "dead_letters/"),
}


@pytest.mark.fault(29)
@alternately("spoil,prefix", LOSSES)
def test_what_is_missing_or_damaged_is_found_and_made_again(
    rig: Rig, spoil: Callable[[Rig, str], None], prefix: str
) -> None:
    """`mm verify --deep` names it, `--yes` wants it again, and the next run makes it."""
    rig.add("picture0.png", "picture1.png", "broken.png")
    workspace = rig.open()
    rig.settle(workspace)
    assert list(find_differences(workspace, deep=True)) == []
    name = next(n for n in sorted(rig.evidence().names) if n.startswith(prefix) and "current.json" not in n)
    spoil(rig, name)

    found = list(find_differences(workspace, deep=True))
    assert found
    assert repair(workspace, found).total() > 0
    rig.settle(workspace)

    assert rig.violations() == []
    assert list(find_differences(workspace, deep=True)) == []


@pytest.mark.fault(29)
@pairwise
def test_a_result_lost_before_it_is_published_is_made_again(rig: Rig) -> None:
    """Nobody has to ask for it: the publish misses it and wants it again."""
    rig.add("picture0.png", "picture1.png")
    workspace = rig.open()
    discover(workspace, "source")
    process(workspace)
    name = next(name for name in sorted(rig.evidence().names) if name.startswith("results/faces/"))
    _remove(rig, name)
    refresh(workspace)

    rig.settle(workspace)

    assert rig.violations() == []
