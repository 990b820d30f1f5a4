"""Machines without room, without a temporary folder, with a clock that jumps."""

import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flow_driver import plan, process
from PIL import Image
from rig import Rig, alternately, once, pairwise, run_once

from mm_assets.flows.discovery import discover
from mm_assets.flows.planning import free_lost_work

TESTS = Path(__file__).parents[1]
TROUBLES = {
    # how the temporary folder is mounted, and what happens to it while an object is downloaded
    "disk_full": ("size=64k", ""),
    "inodes_full": ("size=8m,nr_inodes=6", ""),
    "read_only": ("size=8m", "mount -o remount,ro $TMPDIR"),
    "folder_gone": ("size=8m", "rm -rf $TMPDIR/mm_assets-*"),
}
CHILD = """
import sys
sys.path.insert(0, {tests!r})
import subprocess
from mm_assets.buckets.s3 import S3Store
download = S3Store.download
def trouble(*arguments, **options):
    subprocess.run({act!r}, shell=True, check=True)
    return download(*arguments, **options)
S3Store.download = trouble
from children import ingest
try:
    ingest({config!r})
except Exception as error:
    print(type(error).__name__, error)
"""


def _may_mount() -> bool:
    command = [*_namespace(Path("/tmp"), "size=64k"), "true"]  # noqa: S108  mounted over in a namespace of its own
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, check=False, capture_output=True).returncode
    )


def _namespace(folder: Path, options: str) -> list[str]:
    """Return the start of a command that runs with a small file system of its own as temporary folder."""
    mount = f'mount -t tmpfs -o {options} tmpfs "{folder}" && TMPDIR="{folder}" exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]


@pytest.mark.fault(26)
@alternately("options,act", TROUBLES)
def test_a_temporary_folder_that_fails_blames_no_object(rig: Rig, tmp_path: Path, options: str, act: str) -> None:
    """Whatever is wrong with the disk, nothing is dead, no try is burnt, and with room everything is done."""
    if not _may_mount():
        pytest.skip("user namespaces are not allowed here, so no small file system can be mounted")
    rig.put("large.png", _noise(200_000))
    rig.add("picture0.png")
    rig.open()
    folder = tmp_path / "small"
    folder.mkdir()
    child = CHILD.format(tests=str(TESTS), act=act or "true", config=str(rig.place.config_file))
    command = [*_namespace(folder, options), sys.executable, "-W", "ignore", "-c", child]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    rows = rig.rows("SELECT state, reason, error, tries FROM work")
    assert {row["tries"] for row in rows} <= {0}
    assert "dead" not in {row["state"] for row in rows}
    assert "claimed" not in {row["state"] for row in rows}
    assert rig.states("large.png").get("segments", ("", ""))[0] != "done"
    rig.settle(rig.open())
    assert rig.violations() == []


def _noise(n_bytes: int) -> bytes:
    """Draw a picture of about so many bytes."""
    side = int((n_bytes / 3) ** 0.5)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.fault(32)
@pairwise
@pytest.mark.parametrize("jump_s", [3_600, -3_600, 32_000], ids=["forth", "back", "far"])
def test_a_worker_whose_clock_jumps_takes_nothing_from_others(
    rig: Rig, jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are dated by the database: a host an hour ahead sees none as over, one behind sees none as endless."""
    rig.add("picture0.png")
    workspace = rig.open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    work = workspace.ledger.work
    held = work.claim_batch(batch.batch_id, "elsewhere/1/x", recipes=workspace.recipes, lease_s=900, max_claims=8)
    usual = time.time
    monkeypatch.setattr(time, "time", lambda: usual() + jump_s)

    assert free_lost_work(workspace) == 0
    assert process(workspace) == []
    assert held
    assert {row["state"] for row in rig.work("picture0.png")} == {"claimed"}
    rig.execute("UPDATE work SET lease_until = lease_until - 32000")
    assert free_lost_work(workspace) > 0
    rig.settle(workspace)

    assert rig.violations() == []


@pytest.mark.fault(32)
@once
def test_a_clock_that_goes_back_during_a_run_loses_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing, processing and refresh the time may be set back by an hour or over a change of the year."""
    rig.add("picture0.png")
    workspace = rig.open()
    discover(workspace, "source")
    usual = time.time
    for jump_s in (3_600, -3_600, 366 * 86_400, 0):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: usual() + jump_s)
        rig.skip_waits()
        run_once(workspace)
    rig.settle(workspace)

    assert rig.violations() == []
