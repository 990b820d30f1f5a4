"""What a folder does beyond the contract of stores: links, pipes, undecodable names, clocks, leftovers."""

import os
from pathlib import Path

import pytest

from mm_assets.buckets.base import ObjectChangedError, ObjectNotFoundError
from mm_assets.buckets.local import STAGING_FOLDER, LocalStore
from mm_assets.errors import ConfigError, ObjectError


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


def test_local_counts_undecodable_names(folder: LocalStore) -> None:
    """A name that is no UTF-8 has no key: skipped, counted once over all pages."""
    for name in (b"a", b"b\xff", b"c", b"d\xfe/e", b"z"):
        path = Path(os.fsdecode(os.fsencode(folder.folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for limit in (1, 2, 3, 10):
        after: str | None = ""
        keys, n_skipped = [], 0
        while after is not None:
            page = folder.list_page(after, limit)
            keys += [o.key for o in page.objects]
            n_skipped += page.n_skipped
            after = page.next_after
        assert (keys, n_skipped) == (["a", "c", "z"], 2)


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
