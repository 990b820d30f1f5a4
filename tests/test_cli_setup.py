"""``mm init``, ``doctor``, ``models``, ``deletions`` and ``demo``: before and around the work."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_driver import mm
from flow_driver import ingest
from places import Place
from s3_server import KEY_ID, SECRET, make_client, moto_server

from mm_assets.cli import probes
from mm_assets.cli.opening import read_settings
from mm_assets.cli.settings_text import list_settings, write_template
from mm_assets.errors import ConfigError
from mm_assets.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MM_ASSETS_") or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)


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


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [("MM_ASSETS_SERVE", "{bad", "JSON"), ("MM_ASSETS_SERVE__PORT", "99999", "serve.port")],
)
def test_init_names_what_is_wrong_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    """A wrong variable ends in one message that names the setting."""
    monkeypatch.setenv(variable, value)
    assert told in mm("init", "-c", str(tmp_path / "m.yaml"), code=2).stderr


def test_init_keeps_an_overwritten_file_to_one_user(tmp_path: Path) -> None:
    """Keys may be put into it, whatever rights the file before had."""
    file = tmp_path / "m.yaml"
    file.write_text("", encoding="utf-8")
    file.chmod(0o644)
    mm("init", "--force", "-c", str(file))
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_state_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    """It names the path and ends with 2, without a stack trace."""
    config = tmp_path / "m.yaml"
    state = tmp_path / "file" / "state"
    state.parent.write_text("", encoding="utf-8")
    config.write_text(
        f"sources: [{{uri: {tmp_path}}}]\nlake: {{uri: {tmp_path / 'lake'}}}\nstate: {state}\n", encoding="utf-8"
    )
    assert str(state) in mm("status", "-c", str(config), code=2).stderr


def test_template_comments_are_the_defaults() -> None:
    """With every comment taken away, the file still says the defaults: the text cannot go stale."""
    text = write_template(["media"], "lake")
    bare = re.sub(r"^( *)#(?=[a-z_]+:)", r"\1", text, flags=re.MULTILINE)
    settings = Settings(**yaml.safe_load(bare))
    assert settings == Settings(**yaml.safe_load(text))
    assert settings.sources[0].alias == "media"
    for setting in list_settings():
        is_of_a_queue = "[]" in setting.path and not setting.path.startswith("sources[]")  # lists that begin empty
        assert is_of_a_queue or f"{setting.path.rpartition('.')[2]}:" in bare


# -- without settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "ingest",
        "ingest --watch",
        "dlq list",
        "verify",
        "erase a.png",
        "gc",
        "rebuild-ledger",
        "serve",
        "status",
        "deletions confirm a",
        "search anything",
        "sql SELECT",
    ],
)
def test_folder_without_settings_is_refused(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in the wrong folder does not take it for an empty lake, and leaves nothing there."""
    monkeypatch.chdir(tmp_path)
    assert "there is no settings file here (mm_assets.yaml)" in mm(*command.split(), code=2).stderr
    assert not list(tmp_path.iterdir())


def test_sources_of_the_environment_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may be set up by variables alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MM_ASSETS_SOURCES", '[{"uri": "films"}]')
    assert [source.alias for source in read_settings(None, for_sources=True).sources] == ["films"]


@pytest.mark.parametrize("arguments", [(), ("--watch",)])
def test_ingest_needs_a_source(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Settings without a source are told, instead of an ingest of nothing; nothing is created."""
    file = tmp_path / "mm_assets.yaml"
    file.write_text("sources: []\n", encoding="utf-8")
    assert "no source is set in " in mm("ingest", *arguments, "-c", str(file), code=2).stderr
    assert list(tmp_path.iterdir()) == [file]


def test_doctor_without_settings_fails_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing that it could look at."""
    monkeypatch.chdir(tmp_path)
    assert "there is no settings file here" in findings(code=1)["settings"][0]["message"]
    assert not list(tmp_path.iterdir())


def test_ingest_takes_an_interval_with_watch_only() -> None:
    """An option without effect is wrong usage."""
    assert "--watch" in mm("ingest", "--interval", "60", code=2).stderr


# -- doctor ------------------------------------------------------------------------------------------------------------


def findings(*arguments: str, code: int = 0) -> dict[str, list[dict[str, str]]]:
    """Run the doctor; returns its findings by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in mm("doctor", "--json", *arguments, code=code).stdout.splitlines():
        finding = json.loads(line)
        found.setdefault(finding["name"], []).append(finding)
    return found


@pytest.mark.slow
def test_doctor_finds_a_good_place(make_workspace: Callable[..., Place]) -> None:
    """On a machine where all is well nothing fails, and the probe leaves nothing in the lake."""
    place = make_workspace("picture0.png")
    found = findings("-c", str(place.config_file))
    assert {"settings", "source source", "lake", "ledger", "weights", "disk", "sandbox", "device"} <= set(found)
    assert not [f for group in found.values() for f in group if f["status"] == "FAIL"]
    assert not [path for path in place.lake.rglob("*") if path.is_file()]


def test_doctor_tells_a_lake_whose_ledger_is_lost(make_workspace: Callable[..., Place]) -> None:
    """The ledger works and knows nothing of what the lake holds: what ``mm rebuild-ledger`` is for."""
    place = make_workspace("picture0.png")
    ingest(place.open())
    place.lose_ledger()

    found = findings("-c", str(place.config_file), code=1)

    assert [finding["status"] for finding in found["lake"]] == ["ok", "FAIL"]
    assert "mm rebuild-ledger" in found["lake"][1]["message"]
    assert found["ledger"][0]["status"] == "ok"


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


def test_doctor_tells_one_cause_once(tmp_path: Path) -> None:
    """A pack that is not there fails every probe that reads it, and is told by the first."""
    file = tmp_path / "mm_assets.yaml"
    file.write_text("sources: [{uri: .}]\nlake: {uri: ../lake}\nmodels: {pack: nowhere}\n", encoding="utf-8")
    told = [
        f["message"] for group in findings("-c", str(file), code=1).values() for f in group if f["status"] == "FAIL"
    ]
    assert len(told) == len(set(told)) == 1


def test_doctor_tells_what_sources_share_and_leave_out(tmp_path: Path) -> None:
    """Two sources over one place are allowed, and told; so is a lake inside a source."""
    (tmp_path / "media" / "films").mkdir(parents=True)
    (tmp_path / "media" / "a.txt").write_text("a", encoding="utf-8")
    file = tmp_path / "mm_assets.yaml"
    file.write_text("sources: [{uri: media}, {uri: media/films}]\nlake: {uri: media/results}\n", encoding="utf-8")
    settings = load_settings(file)
    found = list(probes._settings(settings, file))
    assert [finding.status for finding in found] == ["ok", "warn"]
    assert "media" in found[1].message
    [source] = probes._source(settings.sources[0], settings)
    assert source.message.endswith("left out, since they are our own: results/")


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
    stopped = mm("ingest", "--no-refresh", "-c", config, code=1)
    assert "ALARM: 2 of 2 objects" in stopped.stderr
    assert "ALARM: 2 of 2 objects" in mm("status", "-c", config).stdout
    assert "Confirmed" in mm("deletions", "confirm", "source", "-c", config).stdout
    told = mm("status", "-c", config).stdout
    assert "its deletions are confirmed" in told
    assert "ALARM" not in told
    assert discover(workspace, "source").n_gone == 2
    assert "known: source" in mm("deletions", "confirm", "other", "-c", config, code=2).stderr


def test_deletions_confirm_refuses_a_lost_ledger(make_workspace: Callable[..., Place]) -> None:
    """A ledger that knows nothing is not told as a source without an alarm."""
    place = make_workspace("picture0.png")
    ingest(place.open())
    place.lose_ledger()
    assert "mm rebuild-ledger" in mm("deletions", "confirm", "source", "-c", str(place.config_file), code=2).stderr


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


def test_demo_leaves_settings_of_others_alone(tmp_path: Path) -> None:
    """A folder with somebody's own settings is no folder of an earlier demo; one of a demo keeps what was added to it."""
    from mm_assets.cli.demo import _folder_demo

    config = tmp_path / "mine" / "mm_assets.yaml"
    config.parent.mkdir()
    config.write_text("sources: [{uri: s3://precious}]", encoding="utf-8")
    assert "--out" in mm("demo", "--out", str(config.parent), code=2).stderr
    assert config.read_text(encoding="utf-8") == "sources: [{uri: s3://precious}]"

    (tmp_path / "media").mkdir()
    with _folder_demo(tmp_path / "media", tmp_path / "demo") as written:
        added = written.read_text(encoding="utf-8") + "runs:\n  max_tries: 1\n"
        written.write_text(added, encoding="utf-8")
    with _folder_demo(tmp_path / "media", tmp_path / "demo") as written:
        assert written.read_text(encoding="utf-8") == added


def test_demo_does_not_go_on_with_buckets_that_are_gone(tmp_path: Path) -> None:
    """The settings of a demo with buckets name a server that ended with it: its folder is refused, not taken up."""
    from mm_assets.cli.demo import _bucket_demo, _folder_demo

    (tmp_path / "media").mkdir()
    with _bucket_demo(tmp_path / "media", tmp_path / "demo") as written:
        before = written.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="--out"), _folder_demo(tmp_path / "media", tmp_path / "demo"):
        pass
    assert written.read_text(encoding="utf-8") == before


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
