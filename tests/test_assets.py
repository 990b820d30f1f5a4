"""The asset graph at work: the three lanes into the one body, versions, the refresh and its checks.

Dagster, ledger, lake and decoding are real; the models are fakes.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from dagster_driver import Driver, events_of, materialized, range_tags
from places import Place

from mm_assets.assets.collection import COLLECTION
from mm_assets.assets.per_object import STEPS, process_objects
from mm_assets.definitions import build_defs
from mm_assets.flows.indexes import indexed_ids
from mm_assets.flows.workspace import Workspace
from mm_assets.indexing import ROWS_FILE, read_rows
from mm_assets.resources.workspace import WorkspaceResource
from mm_assets.schemas import JUDGEMENT_TABLES
from mm_assets.spaces import SPACES
from mm_assets.vectors import from_arrow, to_arrow

MakePlace = Callable[..., Place]
PICTURES = tuple(f"picture{n}.png" for n in range(6))
OF_PICTURES = ("visual_embeddings", "detected_objects", "faces", "ocr_text", "media_quality")


def driver_of(place: Place, instance: dg.DagsterInstance) -> Driver:
    """Drive Dagster over a place."""
    return Driver(place, instance, place.open())


def states(driver: Driver, name: str) -> dict[str, str]:
    """Step → state in the ledger, of the live version of a file."""
    known = next(item for item in driver.workspace.ledger.objects.find(name) if item.state == "live")
    return {str(row["step"]): str(row["state"]) for row in driver.workspace.ledger.work.states(known.object_id)}


# -- bulk lane ---------------------------------------------------------------------------------------------------------


def test_bulk_lane_materializes_what_each_kind_of_media_has(
    make_workspace: MakePlace, instance: dg.DagsterInstance
) -> None:
    """A picture has vectors and no transcript, a sound the reverse, a clip both; nothing else is claimed to be there."""
    driver = driver_of(make_workspace("picture0.png", "sound.wav", "clip.mp4"), instance)
    [result] = driver.ingest()
    picture, sound, clip = (driver.key(name) for name in ("picture0.png", "sound.wav", "clip.mp4"))
    assert result.success
    assert materialized(result) == {
        **{step: {picture, sound, clip} for step in ("raw_objects", "segments", "media_quality")},
        **{step: {picture, clip} for step in set(OF_PICTURES) - {"media_quality"}},
        "transcripts": {sound, clip},
    }


def test_bulk_lane_keeps_a_bad_object_from_the_rest(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """The run is green, good objects are Materialized, the bad one is Missing with an observation that says why."""
    driver = driver_of(make_workspace("picture0.png", "broken.png", "notes.txt"), instance)
    [result] = driver.ingest()
    assert result.success
    assert driver.statuses("segments", ["picture0.png", "broken.png", "notes.txt"]) == {
        "picture0.png": "MATERIALIZED",
        "broken.png": "MISSING",
        "notes.txt": "MISSING",
    }
    [event] = events_of(result, "ASSET_OBSERVATION")
    observation = event.asset_observation_data.asset_observation
    assert observation.partition == driver.key("broken.png")
    assert {name: observation.metadata[name].value for name in ("state", "reason")} == {
        "state": "dead",
        "reason": "corrupt",
    }


def test_bulk_lane_tries_again_what_a_model_refused(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """One step of one object fails: that step alone waits for another try, all else of the object is done."""
    driver = driver_of(make_workspace("picture0.png", "picture1.png"), instance)
    [result] = driver.ingest(driver.place.resource(failing_step="faces", fails_on="picture1"))
    assert result.success
    assert driver.statuses("faces", ["picture0.png", "picture1.png"]) == {
        "picture0.png": "MATERIALIZED",
        "picture1.png": "MISSING",
    }
    assert {step for step, state in states(driver, "picture1.png").items() if state == "wanted"} == {"faces"}


def test_bulk_lane_does_a_batch_once(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Running a batch that is done again is green, computes nothing and tells Dagster nothing."""
    driver = driver_of(make_workspace("picture0.png"), instance)
    [batch] = driver.plan()
    assert materialized(driver.run("ingest_job", batch))
    before = {path: path.stat().st_mtime_ns for path in driver.place.lake.rglob("*.parquet")}
    again = driver.run("ingest_job", batch)
    assert again.success
    assert materialized(again) == {}
    assert {path: path.stat().st_mtime_ns for path in driver.place.lake.rglob("*.parquet")} == before


def test_bulk_lane_blames_no_object_for_a_broken_model(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """A model that fails for every object fails the run; no try is burnt, nothing dies, and all is wanted again."""
    driver = driver_of(make_workspace(*PICTURES[:4]), instance)
    [result] = driver.ingest(driver.place.resource(failing_step="ocr_text", fails_on="picture"))
    assert not result.success
    for name in PICTURES[:4]:
        [known] = driver.workspace.ledger.objects.find(name)
        rows = driver.workspace.ledger.work.states(known.object_id)
        assert {(row["state"], row["tries"], row["claims"]) for row in rows} == {("wanted", 0, 0)}
    assert not list(driver.place.lake.glob("dead_letters/**/*.json"))
    [mended] = driver.ingest()
    assert mended.success
    assert set(driver.statuses("ocr_text", PICTURES[:4]).values()) == {"MATERIALIZED"}


def test_arriving_objects_are_judged_against_what_is_frozen(
    make_workspace: MakePlace, instance: dg.DagsterInstance
) -> None:
    """After a refresh, new objects have tags, clusters and anomaly scores in the very run that read them."""
    driver = driver_of(make_workspace(*PICTURES[:5]), instance)
    driver.ingest()
    assert driver.run("refresh_job").success
    driver.place.add("picture5.png")
    [result] = driver.ingest()
    for name in ("tags", "cluster_assignments", "anomaly_scores"):
        assert materialized(result)[name] == {driver.key("picture5.png")}
        assert len(list(driver.place.lake.glob(f"judgements/{name}/*/*.parquet"))) == 1


# -- single and backfill lanes -----------------------------------------------------------------------------------------


def test_single_lane_shows_red_on_its_partition_alone(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """The failing object's run fails and marks that partition Failed; the others stay as they were."""
    driver = driver_of(make_workspace("picture0.png", "broken.png"), instance)
    driver.ingest()
    result = driver.run("ingest_job", partition_key=driver.key("broken.png"))
    assert not result.success
    assert driver.statuses("segments", ["picture0.png", "broken.png"]) == {
        "picture0.png": "MATERIALIZED",
        "broken.png": "FAILED",
    }


def test_single_lane_makes_an_object_anew(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Materializing a done partition by hand runs all its steps once more."""
    driver = driver_of(make_workspace("picture0.png"), instance)
    driver.ingest()
    result = driver.run("ingest_job", partition_key=driver.key("picture0.png"))
    assert result.success
    assert set(materialized(result)) == {"raw_objects", "segments", *OF_PICTURES, "text_embeddings"}


def test_single_lane_judges_kept_vectors(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Selecting judgements alone derives them from the vectors in the lake; no step runs again."""
    driver = driver_of(make_workspace(*PICTURES), instance)
    driver.ingest()
    driver.run("refresh_job")
    key = driver.key("picture2.png")
    selection = [dg.AssetKey("tags"), dg.AssetKey("cluster_assignments")]
    result = driver.run("ingest_job", partition_key=key, asset_selection=selection)
    assert result.success
    assert materialized(result) == {"tags": {key}, "cluster_assignments": {key}}
    assert set(states(driver, "picture2.png").values()) == {"done", "skipped"}


def test_partition_that_the_ledger_does_not_know_fails_with_advice(
    make_workspace: MakePlace, instance: dg.DagsterInstance
) -> None:
    """A key that somebody added by hand is an error that says what to do."""
    driver = driver_of(make_workspace("picture0.png"), instance)
    instance.add_dynamic_partitions("objects", ["source/no such/0"])
    result = driver.run("ingest_job", partition_key="source/no such/0")
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "mm ingest" in str(failure.step_failure_data.error)


def test_backfill_lane_runs_one_step_over_a_range(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Only the selected asset of only the range's partitions is made, from segments that are in the lake."""
    driver = driver_of(make_workspace(*PICTURES[:4]), instance)
    driver.ingest()
    keys = instance.get_dynamic_partitions("objects")
    result = driver.run("ingest_job", tags=range_tags(keys[1], keys[2]), asset_selection=[dg.AssetKey("media_quality")])
    assert result.success
    assert materialized(result) == {"media_quality": set(keys[1:3])}


def test_backfill_lane_tells_good_from_bad(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """A range with one bad object fails, and its partitions are Materialized and Failed one by one."""
    driver = driver_of(make_workspace(*PICTURES[:3], runs={"decode_workers": 1, "max_tries": 1}), instance)
    driver.plan()
    driver.workspace.ledger.work.release_batches([batch.batch_id for batch in driver.plan()])
    keys = instance.get_dynamic_partitions("objects")
    resource = driver.place.resource(failing_step="detected_objects", fails_on="picture1")
    result = driver.run("ingest_job", resource=resource, tags=range_tags(keys[0], keys[-1]))
    assert not result.success
    expected = dict.fromkeys(PICTURES[:3], "MATERIALIZED")
    assert driver.statuses("segments", PICTURES[:3]) == expected
    assert driver.statuses("detected_objects", PICTURES[:3]) == expected | {"picture1.png": "FAILED"}


# -- versions ----------------------------------------------------------------------------------------------------------


def stale(instance: dg.DagsterInstance, changed: dict[str, str], key: str) -> dict[str, str]:
    """Asset → what Dagster's pages say of it when these assets have these code versions."""
    from dagster._core.definitions.data_version import CachingStaleStatusResolver
    from dagster._core.loader import LoadingContextForTest

    def change(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.to_user_string()
        return spec.replace_attributes(code_version=changed[name]) if name in changed else spec

    assets = [process_objects.map_asset_specs(change), *COLLECTION]
    graph = dg.Definitions(assets=assets, resources={"workspace": WorkspaceResource()}).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    per_object = {asset.to_user_string() for asset in process_objects.keys}
    return {
        asset.to_user_string(): resolver.get_status(asset, key if asset.to_user_string() in per_object else None).value
        for asset in graph.materializable_asset_keys
    }


def test_everything_is_fresh_after_a_full_run(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """With all four kinds of version tags nothing is shown as stale but what waits for the next refresh."""
    driver = driver_of(make_workspace(*PICTURES[:5], "clip.mp4"), instance)
    driver.ingest()
    driver.run("refresh_job")
    clip = driver.key("clip.mp4")
    assert driver.run("ingest_job", partition_key=clip).success
    found = stale(instance, {}, clip)
    assert found.pop("indexed_vectors") == "STALE"  # made at the refresh, before its vector was made again
    assert set(found.values()) == {"FRESH"}


def test_raised_code_version_shows_exactly_its_partitions_as_stale(
    make_workspace: MakePlace, instance: dg.DagsterInstance
) -> None:
    """A new version of one step makes that step stale for each object that has it, and no other step."""
    driver = driver_of(make_workspace("picture0.png", "sound.wav"), instance)
    driver.ingest()
    for name, has_faces in (("picture0.png", True), ("sound.wav", False)):
        before, after = (stale(instance, new, driver.key(name)) for new in ({}, {"faces": "next"}))
        changed = {asset: status for asset, status in after.items() if before[asset] != status}
        assert changed == ({"faces": "STALE"} if has_faces else {})


# -- refresh and checks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Driver]:
    """Give a collection that was ingested and refreshed; tests put back what they break."""
    place = Place(tmp_path_factory.mktemp("refreshed"), media)
    place.write_settings()
    place.add(*PICTURES, "clip.mp4", "sound.wav", "broken.png")
    with dg.DagsterInstance.ephemeral() as instance:
        driver = driver_of(place, instance)
        driver.ingest()
        assert driver.run("refresh_job").success
        yield driver
        place.close()


def failed_checks(driver: Driver) -> set[str]:
    """Run all checks and give ``asset.check`` of those that did not pass."""
    checks = dg.define_asset_job("check_job", selection=dg.AssetSelection.all_asset_checks())
    defs = dg.Definitions.merge(build_defs(driver.place.resource()), dg.Definitions(jobs=[checks]))
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    result = defs.resolve_job_def("check_job").execute_in_process(instance=driver.instance, run_config=quiet)
    evaluations = result.get_asset_check_evaluations()
    assert len(evaluations) == 8
    return {f"{item.asset_key.to_user_string()}.{item.check_name}" for item in evaluations if not item.passed}


def test_refresh_publishes_every_table_and_every_check_passes(refreshed: Driver) -> None:
    """After a refresh all tables are there, row counts are Dagster's too, and every promise holds."""
    tables = {path.name for path in (refreshed.place.lake / "tables").iterdir()}
    assert tables == {*STEPS, *JUDGEMENT_TABLES, "step_states", "published.json"}
    assert failed_checks(refreshed) == set()


def edit_shard(driver: Driver, table: str, edit: Callable[[pa.Table], pa.Table]) -> tuple[Path, bytes]:
    """Rewrite a published shard; returns the file and the bytes that it held."""
    file = driver.place.lake / "tables" / table / "shard=0" / "part-0.parquet"
    kept = file.read_bytes()
    pq.write_table(edit(pq.read_table(io.BytesIO(kept))), file)
    return file, kept


def lengthen(rows: pa.Table) -> pa.Table:
    """Double all vectors."""
    place = rows.schema.get_field_index("vector")
    doubled = to_arrow(from_arrow(rows["vector"]) * 2)
    return rows.set_column(place, rows.schema.field(place), doubled.cast(rows.schema.field(place).type))


def retype(rows: pa.Table) -> pa.Table:
    """Write the length of each tag where the tag should be."""
    return rows.set_column(rows.schema.get_field_index("tag"), "tag", pc.binary_length(rows["tag"]))


def drop_from_index(driver: Driver) -> tuple[Path, bytes]:
    """Take one vector out of the stored index of the visual space."""
    loaded = indexed_ids(driver.workspace, SPACES["visual"])
    assert loaded is not None
    _, manifest = loaded
    file = driver.place.lake / SPACES["visual"].generation_name / manifest["generation"] / ROWS_FILE
    kept = file.read_bytes()
    smaller = read_rows(kept).slice(1)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, smaller.schema) as writer:
        writer.write_table(smaller)
    return file, kept


BREAKAGES: dict[str, tuple[Callable[[Driver], tuple[Path, bytes]], set[str]]] = {
    "a column too many": (
        lambda driver: edit_shard(driver, "segments", lambda rows: rows.append_column("extra", rows["key"])),
        {"tables.schemas_are_exact"},
    ),
    "a column of another type": (
        lambda driver: edit_shard(driver, "tags", retype),
        {"judgement_tables.schemas_are_exact"},
    ),
    "an id twice": (
        lambda driver: edit_shard(driver, "media_quality", lambda rows: pa.concat_tables([rows, rows.slice(0, 1)])),
        {"tables.ids_are_unique"},
    ),
    "a judgement twice": (
        lambda driver: edit_shard(driver, "anomaly_scores", lambda rows: pa.concat_tables([rows, rows.slice(0, 1)])),
        {"judgement_tables.ids_are_unique"},
    ),
    "a vector off unit": (
        lambda driver: edit_shard(driver, "faces", lengthen),
        {"tables.vectors_are_unit"},
    ),
    "an index row missing": (drop_from_index, {"judgement_tables.index_rows_are_live_rows"}),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_check_fails_when_its_promise_is_broken(refreshed: Driver, breakage: str) -> None:
    """Each fault that is planted in the lake fails the check that promises its absence, and no other."""
    damage, expected = BREAKAGES[breakage]
    file, kept = damage(refreshed)
    try:
        assert failed_checks(refreshed) == expected
    finally:
        file.write_bytes(kept)


def test_refresh_builds_nothing_that_no_source_asks_for(
    make_workspace: MakePlace, instance: dg.DagsterInstance
) -> None:
    """Sources without faces and pictures' vectors refresh green: indexes and models of those say why there are none."""
    place = make_workspace()
    source = {"uri": str(place.folder / "source"), "alias": "source", "steps": ["media_quality"]}
    place.write_settings(sources=[source])
    place.add("picture0.png")
    driver = driver_of(place, instance)
    driver.ingest()
    result = driver.run("refresh_job")
    assert result.success
    for asset in ("vector_index/face", "vector_index/visual", "cluster_model", "anomaly_baseline", "taxonomy"):
        [event] = result.asset_materializations_for_node(asset.replace("/", "__"))
        assert "nothing_built" in event.metadata
    assert {path.name for path in (place.lake / "tables").iterdir()} >= {"raw_objects", "segments", "media_quality"}


# -- every job ---------------------------------------------------------------------------------------------------------


def decoded_then_inferred(driver: Driver) -> list[dg.ExecuteInProcessResult]:
    """Run decode_job, then infer_job on what it left."""
    [decode] = driver.plan("decode_job")
    first = driver.run("decode_job", decode)
    [infer] = driver.plan("infer_job")
    second = driver.run("infer_job", infer)
    [texts] = driver.plan("infer_job")
    return [first, second, driver.run("infer_job", texts)]


def test_no_job_skips_a_step(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """Every job executes with no STEP_SKIPPED, which would leave a green run with work undone."""
    driver = driver_of(make_workspace("picture0.png", "sound.wav", kubernetes={"split_by_device": True}), instance)
    results = decoded_then_inferred(driver)
    driver.place.write_settings()
    driver.place.add("picture1.png")
    driver.workspace = driver.place.open()
    results += [*driver.ingest(), driver.run("refresh_job")]
    assert {result.job_def.name for result in results} == {job.name for job in build_defs().jobs or []}
    assert [result.success for result in results] == [True] * 5
    assert [events_of(result, "STEP_SKIPPED") for result in results] == [[]] * 5


def test_split_by_device_runs_each_step_once(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """decode_job makes what needs no accelerator, infer_job the rest from stored segments; together they are all."""
    driver = driver_of(make_workspace("picture0.png", kubernetes={"split_by_device": True}), instance)
    decode, infer, texts = (set(materialized(result)) for result in decoded_then_inferred(driver))
    assert decode == {"raw_objects", "segments", "ocr_text", "media_quality"}
    assert infer == {"visual_embeddings", "detected_objects", "faces"}
    assert texts == {"text_embeddings"}


def test_workspace_is_closed_when_a_run_fails(make_workspace: MakePlace, instance: dg.DagsterInstance) -> None:
    """After a failed run no claim is held: what was claimed is wanted again."""
    driver = driver_of(make_workspace(*PICTURES[:4]), instance)
    driver.ingest(driver.place.resource(failing_step="faces", fails_on="picture"))
    assert claimed(driver.workspace) == 0


def claimed(workspace: Workspace) -> int:
    """Rows of the ledger that a worker holds."""
    counts = workspace.ledger.work.counts(dict(workspace.recipes))
    return sum(n for (_, state, _), n in counts.items() if state == "claimed")
