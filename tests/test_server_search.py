"""Search and what is known over HTTP: answers, who may ask, and what is refused."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fakes import FakeFaces, fake_extractors, hash_vectors
from fastapi import HTTPException, Request
from flow_driver import ingest
from PIL import Image
from places import Place
from server_driver import API_KEY, JSON, TOKEN, Answer, Client, serving
from sqlalchemy import text

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.extractors.packs import Pack
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.retrieval import Question, Retriever, filters
from mm_assets.retrieval.answers import Pictures
from mm_assets.server import searching
from mm_assets.server.access import Guard
from mm_assets.server.limits import RateLimit
from mm_assets.server.receivers import receivers_on
from mm_assets.settings import EventSettings, Settings

Serve = Callable[..., AbstractContextManager[Client]]
SOURCES = ("source", "other")
LOCAL = JSON | {"Host": "127.0.0.1:8787"}


def bearer(key: str) -> dict[str, str]:
    """Return the headers of a question with a key."""
    return JSON | {"Authorization": f"Bearer {key}"}


def ask(client: Client, headers: Mapping[str, str] = JSON, **question: Any) -> Answer:
    """Ask a question."""
    return client.ask("POST", "/search", json.dumps(question), headers)


def keys_of(answer: Answer) -> set[str]:
    """Return the keys of the objects that were found."""
    assert answer.status == 200, answer.body
    return {found["object"]["key"] for found in answer.json()["answers"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Place]:
    """Give a place of two sources whose media are searchable."""
    place = Place(tmp_path_factory.mktemp("served"), media)
    place.write_settings(SOURCES)
    place.add("picture0.png", "clip.mp4", "sound.wav")
    place.add("picture1.png", source="other")
    workspace = place.open()
    discover(workspace, "other")
    ingest(workspace)
    yield place
    place.drop_databases()


@pytest.fixture
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let search open the fakes where it would open models."""

    def build(step: str, _pack: Pack, _params: object, _placement: object) -> Any:
        steps = {"sources": [{"uri": "source", "steps": [step]}]}
        return fake_extractors(Settings(**steps))[step]  # type: ignore[arg-type]

    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", build)


@pytest.fixture
def opened(place: Place) -> Iterator[Workspace]:
    """Open the place without a key."""
    place.write_settings(SOURCES)
    workspace = place.open()
    yield workspace
    with workspace.ledger.keys._engine.begin() as connection:
        connection.execute(text("DELETE FROM api_keys"))


@pytest.fixture
def client(opened: Workspace, fake_models: None) -> Iterator[Client]:
    """Serve it."""
    with serving(opened) as client:
        yield client


@pytest.fixture
def serve(opened: Workspace, place: Place, fake_models: None) -> Serve:
    """Give a function that serves it with settings of the server."""

    @contextmanager
    def start(**settings: Any) -> Iterator[Client]:
        place.write_settings(SOURCES, serve=settings)
        with serving(place.open()) as client:
            yield client

    return start


# -- questions and answers ---------------------------------------------------------------------------------------------


def test_an_answer_has_all_that_a_page_needs(client: Client) -> None:
    """Place, reason, object, link, and a thumbnail that is there."""
    found = ask(client, text="anything").json()
    assert found["notes"] == []
    assert [answer["rank"] for answer in found["answers"]] == [1, 2, 3, 4]
    for answer in found["answers"]:
        assert set(answer["object"]) == {"bucket", "key", "etag", "object_id"}
        assert answer["segment_id"].startswith(answer["object"]["object_id"])
        assert answer["link"].startswith("file:///")
        assert answer["why"].startswith("looks like the text (")
        assert answer["signals"][0]["rank"] == answer["rank"]
        assert client.ask("GET", answer["thumbnail"]).status == 200
    [scene, _] = [answer for answer in found["answers"] if answer["object"]["key"] == "clip.mp4"]
    assert scene["end_s"] > scene["start_s"] >= 0


def test_every_part_of_a_question_is_asked(client: Client, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, a picture, a face, a segment; grouped, filtered, bounded."""
    faces = np.array([[0, 0, 1, 1], [0, 0, 9, 9]]), hash_vectors([b"small", b"large"])
    monkeypatch.setattr(FakeFaces, "find_faces", lambda *_: faces)
    picture = base64.b64encode((media / "picture0.png").read_bytes()).decode()
    assert keys_of(ask(client, shown="text", k=1, spaces=["words"])) <= {"picture0.png", "picture1.png", "clip.mp4"}
    assert keys_of(ask(client, said="words")) == {"clip.mp4", "sound.wav"}
    assert len(ask(client, image=picture, k=2).json()["answers"]) == 2
    answer = ask(client, face=picture).json()
    assert answer["notes"] == ["2 faces are in the picture; the largest one is asked for"]
    assert answer["answers"][0]["box_px"] == [0.0, 0.0, 10.0, 10.0]
    segment = ask(client, text="anything").json()["answers"][-1]["segment_id"]
    assert ask(client, like=segment, weights={"visual": 2}).json()["answers"][0]["segment_id"] == segment
    alike = ask(client, like=segment, threshold=1).json()["answers"]
    assert [answer["segment_id"] for answer in alike] == [segment]
    grouped = ask(client, text="anything", group_by="object", diversify=0.5, collapse=True).json()["answers"]
    assert sorted(answer["object"]["key"] for answer in grouped) == ["clip.mp4", "picture0.png", "picture1.png"]


def test_filters_narrow_the_answers(client: Client) -> None:
    """All of them must pass."""
    video = {"column": "media_kind", "op": "=", "value": "video"}
    assert keys_of(ask(client, text="anything", filters=[video])) == {"clip.mp4"}
    young = {"column": "modified_at", "op": ">", "value": "2001-01-01T00:00:00Z"}
    assert keys_of(ask(client, text="anything", filters=[video, young])) == {"clip.mp4"}
    late = {"column": "start_s", "op": ">", "value": 1e9}
    assert keys_of(ask(client, text="anything", filters=[video, late])) == set()
    assert keys_of(ask(client, text="anything", filters=[{"column": "duration_s", "op": "is_null"}])) == {
        "picture0.png",
        "picture1.png",
    }


def test_too_many_answers_are_bounded_and_said(client: Client) -> None:
    """A million are a thousand."""
    answer = ask(client, text="anything", k=10**6).json()
    assert answer["notes"] == ["1000 answers at most are given, not 1000000"]
    assert len(answer["answers"]) == 4


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ({}, "nothing is asked"),
        ({"text": "x" * 10_000}, "text has 10000 characters, 2000 at most"),
        ({"text": "x", "where": "1=1"}, "where: there is no such field; there are text, image"),
        ({"text": 5}, "text: Input should be a valid string"),
        ({"text": "x", "k": 0}, "k must be at least 1"),
        ({"text": "x", "k": "5"}, "k: Input should be a valid integer"),
        ({"text": "x", "diversify": 2}, "diversify is between 0 and 1"),
        ({"text": "x", "threshold": -2}, "threshold is a cosine"),
        ({"text": "x", "weights": {"visual": float("nan")}}, "weights.visual"),
        ({"text": "x", "spaces": ["smell"]}, "unknown signal 'smell'"),
        ({"text": "x", "group_by": "day"}, "group_by: Input should be 'object'"),
        ({"like": "nobody"}, "no keyframe is indexed for segment 'nobody'"),
        ({"said": "..."}, "no word in"),
        ({"image": "?" * 100}, "image is no base64"),
        ({"image": ""}, "image is no base64"),
        ({"image": base64.b64encode(b"\xff\xd8\xff half").decode()}, "the picture cannot be read as a picture; give"),
        ({"face": base64.b64encode(b"<svg/>").decode()}, "the picture cannot be read as a picture; give"),
        ({"text": "x", "filters": [{"column": "durations_s", "op": ">", "value": 5}]}, "did you mean duration_s"),
        ({"text": "x", "filters": [{"column": "key", "op": "~", "value": "x"}]}, "unknown comparison '~'"),
        ({"text": "x", "filters": [{"column": "key", "op": "=", "value": 5}]}, "filter on key: give a text"),
        ({"text": "x", "filters": [{"column": "start_s", "op": "<", "value": float("nan")}]}, "finite"),
        ({"text": "x", "filters": [{"column": "key", "op": "=", "value": "x", "sql": ""}]}, "filters.0.sql"),
        ({"text": "x", "filters": [{"column": "key", "op": "=", "value": "x"}] * 51}, "filters: List should have"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_400(client: Client, question: dict[str, Any], told: str) -> None:
    """One line says what is wrong; nothing of the inside."""
    answer = ask(client, **question)
    assert answer.status == 400, answer.body
    assert told in answer.json()["detail"]
    assert b"Traceback" not in answer.body
    assert b"0x" not in answer.body


@pytest.mark.parametrize("part", ["column", "op"])
def test_a_name_without_end_costs_nothing(client: Client, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """A filter's column and comparison are never compared with others, nor told whole, where nothing is so long."""
    given = {"column": "key", "op": "=", "value": "x"} | {part: "k" * 5_000_000}
    answer = ask(client, text="x", filters=[given])
    assert (answer.status, len(answer.body) < 200) == (400, True)
    assert f"filters.0.{part}: String should have at most 64 characters" in answer.json()["detail"]
    monkeypatch.setattr(filters, "get_close_matches", lambda *_: pytest.fail("it was compared"))
    with pytest.raises(ConfigError, match="unknown") as raised:
        filters.to_condition([filters.Filter(**given)])
    assert len(str(raised.value)) < 1_000


def test_a_picture_beyond_the_limit_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it would be decoded."""
    monkeypatch.setattr(searching, "_MAX_PICTURE_CHARS", 1_000)
    answer = ask(client, image="A" * 1_004)
    assert (answer.status, answer.json()["detail"]) == (400, "image is larger than 10,000,000 bytes; scale it down")


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"text": "\\ud800"}'])
def test_nonsense_is_a_400(client: Client, body: bytes) -> None:
    """It is no JSON, or no question."""
    answer = client.ask("POST", "/search", body, JSON)
    assert answer.status == 400
    assert set(answer.json()) == {"detail"}


def test_a_large_body_is_cut_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its length, and without one by what comes."""
    monkeypatch.setattr(searching, "_MAX_BODY_BYTES", 10_000)
    assert client.ask("POST", "/search", b" " * 10_001, JSON).status == 413
    assert client.ask("POST", "/search", (b" " * 1_000 for _ in range(11)), JSON).status == 413
    assert client.ask("POST", "/search", b'{"text": "x"}' + b" " * 9_000, JSON).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_question_says_that_it_is_json(client: Client, kind: str) -> None:
    """A form of a page in a browser is none."""
    assert client.ask("POST", "/search", b'{"text": "x"}', {"Content-Type": kind}).status == 415


def test_a_question_that_takes_too_long_is_a_503(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited behind it, too; nothing that waits is answered for nobody, and the next question is."""
    assert ask(client, text="x").status == 200  # it is open from here on
    may_go, asked = threading.Event(), list[Question]()
    answer = Retriever.ask

    def hang(self: Retriever, question: Question) -> Any:
        asked.append(question)
        may_go.wait(20)
        return answer(self, question)

    monkeypatch.setattr(searching, "_ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(Retriever, "ask", hang)
    with ThreadPoolExecutor(3) as pool:
        late = [pool.submit(ask, client, text="x") for _ in range(3)]
        assert [(one.result().status, one.result().headers["retry-after"]) for one in late] == [(503, "5")] * 3
    assert len(asked) == 1
    may_go.set()
    monkeypatch.setattr(searching, "_ANSWER_WITHIN_S", 20.0)
    assert ask(client, text="x").status == 200


def test_only_so_many_questions_wait(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded: what is more is a 503 at once, while the others wait."""
    may_go, begun = threading.Event(), list[Question]()

    def hang(_: object, question: Question) -> Any:
        begun.append(question)
        may_go.wait(20)
        msg = "over"
        raise ServiceError(msg)

    monkeypatch.setattr(Retriever, "ask", hang)
    most = searching._AT_ONCE
    with ThreadPoolExecutor(2 * most) as pool:
        asked = [pool.submit(ask, client, text="x") for _ in range(2 * most)]
        refused = [one.result().status for one in islice(as_completed(asked), most)]
        while not begun:  # its question is still being read
            time.sleep(0.05)
        assert len(begun) == 1
        may_go.set()
        assert refused == [503] * most
        assert {one.result().status for one in asked} == {503}
    assert len(begun) == most


def test_a_failure_of_ours_tells_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is a 500 with one line."""
    monkeypatch.setattr(Retriever, "ask", lambda *_: 1 / 0)
    answer = ask(client, text="x")
    assert (answer.status, answer.json()) == (500, {"detail": "internal error; see the server's log"})


def test_nothing_published_says_what_to_run(make_workspace: Callable[..., Place], fake_models: None) -> None:
    """Before the first ingest: a 503, no error of the caller."""
    with serving(make_workspace().open()) as client:
        answer = ask(client, text="x")
        assert answer.status == 503
        assert "run `mm ingest`" in answer.json()["detail"]
        assert client.ask("GET", "/tables").json() == []
        assert client.ask("GET", f"/segments/{'0' * 32}-s000000/thumbnail").status == 404


# -- objects, thumbnails, tables ---------------------------------------------------------------------------------------


def test_an_object_is_told_as_by_the_command(client: Client, opened: Workspace) -> None:
    """The same story."""
    known = opened.ledger.objects.find("clip.mp4")[0]
    story = client.ask("GET", f"/objects/{known.object_id}").json()
    assert story["object"]["key"] == "clip.mp4"
    assert {step["state"] for step in story["steps"]} == {"done"}
    assert len(story["segments"]) == 3
    assert {row["label"] for row in story["found"]["detected_objects"]} == {"thing"}


@pytest.mark.parametrize("name", ["0" * 32, "0" * 16, "clip.mp4", "%00", "..", "0" * 10_000])
def test_an_unknown_object_is_a_404(client: Client, name: str) -> None:
    """Ids are compared, never interpreted."""
    assert client.ask("GET", f"/objects/{name}").status == 404
    assert client.ask("GET", f"/segments/{name}-s000000/thumbnail").status == 404


def test_a_thumbnail_is_a_small_jpeg_that_may_be_kept(client: Client) -> None:
    """Asked for again with its tag, it is not sent again."""
    path = ask(client, text="anything").json()["answers"][0]["thumbnail"]
    answer = client.ask("GET", path)
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("image/jpeg", "nosniff")
    assert answer.headers["cache-control"] == "private, max-age=86400"
    with Image.open(io.BytesIO(answer.body), formats=("JPEG",)) as image:
        assert image.size == (64, 48)
    again = client.ask("GET", path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert client.ask("GET", path, headers={"If-None-Match": '"other"'}).status == 200


def test_a_thumbnail_reads_little_of_a_film(
    make_workspace: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many pictures, those that lie in one group with the asked one, and no keyframe; a segment without costs none."""
    lake, object_id = make_workspace().open().lake, "ab" * 16
    ids, jpegs = [f"{object_id}-s{n:06}" for n in range(300)], [_noise(n) for n in range(300)]
    large, small = [jpeg * 20 for jpeg in jpegs], pa.array([*jpegs[:-1], None], pa.binary())
    rows = pa.table({"segment_id": ids, "keyframe_jpeg": large, "thumbnail_jpeg": small})
    lake.write_result("segments", "recipe", object_id, rows, {})
    read, pictures, asked = type(lake.store).read_range, Pictures(lake, "recipe"), list[int]()

    def count(self: Any, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        asked.append(length)
        return read(self, key, start, length, etag=etag)

    monkeypatch.setattr(type(lake.store), "read_range", count)
    for n in (0, 63, 64, 150, 298):
        picture = pictures.thumbnail(object_id, ids[n])
        assert picture is not None
        assert picture == jpegs[n]
        assert sum(asked) < sum(map(len, jpegs)) / 3
        asked.clear()
        assert pictures.keyframe(object_id, ids[n]) == large[n]
        asked.clear()
    assert [pictures.thumbnail(object_id, one) for one in (ids[299], f"{object_id}-s000300", "")] == [None] * 3
    assert pictures.thumbnail("cd" * 16, ids[0]) is None
    lake.write_result("segments", "older", object_id, rows.drop_columns("thumbnail_jpeg"), {})
    assert Pictures(lake, "older").thumbnail(object_id, ids[0]) is None


def _noise(seed: int) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "JPEG", quality=95)
    return sink.getvalue()


@pytest.mark.parametrize("tail", ["s999999", "s0", "s000000%0d%0ax", "x", "s000000/../x"])
def test_a_segment_without_a_picture_is_a_404(client: Client, opened: Workspace, tail: str) -> None:
    """Sound, or none at all."""
    object_id = opened.ledger.objects.find("clip.mp4")[0].object_id
    assert client.ask("GET", f"/segments/{object_id}-{tail}/thumbnail").status == 404
    [sound] = opened.ledger.objects.find("sound.wav")
    assert client.ask("GET", f"/segments/{sound.object_id}-a000000/thumbnail").status == 404


def test_a_lake_that_hangs_holds_up_nobody_else(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pictures are waited for, probes and events have threads."""
    path = ask(client, text="anything").json()["answers"][0]["thumbnail"]
    may_go = threading.Event()
    monkeypatch.setattr(Pictures, "thumbnail", lambda *_: may_go.wait(20) and b"jpeg")
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(client.ask, "GET", path) for _ in range(60)]
        time.sleep(0.5)
        started = time.monotonic()
        assert client.ask("GET", "/healthz").status == 200
        assert client.ask("GET", "/tables").status == 200
        assert time.monotonic() - started < 10
        may_go.set()
        assert {one.result().status for one in waiting} == {200}


def test_tables_are_listed_with_what_they_mean(client: Client, opened: Workspace) -> None:
    """Rows, columns with types and meanings, and where the files lie."""
    tables = {table["name"]: table for table in client.ask("GET", "/tables").json()}
    segments, vectors = tables["segments"], tables["visual_embeddings"]
    assert segments["n_rows"] == len(opened.lake.read_table("segments") or ())
    assert segments["uri"] == f"{opened.lake.uri}/tables/segments/**/*.parquet"
    columns = {column["name"]: column for column in segments["columns"]}
    assert (columns["start_s"]["type"], columns["start_s"]["nullable"]) == ("double", True)
    assert columns["key"]["meaning"] == "key of the object, as it is in the source"
    assert "keyframe_jpeg" not in columns
    assert vectors["columns"][-2]["type"] == "fixed_size_list<float>"


# -- without a key -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:1", "127.0.0.1:65535", "[::1]:80"])
@pytest.mark.parametrize("site", [None, "same-origin", "none"])
def test_this_machine_may_read_and_search(client: Client, host: str, site: str | None) -> None:
    """By any of its names, from a program, the address bar, or a page of ours."""
    headers = {"Host": host} | ({"Sec-Fetch-Site": site} if site else {})
    assert client.ask("GET", "/tables", headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8787"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost@evil.example"},
        {"Host": "192.168.1.2"},
        {"Host": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        {"X-Forwarded-For": "203.0.113.5"},
        {"Forwarded": "for=203.0.113.5"},
        {"Via": "1.1 proxy"},
    ],
)
def test_others_may_not(client: Client, headers: dict[str, str]) -> None:
    """A name that was made to lead here, a page of another site, a proxy before us: 403, whatever is asked."""
    assert ask(client, LOCAL | headers, text="x").status == 403
    for path in ("/tables", "/metrics", f"/objects/{'0' * 32}", f"/segments/{'0' * 32}-s000000/thumbnail", "/tasks/0"):
        assert client.ask("GET", path, headers=LOCAL | headers).status == 403


def test_two_answers_to_where_from_are_none(client: Client) -> None:
    """A second header does not hide behind the first."""
    head = b"GET /tables HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nSec-Fetch-Site: none\r\n"
    assert client.send(head + b"\r\n").startswith(b"HTTP/1.1 200")
    assert client.send(head + b"Sec-Fetch-Site: cross-site\r\n\r\n").startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    ("address", "may"), [("127.0.0.1", True), ("::1", True), ("192.168.1.2", False), ("/a.sock", False)]
)
def test_the_connection_itself_must_be_loopback(opened: Workspace, address: str, *, may: bool) -> None:
    """Whatever `Host` says, where a server listens on more."""
    scope = {
        "type": "http",
        "headers": [(b"host", b"localhost")],
        "server": (address, 8787),
        "client": ("127.0.0.1", 1),
    }
    admit = Guard(opened).requires("read")
    with nullcontext() if may else pytest.raises(HTTPException, match="only this machine"):
        assert admit(Request(scope), None).rights == ("search", "read")


# -- with keys ---------------------------------------------------------------------------------------------------------


def test_once_there_is_a_key_it_is_demanded(client: Client, opened: Workspace) -> None:
    """Also of this machine, at once, and also after the only key was revoked."""
    assert ask(client, text="x").status == 200
    key = opened.ledger.keys.add("web", ["search"])
    assert ask(client, text="x").status == 401
    assert ask(client, bearer(key), text="x").status == 200
    opened.ledger.keys.revoke("web")
    assert ask(client, bearer(key), text="x").status == 401
    assert ask(client, text="x").status == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", "Basic eDp5", "Bearer mm_0123456789abcdef_" + "x" * 43]
)
def test_a_wrong_key_is_a_401(client: Client, opened: Workspace, header: str) -> None:
    """Whatever it looks like; the answer says which kind is wanted."""
    opened.ledger.keys.add("web", ["search"])
    answer = ask(client, JSON | {"Authorization": header}, text="x")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("right", ["search", "read", "upload", "events"])
def test_a_key_allows_what_it_says(client: Client, opened: Workspace, right: str) -> None:
    """And nothing else: the request gets past the guard, or is a 403 (401 for providers, who know no other)."""
    headers = bearer(opened.ledger.keys.add("one", [right]))
    asked = {
        ("POST", "/search"): "search",
        ("GET", "/tables"): "read",
        ("GET", "/metrics"): "read",
        ("GET", "/tasks/0"): "read",
        ("GET", f"/objects/{'0' * 32}"): "read",
        ("GET", f"/segments/{'0' * 32}-s000000/thumbnail"): "read",
        ("POST", "/tasks/0/cancel"): "upload",
        ("POST", "/tasks/0/retry"): "upload",
        ("POST", "/objects/source/a.jpg"): "upload",
        ("POST", "/events/s3"): "events",
        ("POST", "/events/tigris"): "events",
    }
    for (method, path), needed in asked.items():
        answer = client.ask(method, path, b"{}", headers)
        is_refused = answer.status in {401, 403} and b"uploads" not in answer.body
        assert is_refused == (needed != right), (path, answer)


def test_keys_of_the_settings_have_all_rights(serve: Serve) -> None:
    """They did before there were others."""
    with serve(api_keys=[API_KEY]) as client:
        assert ask(client, text="x").status == 401
        assert ask(client, bearer(API_KEY), text="x").status == 200
        for path in ("/tables", "/metrics"):
            assert client.with_key("GET", path).status == 200
        assert (
            client.with_key("POST", "/objects/source/a.jpg", b"x").json()["detail"].startswith("this source takes no")
        )


def test_a_key_for_a_source_sees_only_this(client: Client, opened: Workspace) -> None:
    """Answers, objects, thumbnails, tasks and uploads of others are not there; sums over all are not told."""
    headers = bearer(opened.ledger.keys.add("one", ["search", "read", "upload"], ["other"]))
    everything = bearer(opened.ledger.keys.add("all", ["search", "read"]))
    ours, theirs = (opened.ledger.objects.find(name)[0].object_id for name in ("picture1.png", "picture0.png"))
    assert keys_of(ask(client, everything, text="anything")) > {"picture0.png", "picture1.png"}
    assert keys_of(ask(client, headers, text="anything")) == {"picture1.png"}
    sneaky = {"column": "bucket", "op": "in", "value": ["source", "other"]}
    assert keys_of(ask(client, headers, text="anything", filters=[sneaky])) == {"picture1.png"}
    segments = {
        found["object"]["object_id"]: found["segment_id"]
        for found in ask(client, everything, text="anything").json()["answers"]
    }
    for object_id, status in ((ours, 200), (theirs, 404)):
        assert client.ask("GET", f"/objects/{object_id}", headers=headers).status == status
        assert client.ask("GET", f"/tasks/{object_id}", headers=headers).status == status
        assert client.ask("GET", f"/segments/{segments[object_id]}/thumbnail", headers=headers).status == status
        assert client.ask("POST", f"/tasks/{object_id}/retry", headers=headers).status == status
        assert ask(client, headers, like=segments[object_id]).status == status
    for segment in (segments[theirs], f"{'0' * 32}-s000000", "nobody"):
        answer = ask(client, headers, like=segment)
        assert (answer.status, answer.json()) == (404, {"detail": "there is no such segment"})
    assert client.ask("POST", "/objects/source/a.jpg", b"x", headers).status == 404
    assert client.ask("POST", "/objects/other/a.jpg", b"x", headers).status == 403  # there, and takes no uploads
    assert client.ask("GET", "/metrics", headers=headers).status == 403
    assert {table["n_rows"] for table in client.ask("GET", "/tables", headers=headers).json()} == {None}


def test_events_are_taken_with_a_key(client: Client, opened: Workspace) -> None:
    """Without a key for it and without a secret, a receiver is off."""
    guard, events = Guard(opened), EventSettings()
    body = json.dumps({"Records": []})
    assert client.ask("POST", "/events/s3", body, JSON).status == 403
    assert receivers_on(events, guard) == {"/events/b2": False, "/events/tigris": False, "/events/s3": False}
    key = opened.ledger.keys.add("minio", ["events"])
    assert receivers_on(events, guard) == {"/events/b2": False, "/events/tigris": True, "/events/s3": True}
    assert client.ask("POST", "/events/s3", body, bearer(key)).json() == {"accepted": 0, "ignored": 0}
    for other in (TOKEN, opened.ledger.keys.add("reader", ["read"])):
        assert client.ask("POST", "/events/s3", body, bearer(other)).status == 401
    opened.ledger.keys.revoke("minio")
    assert client.ask("POST", "/events/s3", body, bearer(key)).status == 403


# -- how often ---------------------------------------------------------------------------------------------------------


def test_too_many_requests_are_a_429(serve: Serve, opened: Workspace) -> None:
    """Each key has its own minute; what is no question and no read is not counted."""
    keys = [opened.ledger.keys.add(name, ["read", "upload"]) for name in ("a", "b")]
    with serve(requests_per_minute=3) as client:
        for _ in range(5):
            assert client.ask("POST", "/tasks/0/cancel", headers=bearer(keys[0])).status == 404
        asked = [client.ask("GET", "/tables", headers=bearer(keys[0])) for _ in range(4)]
        assert [answer.status for answer in asked] == [200, 200, 200, 429]
        assert 1 <= int(asked[-1].headers["retry-after"]) <= 20
        assert client.ask("GET", "/tables", headers=bearer(keys[1])).status == 200


def test_without_a_key_the_address_is_counted(serve: Serve) -> None:
    """Questions and reads together."""
    with serve(requests_per_minute=2) as client:
        assert [client.ask("GET", "/tables").status, ask(client, text="x").status] == [200, 200]
        assert [client.ask("GET", "/tables").status, ask(client, text="x").status] == [429, 429]


def test_a_bucket_fills_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly, and never over its brim; 0 is no limit."""
    now = [1_000.0]
    monkeypatch.setattr("mm_assets.server.limits.time.monotonic", lambda: now[0])

    def n_taken(limit: RateLimit) -> int:
        for n in range(200):
            try:
                limit.take("me")
            except Exception:  # noqa: BLE001  counted
                return n
        return 200

    limit = RateLimit(60)
    assert n_taken(limit) == 60
    now[0] += 5.5
    assert n_taken(limit) == 5
    now[0] += 1e6
    assert n_taken(limit) == 60
    assert n_taken(RateLimit(0)) == 200


def test_many_callers_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that asked longest ago is forgotten."""
    monkeypatch.setattr("mm_assets.server.limits._MOST_CALLERS", 2)
    limit = RateLimit(1)
    for name in ("a", "b", "c"):
        limit.take(name)
    assert list(limit._left) == ["b", "c"]


# -- what is documented ------------------------------------------------------------------------------------------------


def test_every_route_is_described(client: Client, opened: Workspace) -> None:
    """For programs: all paths, the body of a question, and which need a key; no key is needed to read that."""
    opened.ledger.keys.add("web", ["read"])
    whole = client.ask("GET", "/openapi.json").json()
    assert {(method, path) for path, methods in whole["paths"].items() for method in methods} == {
        ("post", "/search"),
        ("get", "/objects/{object_id}"),
        ("post", "/objects/{source}/{key}"),
        ("get", "/segments/{segment_id}/thumbnail"),
        ("get", "/tables"),
        ("get", "/tasks/{task_id}"),
        ("post", "/tasks/{task_id}/cancel"),
        ("post", "/tasks/{task_id}/retry"),
        ("post", "/events/b2"),
        ("post", "/events/tigris"),
        ("post", "/events/s3"),
        ("get", "/healthz"),
        ("get", "/metrics"),
    }
    search = whole["paths"]["/search"]["post"]
    assert search["security"] == [{"key": []}]
    assert "security" not in whole["paths"]["/healthz"]["get"]
    _follow(whole, whole["paths"])
    routes = [route for methods in whole["paths"].values() for route in methods.values()]
    assert all(given["description"] for route in routes for given in route.get("parameters", ()))
    question = whole["components"]["schemas"]["GivenQuestion"]
    assert set(question["properties"]) >= {"text", "filters", "k"}
    assert all(field.get("description") for field in question["properties"].values())


def _follow(whole: Mapping[str, Any], part: Any) -> None:
    """Fail where a reference leads nowhere."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _follow(whole, value)
    if isinstance(part, dict) and "$ref" in part:
        found: Any = whole
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        assert found


def test_the_page_is_text_alone(client: Client) -> None:
    """For people: every path, what goes in, and no script; a browser is told to load nothing."""
    answer = client.ask("GET", "/docs", headers={"Host": "anything"})
    page = answer.body.decode()
    assert answer.status == 200
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script" not in page
    assert "src=" not in page
    assert all(f"<code>{word}</code>" in page for word in ("POST /search", "GET /tables", "text", "object_id", "key"))
    assert [client.ask("GET", path).status for path in ("/redoc", "/docs/oauth2-redirect")] == [404] * 2
