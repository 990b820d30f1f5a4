"""What a folder does beyond the contract of stores: links, pipes, undecodable names, clocks, leftovers."""

import errno
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_assets.buckets import local, walks
from mm_assets.buckets.base import ObjectChangedError, ObjectNotFoundError
from mm_assets.buckets.local import STAGING_FOLDER, LocalStore
from mm_assets.errors import ConfigError, ObjectError, ServiceError


@pytest.fixture
def folder(tmp_path: Path) -> LocalStore:
    """Return a store in a new folder."""
    return LocalStore(tmp_path / "lake", create=True)


def test_local_ignores_what_is_no_file_below_it(folder: LocalStore, tmp_path: Path) -> None:
    """Links (out, in, round in circles), pipes and staged files are neither listed nor read, written or deleted through."""
    folder.put("a/real", b"x")
    secret = tmp_path / "secrets"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    (folder.folder / "out").symlink_to(secret)
    (folder.folder / "out_file").symlink_to(secret / "key")
    (folder.folder / "a/loop").symlink_to(folder.folder)
    os.mkfifo(folder.folder / "pipe")
    (folder.folder / STAGING_FOLDER / "left").write_bytes(b"half")
    assert [o.key for o in folder.list_page().objects] == ["a/real"]
    for key in ("out/key", "out_file", "a/loop/a/real", "pipe"):
        with pytest.raises(ObjectNotFoundError):
            folder.read(key)
        folder.delete(key)
    for key in ("out/new", f"{STAGING_FOLDER}/left"):
        with pytest.raises(ObjectError):
            folder.put(key, b"")
    assert [p.name for p in secret.iterdir()] == ["key"]


@pytest.mark.parametrize(("year", "seconds"), [(9999, 400_000_000_000), (1, -70_000_000_000), (2009, 1_234_567_890)])
def test_local_lists_files_of_any_year(
    folder: LocalStore, monkeypatch: pytest.MonkeyPatch, year: int, seconds: int
) -> None:
    """File systems take years that dates do not: such a file has the nearest date, and hides no other."""
    folder.put("k", b"x")

    def dated(path: Path) -> SimpleNamespace:
        found = os.lstat(path)
        facts = {name: getattr(found, name) for name in ("st_mode", "st_size", "st_ctime_ns", "st_ino")}
        return SimpleNamespace(**facts, st_mtime_ns=seconds * 10**9)

    monkeypatch.setattr(Path, "lstat", dated)
    [listed] = folder.list_page().objects
    assert (listed.key, listed.modified_at.year) == ("k", year)
    assert listed.modified_at.tzinfo is not None


def test_local_counts_undecodable_names(folder: LocalStore) -> None:
    """A name that is no UTF-8 has no key: told once over all pages."""
    for name in (b"a", b"b\xff", b"c", b"d\xfe/e", b"z"):
        path = Path(os.fsdecode(os.fsencode(folder.folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for limit in (1, 2, 3, 10):
        after: str | None = ""
        keys, skipped = [], []
        while after is not None:
            page = folder.list_page(after, limit)
            keys += [o.key for o in page.objects]
            skipped += page.skipped
            after = page.next_after
        assert (keys, skipped) == (["a", "c", "z"], ["b\udcff", "d\udcfe/e"])


def test_local_sees_an_overwrite_in_place_with_its_time_put_back(folder: LocalStore) -> None:
    """Same size, same modification time, same inode: the change time tells."""
    etag = folder.put("k", b"one")
    path = folder.folder / "k"
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert folder.head("k").etag != etag


def test_local_notices_a_file_that_grows_while_it_is_read(folder: LocalStore, tmp_path: Path) -> None:
    """Bytes of two states are not handed out as one object."""
    folder.put("k", b"x" * 10_000)

    def append(_: bytes) -> bool:
        with (folder.folder / "k").open("ab") as file:
            file.write(b"y")
        return True

    with pytest.raises(ObjectChangedError):
        folder.download("k", tmp_path / "t", accept=append)
    assert not (tmp_path / "t").exists()


def test_local_delete_prunes_empty_folders_up_to_the_root(folder: LocalStore) -> None:
    """No empty folders stay behind, and the root stays."""
    folder.put("a/b/c", b"")
    folder.put("a/d", b"")
    folder.delete("a/b/c")
    assert not (folder.folder / "a/b").exists()
    folder.delete("a/d")
    assert [p.name for p in folder.folder.iterdir()] == [STAGING_FOLDER]


def test_local_refuses_a_key_where_a_folder_stands(folder: LocalStore) -> None:
    """A bucket can hold 'a' and 'a/b', a folder cannot, and says so about the one object."""
    folder.put("a/b", b"")
    for key in ("a", "a/b/c"):
        with pytest.raises(ObjectError, match="both"):
            folder.put(key, b"")
    assert [p.name for p in (folder.folder / STAGING_FOLDER).iterdir()] == []


def test_local_takes_a_missing_source_for_an_error_not_for_empty(tmp_path: Path) -> None:
    """An unmounted disk must not look like a deleted collection; a lake may be new."""
    source, lake = LocalStore(tmp_path / "x"), LocalStore(tmp_path / "x", create=True)
    for call in (source.check, source.list_page, lambda: source.put("k", b"")):
        with pytest.raises(ConfigError, match="mounted"):
            call()
    lake.check()
    assert lake.list_page().objects == ()
    assert not (tmp_path / "x").exists()


def test_local_check_sweeps_what_killed_writers_left(folder: LocalStore) -> None:
    """Leftovers older than a day go; younger ones may be another process's work."""
    folder.put("k", b"")
    for name, age in (("old", 90_000), ("young", 60)):
        leftover = folder.folder / STAGING_FOLDER / name
        leftover.touch()
        os.utime(leftover, (leftover.stat().st_atime - age, leftover.stat().st_mtime - age))
    folder.check(writes=True)
    assert [p.name for p in (folder.folder / STAGING_FOLDER).iterdir()] == ["young"]


def test_local_reads_a_large_folder_once_for_all_pages(folder: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a flat folder cost their own files, not the whole folder each; every file is listed once."""
    folder.folder.mkdir()
    names = [f"{number:05d}" for number in range(3_000)]
    for name in names:
        (folder.folder / name).touch()
    later = time.time_ns() + 10**10
    monkeypatch.setattr(walks.time, "time_ns", lambda: later)
    scans: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(local.os, "scandir", lambda path: scans.append(path) or scandir(path))
    assert _list_names(folder, 100) == names
    assert len(scans) == 1
    assert _list_names(folder, 100) == names
    assert len(scans) == 2  # another pass reads it again


def test_local_sees_changes_of_a_large_folder_between_pages(
    folder: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What appears or vanishes behind the cursor of a pass is seen by the same pass, as in a bucket."""
    folder.folder.mkdir()
    for number in range(1_500):
        (folder.folder / f"{number:05d}").touch()
    later = time.time_ns() + 10**10
    monkeypatch.setattr(walks.time, "time_ns", lambda: later)
    first = folder.list_page(limit=100)
    assert first.next_after is not None
    (folder.folder / "00700x").touch()
    (folder.folder / "00701").unlink()
    rest = [o.key for o in folder.list_page(first.next_after, limit=5_000).objects]
    assert "00700x" in rest
    assert "00701" not in rest
    assert len(rest) == 1_400


def _list_names(store: LocalStore, limit: int) -> list[str]:
    after: str | None = ""
    keys: list[str] = []
    while after is not None:
        page = store.list_page(after, limit)
        keys += [o.key for o in page.objects]
        after = page.next_after
    return keys


@given(
    keys=st.sets(st.lists(st.text("ab-0~", min_size=1, max_size=2), min_size=1, max_size=3).map("/".join), max_size=12),
    after=st.text("ab-0~/", max_size=5),
    prefix=st.text("ab-0~/", max_size=4),
    limit=st.integers(1, 4),
)
def test_walk_gives_what_sorting_all_keys_would(keys: set[str], after: str, prefix: str, limit: int) -> None:
    """Any tree, start and prefix: the walk finds its place by bisection and gives exactly the wanted keys in order."""
    files = {key for key in keys if not any(other.startswith(key + "/") for other in keys)}

    def scan(folder: bytes) -> Iterator[bytes]:
        below = {key[len(folder) :] for key in map(str.encode, files) if key.startswith(folder)}
        yield from {folder + name.partition(b"/")[0] + (b"/" if b"/" in name else b"") for name in below}

    walked = list(islice(walks.Walk(walks.Names(b"/nowhere", scan), after, prefix), limit))
    assert walked == sorted((k for k in files if k > after and k.startswith(prefix)), key=str.encode)[:limit]


def test_local_abort_removes_staged_files_by_age(folder: LocalStore) -> None:
    """What killed writers left goes when it is old enough; objects stay."""
    folder.put("k", b"")
    leftover = folder.folder / STAGING_FOLDER / "left"
    leftover.touch()
    assert folder.abort_stale_uploads(60) == 0
    os.utime(leftover, (0, 0))
    assert folder.abort_stale_uploads(60) == 1
    assert [o.key for o in folder.list_page().objects] == ["k"]


def test_local_makes_nothing_beyond_a_link(folder: LocalStore, tmp_path: Path) -> None:
    """A key through a symbolic link is refused before a folder is made on its other side."""
    folder.put("there", b"")
    (tmp_path / "outside").mkdir()
    (folder.folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ObjectError, match="symbolic link"):
        folder.put("link/x/y/z", b"")
    assert list((tmp_path / "outside").iterdir()) == []


def test_local_refuses_a_name_that_is_too_long_before_it_makes_anything(folder: LocalStore) -> None:
    """It leaves nothing, at whatever depth the name stands."""
    (folder.folder / "mine").mkdir(parents=True)
    for key in ("a/b/" + "k" * 300, "a/" + "k" * 300 + "/c", "mine/" + "é" * 150):
        with pytest.raises(ObjectError, match="shorter"):
            folder.put(key, b"")
    assert [path.name for path in folder.folder.iterdir()] == ["mine"]


def test_local_leaves_no_folders_of_a_write_that_failed(folder: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that it made go again; an empty one that was there before stays."""
    (folder.folder / "mine").mkdir(parents=True)

    def fail(*_: object) -> None:
        message = "the disk fails"
        raise OSError(errno.EIO, message)

    monkeypatch.setattr(Path, "replace", fail)
    for key in ("a/b/c", "mine/a/b", "mine/c"):
        with pytest.raises(ServiceError, match="disk"):
            folder.put(key, b"")
    assert sorted(path.name for path in folder.folder.iterdir()) == [STAGING_FOLDER, "mine"]
    assert list((folder.folder / "mine").iterdir()) == []
