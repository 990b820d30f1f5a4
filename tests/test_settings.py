"""Settings: one file, variables on top, messages that name the setting."""

import traceback
from pathlib import Path

import pytest

from mm_assets.errors import ConfigError
from mm_assets.flows.workspace import reserved_prefixes
from mm_assets.settings import Settings, build_settings, load_settings


def _write(folder: Path, text: str) -> Path:
    file = folder / "mm_assets.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_relative_folders_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process sees the same folders, wherever it is started."""
    file = _write(tmp_path, "sources: [{uri: media}]\nlake: {uri: lake}\n")
    monkeypatch.chdir("/")

    settings = load_settings(file)

    assert settings.sources[0].folder == tmp_path / "media"
    assert settings.lake.folder == tmp_path / "lake"
    assert settings.ledger_location == f"sqlite:///{tmp_path / '.mm_assets' / 'ledger.db'}"


def test_variables_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable changes one nested value and leaves its neighbours."""
    file = _write(tmp_path, "sources: [{uri: media}]\nruns: {batch_objects: 7, max_tries: 5}\n")
    monkeypatch.setenv("MM_ASSETS_RUNS__BATCH_OBJECTS", "9")

    settings = load_settings(file)

    assert (settings.runs.batch_objects, settings.runs.max_tries) == (9, 5)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sources: [{uri: media}]\nlakes: {uri: x}\n", "lakes"),
        ("sources: [{uri: ftp://x}]\n", "ftp://"),
        ("sources: [{uri: s3://}]\n", "bucket"),
        ("sources: [{uri: a/media}, {uri: b/media}]\n", "alias"),
        ("sources: [{uri: media, alias: 'a/b'}]\n", "alias"),
        ("sources: [{uri: media, steps: [facez]}]\n", "facez"),
        ("runs: {batch_objects: 0}\n", "runs.batch_objects"),
        ("sources: [\n", "YAML"),
        ("- a\n", "by name"),
        ("lake: {uri: x, endpoint: y}\n", "lake.endpoint: there is no such setting; is `endpoint_url` meant"),
        ("sources: [{uri: x, aliases: y}]\n", "is `alias` meant"),
        ("sources: media\n", "sources: it must be a list"),
        ("runs: {max_tries: many}\n", "runs.max_tries: it must be a whole number"),
        ("sources: [{alias: x}]\n", "sources.0.uri: it must be given"),
    ],
)
def test_wrong_settings_are_one_message_that_names_them(tmp_path: Path, text: str, named: str) -> None:
    """A slip is said before any work, with the name of the setting."""
    with pytest.raises(ConfigError, match=named):
        load_settings(_write(tmp_path, text))


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    """A misspelt file is an error, not the defaults."""
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(tmp_path / "absent.yaml")


def test_secrets_do_not_show(tmp_path: Path) -> None:
    """Printing the settings shows no secret key."""
    settings = load_settings(_write(tmp_path, "sources: [{uri: s3://b, secret_access_key: hush}]\n"))

    assert "hush" not in repr(settings)


def _settings(
    source: str, lake: str, state: str = "/state", endpoints: tuple[str, str] = ("https://h", "https://h")
) -> Settings:
    return Settings.model_validate(
        {
            "sources": [{"uri": source, "endpoint_url": endpoints[0], "alias": "a"}],
            "lake": {"uri": lake, "endpoint_url": endpoints[1]},
            "state": state,
        }
    )


@pytest.mark.parametrize(
    ("source", "lake", "expected"),
    [
        ("s3://b", "s3://b/lake", ("lake/",)),
        ("s3://b/media", "s3://b/media/out/lake/", ("out/lake/",)),
        ("s3://b/media", "s3://b/lake", ()),
        ("s3://b", "s3://b2/lake", ()),
        ("/data", "/data/lake", ("lake/",)),
        ("/data/media", "/data/lake", ()),
    ],
)
def test_a_lake_inside_a_source_is_reserved(source: str, lake: str, expected: tuple[str, ...]) -> None:
    """Our own files below a watched prefix are never ours to ingest."""
    settings = _settings(source, lake)

    assert reserved_prefixes(settings.sources[0], settings) == expected


def test_the_same_endpoint_written_otherwise_is_the_same_bucket() -> None:
    """A slash or capitals in the endpoint do not make another bucket."""
    settings = _settings("s3://b", "s3://b/lake", endpoints=("https://Host/", "https://host"))

    assert reserved_prefixes(settings.sources[0], settings) == ("lake/",)


@pytest.mark.parametrize(
    ("source", "lake"), [("s3://b/lake/x", "s3://b/lake"), ("s3://b", "s3://b"), ("/d/lake", "/d")]
)
def test_a_source_inside_the_lake_is_refused(source: str, lake: str) -> None:
    """Watching the results would feed them back."""
    settings = _settings(source, lake)

    with pytest.raises(ConfigError, match="lies inside"):
        reserved_prefixes(settings.sources[0], settings)


def test_the_state_folder_is_reserved_too(tmp_path: Path) -> None:
    """A source that is the working folder does not ingest the ledger."""
    settings = _settings(str(tmp_path), "/elsewhere", state=str(tmp_path / ".mm_assets"))

    assert reserved_prefixes(settings.sources[0], settings) == (".mm_assets/",)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("events", {"b2_secrets": ["short"]}),
        ("events", {"tigris_tokens": [""]}),
        ("events", {"s3_tokens": ["x" * 15]}),
        ("serve", {"api_keys": ["letmein"]}),
    ],
)
def test_secrets_that_can_be_guessed_are_refused(section: str, values: dict[str, list[str]]) -> None:
    """A secret of fewer than 16 characters is refused."""
    with pytest.raises(ValueError, match="at least 16 characters"):
        Settings.model_validate({section: values})


def test_secrets_do_not_show_in_the_settings() -> None:
    """Printing the settings prints no secret."""
    secret = "0123456789abcdefSECRET"  # noqa: S105  not a secret of anyone

    settings = Settings.model_validate({"events": {"b2_secrets": [secret]}, "serve": {"api_keys": [secret]}})

    assert secret not in repr(settings)


def test_a_variable_that_is_no_json_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list given as plain text names the variable's form, and nothing of its content shows in the causes."""
    monkeypatch.setenv("MM_ASSETS_EVENTS__B2_SECRETS", "my-very-secret-string")

    with pytest.raises(ConfigError, match="JSON") as caught:
        load_settings()

    assert "my-very-secret-string" not in "".join(traceback.format_exception(caught.value))


def test_a_refused_secret_shows_in_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are logged with their causes, so none of them may repeat what was given."""
    monkeypatch.setenv("MM_ASSETS_SERVE__API_KEYS", '["hush-hush"]')

    with pytest.raises(ConfigError, match="16 characters") as caught:
        load_settings()

    assert "hush-hush" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["foo", "mysql://u:secret@host/x", "postgresql+psycopg://u:secret@host/x", "sqlite"])
def test_a_ledger_url_of_another_kind_is_refused(url: str) -> None:
    """It says what can be written, and tells no password."""
    with pytest.raises(ConfigError, match="write sqlite:///FILE or postgresql://") as caught:
        build_settings({"ledger_url": url}, None)
    assert "secret" not in str(caught.value)
