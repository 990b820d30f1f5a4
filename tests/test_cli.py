"""The command line: what it prints, how it ends, and that it waits for nothing heavy.

Commands run on real ledgers, lakes and media; only the models are fakes, so that search has vectors without weights.
"""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from checker import Evidence, Folder
from cli_driver import mm
from click.testing import Result
from fakes import FakeWorkspaceResource, fake_extractors, open_fake_workspace
from flow_driver import ingest
from places import Place
from rig import wait_until

from mm_assets.cli import main, output
from mm_assets.extractors.packs import Pack
from mm_assets.settings import Settings

MM = [sys.executable, "-c", "from mm_assets.cli import main; main()"]
HELP_BUDGET_CPU_S = 0.5
HEAVY = {"dagster", "boto3", "sqlalchemy", "pydantic", "pyarrow", "numpy", "duckdb", "torch", "rich"}


def table(result: Result) -> list[dict[str, str]]:
    """Read tab-separated output below a line of names."""
    return list(csv.DictReader(io.StringIO(result.stdout), delimiter="\t"))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MM_ASSETS_") or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Place]:
    """Give a place whose media are ingested and published, a broken picture and a text among them."""
    place = Place(tmp_path_factory.mktemp("filled"), media)
    place.write_settings(refresh={"anomaly_percentile": 0.01})
    place.add("picture0.png", "picture1.png", "clip.mp4", "broken.png", "notes.txt")
    ingest(place.open())
    yield place
    place.close()


@pytest.fixture
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands open the fakes where they would open models."""

    def build(step: str, _pack: Pack, _params: object, _placement: object) -> Any:
        steps = {"sources": [{"uri": "source", "steps": [step]}]}
        return fake_extractors(Settings(**steps))[step]  # type: ignore[arg-type]

    def open_workspace(settings: Settings, *, check: bool = True) -> Any:
        return open_fake_workspace(settings)

    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", build)
    monkeypatch.setattr("mm_assets.resources.workspace.open_workspace", open_workspace)


# -- start and end -----------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    """``mm --help`` takes under half a second of CPU and imports no library that it does not need."""
    code = (
        "import sys, time, atexit; from mm_assets.cli import main\n"
        "atexit.register(lambda: print(time.process_time(), *{m.partition('.')[0] for m in sys.modules}))\n"
        "main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = done.stdout.splitlines()[-1].split()
    assert not HEAVY & set(modules)
    assert float(seconds) < HELP_BUDGET_CPU_S


@pytest.mark.parametrize("name", [*main.commands])  # type: ignore[attr-defined]
def test_help_teaches_by_example(name: str) -> None:
    """Every command's help, or that of each command below it, ends with an example of that command."""
    command = main.commands[name]  # type: ignore[attr-defined]
    for words in [[name, below] for below in getattr(command, "commands", ())] or [[name]]:
        text = mm(*words, "--help").output
        assert f"mm {' '.join(words)}" in text.partition("Example")[2]


def test_config_error_is_one_message_and_code_2(tmp_path: Path) -> None:
    """A wrong setting ends with its name on stderr, exit code 2 and no stack trace."""
    file = tmp_path / "mm_assets.yaml"
    file.write_text("sources:\n  - uri: ftp://x\n", encoding="utf-8")
    result = mm("status", "-c", str(file), code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("mm: ")
    assert "sources.0.uri" in result.stderr
    assert "Traceback" not in result.stderr


def test_service_error_has_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that fails is not called a wrong setting."""
    from mm_assets.errors import ServiceError

    def fail(*_: object, **__: object) -> None:
        msg = "the server is gone"
        raise ServiceError(msg)

    monkeypatch.setattr("mm_assets.extractors.pull.pull_pack", fail)
    assert mm("models", "pull", "demo", code=1).stderr.endswith("mm: the server is gone\n")


def test_interrupt_says_what_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130 and says that nothing is lost."""

    def interrupt(*_: object, **__: object) -> None:
        raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr("mm_assets.cli.runs.ingest", interrupt)
    assert "Nothing is lost" in mm("ingest", code=130).stderr


def test_closed_pipe_is_quiet(filled: Place) -> None:
    """A reader that stops reading (``| head``) causes no message."""
    command = [*MM, "sql", "-c", str(filled.config_file), "SELECT * FROM range(200000)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


# -- output ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", ["a\x1b[31mred", "two\nlines", "tab\tbed", "turned\u202eround", "\x9b2J"])
def test_printable_hides_controls(hostile: str) -> None:
    """No key can move the cursor, break a line or turn the direction of writing."""
    shown = output.printable(hostile)
    assert re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", shown) is None
    assert "\\" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "00:00.0"), (59.96, "01:00.0"), (72.34, "01:12.3"), (3_723.4, "1:02:03.4"), (None, "")]
)
def test_clock_writes_minutes(seconds: float | None, text: str) -> None:
    """Seconds are written as minutes and, from an hour on, hours; never as 60 seconds."""
    assert output.clock(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_counted_has_one_and_many(n: int, text: str) -> None:
    """One of a thing is written without the s."""
    assert output.counted(n, "file") == text


# -- ingest ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``mm ingest`` execute the real jobs on fake models."""

    def open_workspace(settings: Settings, *, check: bool = True) -> Any:
        return open_fake_workspace(settings)

    monkeypatch.setattr("mm_assets.cli.runs.open_workspace", open_workspace)
    monkeypatch.setattr("mm_assets.cli.runs.WorkspaceResource", FakeWorkspaceResource)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_runs")
def test_ingest_counts_and_then_has_nothing_to_do(make_workspace: Callable[..., Place]) -> None:
    """The summary counts what was found and failed with exit code 0; a second ingest does nothing and says so."""
    place = make_workspace("picture0.png", "picture1.png", "broken.png", "notes.txt")
    result = mm("ingest", "--json", "-c", str(place.config_file))
    summary = json.loads(result.stdout)
    assert [(d["alias"], d["n_new"], d["n_gone"]) for d in summary["discoveries"]] == [("source", 4, 0)]
    assert summary["n_rows"]["raw_objects"] == 4
    assert summary["failed_runs"] == {}
    dead = [count for count in summary["counts"] if count["state"] == "dead"]
    assert dead == [{"step": "segments", "state": "dead", "reason": "corrupt", "n_objects": 1}]
    assert "listing: 4" in result.stderr
    again = mm("ingest", "-c", str(place.config_file)).stdout
    assert "4 listed, 0 new, 0 changed, 0 gone" in again
    assert "Nothing to do" in again


def test_ingest_fails_when_a_run_fails(make_workspace: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed run is told on stderr, and the exit code is 1."""
    from mm_assets.cli import runs

    summary = runs.Summary(n_runs=1, failed_runs={"run-1": "no space left"})
    monkeypatch.setattr(runs, "ingest", lambda *_, **__: summary)
    place = make_workspace()
    assert "run run-1 failed: no space left" in mm("ingest", "-c", str(place.config_file), code=1).stderr


@pytest.mark.slow
def test_ctrl_c_ends_an_ingest_with_130(make_workspace: Callable[..., Place]) -> None:
    """SIGINT in the middle of a run ends the process with 130, and the work is free for the next one."""
    place = make_workspace("picture0.png", "clip.mp4")
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom mm_assets.cli import main; main()"
    command = [sys.executable, "-c", code, "ingest", "-c", str(place.config_file)]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("processing"):
                break
        evidence = Evidence({}, place.open().settings.ledger_location, Folder(place.lake))
        wait_until(lambda: evidence.rows("SELECT 1 FROM work WHERE state = 'claimed'"), 60)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Nothing is lost" in errors
    assert "Traceback" not in errors
    workspace = place.open()
    assert {
        row["state"]
        for known in workspace.ledger.objects.find("clip.mp4")
        for row in workspace.ledger.work.states(known.object_id)
    } <= {"wanted", "done"}


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_models")
def test_status_tells_sources_steps_and_reasons(filled: Place) -> None:
    """Status has the live objects, one row for each step and reason, and that the tables are up to date."""
    state = json.loads(mm("status", "--json", "-c", str(filled.config_file)).stdout)
    assert [(s["source"], s["n_live"], s["alarm"]) for s in state["sources"]] == [("source", 5, None)]
    dead = [(s["step"], s["reason"], s["n_objects"]) for s in state["steps"] if s["state"] == "dead"]
    assert dead == [("segments", "corrupt", 1)]
    assert state["is_stale"] is False
    assert {recipe["recipe"] == recipe["published"] for recipe in state["recipes"]} == {True}
    text = mm("status", "-c", str(filled.config_file)).stdout
    assert "segments\t3\t1\t1\t0" in text
    assert "up to date" in text


@pytest.mark.usefixtures("fake_models")
def test_search_answers_with_moments(filled: Place) -> None:
    """An answer names object and stretch of time; --where leaves only what passes, --limit cuts."""
    config = str(filled.config_file)
    rows = table(mm("search", "anything", "-c", config))
    assert {row["object"] for row in rows} == {"source/picture0.png", "source/picture1.png", "source/clip.mp4"}
    times = [row["where"] for row in rows if row["object"] == "source/clip.mp4"]
    assert all(re.fullmatch(r"\d\d:\d\d\.\d-\d\d:\d\d\.\d", where) for where in times)
    [only] = mm(
        "search", "anything", "--json", "--limit", "1", "--where", "media_kind = 'video'", "-c", config
    ).stdout.splitlines()
    assert json.loads(only)["key"] == "clip.mp4"
    assert "not a condition" in mm("search", "anything", "--where", "nonsense", "-c", config, code=2).stderr


@pytest.mark.parametrize("option", ["--where", "--said", "--spaces", "--image"])
def test_an_option_given_twice_is_no_surprise(filled: Place, media: Path, option: str) -> None:
    """The first one would be lost without a word."""
    value = str(media / "picture0.png") if option == "--image" else "words"
    told = mm("search", "x", option, value, option, value, "-c", str(filled.config_file), code=2).stderr
    assert f"'{option}': it is given 2 times" in told


def test_search_needs_a_question(filled: Place) -> None:
    """A condition alone asks nothing; the message names what can be asked."""
    assert "nothing is asked" in mm("search", "--where", "start_s > 1", "-c", str(filled.config_file), code=2).stderr


@pytest.mark.parametrize("arguments", [("",), ("x", "--where", ""), ("x", "--said", " ")])
def test_search_tells_what_is_empty(filled: Place, arguments: tuple[str, ...]) -> None:
    """An empty text is not the same as none: a script's variable was not set."""
    assert "it is empty" in mm("search", *arguments, "-c", str(filled.config_file), code=2).stderr


def test_settings_can_be_named_before_the_command(filled: Place) -> None:
    """``mm -c FILE status`` is ``mm status -c FILE``, also of commands in groups."""
    config = str(filled.config_file)
    assert mm("-c", config, "sql", "SELECT 1 AS n").stdout == mm("sql", "SELECT 1 AS n", "-c", config).stdout
    assert "broken.png" in mm("-c", config, "dlq", "list").stdout


def test_sql_has_three_forms(filled: Place) -> None:
    """Rows come tab-separated, as CSV or as JSON Lines, with types kept in JSON."""
    query = "SELECT key, size_bytes, modified_at FROM raw_objects WHERE key = 'notes.txt'"
    config = str(filled.config_file)
    assert table(mm("sql", query, "-c", config))[0]["size_bytes"] == "9"
    assert mm("sql", "--csv", query, "-c", config).stdout.splitlines()[0] == "key,size_bytes,modified_at"
    row = json.loads(mm("sql", "--json", query, "-c", config).stdout)
    assert (row["key"], row["size_bytes"]) == ("notes.txt", 9)
    assert row["modified_at"].endswith("+00:00")


def test_sql_takes_one_form(filled: Place) -> None:
    """Two forms at once are wrong usage, and not the last of them."""
    assert "take one" in mm("sql", "--json", "--csv", "SELECT 1", "-c", str(filled.config_file), code=2).stderr


@pytest.mark.parametrize(
    "query", ["FROM segments", "SHOW TABLES", "PIVOT segments ON segment_kind", "EXPLAIN SELECT 1"]
)
def test_sql_takes_every_way_of_asking(filled: Place, query: str) -> None:
    """What DuckDB counts as asking is let through, also what it makes several statements of."""
    assert mm("sql", query, "-c", str(filled.config_file)).stdout


def test_sql_knows_moments_and_dead_letters(filled: Place) -> None:
    """The two views of the help are there."""
    config = str(filled.config_file)
    assert table(mm("sql", "SELECT key, reason FROM dead_letters", "-c", config)) == [
        {"key": "broken.png", "reason": "corrupt"}
    ]
    assert table(mm("sql", "SELECT count(*) AS n FROM moments WHERE media_kind = 'image'", "-c", config)) == [
        {"n": "2"}
    ]


def test_sql_error_is_a_message(filled: Place) -> None:
    """A statement that DuckDB refuses ends with its words and exit code 2."""
    assert "Parser Error" in mm("sql", "SELEC", "-c", str(filled.config_file), code=2).stderr


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT CASE WHEN i = 30000 THEN error('late') ELSE i END FROM range(30001) t(i)", "late"),
        ("", "one statement is asked for, not 0"),
        (" -- nothing", "not 0"),
        ("SELECT 1; SELECT 2", "not 2"),
        ("CREATE TABLE t (a INT)", "CREATE is not for here"),
        ("SET threads = 1", "SET is not for here"),
    ],
)
def test_sql_error_while_rows_are_read_is_a_message(filled: Place, query: str, told: str) -> None:
    """What fails after the first rows ends like what fails at once; so does what is not one question."""
    assert told in mm("sql", "--csv", query, "-c", str(filled.config_file), code=2).stderr


def test_sql_refuses_two_columns_of_one_name_as_json(filled: Place) -> None:
    """One of them would be lost in silence; CSV holds both."""
    query, config = "SELECT 1 AS key, 2 AS key", str(filled.config_file)
    assert "two columns are called key" in mm("sql", "--json", query, "-c", config, code=2).stderr
    assert mm("sql", "--csv", query, "-c", config).stdout.splitlines() == ["key,key", "1,2"]


def test_a_full_disk_under_the_output_is_told(filled: Place) -> None:
    """It ends as other failures do: exit code 1, one line."""
    with Path("/dev/full").open("w") as full:
        command = [*MM, "sql", "FROM moments", "-c", str(filled.config_file)]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("mm: No space left on device")
    assert len(ended.stderr.splitlines()) == 1


def test_sql_can_be_interrupted(filled: Place) -> None:
    """Ctrl-C amid a query, which DuckDB does not always notice, ends as anywhere else: exit code 130, no stack trace."""
    code = (
        "import os, signal, threading; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mm_assets.cli import main, sql\n"
        "threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT)).start(); main()"
    )
    query = "SELECT count(*) FROM range(100000000000) t(i) WHERE sin(i) > 2"  # hours
    command = [sys.executable, "-c", code, "sql", "-c", str(filled.config_file), query]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 130, ended.stderr
    assert "Interrupted" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sql_before_any_publish_says_what_to_do(make_workspace: Callable[..., Place]) -> None:
    """Without tables the message names the command that makes them."""
    place = make_workspace()
    assert "mm ingest" in mm("sql", "SELECT 1", "-c", str(place.config_file), code=2).stderr


@pytest.mark.usefixtures("fake_models")
@pytest.mark.parametrize("form", ["clip.mp4", "source/clip.mp4"])
def test_show_tells_all_of_one_object(filled: Place, form: str) -> None:
    """Show has identity, a state for each step, segments with times, and what was found in them."""
    story = json.loads(mm("show", form, "--json", "-c", str(filled.config_file)).stdout)
    assert story["object"]["key"] == "clip.mp4"
    assert {step["step"]: step["state"] for step in story["steps"]}["transcripts"] == "done"
    assert {segment["segment_kind"] for segment in story["segments"]} == {"scene", "audio"}
    assert {"detected_objects", "transcripts", "tags", "anomaly_scores"} <= set(story["found"])
    again = json.loads(mm("show", story["object"]["partition_key"], "--json", "-c", str(filled.config_file)).stdout)
    assert again == story


@pytest.mark.usefixtures("fake_models")
def test_show_tells_why_an_object_died(filled: Place) -> None:
    """The reason and what was found stand beside the step."""
    text = mm("show", "broken.png", "-c", str(filled.config_file)).stdout
    assert re.search(r"segments\tdead\t\tcorrupt\t\S+", text)
    assert "nothing of it was decoded" in text


@pytest.mark.usefixtures("fake_models")
def test_show_does_not_guess(filled: Place) -> None:
    """An object that nobody knows is told, with the forms that are understood."""
    assert "partition key" in mm("show", "nowhere.png", "-c", str(filled.config_file), code=2).stderr
