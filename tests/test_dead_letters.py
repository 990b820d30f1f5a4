"""Dead letters: listed, shown, replayed and dropped; in the ledger, in the lake and by ``mm dlq``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_driver import mm
from dagster_driver import Driver
from flow_driver import ingest, plan, process
from places import Place

from mm_assets.flows import dead_letters
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Refusal
from mm_assets.ledger.dead import DeadFilter

FILES = ("picture0.png", "picture1.png", "broken.png", "notes.txt")


@pytest.fixture
def failing(make_workspace: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> tuple[Place, Workspace]:
    """Give a place where a file is corrupt and the faces of a picture were given up after three tries."""
    monkeypatch.setattr("mm_assets.flows.ends._BACKOFF_S", 0.0)
    place = make_workspace(*FILES)
    workspace = place.open(failing_step="faces", fails_on="picture1")
    discover(workspace, "source")
    for _ in range(3):
        process(workspace)
    return place, workspace


def _state(workspace: Workspace, key: str, step: str) -> tuple[object, object]:
    [known] = workspace.ledger.objects.find(key)
    [row] = [
        row
        for row in workspace.ledger.work.states(known.object_id)
        if (row["step"], row["recipe"]) == (step, workspace.recipes[step])
    ]
    return row["state"], row["reason"]


def _letters(workspace: Workspace, **asked: Any) -> list[tuple[str, str]]:
    found = workspace.ledger.dead.letters(DeadFilter(recipes=workspace.recipes, **asked))
    return [(letter.known.version.key, letter.step) for letter in found]


def _record(place: Place, step: str) -> dict[str, Any]:
    [file] = (place.lake / "dead_letters").glob(f"*/{step}.json")
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


# -- the books -------------------------------------------------------------------------------------------------------


def test_letters_are_found_by_each_filter(failing: tuple[Place, Workspace]) -> None:
    """Step, reason, prefix, source and time each narrow the list."""
    _, workspace = failing
    both = [("broken.png", "segments"), ("picture1.png", "faces")]

    assert sorted(_letters(workspace)) == both
    assert _letters(workspace, step="faces") == both[1:]
    assert _letters(workspace, reason="corrupt") == both[:1]
    assert _letters(workspace, prefix="pic") == both[1:]
    assert (
        _letters(workspace, prefix="PIC") == _letters(workspace, prefix="pic%") == _letters(workspace, prefix="_") == []
    )
    assert _letters(workspace, alias="other") == []
    assert sorted(_letters(workspace, since=0.0)) == both
    assert _letters(workspace, since=4e9) == []
    [known] = workspace.ledger.objects.find("picture1.png")
    assert _letters(workspace, object_ids=[known.object_id, known.object_id]) == both[1:]
    assert _letters(workspace, object_ids=[]) == []
    assert workspace.ledger.dead.depth(workspace.recipes) == {"corrupt": 1, "model_error": 1}


def test_a_record_says_all_that_is_known(failing: tuple[Place, Workspace]) -> None:
    """Stage, tries, starts, first sight, the recipe's ingredients and the libraries stand in the lake."""
    place, workspace = failing

    broken, faces = _record(place, "segments"), _record(place, "faces")
    assert (broken["reason"], broken["stage"], broken["tries"]) == ("corrupt", "decode", 1)
    assert (faces["reason"], faces["stage"], faces["tries"], faces["replays"]) == ("model_error", "faces", 3, 0)
    assert faces["claims"] >= 1
    assert faces["first_seen_at"] <= faces["died_at"]
    assert faces["made_by"]["code_version"] == workspace.extractors["faces"].code_version
    assert {"mm-assets", "insightface", "onnxruntime"} <= faces["versions"].keys()
    assert {"mm-assets", "av", "pillow"} <= broken["versions"].keys()


def test_a_letter_of_hostile_bytes_is_stored(
    make_workspace: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NUL, lone surrogates and endless messages of a decoder neither stop the run nor fill the books."""
    from mm_assets.errors import ObjectError, Reason
    from mm_assets.media.guard import MediaWorker

    def fail(*_: object) -> None:
        raise ObjectError(Reason.CORRUPT, "a\0b\udcff" + "x" * 100_000)

    monkeypatch.setattr(MediaWorker, "decode", fail)
    place = make_workspace("picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)

    error = str(_record(place, "segments")["error"])
    assert error.startswith("a\\x00b\\udcffxx")
    assert len(error) == 4_000
    assert _state(workspace, "picture0.png", "segments") == ("dead", "corrupt")


def test_replaying_gives_all_tries_again(failing: tuple[Place, Workspace]) -> None:
    """The record stays until the step has ended; dying again rewrites it and tells how often it was replayed."""
    place, workspace = failing
    letters = workspace.ledger.dead.letters(DeadFilter(step="faces"))

    assert dead_letters.replay(workspace, letters) == 1
    assert _state(workspace, "picture1.png", "faces") == ("wanted", None)
    assert dead_letters.replay(workspace, letters) == 0
    for n_tries in (1, 2, 3):
        assert _record(place, "faces")["replays"] == 0
        process(workspace)
        assert (_state(workspace, "picture1.png", "faces")[0] == "dead") == (n_tries == 3)
    assert _record(place, "faces")["replays"] == 1


def test_a_replayed_step_that_is_done_has_no_record(failing: tuple[Place, Workspace]) -> None:
    """What was mended leaves no dead letter behind, in either place."""
    place, _ = failing
    mended = place.open()
    dead_letters.replay(mended, mended.ledger.dead.letters(DeadFilter(step="faces")))
    process(mended)

    assert _state(mended, "picture1.png", "faces") == ("done", None)
    assert [file.name for file in (place.lake / "dead_letters").glob("*/*")] == ["segments.json"]
    assert _letters(mended) == [("broken.png", "segments")]


def test_replaying_segments_brings_back_what_waited_for_them(failing: tuple[Place, Workspace]) -> None:
    """Steps skipped because the object had no segments run in the same batch as its segments."""
    place, workspace = failing
    assert _state(workspace, "broken.png", "faces") == ("skipped", "segments_dead")
    letters = workspace.ledger.dead.letters(DeadFilter(reason="corrupt"))
    assert dead_letters.replay(workspace, letters) == 1

    assert _state(workspace, "broken.png", "faces") == ("wanted", None)
    process(workspace)
    assert _state(workspace, "broken.png", "faces") == ("skipped", "segments_dead")
    assert _record(place, "segments")["replays"] == 1


def test_a_dropped_letter_is_skipped_and_has_a_way_back(failing: tuple[Place, Workspace]) -> None:
    """No state is without an exit: what was dropped is listed among the skipped and can be replayed."""
    place, workspace = failing
    letters = workspace.ledger.dead.letters(DeadFilter(step="faces"))

    assert dead_letters.drop(workspace, letters) == 1
    assert _state(workspace, "picture1.png", "faces") == ("skipped", "dropped")
    assert [file.name for file in (place.lake / "dead_letters").glob("*/*")] == ["segments.json"]
    dropped = workspace.ledger.dead.letters(DeadFilter(state="skipped", reason="dropped"))
    assert dead_letters.replay(workspace, dropped) == 1
    assert _state(workspace, "picture1.png", "faces") == ("wanted", None)


def test_a_new_recipe_tries_again_by_itself(failing: tuple[Place, Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mended model needs no replay: its recipe is another, so the object is wanted anew and its record goes."""
    place, _ = failing
    monkeypatch.setattr("fakes.FakeFaces.code_version", "mended")
    mended = place.open()
    ingest(mended)

    assert _state(mended, "picture1.png", "faces") == ("done", None)
    assert _letters(mended) == [("broken.png", "segments")]
    assert [file.name for file in (place.lake / "dead_letters").glob("*/*")] == ["segments.json"]


def test_letters_of_what_left_are_not_listed(failing: tuple[Place, Workspace]) -> None:
    """An object that is gone has no dead letters any more."""
    _, workspace = failing
    [known] = workspace.ledger.objects.find("broken.png")
    workspace.ledger.objects.retire("source", [known.object_id], [])

    assert _letters(workspace) == [("picture1.png", "faces")]
    assert workspace.ledger.dead.depth() == {"model_error": 1}


def test_the_report_has_flat_columns_and_raw_keys(failing: tuple[Place, Workspace]) -> None:
    """One row per letter; keys and errors are as they were found."""
    place, workspace = failing
    key = dead_letters.write_dead_letters(workspace, workspace.ledger.dead.letters(DeadFilter()))

    rows = pq.read_table(place.lake / key).to_pylist()
    assert sorted((row["key"], row["step"], row["n_tries"]) for row in rows) == [
        ("broken.png", "segments", 1),
        ("picture1.png", "faces", 3),
    ]
    assert all(row["first_seen_at"] <= row["died_at"] for row in rows)


def test_the_check_fails_beyond_the_alarm(make_workspace: Callable[..., Place], instance: Any) -> None:
    """The asset tells the letters, and its check compares their number with the setting."""
    import dagster as dg

    from mm_assets.assets import dead_letters as assets

    for alarm, passes in ((1, True), (0, False)):
        place = make_workspace("broken.png", runs={"decode_workers": 1, "dead_letter_alarm": alarm})
        Driver(place, instance, place.open()).ingest()
        result = dg.materialize(
            [assets.dead_letters, assets.dead_letters_are_few],
            resources={"workspace": place.resource()},
            instance=instance,
        )
        [evaluation] = result.get_asset_check_evaluations()
        [event] = result.asset_materializations_for_node("dead_letters")
        assert evaluation.passed == passes
        assert event.metadata["dagster/row_count"].value == 1
        assert evaluation.metadata["by_reason"].value == {"corrupt": 1}


# -- the command -----------------------------------------------------------------------------------------------------


def _dlq(place: Place, *arguments: str, code: int = 0) -> str:
    return mm("dlq", *arguments, "-c", str(place.config_file), code=code).stdout


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def listed(failing: tuple[Place, Workspace], monkeypatch: pytest.MonkeyPatch) -> Place:
    """Give the failing place, with its fakes behind the command and a refused name."""
    from fakes import open_fake_workspace

    place, workspace = failing
    monkeypatch.setattr(
        "mm_assets.resources.workspace.open_workspace", lambda settings, **_: open_fake_workspace(settings)
    )
    workspace.ledger.objects.refuse(
        [Refusal("f" * 32, "source", "bad\\x1b[31mname", "policy", "no key can hold it")], seen_pass=1
    )
    return place


def test_list_tells_letters_and_refused_names(listed: Place) -> None:
    """Names that no key can hold are dead letters of discovery; control characters reach no terminal."""
    found = {(line["key"], line["step"], line["reason"]) for line in _lines(_dlq(listed, "list", "--json"))}
    assert found == {
        ("broken.png", "segments", "corrupt"),
        ("picture1.png", "faces", "model_error"),
        ("bad\\x1b[31mname", "discovery", "policy"),
    }
    assert [line["key"] for line in _lines(_dlq(listed, "list", "--step", "faces", "--json"))] == ["picture1.png"]
    assert "picture1.png\tfaces\tmodel_error\t3" in _dlq(listed, "list")
    assert _dlq(listed, "list", "--since", "2100-01-01") == "No dead letters.\n"
    assert len(_lines(_dlq(listed, "list", "--since", "1h", "--reason", "corrupt", "--json"))) == 1


def test_list_of_skipped_tells_what_was_left_out(listed: Place) -> None:
    """Every row that is neither done nor waiting can be found and asked for."""
    found = {line["reason"] for line in _lines(_dlq(listed, "list", "--skipped", "--json"))}
    assert {"segments_dead", "unsupported"} <= found
    shown = _dlq(listed, "list", "--skipped")
    assert shown.endswith("(or OBJECT, or --all).\n")
    assert len([line for line in shown.splitlines() if line.startswith("source/notes.txt")]) == 1
    assert _dlq(listed, "list", "--skipped", "--reason", "dropped") == "Nothing was left out.\n"
    _dlq(listed, "list", "--skipped", "--reason", "nix", code=2)


def test_show_joins_row_and_record(listed: Place) -> None:
    """One object's story: what the ledger has, and from the lake its stage and versions."""
    [story] = json.loads(_dlq(listed, "show", "source/picture1.png", "--json"))
    assert (story["step"], story["reason"], story["stage"], story["tries"]) == ("faces", "model_error", "faces", 3)
    assert "insightface" in story["versions"]
    assert "the fake model was told to fail" in _dlq(listed, "show", "picture1.png")
    nothing = "Nothing of it was given up.\nLeft out of "
    assert _dlq(listed, "show", "picture0.png") == f"{nothing}transcripts: no audio.\n"
    left_out = _dlq(listed, "show", "notes.txt")
    assert left_out.startswith(nothing)
    assert left_out.endswith(": unsupported.\n")


def test_replay_needs_to_be_told_what(listed: Place) -> None:
    """Without a filter nothing is replayed by accident; with one, the number is told."""
    place = listed
    _dlq(place, "replay", code=2)
    assert _dlq(place, "replay", "--reason", "timeout") == "Nothing fits; nothing was changed.\n"
    assert _dlq(place, "replay", "--reason", "model_error").startswith("1 step wanted again")
    assert _dlq(place, "replay", "--all").startswith("1 step wanted again")
    assert [line["step"] for line in _lines(_dlq(place, "list", "--json"))] == ["discovery"]


def test_replay_takes_objects_by_name(listed: Place) -> None:
    """An object that is not known is an error, and then nothing is replayed at all."""
    _dlq(listed, "replay", "picture1.png", "nothing.png", code=2)
    assert _dlq(listed, "replay", "picture1.png").startswith("1 step wanted again")


def test_show_tells_what_is_wanted_again(listed: Place) -> None:
    """Between replay and the next end of the step its story can still be read."""
    _dlq(listed, "replay", "picture1.png")
    [story] = json.loads(_dlq(listed, "show", "picture1.png", "--json"))
    assert (story["state"], story["step"], story["reason"]) == ("wanted again", "faces", "model_error")
    assert "wanted again" in _dlq(listed, "show", "picture1.png")


def test_drop_shows_first_and_acts_on_yes(listed: Place) -> None:
    """Nothing is dropped before a person has seen what, and the way back works."""
    shown = _dlq(listed, "drop", "--step", "faces")
    assert "picture1.png\tfaces" in shown
    assert "add --yes" in shown
    assert len(_lines(_dlq(listed, "list", "--step", "faces", "--json"))) == 1
    assert _dlq(listed, "drop", "--step", "faces", "--yes") == "1 dead letter dropped.\n"
    assert _dlq(listed, "list", "--step", "faces") == "No dead letters.\n"
    assert _dlq(listed, "replay", "--skipped", "--reason", "dropped").startswith("1 step wanted again")


def test_wrong_times_and_sources_are_said(listed: Place) -> None:
    """A typing slip lists nothing silently."""
    _dlq(listed, "list", "--since", "yesterday", code=2)
    _dlq(listed, "list", "--source", "sorce", code=2)


@pytest.mark.parametrize("name", ["list", "show", "replay", "drop"])
def test_help_teaches(name: str) -> None:
    """Every command ends its help with an example of itself."""
    text = mm("dlq", name, "--help").output
    assert f"mm dlq {name}" in text.partition("Example")[2]


def test_status_tells_what_an_operator_needs(listed: Place) -> None:
    """Calls, requests, waiting events, failures and dead letters by reason are in ``mm status``."""
    state = json.loads(mm("status", "--json", "-c", str(listed.config_file)).stdout)
    assert state["dead_letters"] == {"corrupt": 1, "model_error": 1}
    assert state["n_refusals"] == 1
    assert state["inbox"] == {"n_waiting": 0, "oldest_s": None}
    assert state["failures_today"]["n_failed"] == 4
    assert state["sources"][0]["n_list_calls_today"] >= 1
    text = mm("status", "-c", str(listed.config_file)).stdout
    assert "Dead letters: 1 corrupt, 1 model_error." in text
    assert "Failed today: 4 of" in text


def test_status_tells_pauses_and_alarms(listed: Place) -> None:
    """What holds a source up is said with the source."""
    workspace = listed.open()
    workspace.ledger.objects.pause("source", 4e9, "the daily cap is used up")
    workspace.ledger.objects.set_events_alarm("source", "the rule is suspended")

    text = mm("status", "-c", str(listed.config_file)).stdout
    assert "PAUSED: source until 2096-10-02 07:06:40Z: the daily cap is used up" in text
    assert "ALARM: the rule is suspended" in text


def test_crash_loops_have_no_stage(make_workspace: Callable[..., Place], tmp_path: Path) -> None:
    """Nobody knows where a worker was when it died, and the record does not pretend to."""
    place = make_workspace("picture0.png", runs={"decode_workers": 1, "max_claims": 1})
    workspace = place.open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    work = workspace.ledger.work
    work.claim_batch(batch.batch_id, "host/0/dies", recipes=workspace.recipes, lease_s=-1, max_claims=1)
    process(workspace)

    record = _record(place, "segments")
    assert (record["reason"], record["stage"], record["claims"]) == ("crash_loop", None, 1)
