"""The page: forms, answers, one object and its bytes, and what is refused."""

import io
import re
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from fakes import fake_extractors
from flow_driver import ingest, process
from PIL import Image
from places import Place
from server_driver import API_KEY, Answer, Client, serving

from mm_assets.errors import ServiceError
from mm_assets.extractors.packs import Pack
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import KnownObject
from mm_assets.retrieval.answers import Pictures
from mm_assets.server import pages, searching
from mm_assets.server.describing import Facets
from mm_assets.server.media import parse_range
from mm_assets.settings import Settings

SOURCES = ("source", "other")
PAGE_BUDGET_BYTES = 100_000
HOSTILE = "<img src=x onerror=alert(1)>.png"


class Page(HTMLParser):
    """What a page holds: its tags with attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.names: set[str] = set()
        self._is_name = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        self._is_name = (tag, dict(attrs).get("class")) == ("span", "name")

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data
        if self._is_name:
            self.names.add(data)
            self._is_name = False

    def all(self, tag: str, **values: str) -> list[dict[str, str | None]]:
        """Return the attributes of the tags of a name with these values."""
        return [attrs for name, attrs in self.tags if name == tag and values.items() <= attrs.items()]


def page_of(answer: Answer, status: int = 200) -> Page:
    """Read a page; every page names no other site and lets no script but ours run."""
    assert answer.status == status, answer.body
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = Page(answer.body.decode())
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") or name == "style" for name in attrs)]
    sources = [str(attrs.get("src") or attrs.get("href") or "") for _, attrs in page.tags]
    assert not [source for source in sources if re.match(r"(https?:)?//", source)]
    return page


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Place]:
    """Give a place of two sources whose media are searchable, one of them under a hostile name."""
    place = Place(tmp_path_factory.mktemp("pages"), media)
    place.write_settings(SOURCES)
    place.add("picture0.png", "clip.mp4", "sound.wav", "broken.png")
    place.add_as("picture1.png", HOSTILE)
    (place.source / "page.html").write_text("<script>alert(1)</script>", encoding="utf-8")
    place.add("picture2.png", source="other")
    workspace = place.open()
    discover(workspace, "other")
    ingest(workspace)
    yield place
    place.drop_databases()


@pytest.fixture
def workspace(place: Place, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Open it, with fakes where search would open models."""

    def build(step: str, _pack: Pack, _params: object, _placement: object) -> Any:
        return fake_extractors(Settings(sources=[{"uri": "source", "steps": [step]}]))[step]  # type: ignore[arg-type]

    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", build)
    place.write_settings(SOURCES)
    return place.open()


@pytest.fixture
def client(workspace: Workspace) -> Iterator[Client]:
    """Serve it."""
    with serving(workspace) as client:
        yield client


def ask(client: Client, **fields: object) -> Page:
    """Ask by the address."""
    return page_of(client.ask("GET", f"/?{urlencode(fields, doseq=True)}"))


def names(page: Page) -> set[str]:
    """Return the keys of the answers' objects."""
    return page.names


def object_id(workspace: Workspace, key: str) -> str:
    """Return the id of an object."""
    return workspace.ledger.objects.find(key)[0].object_id


def test_the_empty_page_offers_form_and_facets(client: Client) -> None:
    """Every field has a label, every facet its values with their counts; nothing was asked, so nothing is answered."""
    page = ask(client)
    assert page.all("input", name="text", type="search")
    values = {str(attrs["value"]) for attrs in page.all("input", type="checkbox", name="media_kind")}
    assert values == {"audio", "image", "video"} | ({"unsupported"} & values)
    assert {str(a["value"]) for a in page.all("input", name="bucket")} == set(SOURCES)
    assert not page.all("ol")


def test_answers_are_pictures_with_place_and_ways_on(client: Client) -> None:
    """Each answer leads to its object at its second, and to more like it."""
    page = ask(client, text="anything")
    assert {"picture0.png", "clip.mp4", HOSTILE} <= names(page)
    [link] = [str(a["href"]) for a in page.all("a") if "/view/" in str(a.get("href")) and "t=" in str(a.get("href"))][
        :1
    ]
    assert page_of(client.ask("GET", link)).all("video")
    [again] = [str(a["href"]) for a in page.all("a") if str(a.get("href")).startswith("/?like=")][:1]
    assert names(page_of(client.ask("GET", again)))
    assert page.all("input", name="text", value="anything")


def test_pictures_come_with_the_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is to be fetched for the answers; sound has a sign instead."""
    monkeypatch.setattr(pages, "_DRAWN_WITHIN_S", 20)
    page = ask(client, text="anything")
    pictures = [str(attrs["src"]) for attrs in page.all("img")]
    assert len(pictures) >= 4
    for source in pictures:
        form, _, data = source.partition(",")
        assert form == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(b64decode(data, validate=True))).size) <= 320


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "fails"])
def test_a_picture_that_does_not_come_in_time_is_left_to_the_browser(
    client: Client, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """The page does not wait for it, and has the others."""
    draw, refused, may_go, choosing = Pictures.thumbnail, list[str](), threading.Event(), threading.Lock()

    def draw_others(self: Pictures, object_id: str, segment_id: str) -> bytes | None:
        with choosing:
            if not refused:
                refused.append(segment_id)
        if refused == [segment_id] and not may_go.wait(20 if hangs else 0):
            msg = "the lake does not answer"
            raise ServiceError(msg)
        return draw(self, object_id, segment_id)

    monkeypatch.setattr(pages, "_DRAWN_WITHIN_S", 3 if hangs else 20)
    monkeypatch.setattr(Pictures, "thumbnail", draw_others)
    started = time.monotonic()
    page = ask(client, text="anything")
    took_s = time.monotonic() - started
    may_go.set()
    sources = [str(attrs["src"]) for attrs in page.all("img")]
    assert took_s < 15
    assert [source for source in sources if not source.startswith("data:")] == [f"/segments/{refused[0]}/thumbnail"]
    assert len(sources) >= 4


def test_facets_narrow(client: Client) -> None:
    """A chosen value leaves only what has it, and stays chosen."""
    page = ask(client, text="anything", media_kind="video")
    assert names(page) == {"clip.mp4"}
    [box] = page.all("input", type="checkbox", name="media_kind", value="video")
    assert "checked" in box
    assert names(ask(client, text="anything", bucket="other")) == {"picture2.png"}
    assert names(ask(client, text="anything", label="thing", bucket=["other", "source"], min_s="0.1")) == {"clip.mp4"}
    assert names(ask(client, text="anything", label="'; DROP TABLE x; --")) == set()


def test_a_picture_is_sent_by_the_form(client: Client) -> None:
    """A file of the form is what is looked for; the filters are kept."""
    sink = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(sink, "PNG")
    page = page_of(_post(client, {"media_kind": "image"}, {"image": sink.getvalue()}))
    assert names(page) >= {"picture0.png", "picture2.png"}
    assert "clip.mp4" not in names(page)
    assert page.all("input", type="hidden", name="media_kind", value="image")
    assert "cannot be read" in page_of(_post(client, {}, {"image": b"no picture"}), 400).text


def _post(client: Client, fields: dict[str, str], files: dict[str, bytes]) -> Answer:
    """Send a form as a browser does."""
    edge, parts = "edge", []
    for name, value in fields.items():
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for name, data in files.items():
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    body = b"".join(parts) + f"--{edge}--\r\n".encode()
    return client.ask("POST", "/", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})


PICTURE_FORM = b"Content-Type: multipart/form-data; boundary=edge\r\n"


@pytest.mark.parametrize(("path", "limit"), [("/login", "_KEY_WITHIN_S"), ("/", "READ_WITHIN_S")])
def test_a_form_that_drips_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch, path: str, limit: str) -> None:
    """Whoever sends one byte of what was promised holds no connection: 408 after its time."""
    monkeypatch.setattr(pages, limit, 0.1)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 900\r\n".encode()
    assert client.send(head + PICTURE_FORM + b"\r\n-").startswith(b"HTTP/1.1 408")


def test_a_form_that_is_too_large_is_cut_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is kept anywhere: by its length, and without one by what comes."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.ask("POST", "/login", b"key=" + b"x" * 5_000, form).status == 413
    monkeypatch.setattr(pages, "MAX_FORM_BYTES", 10_000)
    assert _post(client, {}, {"image": b"x" * 10_000}).status == 413
    chunks = (b"x" * 1_000 for _ in range(11))
    assert client.ask("POST", "/", chunks, {"Content-Type": "multipart/form-data; boundary=edge"}).status == 413
    assert _post(client, {}, {"image": b"x" * 9_000}).status == 400


def test_only_so_many_pictures_are_taken_at_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded: one more is a 503 at once, and has a place when the other is done."""
    begun, open_form = threading.Event(), pages.open_form

    def note(*given: Any, **limits: Any) -> Any:
        begun.set()
        return open_form(*given, **limits)

    monkeypatch.setattr(searching, "_AT_ONCE", 1)
    monkeypatch.setattr(pages, "open_form", note)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n"
    with serving(workspace) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as holding:
            holding.sendall(head + PICTURE_FORM + b"\r\n-")
            assert begun.wait(10)
            assert _post(client, {}, {"image": b"no picture"}).status == 503
        started = time.monotonic()
        while (answer := _post(client, {}, {"image": b"no picture"})).status != 400:
            assert time.monotonic() - started < 10, answer
            time.sleep(0.05)


@pytest.mark.parametrize("body", [b"", b"--edge", b"--edge\r\n\r\n\r\n--edge--", b"x" * 200_000])
def test_what_is_no_form_is_a_400(client: Client, body: bytes) -> None:
    """Or an empty one, which asks for nothing."""
    answer = client.ask("POST", "/", body, {"Content-Type": "multipart/form-data; boundary=edge"})
    assert answer.status in {200, 400}, answer.body


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"said": "..."}, "no word in"),
        ({"text": "x" * 3_000}, "3000 characters"),
        ({"like": "nobody"}, "no keyframe"),
        ({"text": "x", "min_s": "soon"}, "'soon' is no number"),
        ({"text": "x", "min_s": "nan"}, "finite"),
    ],
)
def test_what_cannot_be_asked_is_told(client: Client, fields: dict[str, str], told: str) -> None:
    """The page comes back with the form as it was filled, and what is wrong."""
    page = page_of(client.ask("GET", f"/?{urlencode(fields)}"), 400)
    assert told in page.text
    for name, value in fields.items():
        assert page.all("input", name=name, value=value)


def test_hostile_names_are_text(client: Client, workspace: Workspace) -> None:
    """A key that is HTML is shown, and is no tag."""
    page = ask(client, text="anything")
    assert HOSTILE in names(page)
    assert not page.all("img", src="x")
    assert HOSTILE in page_of(client.ask("GET", f"/view/{object_id(workspace, HOSTILE)}")).text
    assert not page_of(client.ask("GET", f"/?{urlencode({'text': '<script>alert(1)</script>'})}")).all(
        "script", src=None
    )  # type: ignore[arg-type]


def test_an_object_has_player_timeline_and_words(client: Client, workspace: Workspace) -> None:
    """The player begins at the second asked for; scenes, words and steps are there; each stretch leads to its second."""
    page = page_of(client.ask("GET", f"/view/{object_id(workspace, 'clip.mp4')}?t=1.5"))
    [player] = page.all("video")
    assert player["data-at"] == "1.5"
    assert str(player["src"]).endswith("#t=1.5")
    assert page.all("rect")
    assert [a for a in page.all("a") if a.get("data-at")]
    assert "Transcript" in page.text
    assert "segments" in page.text
    assert page_of(client.ask("GET", f"/view/{object_id(workspace, 'sound.wav')}")).all("audio")
    assert "not decoded" in page_of(client.ask("GET", f"/view/{object_id(workspace, 'broken.png')}")).text
    assert "no such object" in page_of(client.ask("GET", f"/view/{'0' * 32}"), 404).text


def test_an_object_that_is_not_published_plays(make_workspace: Callable[..., Place]) -> None:
    """Between its batch and the refresh, its kind is that of its name; that its parts are missing is no failure."""
    place = make_workspace("clip.mp4", "picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)
    with serving(workspace) as client:
        for key, tag in (("clip.mp4", "video"), ("picture0.png", "img")):
            found = object_id(workspace, key)
            page = page_of(client.ask("GET", f"/view/{found}"))
            assert [attrs for attrs in page.all(tag) if str(attrs["src"]).startswith(f"/media/{found}")]
            assert "not published yet; the next refresh" in page.text
            assert "not decoded" not in page.text
            assert client.ask("GET", f"/media/{found}").status == 200


def test_what_was_erased_or_deleted_is_not_given(make_workspace: Callable[..., Place]) -> None:
    """Who kept its address gets nothing, though the file may still be there; of an erased one, not even its name."""
    place = make_workspace("clip.mp4", "picture0.png")
    workspace = place.open()
    ingest(workspace)
    erased, gone = object_id(workspace, "clip.mp4"), object_id(workspace, "picture0.png")
    workspace.ledger.removals.erase([erased])
    workspace.ledger.objects.retire("source", [gone], [])
    with serving(workspace) as client:
        assert [client.ask("GET", f"/media/{one}").status for one in (erased, gone)] == [404, 404]
        assert "clip.mp4" not in page_of(client.ask("GET", f"/view/{erased}"), 404).text
        page = page_of(client.ask("GET", f"/view/{gone}"))
        assert "no longer in its source" in page.text
        assert not page.all("img", src=f"/media/{gone}")


def test_a_source_that_is_no_longer_watched_gives_no_bytes(place: Place, workspace: Workspace) -> None:
    """Its objects are known and nothing of them can be read: 404, no failure of ours."""
    known = object_id(workspace, "clip.mp4")
    place.write_settings(("other",))
    with serving(place.open()) as client:
        assert client.ask("GET", f"/media/{known}").status == 404
        page = page_of(client.ask("GET", f"/view/{known}"))
        assert "no longer in its source" in page.text
        assert not page.all("video")


@pytest.mark.parametrize("what", ["first piece", "next pieces", "view", "facets"])
def test_a_store_that_hangs_holds_up_nobody_else(
    client: Client, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """However many players and pages wait for it, probes and events have threads."""
    may_go, known = threading.Event(), object_id(workspace, "clip.mp4")
    store, path = type(workspace.sources["source"]), f"/media/{known}"
    read, count, tell = store.read_range, Facets.read, pages.describe

    def read_slowly(self: Any, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        if (start > 0) == (what == "next pieces"):
            may_go.wait(20)
        return read(self, key, start, length, etag=etag)

    def count_slowly(self: Facets, caller: Any) -> Any:
        may_go.wait(20)
        return count(self, caller)

    def tell_slowly(workspace: Workspace, known: KnownObject, asked: Any) -> Any:
        may_go.wait(20)
        return tell(workspace, known, asked)

    if what == "view":
        path = f"/view/{known}"
        monkeypatch.setattr(pages, "describe", tell_slowly)
    elif what == "facets":
        path = "/"
        monkeypatch.setattr(Facets, "read", count_slowly)
    else:
        monkeypatch.setattr("mm_assets.server.media._PIECE_BYTES", 4_096)
        monkeypatch.setattr(store, "read_range", read_slowly)
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(client.ask, "GET", path) for _ in range(60)]
        time.sleep(0.5)
        started = time.monotonic()
        assert client.ask("GET", "/healthz").status == 200
        assert client.ask("GET", "/tables").status == 200
        took_s = time.monotonic() - started
        may_go.set()
        assert {one.result().status for one in waiting} == {200}
    assert took_s < 10


def test_media_come_in_ranges(client: Client, workspace: Workspace, place: Place) -> None:
    """A player gets the bytes that it asks for."""
    data, path = (place.source / "clip.mp4").read_bytes(), f"/media/{object_id(workspace, 'clip.mp4')}"
    whole = client.ask("GET", path)
    assert (whole.status, whole.body, whole.headers["content-type"]) == (200, data, "video/mp4")
    for asked, start, stop in (
        ("bytes=10-19", 10, 20),
        (f"bytes=-{7}", len(data) - 7, len(data)),
        ("bytes=5-", 5, len(data)),
    ):
        part = client.ask("GET", path, headers={"Range": asked})
        assert (part.status, part.body) == (206, data[start:stop])
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(data)}"
    assert client.ask("GET", path, headers={"Range": f"bytes={len(data)}-"}).status == 416
    assert client.ask("GET", path, headers={"Range": "bytes=0-1,4-5"}).status == 200


@pytest.mark.parametrize(
    "header", [None, "", "bytes=-", "lines=1-2", "bytes=5-2", "bytes=a-b", "bytes=" + "9" * 30 + "-"]
)
def test_ranges_that_are_none_give_the_whole_or_are_refused(header: str | None) -> None:
    """As RFC 9110 has it: a wrong range is no range, one behind the end is 416."""
    from fastapi import HTTPException

    if header == "bytes=5-2":
        with pytest.raises(HTTPException):
            parse_range(header, 10)
    else:
        assert parse_range(header, 10).is_whole


def test_no_object_runs_in_this_site(client: Client, workspace: Workspace) -> None:
    """What a browser would run is a download, whatever its bytes are; everything is in a sandbox."""
    answer = client.ask("GET", f"/media/{object_id(workspace, 'page.html')}")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_an_object_that_changed_or_went_is_told(client: Client, workspace: Workspace, place: Place) -> None:
    """The bytes of another version are never given for these."""
    file = place.source / "picture0.png"
    path, data = f"/media/{object_id(workspace, 'picture0.png')}", file.read_bytes()
    try:
        file.write_bytes(data + b"more")
        assert client.ask("GET", path).status == 409
        file.unlink()
        assert client.ask("GET", path).status == 404
    finally:
        file.write_bytes(data)


def test_the_page_is_light(client: Client) -> None:
    """Own assets of a page stay below 100 kB, and every file it names is there."""
    page = ask(client, text="anything")
    own = [str(attrs.get("href") or attrs.get("src")) for tag, attrs in page.tags if tag in {"link", "script"}]
    files = [client.ask("GET", name) for name in own if name.startswith("/")]
    assert len(files) == 2
    assert all(file.status == 200 for file in files)
    assert sum(len(file.body) for file in files) + len(client.ask("GET", "/").body) < PAGE_BUDGET_BYTES
    assert client.ask("GET", "/static/..%2fpages.py").status == 404


def test_a_key_is_asked_for_and_kept_in_a_cookie(place: Place, workspace: Workspace) -> None:
    """With keys, a person signs in; another site's request does not use the cookie; signing out forgets it."""
    place.write_settings(SOURCES, serve={"api_keys": [API_KEY]})
    with serving(place.open()) as client:
        sent = client.ask("GET", "/")
        assert (sent.status, sent.headers["location"]) == (303, "/login")
        assert page_of(client.ask("GET", "/login")).all("input", name="key", type="password")
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert "no key" in page_of(client.ask("POST", "/login", "key=wrong-key-of-nobody", form), 401).text
        signed = client.ask("POST", "/login", urlencode({"key": API_KEY}), form)
        cookie = signed.headers["set-cookie"]
        assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
        assert "Secure" not in cookie
        behind_tls = client.ask("POST", "/login", urlencode({"key": API_KEY}), form | {"X-Forwarded-Proto": "https"})
        assert "Secure" in behind_tls.headers["set-cookie"]
        held = {"Cookie": cookie.partition(";")[0]}
        assert page_of(client.ask("GET", "/", headers=held)).all("input", name="text")
        assert client.ask("GET", "/", headers=held | {"Sec-Fetch-Site": "cross-site"}).status == 303
        assert "Max-Age=0" in client.ask("POST", "/logout", headers=held).headers["set-cookie"]


def test_who_may_only_search_gets_no_pictures(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what `read` gives, inside a page as by themselves."""
    monkeypatch.setattr(pages, "_DRAWN_WITHIN_S", 20)
    keys = workspace.ledger.keys
    secrets = {True: keys.add("reader", ["search", "read"]), False: keys.add("searcher", ["search"])}
    try:
        with serving(workspace) as client:
            for may_read, secret in secrets.items():
                headers = {"Authorization": f"Bearer {secret}"}
                page = page_of(client.ask("GET", "/?text=anything", headers=headers))
                pictures = [str(attrs["src"]) for attrs in page.all("img")]
                assert pictures
                assert {source.startswith("data:") for source in pictures} == {may_read}
    finally:
        _forget_keys(workspace)


def test_a_scoped_key_sees_its_sources_only(place: Place, workspace: Workspace) -> None:
    """Facets, answers, objects and bytes of other sources are not there."""
    secret = workspace.ledger.keys.add("visitor", rights=("search", "read"), sources=("other",))
    try:
        with serving(workspace) as client:
            headers = {"Authorization": f"Bearer {secret}"}
            page = page_of(client.ask("GET", "/?text=anything", headers=headers))
            assert names(page) == {"picture2.png"}
            assert {str(a["value"]) for a in page.all("input", name="bucket")} == {"other"}
            hidden = object_id(workspace, "clip.mp4")
            for path in (f"/view/{hidden}", f"/media/{hidden}"):
                assert client.ask("GET", path, headers=headers).status == 404
            for segment in (f"{hidden}-s000000", f"{'0' * 32}-s000000", "nobody"):
                page = page_of(client.ask("GET", f"/?like={segment}", headers=headers), 404)
                assert "there is no such segment" in page.text
                assert not page.names
            own = object_id(workspace, "picture2.png")
            assert names(page_of(client.ask("GET", f"/?like={own}-i000000", headers=headers))) == {"picture2.png"}
    finally:
        _forget_keys(workspace)


def _forget_keys(workspace: Workspace) -> None:
    """Leave the place as if there never had been a key."""
    with workspace.ledger.keys._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM api_keys")
