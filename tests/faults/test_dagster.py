"""Dagster's processes that die during a tick or a run, and runs that are launched twice."""

import signal
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from children import Moment, end, run_batch, start, tick
from dagster_driver import Driver
from flow_driver import refresh
from rig import Rig, alternately, pairwise

from mm_assets.flows.planning import plan_batches

pytestmark = pytest.mark.fault(31)
SENSOR = "bucket_objects_sensor"
IN_TICK = [
    Moment("mm_assets.ledger.objects:ObjectBook.record_page"),
    Moment("mm_assets.ledger.work:WorkBook.plan"),
    Moment("mm_assets.ledger.objects:ObjectBook.set_in_dagster", "before"),
    Moment("mm_assets.ledger.objects:ObjectBook.set_in_dagster"),
]
IN_RUN = [
    Moment("mm_assets.ledger.work:WorkBook.claim_batch"),
    Moment("mm_assets.lake:Lake.upload_result"),
    Moment("mm_assets.ledger.work:WorkBook.finish", "before"),
    Moment("mm_assets.ledger.work:WorkBook.finish"),
]


@pytest.fixture
def driver(rig: Rig, tmp_path: Path) -> Iterator[Driver]:
    """Drive Dagster over a rig, with an instance on disk that other processes share."""
    home = tmp_path / "dagster"
    home.mkdir()
    rig.add("picture0.png", "picture1.png")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield Driver(rig.place, instance, rig.open())


def _finish(rig: Rig, driver: Driver) -> None:
    """Let the daemon go on: ticks and the runs they ask for, until nothing is asked for; then show what there is."""
    for _ in range(6):
        rig.skip_waits()
        requests = driver.tick(SENSOR).run_requests or []
        for request in requests:
            assert driver.execute(request).success
        if not requests:
            break
    refresh(driver.workspace)


@alternately("moment", {str(moment): (moment,) for moment in IN_TICK})
def test_a_code_server_killed_during_a_tick_loses_nothing(
    rig: Rig, driver: Driver, tmp_path: Path, moment: Moment
) -> None:
    """The next tick asks for what the dead one did not, and each object is processed once."""
    dead = start(tick, str(rig.place.config_file), str(tmp_path / "dagster"), moment)
    assert end(dead) == -signal.SIGKILL

    _finish(rig, driver)

    assert rig.violations() == []
    assert {len(rig.proxy.asked("GetObject", f"picture{n}.png")) for n in (0, 1)} == {1}


@alternately("moment", {str(moment): (moment,) for moment in IN_RUN})
def test_a_run_killed_midway_is_done_by_the_next(rig: Rig, driver: Driver, tmp_path: Path, moment: Moment) -> None:
    """Its claims are freed, another run is asked for, and nothing shows twice."""
    [batch] = driver.plan()
    dead = start(run_batch, str(rig.place.config_file), str(tmp_path / "dagster"), batch.batch_id, moment)
    assert end(dead) == -signal.SIGKILL

    _finish(rig, driver)

    assert rig.violations() == []


@pairwise
def test_a_run_launched_twice_does_its_work_once(rig: Rig, driver: Driver, tmp_path: Path) -> None:
    """At the same time in two processes: one claims, the other finds nothing to do."""
    [batch] = driver.plan()
    home, config = str(tmp_path / "dagster"), str(rig.place.config_file)
    twins = [start(run_batch, config, home, batch.batch_id) for _ in range(2)]

    assert [end(twin, 120) for twin in twins] == [0, 0]
    assert {row["token"] for row in rig.rows("SELECT token FROM work")} == {1}
    assert {len(rig.proxy.asked("GetObject", f"picture{n}.png")) for n in (0, 1)} == {1}
    assert plan_batches(driver.workspace)["ingest_job"] == []
    _finish(rig, driver)
    assert rig.violations() == []
