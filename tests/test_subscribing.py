"""``mm watch``: from the wish to its end, and what is refused."""

import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_driver import mm
from fakes import open_fake_workspace
from places import Place
from watch_driver import COMMAND, SECRET, Receiver, process_new

from mm_assets.errors import ConfigError
from mm_assets.flows.delivering import deliver
from mm_assets.flows.subscribing import Wish, subscribe

MakePlace = Callable[..., Place]


# -- the commands ------------------------------------------------------------------------------------------------------


def _use_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mm_assets.resources.workspace.open_workspace", lambda settings, **_: open_fake_workspace(settings)
    )


def test_a_watch_from_add_to_remove(
    make_workspace: MakePlace, receive: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Added, tried, listed with its matches, removed; its secret is printed once."""
    place, receiver = make_workspace("picture0.png"), receive()
    _use_fakes(monkeypatch)

    def watch(*arguments: str, code: int = 0) -> str:
        return mm("watch", *arguments, "-c", str(place.config_file), code=code).stdout

    secret = watch("add", "all", "--text", "x", "--threshold", "-1", "--webhook", receiver.url).strip()
    assert watch("test", "all") == "The test was taken.\n"
    assert [json.loads(body)["is_test"] for _, _, body in receiver.asked] == [True]
    workspace = process_new(place.open())
    [listed] = [json.loads(line) for line in watch("list", "--json").splitlines()]
    [match] = [json.loads(line) for line in watch("matches", "all", "--json").splitlines()]
    assert (listed["n_matches"], listed["n_waiting"], listed["stale"]) == (1, 0, None)
    assert (match["object"]["key"], match["state"], match["tries"]) == ("picture0.png", "sent", 1)
    assert "picture0.png" in watch("matches")
    assert secret.startswith("secret: ")
    assert secret.removeprefix("secret: ") not in watch("list") + watch("list", "--json") + watch("matches", "--json")
    assert watch("remove", "all") == "Removed; matches that went with it: 1.\n"
    for arguments in (("remove", "all"), ("test", "all"), ("matches", "all")):
        watch(*arguments, code=2)
    assert workspace.ledger.watches.all() == []


def test_a_given_secret_signs(
    make_workspace: MakePlace, receive: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It comes from a file, so that no list of processes shows it; a test that is not taken fails the command."""
    place, receiver, file = make_workspace(), receive(500), tmp_path / "secret"
    _use_fakes(monkeypatch)
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    options = ("--shown", "x", "--webhook", receiver.url, "--secret-file", str(file), "-c", str(place.config_file))
    assert mm("watch", "add", "all", *options).stdout == f"secret: {SECRET}\n"
    assert "the test was not taken: HTTP 500" in mm("watch", "test", "all", "-c", str(place.config_file), code=1).output
    [(_, headers, body)] = receiver.asked
    signed = f"{headers['X-MM-Assets-Timestamp']}.".encode() + body
    assert headers["X-MM-Assets-Signature"][3:] == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()


def test_status_says_what_waits_and_what_was_given_up(
    told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there is something to say."""
    workspace, _ = told(410, names=("a", "b"))
    _use_fakes(monkeypatch)
    config = str(workspace.settings.state.parent / "mm_assets.yaml")
    deliver(workspace, 5)
    line = "Matches of watches: 1 to be told, 1 given up. `mm watch matches` shows them."
    assert line in mm("status", "-c", config).stdout
    workspace.ledger.watches.remove("all")
    assert "watch" not in mm("status", "-c", config).stdout.lower()


TEXT = {"text": "x", "threshold": 0.5}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"said": "x", "shown": "x", "command": "true"}, "give one of --text"),
        ({"command": "true"}, "give one of --text"),
        ({**TEXT}, "either --webhook URL or --command"),
        ({**TEXT, "command": "true", "webhook": "https://h/"}, "either --webhook URL or --command"),
        ({"text": "x", "command": "true"}, "--threshold"),
        ({**TEXT, "threshold": 1.01, "command": "true"}, "--threshold"),
        ({**TEXT, "threshold": float("nan"), "command": "true"}, "--threshold"),
        ({"said": "x", "threshold": 0.5, "command": "true"}, "no threshold"),
        ({"said": "?!", "command": "true"}, "no word"),
        ({"text": " ", "threshold": 0.5, "command": "true"}, "text is empty"),
        ({**TEXT, "webhook": "file:///etc/passwd"}, "no address of a webhook"),
        ({**TEXT, "webhook": "ftp://h/"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https:///path"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://user:password@h/"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://hôst/"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://h/a b"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://h:99999/"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://h/", "secret": "short"}, "16 characters"),
        ({**TEXT, "webhook": "https://h/", "secret": "a secret that no header can höld"}, "characters of ASCII"),
        ({**TEXT, "command": "true", "secret": SECRET}, "belongs to a webhook"),
        ({**TEXT, "command": "echo 'x"}, "no command"),
        ({**TEXT, "command": " "}, "no command"),
        ({**TEXT, "name": "a b", "command": "true"}, "no name of a watch"),
        ({**TEXT, "name": "known", "command": "true"}, "there is a watch 'known'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(wish: dict[str, Any], message: str, make_workspace: MakePlace) -> None:
    """With words that say what to write instead, and without a trace."""
    workspace = make_workspace().open()
    subscribe(workspace, Wish("known", **TEXT, command=COMMAND))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        subscribe(workspace, Wish(**{"name": "new"} | wish))
    assert [watch.name for watch in workspace.ledger.watches.all()] == ["known"]


def test_a_picture_that_is_too_large_or_none_is_refused(make_workspace: MakePlace, tmp_path: Path) -> None:
    """It would be kept in the ledger."""
    workspace, file = make_workspace().open(), tmp_path / "picture.png"
    file.write_bytes(bytes((10 << 20) + 1))
    with pytest.raises(ConfigError, match="over 10 MiB"):
        subscribe(workspace, Wish("w", image=file, threshold=0.5, command=COMMAND))
    file.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="the picture cannot be read as a picture"):
        subscribe(workspace, Wish("w", image=file, threshold=0.5, command=COMMAND))


def test_a_step_that_no_source_asks_for_can_match_nothing(make_workspace: MakePlace) -> None:
    """It is said when the watch is added, and not left to waiting for ever."""
    place = make_workspace()
    place.write_settings(sources=[{"uri": str(place.source), "alias": "source", "steps": ["segments"]}])
    with pytest.raises(ConfigError, match="no source has the step transcripts"):
        subscribe(place.open(), Wish("w", said="x", command=COMMAND))
