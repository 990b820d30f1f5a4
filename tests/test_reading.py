"""Steps that read what other steps found: their recipes, their turn, and what changes under them."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from fakes import FakeMeaning, fake_extractors
from flow_driver import column, ingest, plan, process, refresh
from places import Place

from mm_assets.errors import ConfigError
from mm_assets.extractors.base import ModelCard
from mm_assets.flows import dead_letters, publishing
from mm_assets.flows.discovery import discover
from mm_assets.flows.planning import free_lost_work, plan_batches
from mm_assets.flows.processing import new_owner, process_batch
from mm_assets.flows.processing import process as process_claims
from mm_assets.flows.recipes import build_recipes, with_upstream
from mm_assets.flows.verifying import find_differences, repair
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import WAITS_FOR_INPUT
from mm_assets.ledger.dead import DeadFilter
from mm_assets.settings import Settings

MakePlace = Callable[..., Place]
STEP = "text_embeddings"


def state(workspace: Workspace, key: str, step: str = STEP) -> tuple[str, str | None]:
    """Return state and reason of a step under its present recipe."""
    [known] = workspace.ledger.objects.find(key)
    rows: list[dict[str, Any]] = workspace.ledger.work.states(known.object_id)
    [row] = [row for row in rows if (row["step"], row["recipe"]) == (step, workspace.recipes[step])]
    return row["state"], row["reason"]


def steps_of(workspace: Workspace) -> set[str]:
    """Plan, run and return which steps the batches had."""
    batches = plan(workspace)
    for batch in batches:
        list(process_batch(workspace, batch.batch_id))
    return {step for batch in batches for step in batch.steps}


def kinds(workspace: Workspace) -> list[object]:
    """Return the published kinds of texts, sorted."""
    return sorted(column(workspace, STEP, "kind"), key=str)


# -- recipes -----------------------------------------------------------------------------------------------------------


def other_recipes(settings: Settings, changed: str) -> set[str]:
    """Return the steps that have another recipe when a step's model is another one."""
    before, extractors = fake_extractors(settings), fake_extractors(settings)
    card = extractors[changed].card
    extractors[changed] = type(extractors[changed])(ModelCard(**{**vars(card), "revision": "2"}))
    one, other = build_recipes(settings, before), build_recipes(settings, extractors)
    return {step for step in one if one[step] != other[step]}


def test_another_model_of_a_read_step_is_another_recipe_of_its_readers(make_workspace: MakePlace) -> None:
    """And of nothing else."""
    settings = make_workspace().open().settings
    assert other_recipes(settings, "transcripts") == {"transcripts", STEP}
    assert other_recipes(settings, "ocr_text") == {"ocr_text", STEP}
    assert other_recipes(settings, "faces") == {"faces"}
    assert other_recipes(settings, STEP) == {STEP}


def test_what_a_step_may_read_is_not_asked_for_by_it(make_workspace: MakePlace) -> None:
    """Only decoding is added to what a source asks for."""
    extractors = make_workspace().open().extractors
    assert with_upstream([STEP], extractors) == ("raw_objects", "segments", STEP)
    assert with_upstream([STEP, "transcripts"], extractors) == ("raw_objects", "segments", "transcripts", STEP)


def test_steps_that_read_each_other_are_refused(make_workspace: MakePlace) -> None:
    """With their names, before any work."""

    class Circular(FakeMeaning):
        reads = ("segments", STEP)

    extractors = make_workspace().open().extractors
    circle = {**extractors, STEP: Circular(extractors[STEP].card)}
    with pytest.raises(ConfigError, match="circle: text_embeddings"):
        with_upstream([STEP], circle)


# -- their turn --------------------------------------------------------------------------------------------------------


def test_a_reader_is_planned_once_what_it_reads_is_over(make_workspace: MakePlace) -> None:
    """In a batch of its own, that the next planning finds."""
    workspace = make_workspace("clip.mp4", "broken.png", "notes.txt").open()
    discover(workspace, "source")
    assert STEP not in steps_of(workspace)
    assert state(workspace, "clip.mp4") == ("wanted", None)
    assert steps_of(workspace) == {STEP}
    assert state(workspace, "clip.mp4") == ("done", None)
    assert state(workspace, "broken.png") == ("skipped", "segments_dead")
    assert state(workspace, "notes.txt") == ("skipped", "unsupported")
    assert steps_of(workspace) == set()


def test_a_reader_waits_for_a_step_that_is_tried_again(make_workspace: MakePlace) -> None:
    """Of that object alone."""
    workspace = make_workspace("clip.mp4", "picture0.png").open(fails_on="clip", failing_step="transcripts")
    discover(workspace, "source")
    process(workspace)
    assert state(workspace, "clip.mp4", "transcripts") == ("wanted", "model_error")
    assert state(workspace, "clip.mp4") == ("wanted", None)
    assert state(workspace, "picture0.png") == ("done", None)


def test_a_reader_reads_no_source_and_no_media(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of segments it takes the texts alone."""
    place = make_workspace("clip.mp4")
    workspace = place.open()
    discover(workspace, "source")
    steps_of(workspace)
    (place.source / "clip.mp4").unlink()
    monkeypatch.setattr(workspace.lake, "fetch_result", None)
    assert steps_of(workspace) == {STEP}
    assert state(workspace, "clip.mp4") == ("done", None)


def test_split_by_device_waits_for_both_kinds_of_pods(make_workspace: MakePlace) -> None:
    """OCR runs on CPU pods, speech on GPU pods; texts follow both, on GPU pods."""
    workspace = make_workspace("clip.mp4", kubernetes={"split_by_device": True}).open()
    discover(workspace, "source")
    seen = []
    while planned := {job: batches for job, batches in plan_batches(workspace).items() if batches}:
        for batch in [batch for batches in planned.values() for batch in batches]:
            list(process_batch(workspace, batch.batch_id))
        seen.append({job: STEP in {step for batch in of for step in batch.steps} for job, of in planned.items()})
    assert seen == [{"decode_job": False}, {"infer_job": False}, {"infer_job": True}]
    assert state(workspace, "clip.mp4") == ("done", None)


def test_a_source_without_a_read_step_waits_for_none(make_workspace: MakePlace) -> None:
    """Beside another that has it."""
    place = make_workspace("clip.mp4")
    some = [{"uri": str(place.source), "alias": "source", "steps": ["ocr_text", STEP]}]
    other = place.folder / "other"
    other.mkdir()
    place.write_settings((), sources=[*some, {"uri": str(other), "alias": "other"}])
    workspace = place.open()
    ingest(workspace)
    assert state(workspace, "clip.mp4") == ("done", None)
    assert set(kinds(workspace)) == {"shown"}


def test_one_claim_of_all_steps_makes_them_in_order(make_workspace: MakePlace) -> None:
    """A person who asks for a partition gets its texts in the same run."""
    workspace = make_workspace("clip.mp4").open()
    discover(workspace, "source")
    workspace.ledger.work.want("source", workspace.recipes_of("source"))
    [known] = workspace.ledger.objects.find("clip.mp4")
    owner = new_owner()
    claims = workspace.ledger.work.claim_objects([known.object_id], dict(workspace.recipes), owner, lease_s=60)
    list(process_claims(workspace, claims, owner, "run"))
    assert state(workspace, "clip.mp4") == ("done", None)
    refresh(workspace)
    assert set(kinds(workspace)) == {"said", "shown"}


# -- what changes under them -------------------------------------------------------------------------------------------


def test_a_dead_read_step_counts_as_nothing_until_its_replay(make_workspace: MakePlace) -> None:
    """Then the texts are made again, and the published file is written anew."""
    place = make_workspace("clip.mp4", "picture0.png", runs={"decode_workers": 1, "max_tries": 1})
    workspace = place.open(fails_on="clip", failing_step="transcripts")
    ingest(workspace)
    assert state(workspace, "clip.mp4", "transcripts") == ("dead", "model_error")
    assert state(workspace, "clip.mp4") == ("done", None)
    assert set(kinds(workspace)) == {"shown"}

    mended = place.open()
    dead_letters.replay(mended, mended.ledger.dead.letters(DeadFilter()))
    assert steps_of(mended) >= {"transcripts"}
    assert state(mended, "clip.mp4") == ("wanted", None)
    assert state(mended, "picture0.png") == ("done", None)
    assert steps_of(mended) == {STEP}
    refresh(mended)
    assert set(kinds(mended)) == {"said", "shown"}


def test_a_read_step_that_kills_its_workers_counts_as_nothing(make_workspace: MakePlace) -> None:
    """What was read of it before is not kept, and its reader is made again in its turn."""
    place = make_workspace("clip.mp4", runs={"decode_workers": 1, "max_claims": 1})
    workspace = place.open()
    ingest(workspace)
    assert set(kinds(workspace)) == {"said", "shown"}
    [known] = workspace.ledger.objects.find("clip.mp4")
    work, recipe = workspace.ledger.work, workspace.recipes["transcripts"]
    work.want_again("transcripts", recipe, [known.object_id])
    [batch] = plan(workspace)
    dead = work.claim_batch(batch.batch_id, "host/0/dies", recipes=workspace.recipes, lease_s=-1, max_claims=9)
    assert [list(claim.steps) for claim in dead] == [["transcripts"]]
    free_lost_work(workspace)
    while steps_of(workspace):
        pass
    assert state(workspace, "clip.mp4", "transcripts") == ("dead", "crash_loop")
    assert state(workspace, "clip.mp4") == ("done", None)
    refresh(workspace)
    assert set(kinds(workspace)) == {"shown"}


def test_a_lost_result_is_made_before_who_reads_it(make_workspace: MakePlace) -> None:
    """Whoever misses it asks for it and waits."""
    place = make_workspace("clip.mp4")
    workspace = place.open()
    discover(workspace, "source")
    steps_of(workspace)
    [file] = (place.lake / "results" / "transcripts").rglob("*.parquet")
    file.unlink()
    assert steps_of(workspace) == {STEP}
    assert state(workspace, "clip.mp4") == ("wanted", WAITS_FOR_INPUT)
    assert state(workspace, "clip.mp4", "transcripts")[0] == "wanted"
    process(workspace)
    assert state(workspace, "clip.mp4", "transcripts") == ("done", None)


def test_verify_reaches_the_readers(make_workspace: MakePlace) -> None:
    """What it wants again is read again, and nothing differs in the end."""
    place = make_workspace("clip.mp4")
    workspace = place.open()
    ingest(workspace)
    [file] = (place.lake / "results" / "transcripts").rglob("*.parquet")
    file.write_bytes(b"damaged")
    repair(workspace, list(find_differences(workspace)))
    assert steps_of(workspace) >= {"transcripts"}
    assert steps_of(workspace) == {STEP}
    refresh(workspace)
    assert list(find_differences(workspace, deep=True)) == []
    assert set(kinds(workspace)) == {"said", "shown"}


def test_an_end_that_read_what_is_made_again_does_not_count(make_workspace: MakePlace) -> None:
    """Whether what it read is still open, or was made while it was held."""
    workspace = make_workspace("clip.mp4").open()
    ingest(workspace)
    [known] = workspace.ledger.objects.find("clip.mp4")
    ids, work, recipes = [known.object_id], workspace.ledger.work, workspace.recipes
    texts, heard = {STEP: recipes[STEP]}, {"transcripts": recipes["transcripts"]}

    reader, writer = new_owner(), new_owner()
    held = work.claim_objects(ids, texts, reader, lease_s=60)
    work.want_again("transcripts", recipes["transcripts"], ids)
    list(process_claims(workspace, held, reader, "one"))
    assert state(workspace, "clip.mp4") == ("wanted", WAITS_FOR_INPUT)

    process(workspace)
    held = work.claim_objects(ids, texts, reader, lease_s=60)
    list(process_claims(workspace, work.claim_objects(ids, heard, writer, lease_s=60), writer, "two"))
    list(process_claims(workspace, held, reader, "three"))
    assert state(workspace, "clip.mp4") == ("wanted", WAITS_FOR_INPUT)
    assert steps_of(workspace) == {STEP}
    assert state(workspace, "clip.mp4") == ("done", None)


def test_rows_of_a_result_that_was_made_again_are_not_kept(make_workspace: MakePlace) -> None:
    """A published file keeps rows of an object only where its result still has as many."""
    place = make_workspace("clip.mp4", "picture0.png", runs={"decode_workers": 1, "max_tries": 1})
    ingest(place.open(fails_on="clip", failing_step="ocr_text"))
    workspace = place.open()
    dead_letters.replay(workspace, workspace.ledger.dead.letters(DeadFilter()))
    steps_of(workspace)
    refresh(workspace)  # between: the object's texts are not shown while they are made again
    assert set(column(workspace, STEP)) == {"picture0.png"}
    ingest(workspace)
    assert set(column(workspace, STEP)) == {"picture0.png", "clip.mp4"}
    rows = workspace.lake.read_table(STEP)
    assert isinstance(rows, pa.Table)
    assert len(set(rows["piece_id"].to_pylist())) == rows.num_rows


@pytest.mark.parametrize("place", ["_begin", "_write"])
def test_what_is_made_again_while_it_is_published_is_published_again(
    make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whether its input ends again before the publisher looks or after: the file is not what its fingerprint would say."""
    workspace = make_workspace("clip.mp4").open()
    ingest(workspace)
    [known] = workspace.ledger.objects.find("clip.mp4")
    workspace.ledger.catalog.doubt_shard_file(STEP, known.shard)
    original, waves = getattr(publishing, place), [{"transcripts"}, {STEP}]

    def make_again(steps: set[str]) -> None:
        assert steps_of(workspace) >= steps

    def call(of: Workspace, file: Any, *rest: Any) -> Any:
        if waves[:1] == [{"transcripts"}] and STEP in (file, getattr(getattr(file, "table", None), "name", None)):
            workspace.ledger.work.want_again("transcripts", workspace.recipes["transcripts"], [known.object_id])
            make_again(waves.pop(0))
        return original(of, file, *rest)

    monkeypatch.setattr(publishing, place, call)
    publishing.publish_steps(workspace)
    make_again(waves.pop())

    assert (STEP, known.shard) in publishing.stale_step_shards(workspace)
    publishing.publish_steps(workspace)
    assert set(kinds(workspace)) == {"said", "shown"}
    assert publishing.stale_step_shards(workspace) == {}
