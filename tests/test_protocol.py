"""The order of writes: wherever a kill may come, what is durable by then is true, and repairs are not needed to say so.

Put here: a look at ledger and lake right before and after each durable write of a flow. Keep out: real kills (``faults``),
whose random moments let repairs mask a wrong order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flow_driver import column, plan, process
from places import Place

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.flows import dead_letters, receipts, removing
from mm_assets.flows.discovery import discover
from mm_assets.flows.generations import TAXONOMY
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.processing import process as process_claims
from mm_assets.flows.publishing import publish_steps, stale_step_shards
from mm_assets.flows.recipes import read_steps
from mm_assets.flows.refreshing import freeze_taxonomy
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import Lake
from mm_assets.ledger import KnownObject, SeenObject
from mm_assets.ledger.catalog import Catalog
from mm_assets.ledger.dead import DeadBook, DeadFilter
from mm_assets.ledger.inbox import Hint
from mm_assets.ledger.removals import RemovalBook
from mm_assets.ledger.work import WorkBook
from mm_assets.media.guard import MediaWorker

Make = Callable[..., Place]
WRITES = ((Lake, "write_result"), (Lake, "upload_result"), (Lake, "write_dead_letter"))


class Watch:
    """Looks at what is durable before and after each call of some methods, and keeps what it finds wrong there.

    Attributes
    ----------
    n_looks : how often it looked
    found : moment and finding; what a process that was killed there would have left
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, look: Callable[[], list[str]], *points: tuple[Any, str]
    ) -> None:
        self.n_looks = 0
        self.found: list[str] = []
        self._look = look
        for owner, name in points:
            monkeypatch.setattr(owner, name, self._watched(name, getattr(owner, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self._note(f"before {name}")
            answer = call(*arguments, **options)
            self._note(f"after {name}")
            return answer

        return watched

    def _note(self, moment: str) -> None:
        self.n_looks += 1
        self.found += [f"{moment}: {wrong}" for wrong in self._look()]


def _versions(workspace: Workspace) -> list[KnownObject]:
    return workspace.ledger.removals.find_below("source", "")


def _object(workspace: Workspace, key: str) -> KnownObject:
    return workspace.ledger.objects.live_at_key("source", [key])[key]


def _untold(workspace: Workspace) -> list[str]:
    """Return the rows that are done without a result in the lake, and those that are dead without a record."""
    found = []
    for known in _versions(workspace):
        for row in workspace.ledger.work.states(known.object_id):
            step, recipe = str(row["step"]), str(row["recipe"])
            if row["state"] == "done" and not workspace.lake.has_result(step, recipe, known.object_id):
                found.append(f"{step} of {known.version.key} is done and has no result")
            if row["state"] == "dead" and workspace.lake.read_dead_letter(known.object_id, step) is None:
                found.append(f"{step} of {known.version.key} is dead and has no record")
    return found


def _has(workspace: Workspace, key: str) -> bool:
    try:
        workspace.lake.store.head(key)
    except ObjectNotFoundError:
        return False
    return True


def _known(make_workspace: Make, *names: str, **options: Any) -> tuple[Place, Workspace]:
    """Give a workspace whose objects are processed and published, without indexes."""
    place = make_workspace(*names, **options)
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)
    publish_steps(workspace)
    return place, workspace


# -- processing --------------------------------------------------------------------------------------------------------


def test_what_the_ledger_says_of_an_object_is_in_the_lake(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done means that the result is there, dead that the record is: at every moment, of media and of models."""
    place = make_workspace("picture0.png", "picture1.png", "broken.png", runs={"decode_workers": 1, "max_tries": 1})
    workspace = place.open(fails_on="picture1", failing_step="faces")
    discover(workspace, "source")
    watch = Watch(monkeypatch, lambda: _untold(workspace), *WRITES, (WorkBook, "finish"))

    process(workspace)

    assert watch.found == []
    assert watch.n_looks >= 2 * (2 * 4 + 3)
    states = [row["state"] for known in _versions(workspace) for row in workspace.ledger.work.states(known.object_id)]
    assert (states.count("dead"), "wanted" in states) == (2, False)


def test_a_crash_loop_is_recorded_before_the_ledger_gives_up(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed while an object is given up leaves records without dead rows, and never the reverse."""
    workspace = make_workspace("picture0.png", runs={"decode_workers": 1, "max_claims": 1}).open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    workspace.ledger.work.claim_batch(
        batch.batch_id, "host/0/dies", recipes=workspace.recipes, lease_s=-1, max_claims=1
    )
    watch = Watch(monkeypatch, lambda: _untold(workspace), *WRITES, (WorkBook, "claim_batch"))

    process(workspace)

    assert watch.found == []
    assert watch.n_looks == 2 * (len(workspace.recipes) + 1)
    rows = workspace.ledger.work.states(_object(workspace, "picture0.png").object_id)
    readers = [step for step in workspace.recipes if read_steps(step, workspace.extractors)]
    assert {row["step"] for row in rows if row["reason"] == "segments_dead"} == set(readers)
    assert {row["reason"] for row in rows if row["step"] not in readers} == {"crash_loop"}


def test_a_dropped_letter_keeps_its_record_until_the_ledger_lets_go(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves a record of a step that is skipped, and never a dead step that says nothing."""
    workspace = make_workspace("broken.png").open()
    discover(workspace, "source")
    process(workspace)
    letters = workspace.ledger.dead.letters(DeadFilter())
    watch = Watch(monkeypatch, lambda: _untold(workspace), (DeadBook, "drop"))

    assert dead_letters.drop(workspace, letters) == 1

    assert (watch.found, watch.n_looks) == ([], 2)
    assert list(workspace.lake.dead_letters()) == []


def test_steps_open_in_the_commit_that_says_there_are_segments(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill right after segments are done at last leaves no step that is skipped for want of them."""
    place = make_workspace("broken.png")
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)
    known, owner = _object(workspace, "broken.png"), "host/1/again"
    claims = workspace.ledger.work.claim_objects(
        [known.object_id], {"segments": workspace.recipes["segments"]}, owner, lease_s=60
    )
    decode = MediaWorker.decode

    def decode_another(worker: MediaWorker, _: Path, folder: Path) -> Any:
        return decode(worker, place.media / "picture0.png", folder)

    def look() -> list[str]:
        rows = {str(row["step"]): row for row in workspace.ledger.work.states(known.object_id)}
        waiting = sorted(step for step, row in rows.items() if row["reason"] == "segments_dead")
        return waiting if rows["segments"]["state"] == "done" else []

    monkeypatch.setattr(MediaWorker, "decode", decode_another)
    watch = Watch(monkeypatch, look, (WorkBook, "finish"))
    assert len(list(process_claims(workspace, claims, owner, ""))) == 1

    assert (watch.found, watch.n_looks) == ([], 2)
    assert workspace.ledger.work.n_waiting(dict(workspace.recipes)) == 1


# -- events ------------------------------------------------------------------------------------------------------------


class _KilledError(BaseException):
    """Ends a process where it stands, as SIGKILL would."""


@pytest.mark.parametrize(
    ("point", "key"), [("upsert", "picture1.png"), ("leave", "picture0.png")], ids=["upsert", "leave"]
)
def test_a_hint_waits_until_what_it_led_to_is_stored(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch, point: str, key: str
) -> None:
    """Killed before the row is written or retired, the hint waits as before, and no listing is needed to make it good."""
    place = make_workspace("picture0.png", "picture2.png")
    workspace = place.open()
    discover(workspace, "source")
    place.add("picture1.png")
    (place.source / "picture0.png").unlink()
    workspace.ledger.inbox.add([Hint("1", "test", "source", key)])

    def die(*_: Any, **__: Any) -> None:
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(f"mm_assets.ledger.objects.{point}", die)
        with pytest.raises(_KilledError):
            drain_inbox(workspace)

    assert workspace.ledger.inbox.depth() == 1
    assert drain_inbox(workspace).has_changes
    assert workspace.ledger.inbox.depth() == 0


# -- publishing --------------------------------------------------------------------------------------------------------


def test_what_the_ledger_calls_published_is_in_the_lake(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is as the ledger says, or the next publish writes it: at every moment of a publish."""
    place, workspace = _known(make_workspace, "picture0.png")
    place.add("picture1.png")
    discover(workspace, "source")
    process(workspace)

    def look() -> list[str]:
        files = workspace.ledger.catalog.shard_files().values()
        there = {file.name: workspace.lake.describe_shard(file.name, file.shard) for file in files}
        other = {(file.name, file.shard) for file in files if there[file.name] != (file.fingerprint, file.n_rows)}
        return [f"{name} is not what the ledger says" for name, _ in other - stale_step_shards(workspace).keys()]

    written = (Catalog, "begin_shard_file"), (Lake, "write_shard"), (Catalog, "set_shard_file")
    watch = Watch(monkeypatch, look, *written)
    published = publish_steps(workspace)

    assert watch.found == []
    assert watch.n_looks == 6 * published.n_written
    assert published.n_written >= 4


@pytest.mark.parametrize(
    ("point", "n_calls", "shard_objects"),
    [("set_shard_file", 2, 2), ("forget_shard_files", 1, 1)],
    ids=["written", "withdrawn"],
)
def test_a_version_that_returns_after_a_killed_publish_is_in_the_tables(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch, point: str, n_calls: int, shard_objects: int
) -> None:
    """The ledger wants the very file that it knew, and the lake has another one, or none."""
    _, workspace = _known(make_workspace, "picture0.png", "picture1.png", refresh={"shard_objects": shard_objects})
    known = _object(workspace, "picture1.png")
    workspace.ledger.objects.retire("source", [known.object_id], ())

    real, calls = getattr(Catalog, point), []

    def die(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == n_calls:
            raise _KilledError
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, point, die)
        with pytest.raises(_KilledError):
            publish_steps(workspace)
    seen = SeenObject(known.version, known.size_bytes, known.modified_at)
    workspace.ledger.objects.record_hinted("source", [seen], (), shard_objects=shard_objects)
    publish_steps(workspace)

    tables = {table for table, _ in workspace.ledger.catalog.shard_files()} - {"transcripts"}  # of sounds only
    assert len(tables) >= 8
    assert [table for table in sorted(tables) if "picture1.png" not in column(workspace, table)] == []


def test_what_a_pointer_names_is_in_the_lake(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger and the lake point to builds whose files are there, at every moment of a build."""
    _, workspace = _known(make_workspace, "picture0.png")

    def look() -> list[str]:
        pointers = (workspace.ledger.catalog.generation(TAXONOMY), workspace.lake.current_generation(TAXONOMY))
        folders = {f"{TAXONOMY}/{pointer['generation']}" for pointer in pointers if pointer is not None}
        keys = {f"{folder}/{file}" for folder in folders for file in ("model.parquet", "manifest.json")}
        return [f"{key} is not there" for key in sorted(keys) if not _has(workspace, key)]

    writes = ((Lake, "write_generation"), (Lake, "point_to_generation"), (Catalog, "set_generation"))
    watch = Watch(monkeypatch, look, *writes)

    assert freeze_taxonomy(workspace).is_new

    assert (watch.found, watch.n_looks) == ([], 6)


# -- removal -----------------------------------------------------------------------------------------------------------


def _leaving(make_workspace: Make) -> tuple[Workspace, KnownObject]:
    """Give a workspace one of whose two objects has left the tables and not yet the lake."""
    place, workspace = _known(make_workspace, "picture0.png", "picture1.png")
    known = _object(workspace, "picture1.png")
    (place.source / "picture1.png").unlink()
    assert discover(workspace, "source").n_gone == 1
    publish_steps(workspace)
    return workspace, known


def _results(workspace: Workspace, known: KnownObject) -> list[str]:
    return [stored.key for stored in workspace.lake.walk("results/") if known.object_id in stored.key]


def test_the_ledger_forgets_a_version_after_its_files_are_gone(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a result is in the lake, the version is to be swept: at every moment of a sweep."""
    workspace, known = _leaving(make_workspace)
    assert len(_results(workspace, known)) >= 4

    def look() -> list[str]:
        return [] if workspace.ledger.removals.n_leaving() else _results(workspace, known)

    watch = Watch(monkeypatch, look, (receipts, "intend"), (receipts, "settle"), (RemovalBook, "forget"))
    swept = removing.sweep(workspace)

    assert watch.found == []
    assert watch.n_looks >= 6
    assert (swept.n_versions, _results(workspace, known)) == (1, [])


def test_nothing_is_removed_before_it_is_on_a_receipt(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that is missing stands on a receipt, open or complete: at every moment of a sweep."""
    workspace, known = _leaving(make_workspace)
    before = _results(workspace, known)

    def look() -> list[str]:
        written = [workspace.lake.read_columns(stored.key, ["key"]) for stored in workspace.lake.walk("receipts/")]
        told = {key for rows in written for key in rows["key"].to_pylist()}
        return [f"{key} is on no receipt" for key in sorted({*before} - {*_results(workspace, known)} - told)]

    monkeypatch.setattr(receipts, "_THREADS", 1)  # one removal at a time, so that a look does not see half of another
    watch = Watch(monkeypatch, look, (receipts, "_remove"))
    removing.sweep(workspace)

    assert watch.found == []
    assert watch.n_looks >= 2 * len(before)
    assert _results(workspace, known) == []


def test_an_erasure_is_recorded_before_the_ledger_knows_it(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ledger calls erased is so in the lake as well: a ledger that is rebuilt would bring it back."""
    _, workspace = _known(make_workspace, "picture0.png")
    known = _object(workspace, "picture0.png")

    def look() -> list[str]:
        is_erased = workspace.ledger.objects.by_ids([known.object_id])[0].state == "erased"
        return ["erased without a record"] if is_erased and known.object_id not in workspace.lake.erasures() else []

    watch = Watch(monkeypatch, look, (Lake, "write_erasure"), (RemovalBook, "erase"))

    assert removing.erase(workspace, [known]) == 1

    assert (watch.found, watch.n_looks) == ([], 4)
    assert list(workspace.lake.erasures()) == [known.object_id]
