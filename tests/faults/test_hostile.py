"""Hostile keys and files, end to end: a row and a reason each, and nothing outside their own folder."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from checker import Evidence, Folder
from hostile import KEYS, make_files
from places import Place
from rig import Rig, pairwise, run_once

from mm_assets.buckets.local import LocalStore
from mm_assets.errors import ObjectError

TESTS = Path(__file__).parents[1]
STRACE = shutil.which("strace")
NEIGHBOUR = "neighbour.mp4"
SAFE = re.compile(r"[A-Za-z0-9_./=-]+")


# -- keys --------------------------------------------------------------------------------------------------------------


def _put_all(rig: Rig, data: bytes) -> set[str]:
    """Write an object under each key that client and server take; returns the keys that are there."""
    # rclone lists for ever what its file system refused to write.
    keys = [key for name, key in KEYS.items() if rig.server != "rclone" or name != "segment_300"]
    for key in keys:
        with suppress(BotoCoreError, ClientError, UnicodeEncodeError):  # what is refused here is no object at all
            rig.client.put_object(Bucket=rig.source, Key=key, Body=data)
    return set(rig.evidence().sources["source"].etags())


@pytest.mark.fault(34)
@pairwise
def test_every_key_that_a_server_takes_is_processed_or_has_a_reason(rig: Rig) -> None:
    """Each becomes a row under its own bytes, or a recorded refusal; no name of the lake holds a piece of one."""
    there = _put_all(rig, rig.drawn("picture0.png"))
    assert len(there) >= 30
    workspace = rig.open()

    rig.settle(workspace)

    known = {row["key"] for row in rig.evidence().live.values()}
    assert there - known == {key for key in there if "\0" in key}
    assert all(SAFE.fullmatch(name) for name in rig.evidence().names)
    assert rig.rows("SELECT * FROM work WHERE state NOT IN ('done', 'skipped')") == []
    assert rig.violations() == []


@pytest.mark.fault(34)
@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
def test_every_key_that_a_folder_takes_is_processed_or_has_a_reason(
    tmp_path: Path, media: Path, ledger: str, request: pytest.FixtureRequest
) -> None:
    """File names are bytes: also those that are no UTF-8 end in a row or a refusal."""
    place = Place(tmp_path, media)
    url = f"sqlite:///{tmp_path / 'ledger.db'}" if ledger == "sqlite" else request.getfixturevalue("fresh_postgres")
    place.write_settings(ledger_url=url)
    store, n_taken = LocalStore(place.source), 0
    data = (media / "picture0.png").read_bytes()
    for key in KEYS.values():
        with suppress(ObjectError, UnicodeEncodeError):  # a file system has no name for these
            store.put(key, data)
            n_taken += 1
    (place.source / os.fsdecode(b"no-\xff-utf8.png")).write_bytes(data)
    workspace = place.open()

    run_once(workspace)
    run_once(workspace)

    evidence = Evidence({"source": Folder(place.source)}, url, Folder(place.lake))
    live = evidence.rows("SELECT key FROM objects WHERE state = 'live'")
    assert len(live) == n_taken >= 30
    assert len(evidence.rows("SELECT * FROM refusals")) == 1
    assert all(SAFE.fullmatch(name) for name in evidence.names)
    assert evidence.rows("SELECT * FROM work WHERE state NOT IN ('done', 'skipped')") == []
    place.close()


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass
class Trap:
    """A file that nobody may open and a port that nobody may connect to; both tell when somebody does.

    Attributes
    ----------
    canary : a FIFO: opening it for writing succeeds only while somebody has it open for reading
    """

    canary: Path
    listener: socket.socket
    sprung: list[str] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where nobody may connect to."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def watch(self) -> None:
        """Look until the end."""
        while not self._is_over.wait(0.01):
            with suppress(OSError):
                os.close(os.open(self.canary, os.O_WRONLY | os.O_NONBLOCK))
                self.sprung.append("the canary was opened")
            with suppress(OSError):
                self.listener.accept()[0].close()
                self.sprung.append("somebody connected")

    def end(self) -> None:
        """Stop watching."""
        self._is_over.set()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    """Set a trap outside of all folders that are watched."""
    canary = tmp_path / "canary.mp4"
    os.mkfifo(canary)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        set_trap = Trap(canary, listener)
        thread = threading.Thread(target=set_trap.watch)
        thread.start()
        yield set_trap
        set_trap.end()
        thread.join()


def test_the_trap_is_sprung_by_a_reader_and_by_a_caller(trap: Trap) -> None:
    """What proves that nothing happened must see it when it happens."""
    os.close(os.open(trap.canary, os.O_RDONLY))
    with socket.create_connection(("127.0.0.1", trap.listener.getsockname()[1])):
        pass
    ends_at = time.monotonic() + 5
    while len(set(trap.sprung)) < 2 and time.monotonic() < ends_at:
        time.sleep(0.01)

    assert set(trap.sprung) == {"the canary was opened", "somebody connected"}


def _files(tmp_path: Path, trap: Trap) -> dict[str, bytes]:
    work = tmp_path / "work"
    work.mkdir()
    return make_files(work, trap.canary, NEIGHBOUR, trap.url)


# Broken or mislabelled, yet with something in them that may be shown.
MAY_BE_DONE = {
    *("no_end.gif", "wrong_sum.png", "torn.ts", "half.avi", "endless.wav", "opens.pdf", "script.pdf", "outside.pdf"),
    *("bomb.pdf", "wide.pdf", "million.pdf", "lying.webp", "outside.mov", "endless_atom.mov", "lying_sizes.mov"),
    *("zero.gif", "tag.mp3", "random.mpg", "random.ts", "random.mkv", "half.mov", "circle.pdf", "loop.tiff"),
}


@pytest.mark.fault(34)
@pairwise
def test_every_hostile_file_ends_with_a_reason_and_reaches_nothing(rig: Rig, tmp_path: Path, trap: Trap) -> None:
    """Playlists, bombs, lies and scripts: each has an end, none opens a file or a connection, good ones are done."""
    rig.configure(media={"wall_s": 60.0, "cpu_s": 60}, runs={"decode_workers": 2})
    files = _files(tmp_path, trap)
    assert len(files) >= 60
    for name, data in files.items():
        rig.put(name, data)
    rig.put(NEIGHBOUR, rig.drawn("clip.mp4"))

    rig.settle(rig.open())

    assert trap.sprung == []
    ends = {name: rig.states(name).get("segments", ("none", None)) for name in files}
    assert {name: end for name, end in ends.items() if end[0] not in {"done", "skipped", "dead"}} == {}
    assert {name: end for name, end in ends.items() if end[0] == "done" and name not in MAY_BE_DONE} == {}
    assert {name: end for name, end in ends.items() if end[0] != "done" and not end[1]} == {}
    assert rig.states(NEIGHBOUR)["segments"] == ("done", None)
    assert rig.violations() == []


@pytest.mark.fault(34)
def test_links_pipes_and_devices_in_a_folder_are_not_followed(tmp_path: Path, media: Path, trap: Trap) -> None:
    """What a watched folder holds besides files is not read, and what a link leads to is not listed."""
    place = Place(tmp_path, media)
    place.write_settings()
    place.add("picture0.png")
    (place.source / "link.png").symlink_to(trap.canary)
    (place.source / "folder").symlink_to(tmp_path)
    os.mkfifo(place.source / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.source / "socket.png"))
        workspace = place.open()
        run_once(workspace)
    url = workspace.settings.ledger_location

    assert trap.sprung == []
    [row] = Evidence({}, url, Folder(place.lake)).rows("SELECT key FROM objects")
    assert row["key"] == "picture0.png"
    place.close()


# -- what the kernel saw -----------------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path.insert(0, {tests!r})
from children import ingest
ingest({config!r})
"""
_WRITES = re.compile(r"^\d+ +(?:open|openat|creat|mkdir|mkdirat|rename|renameat2?|unlink|unlinkat|symlink|link)\(.*")
_PATHS = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _strace(folder: Path, calls: str, command: list[str], **environment: str) -> list[str]:
    """Run a command under strace; returns the calls it and its children made."""
    log = folder / "strace.log"
    traced = [str(STRACE), "-f", "-qq", "-s", "400", "-e", f"trace={calls}", "-o", str(log), *command]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "scratch")} | environment
    (folder / "scratch").mkdir(exist_ok=True)
    done = subprocess.run(traced, check=False, capture_output=True, text=True, env=surroundings, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


@pytest.mark.fault(34)
@pytest.mark.skipif(STRACE is None, reason="strace is not installed: apt-get install strace")
def test_the_kernel_sees_no_write_outside_and_no_look_at_the_canary(tmp_path: Path, media: Path, trap: Trap) -> None:
    """Every opened file of a whole run over hostile keys and files: writes stay below the state, lake and scratch."""
    place = Place(tmp_path / "place", media)
    place.folder.mkdir()
    place.write_settings(runs={"decode_workers": 2})
    for name, data in _files(tmp_path, trap).items():
        (place.source / name).write_bytes(data)
    for key in KEYS.values():
        with suppress(ObjectError, UnicodeEncodeError):
            LocalStore(place.source).put(key, (media / "picture0.png").read_bytes())
    child = CHILD.format(tests=str(TESTS), config=str(place.config_file))

    calls = _strace(tmp_path, "%file,connect", [sys.executable, "-W", "ignore", "-c", child])

    assert [call for call in calls if str(trap.canary) in call and "lstat" not in call] == []
    assert [call for call in calls if "connect(" in call and "AF_INET" in call] == []
    assert _written_outside(calls, tmp_path) == []
    assert trap.sprung == []


def _written_outside(calls: list[str], folder: Path) -> list[str]:
    allowed = (str(folder), "/dev/", "/proc/self/", "/dev/shm/")  # noqa: S108  what libraries of C may use
    outside = []
    for call in calls:
        is_write = any(flag in call for flag in ("O_WRONLY", "O_RDWR", "O_CREAT")) or not call.split(" ", 1)[
            1
        ].lstrip().startswith("open")
        if not _WRITES.match(call) or not is_write or " = -1 " in call:
            continue
        paths = [path for path in _PATHS.findall(call) if path.startswith("/")]
        outside += [call for path in paths if not path.startswith(allowed) and "__pycache__" not in path]
    return outside


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.skipif(STRACE is None, reason="strace is not installed: apt-get install strace")
@pytest.mark.parametrize("rig", [("moto", "sqlite")], ids=["moto-sqlite"], indirect=True)
def test_a_whole_run_with_models_connects_to_nothing_but_the_store(rig: Rig, tmp_path: Path) -> None:
    """`mm ingest` with the demo pack: the only address that any process asks for is the bucket's."""
    media = Path(__file__).parents[2] / "demo" / "media"
    for name in ("defects/blurred.jpg", "copies/backup/memo.wav", "copies/backup/scan-2.pdf"):
        rig.put(name, (media / name).read_bytes())
    rig.put("film.mp4", rig.drawn("clip.mp4"))
    port = rig.proxy.url.rpartition(":")[2]
    mm = Path(sys.executable).with_name("mm")

    calls = _strace(tmp_path, "connect", [str(mm), "ingest", "--config", str(rig.place.config_file)])

    asked = {call.split("connect(", 1)[1] for call in calls if "connect(" in call}
    foreign = [call for call in asked if "AF_INET" in call and f"htons({port})" not in call]
    assert foreign == []
    assert [call for call in asked if f"htons({port})" in call]
    assert {state for state, _ in rig.states("film.mp4").values()} <= {"done", "skipped"}
