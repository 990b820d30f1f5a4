"""What a decoding child cannot do any more, whatever code a hostile file makes it run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mm_assets.media import sandbox

needs_landlock = pytest.mark.skipif(not sandbox.can_confine(), reason="this kernel has no Landlock (Linux 5.13)")
# The worker, without the network's namespace, which would hide what files allow; its child tries what it may not.
WORKER = """
import json, os, sys, time
from pathlib import Path
from mm_assets.media import sandbox, worker
from mm_assets.limits import MediaLimits

folder, outside, owner = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
(folder / "object.bin").write_bytes(b"media")
sandbox.refuse_new_privileges()
sandbox.adopt_orphans()

def attempts():
    yield "environment", lambda: Path(f"/proc/{owner}/environ").read_bytes()
    yield "memory", lambda: open(f"/proc/{owner}/mem", "rb").close()
    yield "read", lambda: (outside / "secret.txt").read_text()
    yield "list", lambda: os.listdir(outside)
    yield "write", lambda: (outside / "new.txt").write_text("x")
    yield "link", lambda: os.link(outside / "secret.txt", folder / "linked")
    yield "rename", lambda: os.rename(folder / "object.bin", outside / "moved")
    yield "kill", lambda: os.kill(int(owner), 0)
    yield "own object", lambda: (folder / "object.bin").read_bytes()
    yield "own file", lambda: (folder / "own.txt").write_text("x")
    yield "library", lambda: __import__("colorsys")

def leave_a_grandchild():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            (folder / "part.txt").write_text(str(os.getpid()))
            (folder / "part.txt").rename(folder / "born.txt")
            time.sleep(60)
        os._exit(0)
    while not (folder / "born.txt").exists():
        time.sleep(0.01)

def decode(file, limits):
    if "hang" in sys.argv:
        leave_a_grandchild()
        time.sleep(60)
    went = {}
    for name, attempt in attempts():
        try:
            attempt()
            went[name] = True
        except OSError:
            went[name] = False
    (folder / "went.json").write_text(json.dumps(went))
    leave_a_grandchild()
    return 0

worker._decode = decode
ending = worker._run(folder / "object.bin", folder, MediaLimits())
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print(json.dumps({"exit_code": ending.exit_code, "children": children}))
"""


def _start_worker(tmp_path: Path, *how: str) -> subprocess.Popen[bytes]:
    folder, outside = tmp_path / "own", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("of another", encoding="utf-8")
    command = [sys.executable, "-c", WORKER, str(folder), str(outside), str(os.getpid()), *how]
    # Its standard input stays open: the end of it would end the worker.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _run_worker(tmp_path: Path) -> tuple[dict[str, Any], dict[str, bool]]:
    folder = tmp_path / "own"
    output, _ = _read(_start_worker(tmp_path))
    log = folder / "stderr.txt"
    assert (folder / "went.json").exists(), log.read_text(encoding="utf-8") if log.exists() else output
    return json.loads(output), json.loads((folder / "went.json").read_text(encoding="utf-8"))


def _read(worker: subprocess.Popen[bytes]) -> tuple[bytes, float]:
    assert worker.stdout is not None
    assert worker.stdin is not None
    started = time.monotonic()
    with worker:
        return worker.stdout.read(), time.monotonic() - started


@needs_landlock
def test_a_child_reaches_its_own_folder_and_nothing_else(tmp_path: Path) -> None:
    """Neither keys in the owner's memory nor files beside its own; its object, its results and libraries it can use."""
    ended, went = _run_worker(tmp_path)

    assert ended["exit_code"] == 0
    allowed = {"own object", "own file", "library"}
    assert {name for name, is_done in went.items() if is_done} - {"kill"} == allowed
    assert (tmp_path / "outside").is_dir()
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret.txt"]


def test_no_descendant_outlives_its_object(tmp_path: Path) -> None:
    """A grandchild in a session of its own is no member of the group that is killed; it ends all the same."""
    ended, _ = _run_worker(tmp_path)

    assert (tmp_path / "own" / "born.txt").exists()
    assert ended["children"] == []


def test_no_descendant_outlives_its_owner(tmp_path: Path) -> None:
    """When the owner ends amid an object, the worker takes all that the child forked with it."""
    born = tmp_path / "own" / "born.txt"
    with _start_worker(tmp_path, "hang") as worker:
        assert worker.stdin is not None
        deadline = time.monotonic() + 30
        while not born.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker.stdin.close()
        worker.wait(30)
    assert not Path(f"/proc/{born.read_text(encoding='utf-8')}").exists()


def test_a_kernel_without_landlock_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other limits hold without it, so that it is no error."""

    class _OldKernel:
        @staticmethod
        def syscall(*_: object) -> int:
            return -1

    monkeypatch.setattr(sandbox, "_libc", _OldKernel)
    assert sandbox.stay_in(tmp_path, []) is False
