"""What a worker owes when it ends: owners, scratch folders, signals, leases; with real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flow_driver import plan, process
from places import Place

from mm_assets.extractors import offline
from mm_assets.flows.discovery import discover
from mm_assets.flows.leases import Lease, LeaseLostError
from mm_assets.flows.processing import is_dead_here, new_owner, process_batch
from mm_assets.flows.scratch import scratch, sweep_scratch
from mm_assets.flows.stopping import finishing, giving_back
from mm_assets.flows.workspace import Workspace

TESTS = Path(__file__).parent
LONG_AGO = (1.0, 1.0)


def _python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a process that can import what tests can."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"} | options.pop("environment", {})
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, **options)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _end(process: subprocess.Popen[str]) -> int:
    """Close its input, wait, and close its output."""
    process.communicate(timeout=30)
    return process.returncode


# -- owners ----------------------------------------------------------------------------------------------------------


def test_an_owner_is_dead_when_its_process_is_gone() -> None:
    """A living process is no dead owner, one that has ended is."""
    other = _python(
        "from mm_assets.flows.processing import new_owner; print(new_owner('run-1'), flush=True); input()",
        stdin=subprocess.PIPE,
    )
    owner = _line(other)
    assert owner.endswith(f"/{other.pid}/run-1")
    assert not is_dead_here(owner)
    assert not is_dead_here(new_owner())

    _end(other)
    assert is_dead_here(owner)


@pytest.mark.parametrize("owner", ["host/999999/run", "gone:0123456789abcdef/1/run", "nonsense", "", "a/b/c/d"])
def test_owners_of_other_machines_are_left_alone(owner: str) -> None:
    """A process number of another host, boot or container says nothing here."""
    assert not is_dead_here(owner)


def test_owners_of_another_boot_or_namespace_are_left_alone() -> None:
    """Containers share host names and process numbers; only the same namespace of the same boot can tell."""
    machine, _, word = new_owner().split("/")
    host, _, _ = machine.partition(":")
    assert not is_dead_here(f"{host}:{'0' * 16}/999999999/{word}")
    assert not is_dead_here(f"{host}/999999999/{word}")


# -- scratch folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of temporary files of its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_scratch_of_a_killed_worker_is_swept(temporary: Path) -> None:
    """A worker that was killed leaves its folder; the next start removes it, and never that of a living worker."""
    code = "from mm_assets.flows.scratch import scratch\nwith scratch() as f: (f / 'big').write_text('x'); print(f, flush=True); input()"
    environment = {"TMPDIR": str(temporary)}
    workers = [_python(code, environment=environment, stdin=subprocess.PIPE) for _ in range(2)]
    folders = [Path(_line(worker)) for worker in workers]
    for folder in folders:
        os.utime(folder, LONG_AGO)
    workers[0].kill()
    _end(workers[0])

    with scratch() as mine:
        assert sorted(temporary.iterdir()) == sorted([folders[1], mine])
    workers[1].kill()
    _end(workers[1])
    assert sweep_scratch() == 1
    assert not list(temporary.iterdir())


def test_sweeping_follows_no_link(temporary: Path, tmp_path: Path) -> None:
    """A link with our name, or inside a dead folder, costs what it points to nothing; young folders stay."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept", encoding="utf-8")
    (temporary / "mm_assets-scratch-link").symlink_to(precious)
    (temporary / "mm_assets-scratch-file").write_text("not ours", encoding="utf-8")
    young, old = temporary / "mm_assets-scratch-young", temporary / "mm_assets-scratch-old"
    young.mkdir()
    old.mkdir()
    (old / "inside").symlink_to(precious)
    for folder in (precious, old):
        os.utime(folder, LONG_AGO)

    assert sweep_scratch() == 1
    assert (precious / "file").read_text(encoding="utf-8") == "kept"
    kept = {"mm_assets-scratch-link", "mm_assets-scratch-file", "mm_assets-scratch-young"}
    assert {path.name for path in temporary.iterdir()} == kept


def test_the_folder_of_the_libraries_is_not_swept(temporary: Path) -> None:
    """Ultralytics keeps its settings there for as long as a process lives, and nobody locks it."""
    folder = offline._private_folder()
    assert folder.parent == temporary
    os.utime(folder, LONG_AGO)

    assert sweep_scratch() == 0
    assert folder.is_dir()


# -- signals -----------------------------------------------------------------------------------------------------------

STUCK = """
import hashlib, time
from mm_assets.flows import stopping
stopping._FINISH_S = {finish_s}
with stopping.giving_back(lambda: print("given back", flush=True)):
    {work}
"""
IN_C = """
    try:
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha512", b"", b"", 5_000_000)  # seconds, which no signal shortens
    finally: print("returned", flush=True)
"""


@pytest.mark.fault(4)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_claims_are_given_back_while_the_main_thread_is_in_c(number: signal.Signals) -> None:
    """No Python handler runs inside C code; the watcher gives back all the same, before the main thread returns."""
    worker = _python(STUCK.format(finish_s=0.3, work=IN_C), stderr=subprocess.DEVNULL)
    assert _line(worker) == "ready"
    time.sleep(0.2)  # until it is inside the call
    worker.send_signal(number)

    assert [_line(worker), _line(worker)] == ["given back", "returned"]
    assert _end(worker) != 0


def test_sigterm_ends_a_worker_that_nobody_gave_a_handler() -> None:
    """Python's default would end the process without a word; here the blocks are left in order first."""
    work = "\n    try: print('ready', flush=True); time.sleep(20)\n    finally: print('in order', flush=True)"
    worker = _python(STUCK.format(finish_s=20, work=work))
    assert _line(worker) == "ready"
    worker.send_signal(signal.SIGTERM)

    assert _line(worker) == "in order"
    assert _end(worker) == 128 + signal.SIGTERM


def test_an_installed_handler_keeps_its_say_and_everything_is_restored() -> None:
    """Dagster's handler raises as ever; handler and wakeup descriptor are as before when the block is over."""
    told: list[int] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former_handler = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    former_descriptor = signal.set_wakeup_fd(writer)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        given: list[float] = []
        with giving_back(lambda: given.append(time.monotonic())):
            os.kill(os.getpid(), signal.SIGTERM)
        assert told == [signal.SIGTERM]
        assert len(given) == 1
        assert os.read(reader, 8) == bytes([signal.SIGTERM])  # who watched before still hears of it
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.set_wakeup_fd(-1) == writer
    finally:
        signal.set_wakeup_fd(former_descriptor)
        signal.signal(signal.SIGTERM, former_handler)
        os.close(reader)
        os.close(writer)


class _Stopped(BaseException):
    """What the installed handler raises."""


@pytest.fixture
def raising() -> Any:
    """Install a handler that raises, as Dagster does."""

    def stop(*_: object) -> None:
        raise _Stopped

    former = signal.signal(signal.SIGTERM, stop)
    yield stop
    signal.signal(signal.SIGTERM, former)


def _finish(n_signals: int, work: Callable[[], object]) -> None:
    with finishing():
        for _ in range(n_signals):
            os.kill(os.getpid(), signal.SIGTERM)
        work()


def test_a_short_group_is_finished_before_the_worker_stops(raising: Callable[..., None]) -> None:
    """SIGTERM waits for the end of the block, and then does what it would have done."""
    done: list[str] = []
    with pytest.raises(_Stopped):
        _finish(1, lambda: done.append("all of it"))
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGTERM) is raising


@pytest.mark.parametrize(("n_signals", "limit_s"), [(1, 0.1), (2, 20.0)])
@pytest.mark.usefixtures("raising")
def test_a_long_group_is_interrupted(n_signals: int, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time to finish, or at a second signal, the handler has its say in the middle of the block."""
    monkeypatch.setattr("mm_assets.flows.stopping._FINISH_S", limit_s)
    started = time.monotonic()
    with pytest.raises(_Stopped):
        _finish(n_signals, lambda: time.sleep(20))
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("raising")
def test_a_signal_is_not_forgotten_when_the_block_fails() -> None:
    """A group that fails after SIGTERM ends the worker all the same."""
    with pytest.raises(_Stopped):
        _finish(1, lambda: 1 / 0)


def test_other_threads_have_no_handlers() -> None:
    """A worker in a thread works without signals."""
    seen: list[str] = []

    def work() -> None:
        with giving_back(lambda: seen.append("given back")), finishing():
            seen.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["worked"]


# -- leases ------------------------------------------------------------------------------------------------------------


def _claimed(place: Place) -> tuple[Workspace, Any, str]:
    workspace = place.open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    owner = new_owner()
    claims = workspace.ledger.work.claim_batch(
        batch.batch_id, owner, recipes=workspace.recipes, lease_s=900, max_claims=8
    )
    return workspace, claims, owner


def _lost(workspace: Workspace) -> float:
    return workspace.ledger.meters.totals().get(("lease_lost_total", ()), 0)


def test_a_lease_that_was_lost_is_told_and_counted_once(make_workspace: Callable[..., Place]) -> None:
    """The heartbeat finds nothing left to renew: the worker stops, and each step counts once."""
    workspace, claims, owner = _claimed(make_workspace("picture0.png"))
    lease = Lease(workspace, owner, claims)
    lease.renew()
    lease.check()
    workspace.ledger.work.release(owner)

    lease.renew()
    with pytest.raises(LeaseLostError, match="taken over"):
        lease.check()
    lease.renew()  # finds nothing held and nothing newly lost
    with pytest.raises(LeaseLostError, match="taken over"):
        lease.check()
    lease.give_back()
    assert _lost(workspace) == len(workspace.recipes) - len(workspace.reads())


def test_a_lease_in_good_order_loses_nothing(make_workspace: Callable[..., Place]) -> None:
    """Finishing and giving back are no loss."""
    workspace = make_workspace("picture0.png", "broken.png", "notes.txt").open()
    discover(workspace, "source")
    process(workspace)
    assert _lost(workspace) == 0


WORKER = """
import sys, time
from pathlib import Path
from fakes import open_fake_workspace
from mm_assets.flows.processing import process_batch
from mm_assets.settings import load_settings
workspace = open_fake_workspace(load_settings(Path(sys.argv[1])))
store = workspace.sources["source"]
download = store.download
def slow(key, target, **options):
    print("reading", flush=True)
    time.sleep(float(sys.argv[3]))
    return download(key, target, **options)
store.download = slow
try:
    for end in process_batch(workspace, sys.argv[2]):
        print(end.claim.known.version.key, *(e.step for e in end.ends), flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
finally:
    workspace.close()
"""


def _states(workspace: Workspace, key: str) -> set[tuple[object, object, object]]:
    [known] = workspace.ledger.objects.find(key)
    return {(row["state"], row["tries"], row["claims"]) for row in workspace.ledger.work.states(known.object_id)}


@pytest.mark.fault(4)
def test_sigterm_gives_back_all_claims(make_workspace: Callable[..., Place]) -> None:
    """A real worker in the middle of a read: within ten seconds nothing is claimed, no try and no start is burnt."""
    place = make_workspace("picture0.png", "picture1.png")
    workspace = place.open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    worker = _python(WORKER, str(place.config_file), batch.batch_id, "8")
    assert _line(worker) == "reading"
    started = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    while {state for state, _, _ in _states(workspace, "picture0.png")} != {"wanted"}:
        assert time.monotonic() - started < 10
        time.sleep(0.05)
    assert _states(workspace, "picture0.png") == _states(workspace, "picture1.png") == {("wanted", 0, 0)}
    assert _end(worker) == 128 + signal.SIGTERM


@pytest.mark.fault(3)
def test_a_worker_that_stood_still_for_longer_than_its_lease_commits_nothing(
    make_workspace: Callable[..., Place],
) -> None:
    """Stopped and continued: another worker has done its objects, the token refuses, and the loss is counted."""
    place = make_workspace("picture0.png", runs={"decode_workers": 1, "lease_s": 1.0})
    workspace = place.open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    worker = _python(WORKER, str(place.config_file), batch.batch_id, "0.5")
    assert _line(worker) == "reading"
    worker.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    [again] = plan(workspace)
    [end] = process_batch(workspace, again.batch_id)
    done_at = {row["step"]: row["changed_at"] for row in workspace.ledger.work.states(end.claim.known.object_id)}

    worker.send_signal(signal.SIGCONT)
    last = _line(worker)
    _end(worker)

    assert last in {"picture0.png", "LeaseLostError"}  # no step was accepted
    rows = workspace.ledger.work.states(end.claim.known.object_id)
    assert {row["step"]: row["changed_at"] for row in rows} == done_at
    assert _lost(workspace) == len(workspace.recipes) - len(workspace.reads())
