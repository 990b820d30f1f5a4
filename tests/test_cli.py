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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner, Result
from fakes import FakeWorkspaceResource, fake_extractors, open_fake_workspace
from flow_driver import ingest
from places import Place
from s3_server import KEY_ID, SECRET, make_client, moto_server

from mm_assets.cli import main, output, probes
from mm_assets.cli.settings_text import list_settings, write_template
from mm_assets.extractors.packs import Pack
from mm_assets.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]
MM = [sys.executable, "-c", "from mm_assets.cli import main; main()"]
HELP_BUDGET_CPU_S = 0.5
HEAVY = {"dagster", "boto3", "sqlalchemy", "pydantic", "pyarrow", "numpy", "duckdb", "torch", "rich"}


def mm(*arguments: str, code: int = 0) -> Result:
    """Run a command in this process and expect its exit code."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}"
    return result


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


# -- init --------------------------------------------------------------------------------------------------------------


def test_init_writes_what_loads(tmp_path: Path) -> None:
    """The file is valid, holds the locations asked for, and is readable by its owner only."""
    file = tmp_path / "mm_assets.yaml"
    mm(
        "init",
        "-c",
        str(file),
        "--source",
        "s3://films/a",
        "--source",
        "stills",
        "--lake",
        "s3://results",
        "--region",
        "r",
    )
    settings = load_settings(file)
    assert [source.uri for source in settings.sources] == ["s3://films/a", str(tmp_path / "stills")]
    assert (settings.lake.uri, settings.lake.region, settings.sources[1].region) == ("s3://results", "r", None)
    assert file.stat().st_mode & 0o777 == 0o600


def test_init_never_overwrites(tmp_path: Path) -> None:
    """A second init leaves the file as it is, unless it is forced."""
    file = tmp_path / "mm_assets.yaml"
    file.write_text("mine", encoding="utf-8")
    assert "--force" in mm("init", "-c", str(file), code=2).stderr
    assert file.read_text(encoding="utf-8") == "mine"
    mm("init", "-c", str(file), "--force")
    assert load_settings(file).sources


def test_init_refuses_what_no_command_could_read(tmp_path: Path) -> None:
    """A wrong location is told at once, and nothing is written."""
    file = tmp_path / "mm_assets.yaml"
    assert "unknown scheme" in mm("init", "-c", str(file), "--source", "ftp://x", code=2).stderr
    assert not file.exists()


def test_template_comments_are_the_defaults() -> None:
    """With every comment taken away, the file still says the defaults: the text cannot go stale."""
    text = write_template(["media"], "lake")
    bare = re.sub(r"^( *)#(?=[a-z_]+:)", r"\1", text, flags=re.MULTILINE)
    settings = Settings(**yaml.safe_load(bare))
    assert settings == Settings(**yaml.safe_load(text))
    assert settings.sources[0].alias == "media"
    for setting in list_settings():
        assert f"{setting.path.rpartition('.')[2]}:" in bare


# -- doctor ------------------------------------------------------------------------------------------------------------


def findings(*arguments: str, code: int = 0) -> dict[str, list[dict[str, str]]]:
    """Run the doctor; returns its findings by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in mm("doctor", "--json", *arguments, code=code).stdout.splitlines():
        finding = json.loads(line)
        found.setdefault(finding["name"], []).append(finding)
    return found


@pytest.mark.slow
def test_doctor_finds_a_good_place(filled: Place) -> None:
    """On a machine where all is well nothing fails, and the probe leaves nothing in the lake."""
    before = sorted(filled.lake.rglob("*.*"))
    found = findings("-c", str(filled.config_file))
    assert {"settings", "source source", "lake", "ledger", "weights", "disk", "sandbox", "device"} <= set(found)
    assert not [f for group in found.values() for f in group if f["status"] == "FAIL"]
    assert sorted(filled.lake.rglob("*.*")) == before


@pytest.mark.slow
def test_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    """A missing folder, a lake that cannot be written and missing weights each fail by name; the rest is still tried."""
    (tmp_path / "lake").write_text("a file is in the way", encoding="utf-8")
    file = tmp_path / "mm_assets.yaml"
    file.write_text("sources: [{uri: nowhere}]\nmodels: {pack: standard}\n", encoding="utf-8")
    found = findings("-c", str(file), code=1)
    failed = {name for name, group in found.items() if any(f["status"] == "FAIL" for f in group)}
    assert failed == {"source nowhere", "lake", "weights"}
    assert "mm models pull standard" in found["weights"][0]["message"]
    assert found["sandbox"][0]["status"] in {"ok", "warn"}


def test_doctor_compares_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is off from the store's is a warning, and a failure where requests would be refused."""
    with moto_server() as url:
        make_client(url).create_bucket(Bucket="lake")
        keys = {"endpoint_url": url, "region": "us-east-1", "access_key_id": KEY_ID, "secret_access_key": SECRET}
        settings = Settings(lake={"uri": "s3://lake/results", **keys})  # type: ignore[arg-type]
        now, statuses = time.time, []
        for offset_s in (0, 120, 3_600):
            monkeypatch.setattr(probes.time, "time", lambda offset_s=offset_s: now() + offset_s)
            statuses += [finding.status for finding in probes._clock(settings)]
    assert statuses == ["ok", "warn", "FAIL"]


def test_doctor_finds_rival_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages that own the same files are told, whatever CUDA the name ends with."""
    assert [finding.status for finding in probes._packages()] == ["ok"]
    for name in ("faiss_cpu", "faiss_gpu_cu12"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name.replace('_', '-')}\nVersion: 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [finding.status for finding in probes._packages()] == ["FAIL"]


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


def test_search_takes_one_question(filled: Place) -> None:
    """Text and picture together, or neither, is wrong usage."""
    assert "either TEXT or --image" in mm("search", "-c", str(filled.config_file), code=2).stderr


def test_sql_has_three_forms(filled: Place) -> None:
    """Rows come tab-separated, as CSV or as JSON Lines, with types kept in JSON."""
    query = "SELECT key, size_bytes, modified_at FROM raw_objects WHERE key = 'notes.txt'"
    config = str(filled.config_file)
    assert table(mm("sql", query, "-c", config))[0]["size_bytes"] == "9"
    assert mm("sql", "--csv", query, "-c", config).stdout.splitlines()[0] == "key,size_bytes,modified_at"
    row = json.loads(mm("sql", "--json", query, "-c", config).stdout)
    assert (row["key"], row["size_bytes"]) == ("notes.txt", 9)
    assert row["modified_at"].endswith("+00:00")


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


@pytest.mark.usefixtures("fake_models")
def test_show_does_not_guess(filled: Place) -> None:
    """An object that nobody knows is told, with the forms that are understood."""
    assert "partition key" in mm("show", "nowhere.png", "-c", str(filled.config_file), code=2).stderr


# -- models and deletions ----------------------------------------------------------------------------------------------


def test_models_list_tells_licences(tmp_path: Path) -> None:
    """Each pack is listed with its cards, and what AGPL and non-commercial weights ask for."""
    file = tmp_path / "mm_assets.yaml"
    file.write_text("{}", encoding="utf-8")
    text = mm("models", "list", "-c", str(file)).stdout
    assert "mm models pull standard" in text
    assert "AGPL-3.0; a network service" in text
    assert "buffalo_l may not be used commercially" in text


def test_models_verify_checks_digests(tmp_path: Path) -> None:
    """Weights that are what their cards say pass; a changed byte is a ConfigError."""
    import shutil

    pack = tmp_path / "pack"
    shutil.copytree(ROOT / "mm_assets" / "packs" / "demo", pack)
    file = tmp_path / "mm_assets.yaml"
    file.write_text("{}", encoding="utf-8")
    assert "ok  faces" in mm("models", "verify", str(pack), "-c", str(file)).stdout
    with (pack / "faces" / "detection.onnx").open("ab") as weights:
        weights.write(b"x")
    assert "SHA-256" in mm("models", "verify", str(pack), "-c", str(file), code=2).stderr


def test_models_pull_fetches_nothing_that_is_here(tmp_path: Path) -> None:
    """The demo pack comes with the package: pulling it is done at once."""
    file = tmp_path / "mm_assets.yaml"
    file.write_text("{}", encoding="utf-8")
    assert "All weights of demo are here" in mm("models", "pull", "demo", "-c", str(file)).stdout


def test_deletions_confirm_lets_them_through(make_workspace: Callable[..., Place], media: Path) -> None:
    """An emptied source raises the alarm and loses nothing; after the confirmation it is empty."""
    from mm_assets.flows.discovery import discover

    place = make_workspace("picture0.png", "picture1.png")
    config, workspace = str(place.config_file), place.open()
    discover(workspace, "source")
    assert "nothing to confirm" in mm("deletions", "confirm", "source", "-c", config).stdout
    for file in place.source.iterdir():
        file.unlink()
    assert discover(workspace, "source").alarm
    assert "Confirmed" in mm("deletions", "confirm", "source", "-c", config).stdout
    assert discover(workspace, "source").n_gone == 2
    assert "known: source" in mm("deletions", "confirm", "other", "-c", config, code=2).stderr


# -- demo --------------------------------------------------------------------------------------------------------------


def test_demo_needs_its_media(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a bare wheel the demo says where its media are."""
    monkeypatch.setattr("mm_assets.cli.demo.__file__", str(tmp_path / "mm_assets" / "cli" / "demo.py"))
    assert "checkout of the repository" in mm("demo", "--out", str(tmp_path), code=2).stderr


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_demo_keeps_away_from_other_folders(store: str, tmp_path: Path) -> None:
    """A folder that holds something else is refused and left as it is."""
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    assert "--out" in mm("demo", "--store", store, "--out", str(tmp_path), code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_demo_server_ends_with_the_demo(media: Path) -> None:
    """The S3 server holds the media byte for byte while it runs, and its process is gone afterwards."""
    import urllib.error
    import urllib.request

    from mm_assets.cli.demo_server import fill_bucket, s3_server

    with s3_server() as url:
        fill_bucket(url, media)
        stored = make_client(url).get_object(Bucket="demo-media", Key="clip.mp4")["Body"].read()
        assert stored == (media / "clip.mp4").read_bytes()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)  # noqa: S310  the loopback server


@pytest.mark.slow
def test_ctrl_c_ends_an_ingest_with_130(make_workspace: Callable[..., Place]) -> None:
    """SIGINT in the middle of a run ends the process with 130, and the work is free for the next one."""
    place = make_workspace("picture0.png", "clip.mp4")
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom mm_assets.cli import main; main()"
    command = [sys.executable, "-c", code, "ingest", "-c", str(place.config_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("processing"):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Nothing is lost" in errors
    workspace = place.open()
    assert {
        row["state"]
        for known in workspace.ledger.objects.find("clip.mp4")
        for row in workspace.ledger.work.states(known.object_id)
    } <= {"wanted", "done"}
