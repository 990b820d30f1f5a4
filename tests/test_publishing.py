"""Publishing and refresh: only what changed, models never mixed, generations named by their content."""

import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeFaces
from flow_driver import column, ingest, process, refresh

from mm_assets.buckets.local import LocalStore
from mm_assets.errors import ConfigError
from mm_assets.flows.discovery import discover
from mm_assets.flows.locking import BusyError
from mm_assets.flows.publishing import publish_steps, stale_step_shards
from mm_assets.flows.rebuilding import rebuild
from mm_assets.flows.refreshing import needs_refresh
from mm_assets.flows.showing import STATES
from mm_assets.lake import Lake, _Lent, read_parquet, to_parquet
from mm_assets.ledger import SeenObject
from mm_assets.ledger.locks import LockBook
from mm_assets.retrieval import open_tables

PICTURES = tuple(f"picture{n}.png" for n in range(6))
SMALL_SHARDS = {"shard_objects": 2, "min_cluster_size": 2}


def _files(lake: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in lake.rglob("*") if file.is_file()}


def test_nothing_new_writes_nothing(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """A second ingest leaves every file of the lake as it is."""
    workspace = make_workspace(*PICTURES, "clip.mp4").open()
    ingest(workspace)
    before = _files(tmp_path / "lake")
    assert not needs_refresh(workspace)

    ingest(workspace)

    assert _files(tmp_path / "lake") == before


def test_only_changed_shards_are_written(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """One overwritten object costs the files of its shard."""
    place = make_workspace(*PICTURES, refresh=SMALL_SHARDS)
    workspace = place.open()
    ingest(workspace)
    tables = tmp_path / "lake" / "tables" / "visual_embeddings"
    before = _files(tables)
    assert len(before) == 3
    (place.source / "picture2.png").write_bytes((place.media / "clip.mp4").read_bytes())
    discover(workspace, "source")
    process(workspace)

    publish_steps(workspace)

    changed = {file.parent.name for file, at in _files(tables).items() if before.get(file) != at}
    assert changed == {"shard=1"}


def test_a_shard_without_objects_is_withdrawn(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """No empty files pile up, and a glob always finds a schema."""
    place = make_workspace(*PICTURES, refresh=SMALL_SHARDS)
    workspace = place.open()
    ingest(workspace)
    for name in ("picture4.png", "picture5.png"):
        (place.source / name).unlink()

    ingest(workspace)

    shards = {file.parent.name for file in (tmp_path / "lake" / "tables").rglob("*.parquet")}
    assert shards == {"shard=0", "shard=1"}


def test_a_glob_reads_each_object_once(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """DuckDB over the plain files, with nothing of ours running."""
    duckdb = pytest.importorskip("duckdb")
    workspace = make_workspace(*PICTURES, "clip.mp4", refresh=SMALL_SHARDS).open()
    ingest(workspace)

    files = f"{tmp_path}/lake/tables/visual_embeddings/**/*.parquet"
    [counts] = duckdb.sql(f"SELECT count(*), count(DISTINCT segment_id) FROM '{files}'").fetchall()  # noqa: S608  a path of our own

    assert counts == (8, 8)


def test_a_changed_model_recomputes_its_step_and_nothing_else(
    make_workspace: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the step and its recipe change; tables switch when all objects are done, never in between."""
    place = make_workspace(*PICTURES)
    workspace = place.open()
    ingest(workspace)
    old = workspace.recipes["faces"]
    results = _files(tmp_path / "lake" / "results")
    monkeypatch.setattr(FakeFaces, "code_version", "next")
    changed = place.open()
    assert {step for step, recipe in changed.recipes.items() if recipe != workspace.recipes[step]} == {"faces"}

    discover(changed, "source")
    publish_steps(changed)
    assert set(column(changed, "faces", "recipe")) == {old}
    process(changed)
    refresh(changed)

    assert set(column(changed, "faces", "recipe")) == {changed.recipes["faces"]}
    new = set(_files(tmp_path / "lake" / "results")) - set(results)
    assert len(new) == 6
    assert {file.parts[-4] for file in new} == {"faces"}


def test_steps_that_read_each_other_switch_together(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of new segments never stand beside features of the old ones."""
    place = make_workspace(*PICTURES[:2])
    ingest(place.open())
    monkeypatch.setitem(__import__("mm_assets.flows.recipes").flows.recipes.DECODING_CODE_VERSIONS, "segments", "next")
    changed = place.open()
    discover(changed, "source")
    publish_steps(changed)
    published = changed.ledger.catalog.published()
    assert all(published[step] != changed.recipes[step] for step in changed.recipes if step != "raw_objects")

    process(changed)
    publish_steps(changed)

    assert changed.ledger.catalog.published() == dict(changed.recipes)


def test_a_lost_result_is_wanted_again(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """A file that the ledger calls done and the lake does not have is made again, not papered over."""
    workspace = make_workspace(*PICTURES[:2]).open()
    discover(workspace, "source")
    process(workspace)
    lost = next((tmp_path / "lake" / "results" / "faces").rglob("*.parquet"))
    lost.unlink()

    assert publish_steps(workspace).n_missing == 1
    assert len(column(workspace, "faces")) == 1
    process(workspace)
    publish_steps(workspace)

    assert len(column(workspace, "faces")) == 2
    assert lost.is_file()


def test_a_generation_is_named_by_what_it_was_made_of(make_workspace: Callable[..., Any]) -> None:
    """Going back to the same objects is the same generation."""
    place = make_workspace(*PICTURES[:3])
    workspace = place.open()
    ingest(workspace)
    first = workspace.ledger.catalog.generations()
    place.add("picture5.png")
    ingest(workspace)
    second = workspace.ledger.catalog.generations()
    (place.source / "picture5.png").unlink()
    ingest(workspace)

    changed = {name for name in first if first[name]["generation"] != second[name]["generation"]}
    indexes = {"indexes/visual", "indexes/face", "indexes/text", "indexes/words"}
    assert changed == indexes | {"clusters/visual", "baselines/visual"}
    third = workspace.ledger.catalog.generations()
    assert {name: third[name] for name in changed - {"indexes/words"}} == {
        name: first[name] for name in changed - {"indexes/words"}
    }
    assert third["indexes/words"]["origin"] == first["indexes/words"]["origin"]


def test_editing_the_taxonomy_tags_anew_without_a_model_run(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """Tags follow the file, in both directions, and no result is written."""
    workspace = make_workspace(*PICTURES[:3]).open()
    ingest(workspace)
    assert len(column(workspace, "tags")) == 3
    results = _files(tmp_path / "lake" / "results")
    taxonomy = tmp_path / "state" / "taxonomy.yaml"
    taxonomy.write_text(taxonomy.read_text().replace("threshold: -1.0", "threshold: 0.999"), encoding="utf-8")

    refresh(workspace)

    assert column(workspace, "tags") == []
    assert _files(tmp_path / "lake" / "results") == results


def test_judgements_on_arrival_equal_those_of_the_refresh(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """An object is scored when it comes, against what was frozen before."""
    place = make_workspace(*PICTURES[:4], refresh=SMALL_SHARDS)
    workspace = place.open()
    ingest(workspace)
    generation = workspace.ledger.catalog.generations()["baselines/visual"]["generation"]
    place.add("picture5.png")
    discover(workspace, "source")

    end = process(workspace)[0]

    assert set(end.judgements) == {"tags", "cluster_assignments", "anomaly_scores"}
    assert end.judgements["anomaly_scores"]["generation"].to_pylist() == [generation]
    [file] = (tmp_path / "lake" / "judgements" / "anomaly_scores" / generation).glob("*.parquet")
    assert pq.read_table(file, partitioning=None).num_rows == 1


def test_a_published_file_that_vanished_comes_back(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """Forgetting a shard's fingerprint is enough to have it written again."""
    workspace = make_workspace(*PICTURES[:2]).open()
    ingest(workspace)
    (tmp_path / "lake" / "tables" / "segments" / "shard=0" / "part-0.parquet").unlink()
    workspace.ledger.catalog.forget_shard_files([("segments", 0)])
    assert list(stale_step_shards(workspace)) == [("segments", 0)]

    publish_steps(workspace)

    assert len(column(workspace, "segments")) == 2


def test_before_the_first_publish_questions_get_a_clear_answer(
    make_workspace: Callable[..., Any], tmp_path: Path
) -> None:
    """An empty lake says what to do."""
    workspace = make_workspace().open()

    with pytest.raises(ConfigError, match="mm ingest"):
        open_tables(workspace.lake, tmp_path / "cache")


def test_an_empty_source_publishes_empty_tables(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """Every table can be read from the first refresh on."""
    workspace = make_workspace().open()
    ingest(workspace)

    with open_tables(workspace.lake, tmp_path / "cache") as connection:
        tables = {row[0] for row in connection.execute("SHOW TABLES").fetchall()}
        assert {"raw_objects", "segments", "faces", "tags", "anomaly_scores", "dead_letters", "moments"} <= tables
        assert connection.execute("SELECT count(*) FROM moments").fetchone() == (0,)


def test_a_refresh_before_the_next_listing_does_not_empty_the_tables(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that nobody has asked for yet does not count as complete."""
    place = make_workspace(*PICTURES[:3])
    ingest(place.open())
    monkeypatch.setattr(FakeFaces, "code_version", "next")
    changed = place.open()

    refresh(changed)

    assert len(column(changed, "faces")) == 3
    assert changed.ledger.catalog.published()["faces"] != changed.recipes["faces"]


def test_the_last_object_of_a_step_leaves_its_table(make_workspace: Callable[..., Any]) -> None:
    """A shard whose only rows of a step are gone is written again, empty."""
    place = make_workspace(*PICTURES[:2], "sound.wav")
    workspace = place.open()
    ingest(workspace)
    assert column(workspace, "transcripts") == ["sound.wav"]
    (place.source / "sound.wav").unlink()

    ingest(workspace)

    assert column(workspace, "transcripts") == []


def test_a_shard_that_only_lost_objects_asks_for_a_refresh(make_workspace: Callable[..., Any]) -> None:
    """Deleting everything of the last shard is a change as well, and the next refresh heals what a kill left behind."""
    place = make_workspace(*PICTURES, refresh=SMALL_SHARDS)
    workspace = place.open()
    ingest(workspace)
    for name in ("picture4.png", "picture5.png"):
        (place.source / name).unlink()
    discover(workspace, "source")
    assert needs_refresh(workspace)

    publish_steps(workspace)
    assert needs_refresh(workspace)
    refresh(workspace)

    assert not needs_refresh(workspace)
    assert len(set(column(workspace, "indexed_vectors", "object_id"))) == 4


def test_a_model_of_another_dimension_takes_over_when_it_is_complete(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old vectors stay until all new ones are there; they are never judged or indexed together."""
    place = make_workspace(*PICTURES[:4], refresh=SMALL_SHARDS)
    ingest(place.open())
    for kind in ("FakeVision", "FakeFaces"):
        monkeypatch.setattr(f"fakes.{kind}.code_version", "wider")
    monkeypatch.setattr("fakes.DIM", 24)
    wider = place.open()
    discover(wider, "source")
    refresh(wider)
    assert len(column(wider, "visual_embeddings")) == 4

    process(wider)
    refresh(wider)

    rows = wider.lake.read_table("visual_embeddings", ["vector", "recipe"])
    assert rows is not None
    assert rows.schema.field("vector").type.list_size == 24
    assert rows.num_rows == 4
    assert len(column(wider, "anomaly_scores")) == 4


def test_settings_of_the_judgements_are_followed(make_workspace: Callable[..., Any]) -> None:
    """Another percentile or cluster size asks for a refresh and changes the tables, without a model run."""
    place = make_workspace(*PICTURES)
    ingest(place.open())
    changed = make_workspace(refresh={"anomaly_percentile": 0.01, "min_cluster_size": 3}).open()
    assert needs_refresh(changed)

    refresh(changed)

    assert sum(map(bool, column(changed, "anomaly_scores", "is_anomaly"))) > 1
    assert not needs_refresh(changed)


def test_a_wiped_ledger_keeps_what_is_in_the_lake(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """Without its memory it lists again and finds every result where it left it."""
    place = make_workspace(*PICTURES[:3], "clip.mp4")
    ingest(place.open())
    place.lose_ledger()
    results = _files(tmp_path / "lake" / "results")
    workspace = place.open()
    rebuild(workspace)

    ingest(workspace)

    assert _files(tmp_path / "lake" / "results") == results
    assert len(set(column(workspace, "visual_embeddings"))) == 4


def test_a_wiped_ledger_withdraws_shards_that_only_the_lake_knows(
    make_workspace: Callable[..., Any], tmp_path: Path
) -> None:
    """Fewer objects are fewer shards: files of the earlier ledger would show rows twice; not before all is listed."""
    place = make_workspace(*PICTURES, refresh=SMALL_SHARDS)
    ingest(place.open())
    place.lose_ledger()
    for name in ("picture4.png", "picture5.png"):
        (place.source / name).unlink()
    (tmp_path / "lake" / "tables" / STATES / "shard=2" / "part-0.parquet").unlink()  # so that no version is of it
    workspace = place.open()
    rebuild(workspace)
    assert (tmp_path / "lake" / "tables" / "faces" / "shard=2").exists()

    ingest(workspace)

    assert {file.parent.name for file in (tmp_path / "lake" / "tables").rglob("*.parquet")} == {"shard=0", "shard=1"}
    assert len(column(workspace, "faces")) == 4


def test_what_an_overtaken_publisher_wrote_is_written_again(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that slept beyond its lease cannot make its file count, and writes no further one."""
    workspace = make_workspace(*PICTURES[:2]).open()
    discover(workspace, "source")
    process(workspace)
    write = Lake.write_shard

    def write_late(lake: Lake, table: Any, *args: Any) -> None:
        if table.name == "faces":
            locks = workspace.ledger.locks
            locks.release("publish", token_of_sleeper[0])
            assert locks.take("publish", "another/1/a", 60) is not None
        write(lake, table, *args)

    token_of_sleeper: list[int] = []
    take = LockBook.take

    def note_token(book: LockBook, name: str, owner: str, lease_s: float) -> int | None:
        token = take(book, name, owner, lease_s)
        token_of_sleeper.append(token or 0)
        return token

    monkeypatch.setattr(LockBook, "take", note_token)
    monkeypatch.setattr(Lake, "write_shard", write_late)
    with pytest.raises(BusyError, match="another/1/a"):
        publish_steps(workspace)
    monkeypatch.undo()
    assert workspace.lake.describe_shard("step_states", 0) is None

    stale = stale_step_shards(workspace)
    assert ("faces", 0) in stale
    workspace.ledger.locks.release("publish", token_of_sleeper[-1])
    publish_steps(workspace)
    assert stale_step_shards(workspace) == {}


def test_a_kill_after_a_file_does_not_leave_it_published(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when the objects are again what the ledger last saw published: the file is another."""
    workspace = make_workspace(*PICTURES[:2]).open()
    ingest(workspace)
    objects = workspace.ledger.objects
    known = objects.live_at_key("source", ["picture1.png"])["picture1.png"]
    objects.retire("source", [known.object_id], ())
    write = Lake.write_shard

    def die_after(lake: Lake, *args: Any) -> None:
        write(lake, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Lake, "write_shard", die_after)
    with pytest.raises(KeyboardInterrupt):
        publish_steps(workspace)
    monkeypatch.undo()
    back = SeenObject(known.version, known.size_bytes, known.modified_at)
    objects.record_hinted("source", [back], (), shard_objects=2_000)

    publish_steps(workspace)

    for (table, shard), file in workspace.ledger.catalog.shard_files().items():
        assert workspace.lake.describe_shard(table, shard) == (file.fingerprint, file.n_rows)


def test_a_shard_file_says_what_it_was_made_of(make_workspace: Callable[..., Any]) -> None:
    """Fingerprint and rows are in its footer, the shown recipes beside the tables: enough to rebuild the pointers."""
    workspace = make_workspace(*PICTURES[:2]).open()
    ingest(workspace)

    for (table, shard), file in workspace.ledger.catalog.shard_files().items():
        assert workspace.lake.describe_shard(table, shard) == (file.fingerprint, file.n_rows)
    assert workspace.lake.published() == workspace.ledger.catalog.published()


def test_reading_makes_no_lake(tmp_path: Path) -> None:
    """Whoever only reads is told that there is nothing, and leaves nothing behind."""
    lake = Lake(LocalStore(tmp_path / "lake", create=True))
    with pytest.raises(ConfigError, match="holds no lake"):
        lake.lake_id()
    assert not (tmp_path / "lake").exists()

    lake.write_id("a")
    assert lake.lake_id() == lake.find_id() == "a"


def test_a_file_is_let_go_of_when_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of Arrow holds it any longer, read or refused: a process that ended meanwhile would abort."""
    held: list[weakref.ref[Any]] = []

    class Lent(_Lent):
        """One that is remembered."""

        def __init__(self, file: io.IOBase) -> None:
            super().__init__(file)
            held.append(weakref.ref(self))

    monkeypatch.setattr("mm_assets.lake._Lent", Lent)
    monkeypatch.setattr("mm_assets.lake._RELEASED_WITHIN_S", 60)
    rows = pa.table({"text": ["a"] * 1_000, "pieces": [[{"text": "a"}]] * 1_000, "n": range(1_000)})
    data = to_parquet(rows, {}, rows_per_group=100)
    for _ in range(100):
        assert read_parquet(io.BytesIO(data), ["n", "pieces"]).equals(rows.select(["n", "pieces"]))
        assert held.pop()() is None
        for broken, columns in ((data, ["n", "absent"]), (data[:-20], ["n"]), (b"\0" * 2_000 + data[2_000:], None)):
            with pytest.raises((pa.ArrowException, OSError)):
                read_parquet(io.BytesIO(broken), columns)
            assert held.pop()() is None


def test_a_damaged_result_is_made_again_and_stops_nothing(make_workspace: Callable[..., Any], tmp_path: Path) -> None:
    """What cannot be read when it is published is wanted again; the other rows are published meanwhile."""
    workspace = make_workspace("picture0.png", "picture1.png").open()
    discover(workspace, "source")
    process(workspace)
    damaged = next((tmp_path / "lake" / "results" / "faces").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-20])

    refresh(workspace)
    assert len(column(workspace, "faces")) < len(column(workspace, "visual_embeddings"))
    ingest(workspace)

    assert set(column(workspace, "faces")) == {"picture0.png", "picture1.png"}
    pq.read_table(damaged, partitioning=None)


@pytest.mark.parametrize(("n_forbidden", "is_shown"), [(1, True), (3, False)])
def test_a_few_forbidden_objects_hold_no_recipe_back(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, n_forbidden: int, is_shown: bool
) -> None:
    """One object that may not be read must not keep the tables on an old recipe; many look like lost rights."""
    place = make_workspace(*PICTURES)
    ingest(place.open())
    place.close()
    place.write_settings(media={"page_dpi": 100})
    workspace = place.open()
    download = LocalStore.download

    def refuse(self: LocalStore, key: str, *args: Any, **options: Any) -> Any:
        if key in PICTURES[:n_forbidden]:
            msg = "403 AccessDenied"
            raise ConfigError(msg)
        return download(self, key, *args, **options)

    monkeypatch.setattr(LocalStore, "download", refuse)

    ingest(workspace)

    assert (workspace.ledger.catalog.published() == dict(workspace.recipes)) is is_shown
