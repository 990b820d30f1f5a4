"""Processing: one read, blame on one object, nothing twice, nothing lost."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from flow_driver import column, ingest, plan, process, refresh
from places import Place

from mm_assets.buckets.base import DailyCapError
from mm_assets.errors import ConfigError, ObjectError, Reason, ServiceError
from mm_assets.flows.discovery import discover
from mm_assets.flows.extracting import SystemicFailure
from mm_assets.flows.processing import ObjectEnd, process_batch
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import read_provenance
from mm_assets.ledger import Claim
from mm_assets.media.guard import MediaWorker

ALL = (*(f"picture{n}.png" for n in range(3)), "clip.mp4", "sound.wav", "broken.png", "notes.txt")


class CountingStore:
    """A store that counts the bytes it gives away, and fails when told to."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.n_bytes: Counter[str] = Counter()
        self.failing: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def download(self, key: str, target: Path, **options: Any) -> Any:
        """Count what was read."""
        if self.failing is not None and self.failing in key:
            msg = "the store is down; a later retry may help"
            raise ServiceError(msg)
        found = self._store.download(key, target, **options)
        self.n_bytes[key] += found.n_bytes
        return found


@pytest.fixture
def counted(make_workspace: Callable[..., Any]) -> Callable[..., tuple[Workspace, CountingStore]]:
    """Open a workspace whose source counts what is read."""

    def make(*names: str, **options: Any) -> tuple[Workspace, CountingStore]:
        workspace = make_workspace(*names).open(**options)
        store = CountingStore(workspace.sources["source"])
        workspace.sources = {"source": store}
        return workspace, store

    return make


def _states(workspace: Workspace, key: str) -> dict[str, tuple[str, str | None]]:
    [known] = workspace.ledger.objects.find(key)
    return {str(r["step"]): (str(r["state"]), r["reason"]) for r in workspace.ledger.work.states(known.object_id)}  # type: ignore[misc]


def test_every_object_is_read_once(counted: Callable[..., Any], media: Path) -> None:
    """Eight steps and a second ingest cost one read of each object, and of the unsupported only the first bytes."""
    workspace, store = counted(*ALL)
    ingest(workspace)
    ingest(workspace)

    assert store.n_bytes == {name: min((media / name).stat().st_size, 1 << 30) for name in ALL}


def test_every_object_and_step_has_a_row_that_says_why(counted: Callable[..., Any]) -> None:
    """Nothing is left out in silence: done, not applicable, unsupported or dead."""
    workspace, _ = counted(*ALL)
    ingest(workspace)

    assert _states(workspace, "clip.mp4")["transcripts"] == ("done", None)
    assert _states(workspace, "picture0.png")["transcripts"] == ("skipped", "no audio")
    assert _states(workspace, "notes.txt")["segments"] == ("skipped", "unsupported")
    assert _states(workspace, "broken.png")["segments"] == ("dead", "corrupt")
    assert _states(workspace, "broken.png")["faces"] == ("skipped", "segments_dead")
    assert len(column(workspace, "step_states")) == len(ALL) * len(workspace.recipes)


def test_a_broken_object_leaves_a_dead_letter_in_the_lake(counted: Callable[..., Any], tmp_path: Path) -> None:
    """The record names the object, the reason and the recipe."""
    workspace, _ = counted(*ALL)
    ingest(workspace)

    [letter] = (tmp_path / "lake" / "dead_letters").rglob("*.json")
    text = letter.read_text()
    assert '"key": "broken.png"' in text
    assert '"reason": "corrupt"' in text
    assert workspace.recipes["segments"] in text


def test_a_model_that_fails_on_one_object_fails_that_object_alone(counted: Callable[..., Any]) -> None:
    """The batch is narrowed down; the other steps of the object are done, too."""
    workspace, _ = counted(*ALL, fails_on="picture1", failing_step="faces")
    ingest(workspace)

    assert _states(workspace, "picture1.png")["faces"] == ("wanted", "model_error")
    assert _states(workspace, "picture1.png")["visual_embeddings"] == ("done", None)
    assert set(column(workspace, "faces")) == {"picture0.png", "picture2.png", "clip.mp4"}


def test_three_tries_then_a_dead_letter(counted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that a retry might mend gets its tries, and then an end."""
    monkeypatch.setattr("mm_assets.flows.ends._BACKOFF_S", 0.0)
    workspace, _ = counted("picture0.png", "picture1.png", fails_on="picture1", failing_step="faces")
    discover(workspace, "source")
    ends = []
    for _ in range(4):
        process(workspace)
        ends.append(_states(workspace, "picture1.png")["faces"])

    assert ends == [
        ("wanted", "model_error"),
        ("wanted", "model_error"),
        ("dead", "model_error"),
        ("dead", "model_error"),
    ]


def test_a_model_that_fails_on_everything_blames_no_object(counted: Callable[..., Any]) -> None:
    """The run fails; the objects keep all their tries."""
    pictures = [f"picture{n}.png" for n in range(6)]
    workspace, _ = counted(*pictures, fails_on="picture", failing_step="faces")
    discover(workspace, "source")

    with pytest.raises(SystemicFailure, match="faces failed for all 6"):
        process(workspace)

    rows = [
        row for key in pictures for row in workspace.ledger.work.states(workspace.ledger.objects.find(key)[0].object_id)
    ]
    assert {(row["state"], row["tries"]) for row in rows} == {("wanted", 0)}


def test_bad_objects_that_are_left_over_get_an_end(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step has worked for others, so those that fail together are judged one by one, and no run fails for ever."""
    monkeypatch.setattr("mm_assets.flows.ends._BACKOFF_S", 0.0)
    place = make_workspace("picture0.png")
    workspace = place.open(fails_on="bad", failing_step="faces")
    ingest(workspace)
    bad = [f"bad{n}.png" for n in range(1, 6)]
    for n, name in enumerate(bad, 1):
        place.add_as(f"picture{n}.png", name)
    discover(workspace, "source")

    for _ in range(4):
        process(workspace)

    assert {_states(workspace, name)["faces"] for name in bad} == {("dead", "model_error")}


def test_an_outage_burns_no_try(counted: Callable[..., Any]) -> None:
    """What the world did is tried again later; the rest of the batch is done."""
    workspace, store = counted("picture0.png", "picture1.png")
    store.failing = "picture1"
    discover(workspace, "source")
    process(workspace)

    assert {state for state, _ in _states(workspace, "picture1.png").values()} == {"wanted"}
    [known] = workspace.ledger.objects.find("picture1.png")
    assert {row["tries"] for row in workspace.ledger.work.states(known.object_id)} == {0}
    assert _states(workspace, "picture0.png")["faces"] == ("done", None)


def test_an_object_overwritten_before_it_is_read_waits_for_the_next_listing(make_workspace: Callable[..., Any]) -> None:
    """Bytes of one version are never stored under the name of another."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    (place.source / "picture0.png").write_bytes((place.media / "picture1.png").read_bytes())
    process(workspace)
    found = _states(workspace, "picture0.png")
    assert found.pop("text_embeddings") == ("wanted", None)
    assert {reason for _, reason in found.values()} == {"changed"}

    ingest(workspace)

    live, old = workspace.ledger.objects.find("picture0.png")
    assert column(workspace, "raw_objects", "object_id") == [live.object_id]
    assert old.state == "superseded"


def test_a_run_that_stops_midway_gives_back_its_claims(counted: Callable[..., Any], media: Path) -> None:
    """The next run finishes the rest and repeats nothing that was told."""
    workspace, store = counted(*ALL)
    discover(workspace, "source")
    [batch] = plan(workspace)
    ends: Iterator[ObjectEnd] = process_batch(workspace, batch.batch_id)
    told = next(ends).claim.known.version
    ends.close()  # type: ignore[attr-defined]

    process(workspace)

    assert {state for key in ALL for state, _ in _states(workspace, key).values()} <= {"done", "skipped", "dead"}
    assert store.n_bytes[told.key] == min((media / told.key).stat().st_size, 1 << 30)


def test_results_written_before_a_kill_are_adopted(counted: Callable[..., Any]) -> None:
    """A worker that died after its files and before the ledger costs no second read."""
    workspace, store = counted("clip.mp4")
    discover(workspace, "source")
    process(workspace)
    read = dict(store.n_bytes)
    [known] = workspace.ledger.objects.find("clip.mp4")
    for step in ("raw_objects", "segments", "faces"):
        workspace.ledger.work.want_again(step, workspace.recipes[step], [known.object_id])

    process(workspace)

    assert dict(store.n_bytes) == read
    assert _states(workspace, "clip.mp4")["segments"] == ("done", None)


def test_a_model_runs_from_stored_segments(counted: Callable[..., Any]) -> None:
    """Asking for one step again reads the lake, not the source."""
    workspace, store = counted("clip.mp4")
    ingest(workspace)
    store.n_bytes.clear()
    [known] = workspace.ledger.objects.find("clip.mp4")
    workspace.ledger.work.want_again("faces", workspace.recipes["faces"], [known.object_id])

    process(workspace)

    assert not store.n_bytes
    assert _states(workspace, "clip.mp4")["faces"] == ("done", None)


def test_a_result_file_says_where_it_comes_from(counted: Callable[..., Any], tmp_path: Path) -> None:
    """Model, revision, digest, parameters and versions are in the file's own metadata."""
    workspace, _ = counted("picture0.png")
    ingest(workspace)

    [file] = (tmp_path / "lake" / "results" / "visual_embeddings").rglob("*.parquet")
    described = read_provenance(pq.read_schema(file))
    assert {"step", "recipe", "code_version", "params", "model", "revision", "digest"} <= described.keys()
    assert described["recipe"] == workspace.recipes["visual_embeddings"] == file.parent.parent.name


def test_results_are_the_same_bytes_when_made_again(counted: Callable[..., Any], tmp_path: Path) -> None:
    """A plain overwrite is safe on stores without conditional writes."""
    workspace, _ = counted("clip.mp4", "picture0.png")
    discover(workspace, "source")
    process(workspace)
    files = {f: f.read_bytes() for f in (tmp_path / "lake" / "results").rglob("*.parquet")}
    for key in ("clip.mp4", "picture0.png"):
        [known] = workspace.ledger.objects.find(key)
        for step in workspace.recipes:
            workspace.ledger.work.want_again(step, workspace.recipes[step], [known.object_id])
    for file in files:
        file.unlink()

    process(workspace)

    assert {f: f.read_bytes() for f in (tmp_path / "lake" / "results").rglob("*.parquet")} == files


def test_split_by_device_runs_models_after_decoding(make_workspace: Callable[..., Any]) -> None:
    """CPU batches come first, GPU batches once the segments are there, and both end in the same ledger."""
    workspace = make_workspace("clip.mp4", "picture0.png", kubernetes={"split_by_device": True}).open()
    discover(workspace, "source")
    first = plan(workspace)
    for batch in first:
        list(process_batch(workspace, batch.batch_id))
    second = plan(workspace)
    for batch in second:
        list(process_batch(workspace, batch.batch_id))
    third = plan(workspace)
    for batch in third:
        list(process_batch(workspace, batch.batch_id))

    assert [set(batch.steps) & {"segments", "faces"} for batch in (*first, *second)] == [{"segments"}, {"faces"}]
    assert [batch.steps for batch in third] == [("text_embeddings",)]
    assert plan(workspace) == []
    assert {state for state, _ in _states(workspace, "clip.mp4").values()} == {"done"}


def test_claims_name_what_they_hold(counted: Callable[..., Any]) -> None:
    """An end belongs to the claim that made it."""
    workspace, _ = counted("picture0.png")
    discover(workspace, "source")

    first, second = process(workspace)

    assert isinstance(first.claim, Claim)
    assert {e.step for e in first.ends} == set(workspace.recipes) - {"text_embeddings"}
    assert {e.step for e in second.ends} == {"text_embeddings"}
    refresh(workspace)


def test_an_object_that_kills_its_worker_is_recorded_and_given_up(
    make_workspace: Callable[..., Any], tmp_path: Path
) -> None:
    """After the allowed starts it dies as crash_loop, with its record in the lake before the ledger says so."""
    workspace = make_workspace("picture0.png", runs={"decode_workers": 1, "max_claims": 2}).open()
    discover(workspace, "source")
    for _ in range(2):
        [batch] = plan(workspace)
        workspace.ledger.work.claim_batch(
            batch.batch_id, "host/0/dies", recipes=workspace.recipes, lease_s=-1, max_claims=2
        )

    process(workspace)

    found = _states(workspace, "picture0.png")
    assert found.pop("text_embeddings") == ("skipped", "segments_dead")
    assert set(found.values()) == {("dead", "crash_loop")}
    letters = list((tmp_path / "lake" / "dead_letters").rglob("*.json"))
    assert len(letters) == len(found)
    assert '"reason": "crash_loop"' in letters[0].read_text()


@pytest.mark.parametrize(("key", "reason"), [("broken.png", "segments_dead"), ("notes.txt", "unsupported")])
def test_a_step_added_later_ends_where_there_are_no_segments(
    counted: Callable[..., Any], key: str, reason: str
) -> None:
    """Asking for one more step of an object that cannot be decoded is over at once, and for good."""
    workspace, store = counted(key)
    ingest(workspace)
    store.n_bytes.clear()
    [known] = workspace.ledger.objects.find(key)
    workspace.ledger.work.want_again("faces", workspace.recipes["faces"], [known.object_id])

    process(workspace)

    assert _states(workspace, key)["faces"] == ("skipped", reason)
    assert not store.n_bytes


def test_lost_segments_are_made_again_before_what_reads_them(
    counted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that vanished from the lake costs one more read of its source and nothing else."""
    monkeypatch.setattr("mm_assets.flows.ends._SERVICE_WAIT_S", 0.0)
    workspace, _ = counted("clip.mp4")
    ingest(workspace)
    [known] = workspace.ledger.objects.find("clip.mp4")
    next((tmp_path / "lake" / "results" / "segments").rglob("*.parquet")).unlink()
    workspace.ledger.work.want_again("faces", workspace.recipes["faces"], [known.object_id])

    process(workspace)
    process(workspace)

    assert _states(workspace, "clip.mp4")["segments"] == ("done", None)
    assert _states(workspace, "clip.mp4")["faces"] == ("done", None)


def test_a_resumed_run_takes_over_its_own_claims(counted: Callable[..., Any]) -> None:
    """A pod that is replaced after a kill goes on at once, without waiting for the lease; another run may not."""
    workspace, _ = counted("picture0.png")
    discover(workspace, "source")
    [batch] = plan(workspace)
    workspace.ledger.work.claim_batch(
        batch.batch_id, "gone/1/run-a", recipes=workspace.recipes, lease_s=900, max_claims=8
    )

    assert list(process_batch(workspace, batch.batch_id, "run-b")) == []
    assert len(list(process_batch(workspace, batch.batch_id, "run-a"))) == 1


def test_a_missing_package_is_said_before_any_work(
    counted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read and nothing stays claimed when a step cannot run here at all."""
    workspace, store = counted("picture0.png")
    monkeypatch.setattr(type(workspace.extractors["faces"]), "packages", ("no_such_package",))
    discover(workspace, "source")

    with pytest.raises(ConfigError, match="faces needs no_such_package"):
        process(workspace)

    assert not store.n_bytes
    assert {state for state, _ in _states(workspace, "picture0.png").values()} == {"wanted"}


def test_an_unreadable_object_does_not_stop_its_batch(
    counted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right that is missing for one object alone is that object's, and it waits; the others are done."""
    workspace, store = counted("picture0.png", "picture1.png")
    download = store.download

    def refuse(key: str, target: Path, **options: Any) -> Any:
        if key == "picture1.png":
            msg = "no right to read it"
            raise ConfigError(msg)
        return download(key, target, **options)

    monkeypatch.setattr(store, "download", refuse)
    discover(workspace, "source")
    process(workspace)

    assert _states(workspace, "picture0.png")["faces"] == ("done", None)
    found = _states(workspace, "picture1.png")
    assert found.pop("text_embeddings") == ("wanted", None)
    assert set(found.values()) == {("wanted", "forbidden")}


def test_rows_of_another_recipe_are_not_filled_by_this_code(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was planned before a deployment runs only what the new code still makes under the same recipe."""
    place = make_workspace("picture0.png")
    before = place.open()
    discover(before, "source")
    [batch] = plan(before)
    monkeypatch.setattr("fakes.FakeFaces.code_version", "next")
    after = place.open()

    list(process_batch(after, batch.batch_id))

    rows = after.ledger.work.states(after.ledger.objects.find("picture0.png")[0].object_id)
    assert {str(r["step"]): r["state"] for r in rows}["faces"] == "wanted"
    assert {str(r["step"]): r["state"] for r in rows}["visual_embeddings"] == "done"


def test_outages_are_no_crash_loop(counted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of failed reads of a store leaves an object as it was."""
    monkeypatch.setattr("mm_assets.flows.ends._SERVICE_WAIT_S", 0.0)
    workspace, store = counted("picture0.png")
    store.failing = "picture0"
    discover(workspace, "source")
    for _ in range(10):
        process(workspace)
    store.failing = None
    process(workspace)

    assert _states(workspace, "picture0.png")["faces"] == ("done", None)


# -- what is no object's fault ---------------------------------------------------------------------------------------


def _rows(workspace: Workspace, key: str) -> list[dict[str, Any]]:
    [known] = workspace.ledger.objects.find(key)
    return workspace.ledger.work.states(known.object_id)


def test_a_lake_that_takes_nothing_stops_the_run(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends at the first write, not after every object; all is given back, and no try or start is burnt."""
    workspace = make_workspace(*(f"picture{n}.png" for n in range(6))).open()
    discover(workspace, "source")
    n_refused = 0

    def refuse(*_: Any) -> str:
        nonlocal n_refused
        n_refused += 1
        msg = "the lake is down"
        raise ServiceError(msg)

    monkeypatch.setattr(workspace.lake.store, "put", refuse)
    with pytest.raises(ServiceError, match="the lake is down"):
        process(workspace)

    assert n_refused <= 4  # those that were being prepared at that moment
    found = [row for n in range(6) for row in _rows(workspace, f"picture{n}.png")]
    assert {(row["state"], row["tries"], row["claims"]) for row in found} == {("wanted", 0, 0)}


@pytest.mark.fault(8)
def test_a_used_up_cap_pauses_its_source_and_no_other(
    counted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects wait until the reset without a try, the source is paused, and it is asked once and not again."""
    workspace, store = counted(*(f"picture{n}.png" for n in range(4)))
    discover(workspace, "source")
    resets_at, asked = time.time() + 3_600, []

    def refuse(key: str, *_: Any, **__: Any) -> Any:
        asked.append(key)
        raise DailyCapError(message="cap exceeded", resets_at=resets_at)

    monkeypatch.setattr(store, "download", refuse)
    process(workspace)

    assert len(asked) == 1
    assert workspace.ledger.objects.paused() == {"source": (resets_at, "cap exceeded")}
    rows = [row for row in _rows(workspace, "picture3.png") if row["step"] not in workspace.reads()]
    for row in rows:
        assert (row["state"], row["reason"], row["tries"], row["claims"]) == ("wanted", "daily_cap", 0, 0)
        assert abs(row["not_before"] - resets_at) < 5


def test_a_used_up_cap_of_the_lake_pauses_all(
    make_workspace: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lake every run would end where this one did, so nothing is planned until its reset."""
    workspace = make_workspace("picture0.png").open()
    discover(workspace, "source")
    resets_at = time.time() + 3_600

    def refuse(*_: Any) -> str:
        raise DailyCapError(message="cap exceeded", resets_at=resets_at)

    monkeypatch.setattr(workspace.lake.store, "put", refuse)
    with pytest.raises(DailyCapError):
        process(workspace)

    assert workspace.ledger.objects.paused() == {"source": (resets_at, "the lake: cap exceeded")}
    assert {row["state"] for row in _rows(workspace, "picture0.png")} == {"wanted"}


@pytest.mark.fault(26)
@pytest.mark.parametrize("fault", ["full", "vanished", "not_a_folder"])
def test_a_disk_that_fails_is_no_try(
    make_workspace: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Temporary folder full, gone or unusable: the objects wait, and are done once there is room."""
    monkeypatch.setattr("mm_assets.flows.ends._SERVICE_WAIT_S", 0.0)
    workspace = make_workspace("picture0.png", "clip.mp4").open()
    discover(workspace, "source")
    folder = tmp_path / "temporary"

    @contextmanager
    def broken() -> Iterator[Path]:
        for known in workspace.ledger.objects.find("picture0.png") + workspace.ledger.objects.find("clip.mp4"):
            if fault == "full":
                (folder / known.object_id).mkdir(parents=True)
                (folder / known.object_id / f"{known.object_id}.bin").symlink_to("/dev/full")
        if fault == "not_a_folder":
            folder.write_text("in the way", encoding="utf-8")
        yield folder

    with monkeypatch.context() as patched:
        patched.setattr("mm_assets.flows.processing.scratch", broken)
        process(workspace)
    found = [row for key in ("picture0.png", "clip.mp4") for row in _rows(workspace, key)]
    begun = [row for row in found if row["step"] not in workspace.reads()]
    assert {(row["state"], row["reason"], row["tries"]) for row in begun} == {("wanted", "service", 0)}
    process(workspace)

    assert _states(workspace, "clip.mp4")["faces"] == ("done", None)


def test_damaged_segments_are_made_again(
    counted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored result with a damaged page stops no run: the object is read once more from its source."""
    monkeypatch.setattr("mm_assets.flows.ends._SERVICE_WAIT_S", 0.0)
    workspace, _ = counted("clip.mp4")
    ingest(workspace)
    [known] = workspace.ledger.objects.find("clip.mp4")
    file = next((tmp_path / "lake" / "results" / "segments").rglob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)  # behind the magic number the pages begin
    file.write_bytes(bytes(data))
    workspace.ledger.work.want_again("faces", workspace.recipes["faces"], [known.object_id])

    process(workspace)
    process(workspace)

    assert _states(workspace, "clip.mp4")["segments"] == ("done", None)
    assert _states(workspace, "clip.mp4")["faces"] == ("done", None)
    assert pq.read_table(file).num_rows


# -- objects that are at fault -------------------------------------------------------------------------------------------


@contextmanager
def attacked(folder: Path, number: signal.Signals) -> Iterator[None]:
    """Send a signal to the process that works in a folder, once there is one."""
    over = threading.Event()

    def attack() -> None:
        while not over.wait(0.02):
            for process_folder in Path("/proc").iterdir():
                with suppress(OSError):
                    if process_folder.name.isdigit() and (process_folder / "cwd").readlink() == folder:
                        os.kill(int(process_folder.name), number)
                        return

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "crashed"), (signal.SIGSEGV, "crashed"), (None, "timeout")]
)
def test_a_poison_object_dies_after_three_tries_and_stops_nobody(
    make_workspace: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals | None,
    reason: str,
) -> None:
    """An object whose decoder is killed, crashes or hangs has three tries; the others of its batch are done at once."""
    monkeypatch.setattr("mm_assets.flows.ends._BACKOFF_S", 0.0)
    place = make_workspace("picture0.png", "picture1.png", media={"wall_s": 2.0 if number is None else 60.0})
    workspace = place.open()
    discover(workspace, "source")
    [poison] = workspace.ledger.objects.find("picture1.png")
    decode = MediaWorker.decode

    def attack(self: MediaWorker, file: Path, folder: Path) -> Any:
        """Decode; in the poison's place lies a pipe that gives nothing, so that its child waits for what comes."""
        if file.name != f"{poison.object_id}.bin":
            return decode(self, file, folder)
        file.unlink()
        os.mkfifo(file)
        if number is None:
            return decode(self, file, folder)
        with attacked(folder, number):
            return decode(self, file, folder)

    monkeypatch.setattr(MediaWorker, "decode", attack)
    states = []
    for _ in range(4):
        process(workspace)
        states.append(_states(workspace, "picture1.png")["segments"])

    assert states == [("wanted", reason), ("wanted", reason), ("dead", reason), ("dead", reason)]
    assert _states(workspace, "picture0.png")["faces"] == ("done", None)


def test_segments_of_another_recipe_open_nothing(make_workspace: Callable[..., Place], monkeypatch: Any) -> None:
    """Settings that are changed and changed back leave what died under them dead: no work is planned for ever."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    with monkeypatch.context() as patch:
        patch.setattr(MediaWorker, "decode", _refuse)
        discover(workspace, "source")
        process(workspace)
    place.close()
    place.write_settings(media={"page_dpi": 100})
    other = place.open()
    discover(other, "source")
    process(other)
    place.close()

    place.write_settings()
    workspace = place.open()
    discover(workspace, "source")

    assert process(workspace) == []
    object_id = workspace.ledger.objects.find("picture0.png")[0].object_id
    rows = {(row["step"], row["recipe"]): row["state"] for row in workspace.ledger.work.states(object_id)}
    assert rows["segments", other.recipes["segments"]] == "done"
    assert rows["segments", workspace.recipes["segments"]] == "dead"
    assert rows["faces", workspace.recipes["faces"]] == "skipped"


def _refuse(*_: Any, **__: Any) -> None:
    raise ObjectError(Reason.CORRUPT, "dies under these settings")
