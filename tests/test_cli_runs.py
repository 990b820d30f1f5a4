"""``mm ingest`` when runs, settings or sources are not as planned: told, ended, and nothing of the others stopped."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from cli_driver import mm
from fakes import FakeDetector, FakeWorkspaceResource, open_fake_workspace
from places import Place
from sqlalchemy import text

from mm_assets.cli import watching
from mm_assets.cli.runs import Runner
from mm_assets.errors import ConfigError
from mm_assets.flows.discovery import discover
from mm_assets.settings import load_settings

MakePlace = Callable[..., Place]


@pytest.fixture(autouse=True)
def _fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands work with fakes."""
    monkeypatch.setattr("mm_assets.cli.runs.open_workspace", partial(open_fake_workspace, check=True))
    monkeypatch.setattr("mm_assets.cli.runs.WorkspaceResource", FakeWorkspaceResource)


def _break_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: FakeDetector) -> None:
        msg = "no kernel image is available"
        raise RuntimeError(msg)

    monkeypatch.setattr(FakeDetector, "_load", load)


def test_a_failed_run_of_a_last_try_ends_the_command(make_workspace: MakePlace, monkeypatch: Any) -> None:
    """An object on its last try runs alone; when its run fails for another reason, that is a failed run like any."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    workspace.ledger.work.open_work("source", workspace.recipes_of("source"), 10)
    with workspace.unbound_ledger._engine.begin() as connection:
        connection.execute(text("UPDATE work SET tries = 2 WHERE step = 'segments'"))
    _break_model(monkeypatch)

    result = mm("ingest", "--json", "--no-refresh", "-c", str(place.config_file), code=1)

    summary = json.loads(result.stdout)
    assert (summary["n_runs"], summary["n_processed"], summary["n_waiting"]) == (1, 0, 1)
    assert "no kernel image" in str(summary["failed_runs"])


def test_a_last_try_that_fails_is_no_failed_run(make_workspace: MakePlace) -> None:
    """What dies on its last try is a dead letter, and the command succeeds."""
    place = make_workspace("broken.png", runs={"decode_workers": 1, "max_tries": 1})
    workspace = place.open()
    discover(workspace, "source")
    workspace.ledger.work.open_work("source", workspace.recipes_of("source"), 10)
    with workspace.unbound_ledger._engine.begin() as connection:
        connection.execute(text("UPDATE work SET tries = 1"))

    summary = json.loads(mm("ingest", "--json", "--no-refresh", "-c", str(place.config_file)).stdout)

    assert (summary["failed_runs"], summary["n_processed"], summary["n_waiting"]) == ({}, 1, 0)


def test_settings_that_change_meanwhile_stop_the_work(make_workspace: MakePlace) -> None:
    """A run reads the settings anew and would claim nothing of what was planned: that is told, not repeated for ever."""
    place = make_workspace("picture0.png")
    workspace = open_fake_workspace(load_settings(place.config_file))
    with closing(workspace), Runner(workspace, place.config_file) as runner:
        discover(workspace, "source")
        place.write_settings(media={"page_dpi": 100})
        with pytest.raises(ConfigError, match="settings were changed"):
            runner.process()


def test_watching_takes_changed_settings_over(make_workspace: MakePlace) -> None:
    """The loop begins again with the new settings; wrong ones are told, and the work goes on with the former."""
    place = make_workspace()
    told: list[str] = []
    wrong = "sources: [{uri: 5}]\n"
    good = place.config_file.read_text()
    steps = iter([wrong, good.replace("decode_workers: 1", "decode_workers: 2")])

    def read() -> Any:
        place.config_file.write_text(next(steps))
        return load_settings(place.config_file)

    before = load_settings(place.config_file)
    chores = {"nothing": watching.Chore("nothing", lambda: False, 0.0, lambda *_, **__: None)}

    found = watching._go_on_until_changed(before, read, chores, lambda what, said, **_: told.append(f"{what} {said}"))

    assert found.runs.decode_workers == 2
    assert [line.split()[0] for line in told] == ["failed", "recovered"]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Give a port that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.mark.slow
def test_a_source_that_does_not_answer_stops_nothing_of_the_others(
    make_workspace: MakePlace, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are listed and processed; the command says which was not, and ends with 1."""
    place = make_workspace("picture0.png")
    down = {
        "uri": "s3://media",
        "alias": "down",
        "endpoint_url": f"http://127.0.0.1:{closed_port}",
        "region": "us-east-1",
        "access_key_id": "k",
        "secret_access_key": "s",
    }
    place.write_settings(sources=[down, {"uri": str(place.source), "alias": "source"}])
    monkeypatch.setattr("mm_assets.buckets.s3.CHECK_BUDGET_S", 0.5)

    result = mm("ingest", "--json", "--no-refresh", "-c", str(place.config_file), code=1)

    summary = json.loads(result.stdout)
    assert list(summary["failed_sources"]) == ["down"]
    assert "endpoint_url" in summary["failed_sources"]["down"]
    assert [(found["alias"], found["n_new"]) for found in summary["discoveries"]] == [("source", 1)]
    assert summary["n_processed"] == 1
