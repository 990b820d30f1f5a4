"""Workers that are killed, stopped or told to go, at every point where something becomes durable."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from children import Moment, end, ingest, ingest_in_c, ingest_over_a_killer, start, work_for_ever
from flow_driver import column, process
from rig import Rig, alternately, everywhere, once, pairwise, read_from, wait_until
from world.hostile import make_pixel_bomb

from mm_assets.flows.discovery import discover
from mm_assets.ledger.inbox import Hint
from mm_assets.schemas import STEP_TABLES

OBJECTS, WORK, CATALOG, REMOVALS, INBOX, LOCKS = (
    f"mm_assets.ledger.{name}"
    for name in (
        "objects:ObjectBook",
        "work:WorkBook",
        "catalog:Catalog",
        "removals:RemovalBook",
        "inbox:Inbox",
        "locks:LockBook",
    )
)
LAKE = "mm_assets.lake:Lake"
MEDIA = ("picture0.png", "sound.wav", "broken.png", "notes.txt")
ON_ARRIVAL = [
    Moment(f"{LOCKS}.take"),
    Moment(f"{OBJECTS}.record_page", "within"),
    Moment(f"{OBJECTS}.record_page"),
    Moment(f"{OBJECTS}.finish_pass", "within"),
    Moment(f"{OBJECTS}.finish_pass"),
    Moment(f"{WORK}.open_work", "within"),
    Moment(f"{WORK}.open_work"),
    Moment(f"{WORK}.plan", "within"),
    Moment(f"{WORK}.plan"),
    Moment(f"{WORK}.claim_batch", "within"),
    Moment(f"{WORK}.claim_batch"),
    Moment("mm_assets.buckets.s3:S3Store.download"),
    Moment("mm_assets.media.guard:MediaWorker.decode"),
    Moment(f"{LAKE}.write_result"),
    Moment(f"{LAKE}.upload_result"),
    Moment(f"{LAKE}.write_dead_letter", "before"),
    Moment(f"{LAKE}.write_dead_letter"),
    Moment(f"{LAKE}.write_result", "before", 5),
    Moment(f"{LAKE}.write_result", nth=5),
    Moment(f"{WORK}.finish", "before"),
    Moment(f"{WORK}.finish", "within"),
    Moment(f"{WORK}.finish"),
    Moment(f"{CATALOG}.publish", "within"),
    Moment(f"{CATALOG}.publish"),
    Moment(f"{LAKE}.write_shard"),
    Moment(f"{CATALOG}.set_shard_file", "within", 3),
    Moment(f"{LAKE}.write_generation", "before"),
    Moment(f"{LAKE}.write_generation"),
    Moment(f"{LAKE}.point_to_generation"),
    Moment(f"{CATALOG}.set_generation", "within"),
    Moment(f"{LAKE}.write_shard", nth=10),
]
ON_READING = [  # of the second wave
    Moment(f"{WORK}.plan", nth=2),
    Moment(f"{WORK}.claim_batch", nth=2),
    Moment("mm_assets.flows.extracting:read_inputs"),
    Moment(f"{LAKE}.read_results"),
    Moment(f"{WORK}.finish", "within", nth=2),
    Moment(f"{WORK}.finish", nth=2),
]
ON_CHANGE = [
    Moment(f"{INBOX}.waiting"),
    Moment(f"{OBJECTS}.record_hinted", "within"),
    Moment(f"{OBJECTS}.record_hinted"),
    Moment(f"{OBJECTS}.retire", "within"),
    Moment(f"{OBJECTS}.retire"),
    Moment("mm_assets.flows.receipts:intend"),
    Moment("mm_assets.buckets.s3:S3Store.erase"),
    Moment("mm_assets.buckets.s3:S3Store.erase", nth=4),
    Moment(f"{REMOVALS}.forget", "before"),
    Moment(f"{REMOVALS}.forget", "within"),
    Moment(f"{REMOVALS}.forget"),
]


@pytest.mark.fault(1)
@alternately("moment", {str(moment): (moment,) for moment in ON_ARRIVAL})
def test_a_kill_at_any_commit_point_loses_and_doubles_nothing(rig: Rig, moment: Moment) -> None:
    """The next run finishes what was begun, and all books agree."""
    rig.add(*MEDIA)

    assert end(start(ingest, str(rig.place.config_file), moment)) == -signal.SIGKILL
    workspace = rig.open()
    assert rig.broken_promises() == []
    rig.settle(workspace)

    assert rig.violations() == []
    assert max(row["tries"] for row in rig.rows("SELECT tries FROM work")) <= 1


@pytest.mark.fault(1)
@alternately("moment", {str(moment): (moment,) for moment in ON_READING})
def test_a_kill_while_results_are_read_loses_and_doubles_nothing(rig: Rig, moment: Moment) -> None:
    """A step that reads what others found is made once all of them are over, whoever was killed in between."""
    rig.configure(
        sources=[{"uri": f"s3://{rig.source}", "alias": "source", **read_from(rig.proxy.url, STEP_TABLES)}],
        runs={"decode_workers": 1},
    )
    rig.add("clip.mp4")

    assert end(start(ingest, str(rig.place.config_file), moment)) == -signal.SIGKILL
    assert rig.broken_promises() == []
    workspace = rig.open()
    rig.settle(workspace)

    assert rig.violations() == []
    assert rig.states("clip.mp4")["text_embeddings"] == ("done", None)
    assert set(column(workspace, "text_embeddings", "kind")) == {"said", "shown"}


@pytest.mark.fault(1)
@alternately("moment", {str(moment): (moment,) for moment in ON_CHANGE})
def test_a_kill_while_changes_arrive_loses_and_doubles_nothing(rig: Rig, moment: Moment) -> None:
    """Overwritten, deleted and new objects, told by events, a kill on the way: the books follow the bucket."""
    rig.add("picture0.png", "picture1.png", "picture2.png")
    workspace = rig.open()
    rig.settle(workspace)
    rig.put("picture0.png", rig.drawn("picture4.png"))
    rig.delete("picture1.png")
    rig.put("picture5.png", rig.drawn("picture5.png"))
    told = ("picture0.png", "picture1.png", "picture5.png")
    workspace.ledger.inbox.add([Hint(f"e-{key}", "test", "source", key) for key in told])

    assert end(start(ingest, str(rig.place.config_file), moment)) == -signal.SIGKILL
    assert rig.broken_promises() == []
    rig.settle(workspace)

    assert rig.violations() == []
    assert len(rig.evidence().live) == 3


@pytest.mark.fault(2)
@pairwise
def test_random_kills_violate_nothing(rig: Rig) -> None:
    """Three workers that do everything, one of them killed every 100 to 300 ms, while the bucket changes."""
    rig.configure(runs={"decode_workers": 1, "max_claims": 10_000, "batch_objects": 4})
    rig.open()
    draw = random.Random(5)
    pictures = [rig.drawn(f"picture{number}.png") for number in range(6)]
    workers = [start(work_for_ever, str(rig.place.config_file)) for _ in range(3)]
    n_kills, ends_at = 0, time.monotonic() + 10
    while time.monotonic() < ends_at:
        rig.put(f"k{draw.randrange(12)}.png", draw.choice(pictures) + bytes([n_kills % 256]))
        rig.delete(f"k{draw.randrange(12)}.png")
        time.sleep(draw.uniform(0.1, 0.3))
        victim = draw.randrange(len(workers))
        workers[victim].kill()
        workers[victim].join()
        workers[victim] = start(work_for_ever, str(rig.place.config_file))
        n_kills += 1
    for worker in workers:
        worker.kill()
        worker.join()

    rig.settle(rig.open())

    assert n_kills > 15
    assert rig.violations() == []


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


@pytest.mark.fault(3)
@everywhere
def test_a_worker_that_stood_still_longer_than_its_lease_is_refused(rig: Rig) -> None:
    """Its ends come too late: the token is another's, and what that one committed stays."""
    rig.configure(runs={"decode_workers": 1, "lease_s": 1.0})
    rig.add("picture0.png")
    sleeper = start(ingest, str(rig.place.config_file), Moment(f"{WORK}.finish", "before", act="stop"))
    assert sleeper.pid is not None
    wait_until(lambda: _state_of(sleeper.pid or 0) == "T", 60)
    time.sleep(1.2)
    workspace = rig.open()
    process(workspace)
    committed = rig.work("picture0.png")

    os.kill(sleeper.pid, signal.SIGCONT)
    end(sleeper)
    rig.settle(workspace)

    assert {row["state"] for row in committed} <= {"done", "skipped"}
    assert [row["changed_at"] for row in rig.work("picture0.png")] == [row["changed_at"] for row in committed]
    assert workspace.ledger.meters.totals()["lease_lost_total", ()] > 0
    assert rig.violations() == []


@pytest.mark.fault(4)
@pairwise
def test_sigterm_gives_claims_back_within_ten_seconds(rig: Rig) -> None:
    """Even while a model sits in C code: nothing stays claimed, and the start is not counted."""
    rig.add("picture0.png", "picture1.png")
    rig.open()
    worker = start(ingest_in_c, str(rig.place.config_file))
    wait_until(lambda: rig.rows("SELECT 1 AS x FROM work WHERE state = 'claimed'"), 60)
    wait_until(lambda: [name for name in rig.evidence().names if name.startswith("results/segments")], 60)
    os.kill(worker.pid or 0, signal.SIGTERM)
    told_at = time.monotonic()
    wait_until(lambda: not rig.rows("SELECT 1 AS x FROM work WHERE state = 'claimed'"), 12)
    took_s = time.monotonic() - told_at
    worker.kill()
    worker.join()

    assert took_s < 10
    assert {row["claims"] for row in rig.rows("SELECT claims FROM work")} == {0}
    rig.settle(rig.open())
    assert rig.violations() == []


@pytest.mark.fault(5)
@pairwise
def test_a_killed_container_costs_a_start_and_no_try(rig: Rig) -> None:
    """Out of memory as a whole: the object is not blamed, but the starts are counted."""
    rig.add("picture0.png")
    workspace = rig.open()
    for n_deaths in (1, 2):
        assert end(start(ingest, str(rig.place.config_file), Moment(f"{LAKE}.upload_result", "before"))) == -9
        rows = rig.work("picture0.png")
        assert {(row["claims"], row["tries"]) for row in rows} == {(n_deaths, 0)}

    rig.settle(workspace)

    assert rig.violations() == []


@pytest.mark.fault(5)
@once
def test_a_decoder_out_of_memory_costs_tries_and_then_the_object(rig: Rig) -> None:
    """The child's limit ends the child alone: three tries, a record, and the others are done."""
    rig.configure(media={"memory_bytes": 270_000_000}, runs={"decode_workers": 1})
    rig.put("large.png", make_pixel_bomb(9_900))
    rig.add("picture0.png")

    rig.settle(rig.open())

    assert rig.states("large.png")["segments"] == ("dead", "out_of_memory")
    assert {row["tries"] for row in rig.work("large.png") if row["step"] == "segments"} == {3}
    assert rig.states("picture0.png")["segments"] == ("done", None)
    assert rig.violations() == []


@pytest.mark.fault(30)
@pairwise
def test_an_object_that_kills_its_worker_is_given_up_and_blocks_nothing(rig: Rig) -> None:
    """It dies as crash_loop after exactly the allowed starts; the rest of its batch is done."""
    rig.configure(runs={"decode_workers": 1, "max_claims": 4})
    rig.add("picture0.png", "picture1.png")
    rig.put("killer.png", rig.drawn("picture2.png"))
    workspace, n_deaths = rig.open(), 0
    while n_deaths < 10 and end(start(ingest_over_a_killer, str(rig.place.config_file), "killer")) == -signal.SIGKILL:
        n_deaths += 1
        rig.skip_waits()
    rig.settle(workspace)

    assert n_deaths == 4
    assert ("dead", "crash_loop") in rig.states("killer.png").values()
    for key in ("picture0.png", "picture1.png"):
        assert {state for state, _ in rig.states(key).values()} <= {"done", "skipped"}
    assert rig.violations() == []


@pytest.mark.fault(18)
@everywhere
def test_a_lister_killed_under_its_lock_is_replaced(rig: Rig) -> None:
    """A dead holder on this machine is known to be dead; one elsewhere is in the way until its lease ends."""
    rig.add("picture0.png")
    assert end(start(ingest, str(rig.place.config_file), Moment(f"{OBJECTS}.record_page", "before"))) == -9
    workspace = rig.open()
    held = rig.rows("SELECT * FROM locks WHERE name = 'list:source'")[0]
    now = rig.rows(f"SELECT {_now(rig)} AS now")[0]["now"]
    assert 0 < held["expires_at"] - now <= 60
    rig.execute("UPDATE locks SET owner = 'elsewhere/1/x' WHERE name = 'list:source'")
    assert not discover(workspace, "source").is_complete

    rig.execute("UPDATE locks SET expires_at = 1 WHERE name = 'list:source'")
    assert discover(workspace, "source").n_new == 1
    rig.settle(workspace)

    assert rig.violations() == []
    assert rig.rows("SELECT token FROM locks WHERE name = 'list:source'")[0]["token"] > held["token"]


def _now(rig: Rig) -> str:
    is_sqlite = rig.ledger_url.startswith("sqlite")
    return (
        "((julianday('now') - 2440587.5) * 86400.0)" if is_sqlite else "extract(epoch from clock_timestamp())::float8"
    )
