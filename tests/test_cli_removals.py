"""Commands that remove, compare and restore: they show first, act on ``--yes``, and say what was done."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_driver import mm
from fakes import open_fake_workspace
from flow_driver import ingest
from places import Place

from mm_assets.settings import Settings

MEDIA = ("picture0.png", "picture1.png", "broken.png")


@pytest.fixture
def place(make_workspace: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> Place:
    """Lay out a place that is ingested, and let commands open it with fake models."""

    def open_workspace(settings: Settings, *, check: bool = True) -> Any:
        return open_fake_workspace(settings)

    for module in ("mm_assets.resources.workspace", "mm_assets.cli.runs"):
        monkeypatch.setattr(f"{module}.open_workspace", open_workspace)
    made = make_workspace(*MEDIA)
    monkeypatch.chdir(made.folder)
    ingest(made.open())
    return made


def _files(lake: Path) -> set[str]:
    return {file.relative_to(lake).as_posix() for file in lake.rglob("*") if file.is_file()}


def _results(place: Place, step: str = "*") -> list[Path]:
    return sorted(place.lake.glob(f"results/{step}/**/*.parquet"))


def test_erase_shows_first(place: Place) -> None:
    """Without --yes nothing changes."""
    before = _files(place.lake)

    shown = mm("erase", "picture1.png").stdout

    assert "source\tpicture1.png\tlive" in shown
    assert "\n1 version.\n" in shown
    assert _files(place.lake) == before


def test_erase_removes_and_prints_its_receipt(place: Place) -> None:
    """Marked, refreshed, gone; what was removed is counted by kind, and the receipt is named."""
    workspace = place.open()
    [known] = workspace.ledger.objects.find("picture1.png")

    shown = mm("erase", "picture1.png").stderr
    assert "leave the lake with --yes.\n1 of them lie in the source: delete them there too." in shown

    erased = mm("erase", "picture1.png", "--yes")
    said = erased.stdout

    assert "leave the lake.\n" in erased.stderr
    assert "1 version marked as erased." in said
    assert "result\terased\t" in said
    assert "table_rows\terased\t" in said
    assert "/receipts/" in said
    assert not [file for file in _results(place) if known.object_id in file.name]
    assert "equal" in mm("verify").stdout
    assert "erased already" in mm("erase", "picture1.png", "--yes").stdout
    assert mm("show", known.object_id).stdout.endswith("Nothing of it is published.\n")


def test_erase_goes_on_where_it_was_interrupted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is marked and still there is told, and the same command finishes it."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mm_assets.cli.runs.refresh", interrupted)
        mm("erase", "picture1.png", "--yes", code=130)
    object_id = place.open().ledger.objects.find("picture1.png")[0].object_id
    assert [file for file in _results(place) if object_id in file.name]
    assert "1 version that left" in mm("erase", "picture1.png").stdout
    assert mm("verify", code=1).stdout.endswith("else by `mm ingest`.\n")

    said = mm("erase", "picture1.png", "--yes").stdout

    assert "result\terased\t" in said
    assert not [file for file in _results(place) if object_id in file.name]
    assert "erased already" in mm("erase", "picture1.png", "--yes").stdout


def test_erase_takes_no_whole_source_by_a_slip(place: Place) -> None:
    """A source's name without a slash is refused; nothing changes."""
    assert "source/" in mm("erase", "--prefix", "source", "--yes", code=2).stderr
    assert "live" in mm("show", "picture1.png").stdout


def test_erase_takes_a_prefix(place: Place) -> None:
    """All keys of a source that start so; another one stays."""
    mm("erase", "--prefix", "source/picture", "--yes")

    assert "broken.png" in mm("show", "broken.png").stdout
    assert not _results(place, "visual_embeddings")


@pytest.mark.parametrize("arguments", [(), ("nothing.png",), ("--prefix", "elsewhere/a")])
def test_erase_refuses_what_it_cannot_find(place: Place, arguments: tuple[str, ...]) -> None:
    """Wrong usage, an unknown object, an unknown source."""
    assert place.config_file.exists()
    mm("erase", *arguments, "--yes", code=2)


def test_verify_says_equal(place: Place) -> None:
    """And exits with 0."""
    assert mm("verify", "--config", str(place.config_file)).stdout == "equal\n"
    assert mm("verify", "--deep").stdout == "equal\n"


def test_verify_shows_differences_and_has_them_repaired(place: Place) -> None:
    """Exit code 1 while there are any; with --yes they are wanted again, and the next ingest makes them."""
    lost = _results(place, "faces")[0]
    lost.unlink()
    said = mm("verify", code=1).stdout
    assert f"result missing\t{lost.relative_to(place.lake).as_posix()}" in said
    assert "n\trepairable\nresult missing\t1\t1" in said

    assert "result missing\t1\t1" in mm("verify", "--yes", code=1).stdout
    mm("ingest")

    assert mm("verify").stdout == "equal\n"
    assert lost.is_file()


def test_verify_prints_json_lines(place: Place) -> None:
    """One difference a line on stdout, with whether --yes can repair it; the summary is on stderr."""
    equal = mm("verify", "--json")
    assert (equal.stdout, equal.stderr) == ("", "equal\n")
    lost = _results(place, "faces")[0]
    lost.unlink()
    place.add_as("picture0.png", "new.png")

    said = mm("verify", "--json", code=1)

    found = {line["kind"]: line for line in map(json.loads, said.stdout.splitlines())}
    assert set(found["result missing"]) == {"kind", "where", "found", "is_repairable"}
    assert found["result missing"]["where"] == lost.relative_to(place.lake).as_posix()
    assert {kind: line["is_repairable"] for kind, line in found.items()} == {
        "result missing": True,
        "unknown to the ledger": False,
    }
    assert "result missing: 1, repairable: 1\n" in said.stderr
    assert "mm verify --yes" in said.stderr


def test_gc_shows_first_and_removes_then(place: Place) -> None:
    """Counts, bytes and an example; files younger than the limit stay."""
    stray = place.lake / "results" / "faces" / "0123456789abcdef" / "00" / f"{'0' * 32}.parquet"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"12345")
    assert "No garbage" in mm("gc").stdout
    os.utime(stray, (0, time.time() - 8 * 86_400))

    shown = mm("gc").stdout
    assert (
        f"result of a version that is unknown or left\t1\t5\tresults/faces/0123456789abcdef/00/{'0' * 32}.parquet"
        in shown
    )
    assert stray.is_file()

    assert "1 file and 0 unfinished uploads removed." in mm("gc", "--yes").stdout
    assert not stray.exists()


def test_gc_refuses_an_incomplete_ledger(place: Place) -> None:
    """It says what to do first."""
    place.lose_ledger()
    before = _files(place.lake)

    assert "mm rebuild-ledger" in mm("gc", "--yes", "--older-than", "0", code=2).output

    assert _files(place.lake) == before


def test_rebuild_ledger_shows_first_and_restores_then(place: Place) -> None:
    """What would be restored; then it is there, and nothing is left to do."""
    place.lose_ledger()
    shown = mm("rebuild-ledger").stdout
    assert "published versions            3" in shown
    assert "dead letters                  1" in shown

    mm("rebuild-ledger", "--yes")

    assert "Nothing to do" in mm("ingest").stdout
    assert mm("verify").stdout == "equal\n"
    assert "not empty" in mm("rebuild-ledger", "--yes", code=2).output


@pytest.mark.parametrize("command", ["list", "replay", "drop"])
def test_dlq_refuses_names_that_nothing_has(place: Place, command: str) -> None:
    """A typing slip is not told as no dead letters: the error names what is known; left out is for any reason."""
    assert place.config_file.exists()
    assert "known: corrupt, unsupported" in mm("dlq", command, "--reason", "bogus", code=2).stderr
    assert "segments" in mm("dlq", command, "--step", "nix", code=2).stderr.partition("known: ")[2]
    mm("dlq", command, "--step", "discovery", "--reason", "policy")
    mm("dlq", command, "--skipped", "--reason", "no audio")


def test_dlq_drop_counts_and_says_nothing_of_none(place: Place) -> None:
    """One letter is not letters, and where there is none nothing is offered."""
    assert place.config_file.exists()
    assert mm("dlq", "drop", "--all").stdout.endswith("1 dead letter would be dropped; add --yes to do it.\n")
    assert mm("dlq", "drop", "--all", "--yes").stdout == "1 dead letter dropped.\n"
    assert mm("dlq", "drop", "--all").stdout == "No dead letters.\n"
