"""The guarded child: whatever an object does, its owner gets an answer, and the next object decodes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from media_factory import Clip, draw_frame, noise, write_clip, write_image, write_pdf, write_sound

from mm_assets.errors import ObjectError, Reason, ServiceError
from mm_assets.limits import MediaLimits
from mm_assets.media.guard import MediaWorker, _checked_segments, _raise_for, _read_facts
from mm_assets.media.segments import SEGMENT_SCHEMA, Segment, SegmentWriter, read_segments
from mm_assets.media.worker import EXIT_SERVICE, Ending

MIB = 1 << 20
OWNER = """
import sys
from pathlib import Path
from mm_assets.media.guard import MediaWorker
from mm_assets.limits import MediaLimits
with MediaWorker(MediaLimits()) as worker:
    worker.decode(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[MediaWorker]:
    """One slot for the tests that leave it healthy."""
    with MediaWorker(MediaLimits()) as slot:
        yield slot


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Write a good object."""
    return write_image(tmp_path / "good.png", draw_frame(1, 0.0)).rename(tmp_path / "good.bin")


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """Make an object on which the child waits for ever: a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "hanging.bin")
    return tmp_path / "hanging.bin"


def children(pid: int) -> list[int]:
    """Return the processes that a process has forked."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds; fails when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition never held"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    return False


def while_hanging(worker: MediaWorker, file: Path, folder: Path, act: Callable[[int], None]) -> BaseException:
    """Decode a hanging object in a thread, act on the child's process id, return what ``decode`` raised."""
    worker._process = worker._process or worker._start()
    zygote = worker._process.pid
    raised: list[BaseException] = []

    def decode() -> None:
        try:
            worker.decode(file, folder)
        except (ObjectError, ServiceError) as error:
            raised.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    wait_for(lambda: any((folder / "stderr.txt").exists() for _ in children(zygote)))
    time.sleep(0.1)
    act(children(zygote)[0])
    thread.join(30)
    return raised[0]


def reason_of(worker: MediaWorker, file: Path, folder: Path) -> Reason:
    """Reason for which an object is refused."""
    with pytest.raises(ObjectError) as caught:
        worker.decode(file, folder)
    return caught.value.reason


def test_decode_reads_every_kind_of_media(worker: MediaWorker, tmp_path: Path) -> None:
    """Video, sound, image and document come back through the same slot, named ``.bin``."""
    files = [
        write_clip(tmp_path / "v.mp4", Clip([1, 1], audio=noise(2))),
        write_sound(tmp_path / "s.flac", noise(2)),
        write_image(tmp_path / "i.jpg", draw_frame(1, 0.0)),
        write_pdf(tmp_path / "d.pdf", ["x"]),
    ]
    kinds, counts = [], []
    for number, file in enumerate(files):
        decoded = worker.decode(file.rename(tmp_path / f"{number:032x}.bin"), tmp_path / str(number))
        kinds.append(decoded.facts.media_kind)
        counts.append(sum(batch.num_rows for batch in read_segments(decoded.segments)))
        assert decoded.ending.max_rss_bytes > 10 * MIB
    assert kinds == ["video", "audio", "image", "document"]
    assert counts == [3, 1, 1, 1]


def test_damaged_and_foreign_objects_have_their_reason(worker: MediaWorker, tmp_path: Path) -> None:
    """Zero bytes, half a film, text, playlist: each is refused for what it is."""
    film = write_clip(tmp_path / "v.mp4", Clip([2])).read_bytes()
    cases = {
        b"": Reason.CORRUPT,
        film[: len(film) // 2]: Reason.CORRUPT,
        b"just text": Reason.UNSUPPORTED,
        b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n": Reason.UNSUPPORTED,
    }
    for number, (data, reason) in enumerate(cases.items()):
        (tmp_path / f"{number}.bin").write_bytes(data)
        assert reason_of(worker, tmp_path / f"{number}.bin", tmp_path / f"out{number}") is reason


def test_hanging_child_is_a_timeout(tmp_path: Path, hanging: Path, image: Path) -> None:
    """The child is killed at the wall-clock limit, and the slot goes on."""
    with MediaWorker(MediaLimits(wall_s=1)) as slot:
        assert reason_of(slot, hanging, tmp_path / "a") is Reason.TIMEOUT
        assert slot._process is not None
        assert children(slot._process.pid) == []
        assert slot.decode(image, tmp_path / "b").facts.media_kind == "image"


def test_endless_work_is_a_timeout(tmp_path: Path, image: Path) -> None:
    """CPU time is bounded as well as the clock."""
    short = write_clip(tmp_path / "a.mp4", Clip([4], fps=10))
    _repeat(short, tmp_path / "a.bin", seconds=1_200)
    with MediaWorker(MediaLimits(cpu_s=1)) as slot:
        assert reason_of(slot, tmp_path / "a.bin", tmp_path / "a") is Reason.TIMEOUT
        assert slot.decode(image, tmp_path / "b").facts.media_kind == "image"


def _repeat(clip: Path, target: Path, seconds: int) -> Path:
    """Copy the packets of a clip again and again, a second apart."""
    import av

    with av.open(str(clip)) as source, av.open(str(target), "w", format="mp4") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        packets = [packet for packet in source.demux() if packet.dts is not None]
        lasts_s = round(max(packet.pts * packet.time_base for packet in packets)) + 1
        for first_s in range(0, seconds, lasts_s):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.stream, again.time_base = streams[packet.stream_index], packet.time_base
                again.is_keyframe = packet.is_keyframe
                again.pts, again.dts = (ticks + round(first_s / packet.time_base) for ticks in (packet.pts, packet.dts))
                out.mux(again)
    return target


def test_too_much_memory_is_out_of_memory(tmp_path: Path, image: Path) -> None:
    """An image within the pixel limit that does not fit into memory ends its child, not the slot."""
    huge = np.zeros((8_000, 12_000, 4), np.uint8)
    write_image(tmp_path / "a.png", huge, compress_level=1)
    with MediaWorker(MediaLimits(memory_bytes=257 * MIB)) as slot:
        assert reason_of(slot, tmp_path / "a.png", tmp_path / "a") is Reason.OUT_OF_MEMORY
        assert slot.decode(image, tmp_path / "b").facts.media_kind == "image"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_killed_child_is_a_crash(worker: MediaWorker, tmp_path: Path, hanging: Path, image: Path, number: int) -> None:
    """A child that dies of a signal is reported with it, and the next object decodes."""
    error = while_hanging(worker, hanging, tmp_path / "a", lambda pid: os.kill(pid, number))
    assert isinstance(error, ObjectError)
    assert error.reason is Reason.CRASHED
    assert signal.Signals(number).name in error.message
    assert worker.decode(image, tmp_path / "b").facts.media_kind == "image"


def test_dead_worker_is_nobodys_fault_and_replaced(tmp_path: Path, hanging: Path, image: Path) -> None:
    """When the worker itself is killed the object is not blamed; its child dies with it; a new one takes over."""
    with MediaWorker(MediaLimits()) as slot:
        pids: list[int] = []

        def kill_worker(child: int) -> None:
            assert slot._process is not None
            pids.append(child)
            os.kill(slot._process.pid, signal.SIGKILL)

        assert isinstance(while_hanging(slot, hanging, tmp_path / "a", kill_worker), ServiceError)
        wait_for(lambda: not is_alive(pids[0]))
        assert slot.decode(image, tmp_path / "b").facts.media_kind == "image"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_its_owner(tmp_path: Path, hanging: Path, number: int) -> None:
    """Ctrl-C, or the owner's violent death, leaves neither worker nor child behind."""
    command = [sys.executable, "-c", OWNER, str(hanging), str(tmp_path / "a")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as owner:
        wait_for((tmp_path / "a" / "stderr.txt").exists)
        (zygote,) = children(owner.pid)
        (child,) = children(zygote)
        owner.send_signal(number)
        owner.wait(20)
    wait_for(lambda: not is_alive(zygote) and not is_alive(child))


def test_close_ends_the_worker(image: Path, tmp_path: Path) -> None:
    """After the ``with`` block there is no process."""
    with MediaWorker(MediaLimits()) as slot:
        slot.decode(image, tmp_path / "a")
        assert slot._process is not None
        pid = slot._process.pid
    assert not is_alive(pid)


def test_worker_has_one_thread_and_no_secrets(monkeypatch: pytest.MonkeyPatch, image: Path, tmp_path: Path) -> None:
    """It may fork because it has no threads; keys and proxies of the owner are not in its environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("HTTPS_PROXY", "http://s3cret.example")
    with MediaWorker(MediaLimits()) as slot:
        slot.decode(image, tmp_path / "a")
        assert slot._process is not None
        process = Path(f"/proc/{slot._process.pid}")
        assert len(list((process / "task").iterdir())) == 1
        assert b"s3cret" not in (process / "environ").read_bytes()


def test_child_is_confined(worker: MediaWorker, tmp_path: Path, hanging: Path) -> None:
    """Own session and folder, no network, no new privileges, limits on memory, files, cores; nothing else open."""
    seen: dict[str, str] = {}

    def look(pid: int) -> None:
        process = Path(f"/proc/{pid}")
        seen.update(
            cwd=str((process / "cwd").readlink()),
            network=str((process / "ns" / "net").readlink()),
            limits=(process / "limits").read_text(encoding="ascii"),
            status=(process / "status").read_text(encoding="ascii"),
            session=str(os.getsid(pid)),
            files=" ".join(sorted(entry.name for entry in (process / "fd").iterdir())),
        )
        seen["pid"] = str(pid)
        os.kill(pid, signal.SIGKILL)

    while_hanging(worker, hanging, tmp_path / "a", look)
    limits = {line[:26].strip(): line[26:].split()[0] for line in seen["limits"].splitlines()}
    assert seen["cwd"] == str(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert seen["session"] == seen["pid"]
    assert (seen["network"] != str(Path("/proc/self/ns/net").readlink())) is worker.is_isolated
    assert "NoNewPrivs:\t1" in seen["status"]
    assert (limits["Max core file size"], limits["Max open files"]) == ("0", "64")
    assert 0 < int(limits["Max address space"]) < 2 * worker.limits.memory_bytes
    assert limits["Max cpu time"] == str(worker.limits.cpu_s)
    assert len(seen["files"].split()) <= 4


def test_result_larger_than_allowed_is_too_large(tmp_path: Path) -> None:
    """What a child may write is bounded, so that one object cannot fill the disk."""
    rng = np.random.default_rng(0)
    loud = rng.integers(-30_000, 30_000, 16_000 * 90).astype(np.int16)
    write_sound(tmp_path / "a.wav", loud)
    with MediaWorker(MediaLimits(output_bytes=MIB + 1)) as slot:
        assert reason_of(slot, tmp_path / "a.wav", tmp_path / "a") is Reason.TOO_LARGE


def test_unusable_folder_is_nobodys_fault(worker: MediaWorker, tmp_path: Path, image: Path) -> None:
    """When the child cannot work in its folder, the object is not blamed."""
    (tmp_path / "a" / "stderr.txt").mkdir(parents=True)
    with pytest.raises(ServiceError):
        worker.decode(image, tmp_path / "a")


def test_child_that_cannot_write_is_nobodys_fault(tmp_path: Path) -> None:
    """A full disk is retried without burning a try of the object."""
    with pytest.raises(ServiceError):
        _raise_for(
            Ending(EXIT_SERVICE, None, is_timeout=False, max_rss_bytes=0, cpu_s=0, wall_s=0), tmp_path, MediaLimits()
        )


def test_a_long_log_does_not_hide_the_end(tmp_path: Path) -> None:
    """What a decoder says last tells why it ended, however much it said before."""
    (tmp_path / "stderr.txt").write_bytes(b"noise\n" * 20_000 + b"terminate: std::bad_alloc\n")
    with pytest.raises(ObjectError) as caught:
        _raise_for(Ending(None, 6, is_timeout=False, max_rss_bytes=0, cpu_s=0, wall_s=0), tmp_path, MediaLimits())
    assert caught.value.reason is Reason.OUT_OF_MEMORY


@pytest.mark.parametrize("facts", ["", "{}", '{"media_kind": "spell", "container_kind": "x"}', '["video", "mp4"]'])
def test_facts_of_the_child_are_not_trusted(tmp_path: Path, facts: str) -> None:
    """What is not exactly a record of facts counts as a crash."""
    (tmp_path / "facts.json").write_text(facts, encoding="utf-8")
    with pytest.raises(ObjectError) as caught:
        _read_facts(tmp_path)
    assert caught.value.reason is Reason.CRASHED


def test_links_of_the_child_are_not_followed(tmp_path: Path) -> None:
    """A child cannot make its owner read another file."""
    (tmp_path / "true.json").write_text('{"media_kind": "video", "container_kind": "mp4"}', encoding="utf-8")
    (tmp_path / "facts.json").symlink_to(tmp_path / "true.json")
    (tmp_path / "segments.arrow").symlink_to(tmp_path / "true.json")
    for read in (_read_facts, _checked_segments):
        with pytest.raises(ObjectError):
            read(tmp_path)


def test_segments_of_the_child_are_not_trusted(tmp_path: Path) -> None:
    """Another schema, an unknown kind, or bytes that are no Arrow count as a crash."""
    file = tmp_path / "segments.arrow"
    with pa.ipc.new_stream(str(file), pa.schema([("x", pa.int8())])):
        pass
    with pytest.raises(ObjectError):
        _checked_segments(tmp_path)
    file.write_bytes(b"no arrow at all")
    with pytest.raises(ObjectError):
        _checked_segments(tmp_path)
    with SegmentWriter(file) as out:
        out.add(Segment("spell", 0))
    assert _checked_segments(tmp_path) == file
    with pytest.raises(ObjectError):
        list(read_segments(file))
    assert SEGMENT_SCHEMA.names[0] == "segment_kind"


@pytest.mark.parametrize("picture", [b"<svg onload='x'>", b"", b"\xff\xd8\xff" + bytes(400_000)])
def test_thumbnails_of_the_child_are_not_trusted(tmp_path: Path, picture: bytes) -> None:
    """Browsers are given them as they are: what is no small JPEG counts as a crash."""
    file = tmp_path / "segments.arrow"
    with SegmentWriter(file) as out:
        out.add(Segment("image", 0, thumbnail_jpeg=picture))
    with pytest.raises(ObjectError) as caught:
        list(read_segments(file))
    assert caught.value.reason is Reason.CRASHED


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_five_minutes(worker: MediaWorker, tmp_path: Path) -> None:
    """Memory does not grow with length: 12 times the media, less than 40 MiB more at the peak."""
    sound = np.concatenate([noise(9, seed) for seed in range(2)])
    clip = write_clip(tmp_path / "a.mp4", Clip([5, 13], fps=5, width=128, height=72, audio=sound))
    peaks = []
    for seconds in (300, 3_600):
        decoded = worker.decode(_repeat(clip, tmp_path / f"{seconds}.bin", seconds), tmp_path / str(seconds))
        assert decoded.facts.duration_s == pytest.approx(seconds, abs=19)  # whole clips
        n_scenes = sum(
            batch.column("segment_kind").to_pylist().count("scene") for batch in read_segments(decoded.segments)
        )
        assert n_scenes >= seconds // 18 * 2
        peaks.append(decoded.ending.max_rss_bytes)
    assert peaks[1] - peaks[0] < 40 * MIB
