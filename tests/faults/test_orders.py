"""What a later listing would mend, looked at before it can: the order of writes, fencing, the brake."""

import os
import signal
import time
from pathlib import Path

import pytest
from children import Moment, end, ingest, start
from flow_driver import plan, process
from rig import Rig, alternately, pairwise, wait_until

from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.planning import free_lost_work
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger.inbox import Hint

OBJECTS = "mm_assets.ledger.objects:ObjectBook"
PAGE = [
    Moment(f"{OBJECTS}.record_page", "before"),
    Moment(f"{OBJECTS}.record_page", "within"),
    Moment(f"{OBJECTS}.record_page", "within", commit=2),
    Moment(f"{OBJECTS}.record_page"),
    Moment(f"{OBJECTS}.record_page", nth=2),
]
HINTS = [
    Moment(f"{OBJECTS}.{call}", place, commit=commit)
    for call in ("record_hinted", "retire")
    for place, commit in (("before", 1), ("within", 1), ("within", 2), ("after", 1))
]


def ingest_in_small_pages(config: str, moment: Moment) -> None:
    """Ingest with two objects on a page, and a page to each transaction."""
    from mm_assets.flows import discovery

    discovery._PAGE, discovery._PAGES_AT_ONCE = 2, 1
    ingest(config, moment)


@pytest.mark.fault(1)
@alternately("moment", {str(moment): (moment,) for moment in PAGE})
def test_the_cursor_never_stands_beyond_its_rows(rig: Rig, moment: Moment) -> None:
    """Whatever the cursor has passed is in the ledger: a pass goes on where it stopped and misses nothing."""
    keys = [f"k{number}.png" for number in range(6)]
    for key in keys:
        rig.put(key, rig.drawn("picture0.png"))

    assert end(start(ingest_in_small_pages, str(rig.place.config_file), moment)) == -signal.SIGKILL

    after = "".join(row["after"] for row in rig.rows("SELECT after FROM scans"))
    known = {row["key"] for row in rig.rows("SELECT key FROM objects")}
    assert {key for key in keys if key <= after} <= known


@pytest.mark.fault(1)
@alternately("moment", {str(moment): (moment,) for moment in HINTS})
def test_a_hint_is_settled_with_its_rows_and_not_before(rig: Rig, moment: Moment) -> None:
    """Without any listing afterwards, what waits in the inbox is enough to catch up."""
    rig.add("picture0.png", "picture1.png")
    workspace = rig.open()
    discover(workspace, "source")
    rig.put("picture0.png", rig.drawn("picture4.png"))
    rig.delete("picture1.png")
    rig.add("picture5.png")
    workspace.ledger.inbox.add(
        [Hint(f"e{n}", "test", "source", f"picture{n}.png") for n in (0, 1, 5)],
    )
    assert end(start(ingest, str(rig.place.config_file), moment)) == -signal.SIGKILL

    rig.skip_waits()
    drain_inbox(workspace)

    there = rig.evidence().sources["source"].etags()
    assert {row["key"]: row["etag"] for row in rig.evidence().live.values()} == there


@pytest.mark.fault(3)
@pairwise
def test_a_late_end_does_not_take_the_place_of_who_works_now(rig: Rig) -> None:
    """The sleeper wakes while another one is at work: it is refused, and the other one's claim stays."""
    rig.configure(runs={"decode_workers": 1, "lease_s": 1.0})
    rig.add("picture0.png")
    moment = Moment("mm_assets.ledger.work:WorkBook.finish", "before", act="stop")
    sleeper = start(ingest, str(rig.place.config_file), moment)
    state = Path(f"/proc/{sleeper.pid}/stat")
    wait_until(lambda: state.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T", 60)
    time.sleep(1.2)
    workspace = rig.open()
    assert free_lost_work(workspace) > 0
    _claim_all(workspace)

    os.kill(sleeper.pid or 0, signal.SIGCONT)
    end(sleeper)

    assert {(row["state"], row["owner"]) for row in rig.work("picture0.png")} == {("claimed", "elsewhere/1/x")}
    rig.execute("UPDATE work SET lease_until = 1")
    rig.settle(workspace)
    assert rig.violations() == []


def _claim_all(workspace: Workspace) -> None:
    for batch in plan(workspace):
        workspace.ledger.work.claim_batch(
            batch.batch_id, "elsewhere/1/x", recipes=workspace.recipes, lease_s=900, max_claims=8
        )


@pytest.mark.fault(14)
@pairwise
def test_a_mass_deletion_waits_for_a_person(rig: Rig) -> None:
    """When all at once is gone, somebody may have emptied the wrong bucket: nothing leaves before it is confirmed."""
    for number in range(12):
        rig.put(f"k{number}.png", rig.drawn(f"picture{number % 6}.png"))
    workspace = rig.open()
    discover(workspace, "source")
    for number in range(12):
        rig.delete(f"k{number}.png")

    found = discover(workspace, "source")
    assert (found.n_gone, found.alarm is not None) == (0, True)
    assert len(rig.evidence().live) == 12
    assert workspace.ledger.objects.confirm_deletions("source")
    assert discover(workspace, "source").n_gone == 12

    process(workspace)
    assert rig.evidence().live == {}
