"""A short soak on each ledger, and whether its checker sees what it should."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresMissingError, find_binaries
from sqlalchemy import Insert, Update, create_engine, insert, select, update

from mm_assets.ledger.tables import INBOX, OBJECTS, WORK
from mm_assets.settings import load_settings
from soak.check import find_violations, gather
from soak.stage import Stage

_TESTS = Path(__file__).parents[1]
_LIMIT_S = 600


def _soak(*arguments: str) -> tuple[int, str]:
    """Run a soak in a process of its own, since it changes modules and forks; returns its code and what it printed."""
    surroundings = os.environ | {"PYTHONPATH": str(_TESTS), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "soak.run", *arguments]
    ended = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def _number(printed: str, name: str) -> int:
    found = re.search(rf"{name}\s*│\s*([\d,]+)", printed)
    return int(found[1].replace(",", "")) if found else 0


@pytest.mark.slow
@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
def test_a_short_soak_violates_nothing(ledger: str) -> None:
    """Bucket, ledger, lake, tables and index agree after processes were killed at random."""
    if ledger == "postgresql":
        try:
            find_binaries()
        except PostgresMissingError as error:
            pytest.skip(str(error))

    code, printed = _soak("--seconds", "20", "--objects", "200", "--ledger", ledger)

    assert code == 0, printed
    assert "VIOLATIONS: 0" in printed
    assert _number(printed, "kills") > 30
    assert _number(printed, "dead letters, crash_loop") == 4, "the killer's four steps"
    assert _number(printed, "dead letters, corrupt") > 0
    assert _number(printed, "dead letters, model_error") > 0


# -- the checker ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quiet_stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Give the stage of a soak without kills, which is in order."""
    folder = tmp_path_factory.mktemp("soak")
    code, printed = _soak("--seconds", "1", "--objects", "64", "--no-kills", "--folder", str(folder))
    assert code == 0, printed
    return Stage(folder)


@pytest.fixture
def damaged(quiet_stage: Stage, tmp_path: Path) -> Iterator[Callable[[Callable[[Stage], object]], list[str]]]:
    """Give a function that damages the stage and returns what the checker finds; all is mended afterwards."""
    kept = [quiet_stage.folder / name for name in ("lake", "state")]
    for folder in kept:
        shutil.copytree(folder, tmp_path / folder.name)

    def look(damage: Callable[[Stage], object]) -> list[str]:
        damage(quiet_stage)
        workspace = quiet_stage.open()
        workspace.close()
        return find_violations(gather(workspace, quiet_stage))

    yield look
    for folder in kept:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / folder.name, folder)
    (quiet_stage.folder / "source" / "planted.png").unlink(missing_ok=True)
    quiet_stage.errors.unlink(missing_ok=True)


def _remove(pattern: str) -> Callable[[Stage], None]:
    return lambda stage: next(iter(sorted(stage.folder.glob(pattern)))).unlink()


def _say(statement: Update | Insert) -> Callable[[Stage], None]:
    def change(stage: Stage) -> None:
        engine = create_engine(load_settings(stage.config_file).ledger_location)
        with engine.begin() as connection:
            assert connection.execute(statement).rowcount > 0
        engine.dispose()

    return change


def _swap_results(stage: Stage) -> None:
    """Give an object the vector of another."""
    one, other = sorted(stage.folder.glob("lake/results/segments/*/*/*.parquet"))[:2]
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


_ONE = select(OBJECTS.c.object_id).where(OBJECTS.c.key.like("%-good.png")).limit(1).scalar_subquery()
_ITS_WORK = update(WORK).where(WORK.c.object_id == _ONE)
_HINT = {"event_id": "e", "provider": "s3", "alias": "source", "key": "k", "key_hash": "h", "received_at": 1.0}
_ERROR = '{"role": "worker", "kind": "KeyError", "is_ours": false, "text": "a traceback"}\n'
_DAMAGES: dict[str, Callable[[Stage], object]] = {
    "an object nobody saw": lambda stage: (stage.folder / "source" / "planted.png").write_bytes(b"planted"),
    "a lost result": _remove("lake/results/visual_embeddings/*/*/*.parquet"),
    "a lost letter": _remove("lake/dead_letters/*/segments.json"),
    "a lost table": _remove("lake/tables/media_quality/*/*.parquet"),
    "a result of another": _swap_results,
    "a good object given up": _say(_ITS_WORK.values(state="dead", reason="timeout")),
    "work left over": _say(_ITS_WORK.values(state="claimed", owner="a/1/b")),
    "one try too few": _say(update(WORK).where(WORK.c.reason == "model_error").values(tries=2)),
    "one claim too many": _say(_ITS_WORK.values(claims=9)),
    "not swept": _say(update(OBJECTS).where(OBJECTS.c.object_id == _ONE).values(state="gone", left_at=1.0)),
    "an event that waits": _say(insert(INBOX).values(**_HINT)),
    "a fault of the code": lambda stage: stage.errors.write_text(_ERROR, encoding="utf-8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", _DAMAGES.values(), ids=_DAMAGES)
def test_the_checker_finds_damage(
    damaged: Callable[[Callable[[Stage], object]], list[str]], damage: Callable[[Stage], object]
) -> None:
    """Whatever a fault of the protocol would leave behind is a violation."""
    assert damaged(damage)


@pytest.mark.slow
def test_the_checker_finds_nothing_in_order(
    damaged: Callable[[Callable[[Stage], object]], list[str]],
) -> None:
    """What is in order is no violation."""
    assert damaged(lambda _: None) == []
