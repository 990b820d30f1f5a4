"""Versions that leave before, while or after their work went wrong: results and records that no row tells of go, too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flow_driver import ingest, plan, process
from places import Place
from sqlalchemy import text
from traces import traces

from mm_assets.errors import ObjectError, Reason, ServiceError
from mm_assets.flows import processing
from mm_assets.flows.discovery import discover
from mm_assets.flows.leases import Lease
from mm_assets.flows.processing import new_owner, process_batch
from mm_assets.flows.processing import process as process_claims
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import WorkBook
from mm_assets.media.guard import MediaWorker

Make = Callable[..., Place]


class _KilledError(BaseException):
    """Ends a worker as SIGKILL does: nothing is given back."""


def _die(*_: Any, **__: Any) -> None:
    raise _KilledError


def _id(workspace: Workspace, key: str) -> str:
    return workspace.ledger.objects.find(key)[0].object_id


def _states(workspace: Workspace, object_id: str) -> set[tuple[str, str | None]]:
    return {(str(row["state"]), row["reason"]) for row in workspace.ledger.work.states(object_id)}  # type: ignore[misc]


def _work_until_killed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Run all batches; each dies where this is called, and its leases are over."""
    with monkeypatch.context() as patch:
        patch.setattr(WorkBook, "release", lambda *_: 0)
        patch.setattr(owner, name, _die)
        for batch in plan(workspace):
            with pytest.raises(_KilledError):
                list(process_batch(workspace, batch.batch_id))
    with workspace.unbound_ledger._engine.begin() as connection:
        connection.execute(text("UPDATE work SET lease_until = 0 WHERE state = 'claimed'"))


def _work_again(workspace: Workspace, object_id: str, *steps: str) -> None:
    """Run steps that are done once more, as a backfill does."""
    owner, recipes = new_owner(), {step: workspace.recipes[step] for step in steps}
    claims = workspace.ledger.work.claim_objects([object_id], recipes, owner, lease_s=60)
    list(process_claims(workspace, claims, owner, ""))


def _delete(place: Place, workspace: Workspace, key: str) -> set[str]:
    """Delete an object in the source; returns what is left of it in the lake after the next ingest."""
    object_id = _id(workspace, key)
    (place.source / key).unlink()
    ingest(workspace)
    return traces(place.lake, object_id)


def test_results_of_an_object_that_killed_its_worker_leave(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the steps before the fatal one are there, and the rows say crash_loop without a result."""
    place = make_workspace("picture0.png", "picture1.png", runs={"decode_workers": 1, "max_claims": 2})
    workspace = place.open()
    discover(workspace, "source")
    for _ in range(2):
        _work_until_killed(workspace, monkeypatch, processing, "extract_step")
    process(workspace)
    object_id = _id(workspace, "picture1.png")
    assert ("dead", "crash_loop") in _states(workspace, object_id)
    assert any(name.startswith("results/") for name in traces(place.lake, object_id))

    assert _delete(place, workspace, "picture1.png") == set()


def test_a_result_whose_step_died_when_done_again_leaves(make_workspace: Make) -> None:
    """The row forgot the rows of the first result; the file is removed all the same."""
    place = make_workspace("picture0.png", "picture1.png", runs={"decode_workers": 1, "max_tries": 1})
    workspace = place.open()
    ingest(workspace)
    failing = place.open(fails_on="picture1", failing_step="visual_embeddings")
    object_id = _id(workspace, "picture1.png")
    _work_again(failing, object_id, "visual_embeddings")
    assert ("dead", "model_error") in _states(workspace, object_id)

    assert _delete(place, workspace, "picture1.png") == set()


def test_vectors_of_an_object_that_no_longer_decodes_leave(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps were skipped for want of segments, and older generations hold what they had found before."""
    place = make_workspace("picture0.png", "picture1.png", "picture2.png", runs={"decode_workers": 1, "max_tries": 1})
    workspace = place.open()
    ingest(workspace)
    object_id = _id(workspace, "picture1.png")

    def refuse(*_: Any, **__: Any) -> None:
        raise ObjectError(Reason.CORRUPT, "it does not decode any more")

    with monkeypatch.context() as patch:
        patch.setattr(MediaWorker, "decode", refuse)
        _work_again(workspace, object_id, *workspace.recipes)
    assert ("skipped", "segments_dead") in _states(workspace, object_id)

    assert _delete(place, workspace, "picture1.png") == set()


def test_a_record_that_no_row_tells_of_leaves(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker was killed between the record of a dead letter and the row."""
    place = make_workspace("picture0.png", "broken.png")
    workspace = place.open()
    discover(workspace, "source")
    _work_until_killed(workspace, monkeypatch, processing, "extract_step")
    object_id = _id(workspace, "broken.png")
    assert any(name.startswith("dead_letters/") for name in traces(place.lake, object_id))

    assert _delete(place, workspace, "broken.png") == set()


def test_a_damaged_result_that_no_row_tells_of_is_made_again(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is not adopted and stops no batch."""
    place = make_workspace("picture0.png", "picture1.png", runs={"decode_workers": 1})
    workspace = place.open()
    discover(workspace, "source")
    _work_until_killed(workspace, monkeypatch, Lease, "finish")
    file = next((tmp_path / "lake" / "results" / "visual_embeddings").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])

    ingest(workspace)

    assert {
        state for key in ("picture0.png", "picture1.png") for state, _ in _states(workspace, _id(workspace, key))
    } == {
        "done",
        "skipped",
    }
    assert workspace.ledger.work.n_waiting(dict(workspace.recipes)) == 0


@pytest.mark.parametrize(
    "stop", [ServiceError("the lake does not answer"), SystemExit(143)], ids=["service", "sigterm"]
)
def test_a_record_of_a_run_that_stopped_in_good_order_leaves(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    """Between the record and the ledger's row a run may end by itself; deletion takes the record all the same."""
    place = make_workspace("picture0.png", "broken.png")
    workspace = place.open()
    discover(workspace, "source")
    with monkeypatch.context() as patch:
        patch.setattr(processing, "extract_step", _raising(stop))
        for batch in plan(workspace):
            with pytest.raises(type(stop)):
                list(process_batch(workspace, batch.batch_id))
    object_id = _id(workspace, "broken.png")
    assert f"dead_letters/{object_id}/segments.json" in traces(place.lake, object_id)

    assert _delete(place, workspace, "broken.png") == set()


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_record_leaves_when_the_next_try_succeeds(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between record and row, the step is tried again; its success removes the record."""
    place = make_workspace("picture0.png", "picture1.png", runs={"decode_workers": 1, "max_tries": 1})
    failing = place.open(fails_on="picture1", failing_step="visual_embeddings")
    discover(failing, "source")
    _work_until_killed(failing, monkeypatch, Lease, "finish")
    assert list(place.lake.glob("dead_letters/*/visual_embeddings.json"))

    workspace = place.open()
    ingest(workspace)

    assert not list(place.lake.glob("dead_letters/*/*"))
    assert _delete(place, workspace, "picture1.png") == set()


def test_a_record_leaves_when_a_backfill_succeeds(make_workspace: Make) -> None:
    """A dead step that a person runs again, and that succeeds, has no record any more."""
    place = make_workspace("picture0.png", "picture1.png", runs={"decode_workers": 1, "max_tries": 1})
    ingest(place.open(fails_on="picture1", failing_step="visual_embeddings"))
    assert list(place.lake.glob("dead_letters/*/visual_embeddings.json"))

    workspace = place.open()
    _work_again(workspace, _id(workspace, "picture1.png"), "visual_embeddings")

    assert not list(place.lake.glob("dead_letters/*/*"))


def test_damaged_judgements_on_arrival_stop_no_deletion(make_workspace: Make) -> None:
    """A file that nobody can read tells of nobody: it goes, and what left goes with everything of it."""
    place = make_workspace(*(f"picture{n}.png" for n in range(5)), refresh={"min_cluster_size": 2})
    workspace = place.open()
    ingest(workspace)
    place.add_as("picture5.png", "later.png")
    discover(workspace, "source")
    process(workspace)
    damaged = next((place.lake / "judgements").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-20])

    assert _delete(place, workspace, "picture0.png") == set()
    assert not damaged.exists()
