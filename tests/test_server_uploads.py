"""Direct uploads and their tasks: what goes in is tracked like any object, and nothing else can be written."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import Request
from flow_driver import process
from places import Place
from s3_server import make_client, moto_server
from server_driver import ALL_ON, Client, serving

from mm_assets.errors import ServiceError
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.server import uploads
from mm_assets.server.reading import Room, promised_bytes

# Keys that a path mangles easily; a bucket holds each of them.
HOSTILE_KEYS = (
    "a b+c&d=e.jpg",
    "a%2Fb.jpg",
    "a%252Fb%00.jpg",
    "//double//slash",
    "../../etc/passwd",
    "./a/./b",
    "/leading",
    "trailing/",
    "é e\u0301 日本 😀.jpg",
    "?query#fragment;x",
    "\\back\\slash",
    "'\"<>`|*[]{}~",
    "k" * 1_024,
)


def settings_with_uploads(place_folder: Path, **values: Any) -> dict[str, Any]:
    """Return settings whose one folder takes uploads."""
    source = {"uri": str(place_folder / "source"), "alias": "source", "uploads": True}
    return ALL_ON | {"sources": [source | values]}


@pytest.fixture
def workspace(make_workspace: Callable[..., Place], tmp_path: Path) -> Workspace:
    """Give a workspace whose folder takes uploads."""
    limits = {"max_object_bytes": 5_000_000, "min_object_bytes": 10, "exclude": ["private/**"]}
    return make_workspace(**settings_with_uploads(tmp_path, **limits)).open()


@pytest.fixture
def client(workspace: Workspace) -> Iterator[Client]:
    """Serve it."""
    with serving(workspace) as client:
        yield client


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Run an S3 server."""
    with moto_server() as url:
        yield url


def picture(media: Path) -> bytes:
    """Return the bytes of a picture."""
    return (media / "picture0.png").read_bytes()


# -- uploads -----------------------------------------------------------------------------------------------------


def test_upload_is_an_object_like_any_other(workspace: Workspace, client: Client, media: Path) -> None:
    """It is stored, booked at once under its task's id, and processed; the listing finds nothing new."""
    answer = client.with_key("POST", "/objects/source/pictures/one.png", picture(media))
    assert answer.status == 201
    told = answer.json()
    assert (told["source"], told["key"], told["size_bytes"]) == ("source", "pictures/one.png", len(picture(media)))
    assert workspace.sources["source"].read("pictures/one.png") == picture(media)
    task = client.with_key("GET", f"/tasks/{told['task_id']}").json()
    assert (task["status"], task["key"]) == ("waiting", "pictures/one.png")
    assert discover(workspace, "source").n_new == 0
    process(workspace)
    assert client.with_key("GET", f"/tasks/{told['task_id']}").json()["status"] == "done"


def test_large_upload_is_streamed(workspace: Workspace, client: Client) -> None:
    """Chunks, without a length; more than one buffer."""
    answer = client.with_key("POST", "/objects/source/large.bin", (b"x" * 300_000 for _ in range(10)))
    assert (answer.status, answer.json()["size_bytes"]) == (201, 3_000_000)


def test_second_upload_supersedes_the_first(client: Client) -> None:
    """The same key again is another version."""
    first, second = (client.with_key("POST", "/objects/source/a.txt", body * 20).json() for body in (b"1", b"22"))
    assert first["task_id"] != second["task_id"]
    assert client.with_key("GET", f"/tasks/{first['task_id']}").json()["status"] == "superseded"


def test_hostile_keys_arrive_as_they_are(
    make_workspace: Callable[..., Place], endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The key is the rest of the path, percent-decoded once: slashes, dots and escapes stay what they are."""
    make_client(endpoint).create_bucket(Bucket="uploads")
    keys = {
        "endpoint_url": endpoint,
        "region": "us-east-1",
        "access_key_id": "test-key",
        "secret_access_key": "test-secret",
    }
    source = {"uri": "s3://uploads", "alias": "source", "uploads": True} | keys
    workspace = make_workspace(**ALL_ON | {"sources": [source]}).open()
    with serving(workspace) as client:
        for key in HOSTILE_KEYS:
            answer = client.with_key("POST", f"/objects/source/{quote(key, safe='')}", b"some bytes")
            assert (answer.status, answer.json().get("key")) == (201, key), key
        raw = client.with_key("POST", "/objects/source//a/../b//c+d%2F%252F", b"some bytes")
    assert raw.json()["key"] == "/a/../b//c+d/%2F"
    stored = {item["Key"] for item in make_client(endpoint).list_objects_v2(Bucket="uploads")["Contents"]}
    assert stored == {*HOSTILE_KEYS, "/a/../b//c+d/%2F"}


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a%00b",
        "a%0Ab",
        "a%7Fb",
        "%FF%FE",
        "%ED%A0%80",
        "k" * 1_025,
        "%C3%A9" * 513,
        "../outside",
        "a//b",
        "private/a.jpg",
        ".mm_assets_tmp/a",
        "folder/",
    ],
)
def test_key_that_cannot_be_held_is_refused(client: Client, tmp_path: Path, path: str) -> None:
    """Controls, no UTF-8, too long, what a folder cannot hold, what the settings leave out: 400, nothing is written."""
    before = sorted(file for file in tmp_path.rglob("*") if file.suffix != ".db")
    answer = client.with_key("POST", f"/objects/source/{path}", b"")
    assert answer.status == 400
    assert set(answer.json()) == {"detail"}
    assert sorted(file for file in tmp_path.rglob("*") if file.suffix != ".db" and "ledger" not in file.name) == [
        file for file in before if "ledger" not in file.name
    ]


def test_lake_cannot_be_written(make_workspace: Callable[..., Place], tmp_path: Path) -> None:
    """A reserved prefix inside the source is refused."""
    values = settings_with_uploads(tmp_path) | {"lake": {"uri": str(tmp_path / "source" / "lake")}}
    with serving(make_workspace(**values).open()) as client:
        assert client.with_key("POST", "/objects/source/lake/lake.json", b"{}").status == 400


@pytest.mark.parametrize(("body", "status"), [(b"x" * 9, 400), (b"x" * 5_000_001, 413)])
def test_sizes_of_the_source_hold(client: Client, body: bytes, status: int) -> None:
    """What would be skipped is not stored."""
    assert client.with_key("POST", "/objects/source/a.bin", body).status == status


def test_chunks_beyond_the_limit_are_cut_off(workspace: Workspace, client: Client) -> None:
    """Without a length, too; nothing of it is stored."""
    assert client.with_key("POST", "/objects/source/a.bin", (b"x" * 1_000_000 for _ in range(6))).status == 413
    assert not workspace.sources["source"].list_page().objects


@pytest.mark.parametrize(("source", "status"), [("unknown", 404), ("so%2Furce", 404)])
def test_unknown_source_is_refused(client: Client, source: str, status: int) -> None:
    """There is nothing to guess."""
    assert client.with_key("POST", f"/objects/{source}/a.jpg", b"x" * 20).status == status


def test_first_part_of_the_path_is_meant(client: Client, workspace: Workspace) -> None:
    """An escaped slash there would make another place of it than the one that a proxy before us sees."""
    for path in ("/objects%2Fother/source/a.jpg", "/objects%2Fsource/a.jpg", "/%6Fbjects/source/a.jpg"):
        assert client.with_key("POST", path, b"x" * 20).status == 404
    assert not workspace.sources["source"].list_page().objects


def test_store_that_refuses_tells_nothing_of_itself(client: Client, tmp_path: Path) -> None:
    """The caller learns that the key cannot be held, not where the source lies."""
    answer = client.with_key("POST", "/objects/source/../outside", b"x" * 20)
    assert answer.status == 400
    assert str(tmp_path) not in answer.json()["detail"]


def test_room_for_bodies_is_bounded() -> None:
    """So many at once and so many bytes; one alone always, since it would never be taken otherwise."""
    room = Room(uploads._AT_ONCE, uploads._HELD_BYTES)
    with room.taken(uploads._HELD_BYTES + 1), pytest.raises(ServiceError), room.taken(1):
        pass
    with ExitStack() as held:
        for _ in range(uploads._AT_ONCE):
            held.enter_context(room.taken(uploads._HELD_BYTES // uploads._AT_ONCE))
        with pytest.raises(ServiceError), room.taken(0):
            pass
    with room.taken(uploads._HELD_BYTES), pytest.raises(ServiceError), room.taken(1):
        pass


def test_room_is_asked_for_by_the_promised_length(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a length the most that the source takes is set aside."""
    given: list[int] = []

    def note(_: Room, n_bytes: int) -> nullcontext[None]:
        given.append(n_bytes)
        return nullcontext()

    monkeypatch.setattr(Room, "taken", note)
    for body in (b"x" * 20, iter([b"x" * 20])):
        assert client.with_key("POST", "/objects/source/a.bin", body).status == 201
    assert given == [20, 5_000_000]


def test_upload_that_drips_gives_its_place_back(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no upload."""
    monkeypatch.setattr("mm_assets.server.reading._STALLED_AFTER_S", 0.3)

    def drip() -> Iterator[bytes]:
        for _ in range(60):
            time.sleep(0.1)
            yield b"x"

    with serving(workspace) as client:
        started = time.monotonic()
        with suppress(ConnectionError):  # closed while more was being sent
            assert client.with_key("POST", "/objects/source/a.bin", drip()).status == 408
        assert time.monotonic() - started < 4


def test_body_of_a_dead_server_is_removed(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an upload left behind that was killed takes no room for ever."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    left = tmp_path / "scratch" / "mm_assets-scratch-dead"
    left.mkdir(parents=True)
    (left / "body.bin").write_bytes(b"x")
    monkeypatch.setattr("mm_assets.flows.scratch._YOUNG_S", -1.0)
    assert client.with_key("POST", "/objects/source/a.bin", b"x" * 20).status == 201
    assert list((tmp_path / "scratch").iterdir()) == []


def test_source_must_allow_uploads(make_workspace: Callable[..., Place]) -> None:
    """Sources are only read unless their settings say otherwise."""
    place = make_workspace(**ALL_ON)
    with serving(place.open()) as client:
        assert client.with_key("POST", "/objects/source/a.jpg", b"x").status == 403
    assert not list(place.source.iterdir())


@pytest.mark.parametrize("path", ["/objects/source/a.jpg", "/tasks/0/cancel", "/tasks/0/retry"])
def test_key_is_needed(client: Client, path: str) -> None:
    """Without the API key or with a wrong one: 401."""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        assert client.ask("POST", path, b"x" * 20, headers).status == 401


def test_without_keys_nobody_may(make_workspace: Callable[..., Place], tmp_path: Path) -> None:
    """Any page in a browser can send to loopback, so no key means no upload, and reading for this machine alone."""
    values = settings_with_uploads(tmp_path) | {"serve": {}}
    with serving(make_workspace(**values).open()) as client:
        assert client.ask("POST", "/objects/source/a.jpg", b"x").status == 403
        assert client.ask("POST", "/tasks/0/cancel").status == 403
        assert client.ask("GET", "/tasks/0").status == 404
        assert client.ask("GET", "/metrics").status == 200


# -- tasks -------------------------------------------------------------------------------------------------------


def test_cancelled_task_is_not_processed_until_it_is_asked_for_again(
    workspace: Workspace, client: Client, media: Path
) -> None:
    """Cancel skips what was not begun, also before any row of work was opened; retry wants it again."""
    task = client.with_key("POST", "/objects/source/one.png", picture(media)).json()["task_id"]
    cancelled = client.with_key("POST", f"/tasks/{task}/cancel").json()
    assert (cancelled["status"], cancelled["n_cancelled"]) == ("cancelled", len(cancelled["steps"]))
    assert process(workspace) == []
    assert client.with_key("POST", f"/tasks/{task}/cancel").json()["n_cancelled"] == 0
    again = client.with_key("POST", f"/tasks/{task}/retry").json()
    assert (again["status"], again["n_wanted"]) == ("waiting", len(again["steps"]))
    process(workspace)
    assert client.with_key("GET", f"/tasks/{task}").json()["status"] == "done"
    assert client.with_key("POST", f"/tasks/{task}/cancel").json()["status"] == "done"


def test_failed_task_can_be_retried(workspace: Workspace, client: Client, media: Path) -> None:
    """Dead steps come back with all their tries, and what was skipped because of them."""
    task = client.with_key("POST", "/objects/source/broken.png", (media / "broken.png").read_bytes()).json()["task_id"]
    process(workspace)
    assert client.with_key("GET", f"/tasks/{task}").json()["status"] == "failed"
    again = client.with_key("POST", f"/tasks/{task}/retry").json()
    assert again["status"] == "waiting"
    assert {step["state"] for step in again["steps"] if step["step"] != "raw_objects"} == {"wanted"}
    process(workspace)
    assert client.with_key("GET", f"/tasks/{task}").json()["status"] == "failed"


@pytest.mark.parametrize("task", ["0", "0" * 32, "%2E%2E", "a'%20OR%201=1"])
@pytest.mark.parametrize(("method", "action"), [("GET", ""), ("POST", "/cancel"), ("POST", "/retry")])
def test_unknown_task_is_a_404(client: Client, task: str, method: str, action: str) -> None:
    """Ids are compared, never interpreted."""
    assert client.with_key(method, f"/tasks/{task}{action}").status == 404


@pytest.mark.parametrize(
    ("headers", "promised"),
    [({"content-length": "7"}, 7), ({}, 99), ({"content-length": "1", "transfer-encoding": "chunked"}, 99)],
)
def test_room_is_held_for_what_may_come(headers: dict[str, str], promised: int) -> None:
    """A length that HTTP overrides promises nothing."""
    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    assert promised_bytes(Request(scope), 99) == promised


def test_folders_of_dead_workers_do_not_hold_up_the_server(
    client: Client, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are swept when an upload begins, however many there are, beside the loop that answers everybody else."""
    threads: list[str] = []
    make = uploads.scratch

    @contextmanager
    def noting() -> Iterator[Path]:
        threads.append(threading.current_thread().name)
        with make() as folder:
            yield folder
        threads.append(threading.current_thread().name)

    monkeypatch.setattr(uploads, "scratch", noting)
    assert client.with_key("POST", "/objects/source/a.png", picture(media)).status == 201
    assert len(threads) == 2
    assert all("AnyIO worker" in name for name in threads)
