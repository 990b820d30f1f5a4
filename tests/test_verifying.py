"""Verify: finds every kind of damage, wants it again, and says equal when nothing is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from flow_driver import column, ingest, process, refresh
from places import Place

from mm_assets.flows.discovery import discover
from mm_assets.flows.refreshing import needs_refresh
from mm_assets.flows.verifying import find_differences, repair
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import open_parquet, read_provenance

Make = Callable[..., Place]


def _kinds(workspace: Workspace, *, deep: bool = False) -> set[str]:
    return {found.kind for found in find_differences(workspace, deep=deep)}


def _result(place: Place, step: str) -> Path:
    return min((place.lake / "results" / step).rglob("*.parquet"))


def _repaired(workspace: Workspace, *, deep: bool = False) -> set[str]:
    repair(workspace, find_differences(workspace, deep=deep))
    ingest(workspace)
    return _kinds(workspace, deep=deep)


@pytest.fixture
def place(make_workspace: Make) -> Place:
    """Lay out a place with pictures, a film, a sound, a broken picture and a text."""
    return make_workspace("picture0.png", "picture1.png", "clip.mp4", "sound.wav", "broken.png", "notes.txt")


@pytest.fixture
def workspace(place: Place) -> Workspace:
    """Open it, all done and published."""
    opened = place.open()
    ingest(opened)
    return opened


def test_after_an_ingest_all_is_equal(workspace: Workspace) -> None:
    """Dead letters, skipped steps and empty results are no differences."""
    assert _kinds(workspace, deep=True) == set()


def test_a_lost_result_is_made_again(place: Place, workspace: Workspace) -> None:
    """The ledger calls it done and the lake has no file."""
    lost = _result(place, "faces")
    lost.unlink()

    assert _kinds(workspace) == {"result missing"}
    assert _repaired(workspace) == set()
    assert lost.is_file()


def test_a_truncated_result_is_made_again(place: Place, workspace: Workspace) -> None:
    """Its footer cannot be read."""
    file = _result(place, "segments")
    file.write_bytes(file.read_bytes()[:-20])

    assert _kinds(workspace) == {"result damaged"}
    assert _repaired(workspace) == set()


def test_a_result_of_other_length_is_made_again(place: Place, workspace: Workspace) -> None:
    """The footer counts other rows than the ledger."""
    file = _result(place, "visual_embeddings")
    rows = pq.read_table(file, partitioning=None)
    with open_parquet(file, rows.schema, read_provenance(rows.schema)) as writer:
        writer.write_table(rows.slice(0, 0))

    assert _kinds(workspace) == {"wrong number of rows"}
    assert _repaired(workspace) == set()
    assert len(set(column(workspace, "visual_embeddings"))) == 3


def test_a_damaged_page_shows_in_a_deep_look_alone(place: Place, workspace: Workspace) -> None:
    """The footer is whole, the data are not."""
    file = _result(place, "segments")
    data = bytearray(file.read_bytes())
    data[200:400] = bytes(200)
    file.write_bytes(data)

    assert _kinds(workspace) == set()
    assert _kinds(workspace, deep=True) == {"result damaged"}
    assert _repaired(workspace, deep=True) == set()


def test_a_result_of_another_object_shows_in_a_deep_look(place: Place, workspace: Workspace) -> None:
    """Rows and recipe must be those of its name."""
    one, other, *_ = sorted((place.lake / "results" / "raw_objects").rglob("*.parquet"))
    one.write_bytes(other.read_bytes())

    assert _kinds(workspace, deep=True) == {"result of something else"}
    assert _repaired(workspace, deep=True) == set()


def test_a_lost_table_file_is_published_again(place: Place, workspace: Workspace) -> None:
    """Of a step, of the states and of a judgement alike; nothing is computed for it."""
    for table in ("faces", "step_states", "tags"):
        (place.lake / "tables" / table / "shard=0" / "part-0.parquet").unlink()

    assert _kinds(workspace) == {"table file missing"}
    repair(workspace, find_differences(workspace))
    assert needs_refresh(workspace)
    refresh(workspace)

    assert _kinds(workspace) == set()


def test_a_table_file_of_other_rows_is_gathered_again(place: Place, workspace: Workspace) -> None:
    """Rows of the wrong file are not taken over into the new one."""
    file = place.lake / "tables" / "ocr_text" / "shard=0" / "part-0.parquet"
    rows = pq.read_table(file, partitioning=None)
    whole = file.read_bytes()
    with open_parquet(file, rows.schema, read_provenance(rows.schema)) as writer:
        writer.write_table(rows.slice(1))
    assert _kinds(workspace) == {"table file of another publish"}
    workspace.ledger.catalog.forget_shard_files([])

    assert _repaired(workspace) == set()
    assert file.read_bytes() == whole


def test_a_table_that_shows_the_wrong_objects_is_gathered_again(place: Place, workspace: Workspace) -> None:
    """As many rows under the right fingerprint, but one object twice and another not at all."""
    file = place.lake / "tables" / "ocr_text" / "shard=0" / "part-0.parquet"
    rows, whole = pq.read_table(file, partitioning=None), file.read_bytes()
    with open_parquet(file, rows.schema, read_provenance(rows.schema)) as writer:
        writer.write_table(rows.take([0] * rows.num_rows))

    assert _kinds(workspace) == {"table shows other objects"}
    assert _repaired(workspace) == set()
    assert file.read_bytes() == whole


def test_a_damaged_index_is_built_again(place: Place, workspace: Workspace) -> None:
    """Cut off, or gone: the same generation is written anew."""
    [index] = (place.lake / "indexes" / "visual").rglob("index.faiss")
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    next((place.lake / "clusters").rglob("model.parquet")).unlink()

    assert _kinds(workspace) == {"build damaged"}
    assert _repaired(workspace) == set()
    assert index.read_bytes() == whole


def test_a_pointer_that_leads_elsewhere_is_set_right(place: Place, workspace: Workspace) -> None:
    """Of a generation and of the published recipes."""
    pointer = place.lake / "indexes" / "face" / "current.json"
    pointer.write_text(json.dumps(json.loads(pointer.read_text()) | {"generation": "another"}))
    (place.lake / "tables" / "published.json").unlink()

    assert _kinds(workspace) == {"pointer differs"}
    assert _repaired(workspace) == set()


def test_a_dead_letter_without_its_record_is_tried_again(place: Place, workspace: Workspace) -> None:
    """It dies once more, with a record."""
    [record] = (place.lake / "dead_letters").rglob("*.json")
    record.unlink()

    assert _kinds(workspace) == {"dead letter missing"}
    assert _repaired(workspace) == set()
    assert record.is_file()


def test_what_the_source_holds_is_compared(place: Place, workspace: Workspace) -> None:
    """New, overwritten and deleted objects are differences until the next listing; erased ones are none."""
    place.add("picture5.png")
    place.add_as("picture4.png", "picture0.png")
    (place.source / "picture1.png").unlink()

    kinds = {found.where: found.kind for found in find_differences(workspace)}

    assert kinds == {
        "source/picture5.png": "unknown to the ledger",
        "source/picture0.png": "another version in the source",
        "source/picture1.png": "not in the source",
    }
    ingest(workspace)
    assert _kinds(workspace) == set()


def test_orphans_and_unpublished_work_show(place: Place, workspace: Workspace) -> None:
    """Results of nothing, and results that no table shows yet."""
    place.add("picture5.png")
    discover(workspace, "source")
    process(workspace)
    stray = place.lake / "results" / "faces" / workspace.recipes["faces"] / "00" / f"{'0' * 32}.parquet"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"")

    assert _kinds(workspace) == {"orphan", "not published yet"}


def test_what_waits_for_a_person_is_told(place: Place, workspace: Workspace) -> None:
    """While deletions are held, no listing settles them."""
    for file in place.source.iterdir():
        file.unlink()
    assert discover(workspace, "source").alarm

    found = {d.found for d in find_differences(workspace) if d.kind == "not in the source"}

    assert found == {"the ledger calls it live; it waits for `mm deletions confirm source`"}
