"""Standing queries: each new object is matched once, told once, by whom it should be and in a form that can be trusted."""

import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from cli_driver import mm
from dagster_driver import Driver
from fakes import FakeFaces, FakeVision, open_fake_workspace
from flow_driver import process, refresh
from media_factory import write_pdf
from places import Place
from sqlalchemy import text

from mm_assets.cli import watching
from mm_assets.errors import ConfigError
from mm_assets.flows import delivering, metrics
from mm_assets.flows.delivering import deliver, tell, to_test_notice
from mm_assets.flows.discovery import discover
from mm_assets.flows.leases import Lease
from mm_assets.flows.standing import StandingQueries, match_vectors, match_words, why_stale
from mm_assets.flows.subscribing import Wish, subscribe
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import Ledger, Match, SeenObject, Watch
from mm_assets.vectors import to_arrow
from mm_assets.wording import SCHEMA

MakePlace = Callable[..., Place]
FILES = ("picture0.png", "picture1.png", "clip.mp4", "sound.wav")
COMMAND = "true"  # a program that takes every match
SECRET = "a-secret-of-these-tests"  # noqa: S105  of these tests


# -- what is needed ------------------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """A web server that answers each request with the next of its statuses, the last one again and again."""

    statuses: list[int]
    asked: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)
    delay_s: float = 0.0
    drip_s: float = 0.0
    url: str = ""

    @property
    def keys(self) -> list[str]:
        """Keys of the objects that it was told of."""
        return [json.loads(body)["object"]["key"] for _, _, body in self.asked]


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """Give a function that starts a receiver on a free port."""
    servers: list[ThreadingHTTPServer] = []

    def start(*statuses: int, **options: float) -> Receiver:
        receiver = Receiver(list(statuses or (200,)), **options)  # type: ignore[arg-type]
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(receiver))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        return receiver

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _handler_of(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.asked.append((self.path, dict(self.headers), body))
            time.sleep(receiver.delay_s)
            status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", receiver.url.replace("/hook", "/elsewhere"))
            with suppress(ConnectionError):
                self._drip()
                self.end_headers()

        def _drip(self) -> None:
            for _ in range(10 if receiver.drip_s else 0):
                self.flush_headers()
                self.send_header("X-Drip", "a")
                time.sleep(receiver.drip_s)

        do_GET = do_POST  # noqa: N815  http.server's name

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory, media: Path) -> dict[str, list[np.ndarray]]:
    """Give key → the vectors that the fake models make of it, which depend on its bytes alone."""
    place = Place(tmp_path_factory.mktemp("vectors"), media)
    place.write_settings()
    place.add(*FILES)
    workspace = _process(place.open())
    found: dict[str, list[np.ndarray]] = {}
    for stored in workspace.lake.walk("results/visual_embeddings/"):
        for row in workspace.lake.read_columns(stored.key, ["key", "vector"]).to_pylist():
            found.setdefault(row["key"], []).append(np.array(row["vector"], np.float32))
    place.drop_databases()
    return found


@pytest.fixture
def looks_like(monkeypatch: pytest.MonkeyPatch, vectors: dict[str, list[np.ndarray]]) -> Callable[[str], None]:
    """Give a function after which every question has the vector of a file."""

    def look(name: str) -> None:
        vector = vectors[name][:1]
        monkeypatch.setattr(FakeVision, "encode_texts", lambda *_: vector)
        monkeypatch.setattr(FakeVision, "encode_images", lambda *_: vector, raising=False)
        boxes = np.array([[0, 0, 1, 1], [0, 0, 9, 9]], np.float32)
        faces = np.stack([-vector[0], vector[0]])
        monkeypatch.setattr(FakeFaces, "find_faces", lambda *_: (boxes, faces), raising=False)

    return look


@pytest.fixture
def told(make_workspace: MakePlace, receive: Callable[..., Receiver]) -> Callable[..., tuple[Workspace, Receiver]]:
    """Give a function that lays out a place with a watch on every picture and page, and matches that wait to be told."""

    def make(*statuses: int, names: tuple[str, ...] = FILES[:2], **options: float) -> tuple[Workspace, Receiver]:
        workspace, receiver = make_workspace().open(), receive(*statuses, **options)
        subscribe(workspace, Wish("all", text="x", threshold=-1, webhook=receiver.url, secret=SECRET))
        _record(workspace, *names)
        return workspace, receiver

    return make


def _process(workspace: Workspace) -> Workspace:
    discover(workspace, "source")
    process(workspace)
    return workspace


def _record(workspace: Workspace, *names: str, watch: str = "all") -> None:
    """Let objects be known, and match a watch."""
    seen = [SeenObject(ObjectVersion("source", name, "e"), 1, 0.0) for name in names]
    scan = workspace.ledger.objects.scan("source")
    workspace.ledger.objects.record_page("source", seen, at=scan, after="", shard_objects=5)
    found = workspace.ledger.watches.find(watch)
    assert found is not None
    ids = [item.version.object_id for item in seen]
    matches = [Match(found.watch_id, object_id, f"{object_id}-i000000", 1.0, 2.5, None, 0.5) for object_id in ids]
    workspace.ledger.watches.record(matches)


def _matched(workspace: Workspace, name: str | None = None) -> list[str]:
    return sorted(known.key for known in workspace.ledger.watches.matches(name))


def _states(workspace: Workspace) -> list[tuple[str, int, str | None]]:
    return sorted((known.state, known.tries, known.error) for known in workspace.ledger.watches.matches())


def _counter(workspace: Workspace, name: str) -> dict[str, float]:
    return {
        "/".join(value for _, value in sample.labels): sample.value
        for sample in metrics.collect(workspace)
        if sample.name == name
    }


def _make_due(workspace: Workspace) -> None:
    """Let time pass until every waiting match is due."""
    with workspace.ledger._engine.begin() as connection:
        connection.execute(text("UPDATE matches SET not_before = 0"))


class KilledError(BaseException):
    """Ends a worker where nothing catches it."""


def _die(*_: Any) -> None:
    raise KilledError


# -- matching ------------------------------------------------------------------------------------------------------------


def _watch(watch_id: str, question: str = "", **values: Any) -> Watch:
    return Watch(watch_id, watch_id, "text", question, **values)


def test_the_best_moment_of_each_object_matches_once() -> None:
    """Of many segments above the threshold the most similar one stands for its object; below it none does."""
    rows = pa.table(
        {
            "object_id": ["a", "b", "a", "a", "c"],
            "segment_id": ["a0", "b0", "a1", "a2", "c0"],
            "start_s": [0.0, None, 1.0, 2.0, None],
            "end_s": [1.0, None, 2.0, 3.0, None],
            "page_number": pa.array([None, 7, None, None, None], pa.int32()),
            "vector": to_arrow(np.array([[0.6, 0.8], [0.8, 0.6], [1, 0], [1, 0], [0, 1]], np.float32)),
        }
    )
    right, up = np.array([1, 0], "<f4").tobytes(), np.array([0, 1], "<f4").tobytes()
    found = match_vectors([_watch("r", threshold=0.7, vector=right), _watch("u", threshold=0.99, vector=up)], rows)

    assert [(m.watch_id, m.object_id, m.segment_id, m.start_s, m.page_number) for m in found] == [
        ("r", "a", "a1", 1.0, None),
        ("r", "b", "b0", None, 7),
        ("u", "c", "c0", None, None),
    ]
    assert [m.score for m in found] == pytest.approx([1.0, 0.8, 1.0])


@pytest.mark.parametrize(
    ("question", "objects"),
    [
        ("red house", ["a", "b"]),  # both words, in any order and place
        ('"red house"', ["a"]),
        ("hou*", ["a", "b", "c"]),
        ('"a red ho*"', ["a"]),
        ("RÉD", ["a", "b"]),
        ("red boat", []),  # each in another text of the same object
    ],
)
def test_all_words_stand_in_one_text(question: str, objects: list[str]) -> None:
    """Words, phrases and prefixes mean what they mean in a search, and all of them are needed."""
    texts = [
        ("a", "A red house."),
        ("a", "a boat"),
        ("b", "the house was red"),
        ("c", "a housing plan"),
        ("c", "reddish"),
    ]
    rows = [{"object_id": o, "segment_id": f"{o}{n}", "text": t} for n, (o, t) in enumerate(texts)]
    found = match_words([_watch("w", question)], pa.Table.from_pylist(rows, SCHEMA))
    assert [match.object_id for match in found] == objects
    assert [match.segment_id for match in found if match.object_id == "a"] == ["a0"] * ("a" in objects)


@pytest.mark.parametrize("kind", ["text", "image", "face"])
def test_new_objects_are_put_to_a_picture_or_a_text(
    kind: str, make_workspace: MakePlace, looks_like: Callable[[str], None], media: Path
) -> None:
    """What has the vector of the question matches, with its place and cosine; a face by the largest one in the picture."""
    looks_like("clip.mp4")
    workspace = make_workspace(*FILES).open()
    asked: Any = "a clip" if kind == "text" else media / "picture5.png"
    subscribe(workspace, Wish("w", **{kind: asked}, threshold=0.99, command=COMMAND))
    _process(workspace)

    [known] = workspace.ledger.watches.matches("w")
    assert (known.key, known.state) == ("clip.mp4", "sent")
    assert known.match.score == pytest.approx(1.0)
    assert (known.match.start_s, known.match.end_s) == (0.0, pytest.approx(1.0, abs=0.1))
    assert _counter(workspace, "matches_total") == {"w": 1}


def test_new_objects_are_put_to_words(make_workspace: MakePlace) -> None:
    """Words said, words shown in pictures, and words of a page's text layer."""
    place = make_workspace(*FILES)
    write_pdf(place.source / "page.pdf", ["An unusual melon"])
    workspace = place.open()
    wishes = {"a": {"said": "words"}, "b": {"shown": "tex*"}, "c": {"shown": "melon"}, "d": {"said": "text"}}
    for name, asked in wishes.items():
        subscribe(workspace, Wish(name, **asked, command=COMMAND))  # type: ignore[arg-type]
    _process(workspace)

    assert {name: _matched(workspace, name) for name in wishes} == {
        "a": ["clip.mp4", "sound.wav"],
        "b": ["clip.mp4", "page.pdf", "picture0.png", "picture1.png"],
        "c": ["page.pdf"],
        "d": [],
    }
    [known] = workspace.ledger.watches.matches("c")
    assert (known.match.page_number, known.match.score) == (1, None)


def test_only_what_is_made_for_the_first_time_is_put_to_watches(
    make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model of the step or of any other gives no second match, and none of objects that were there before."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    subscribe(workspace, Wish("early", text="x", threshold=-1, command=COMMAND))
    _process(workspace)
    subscribe(workspace, Wish("late", text="x", threshold=-1, command=COMMAND))
    subscribe(workspace, Wish("words", shown="text", command=COMMAND))
    for kind in (FakeFaces, FakeVision):
        monkeypatch.setattr(kind, "code_version", "another")
        workspace = place.open()
        assert process(_discovered(workspace))
        assert [_matched(workspace, name) for name in ("early", "late", "words")] == [["picture0.png"], [], []]

    place.add("picture1.png")
    _process(workspace)
    assert [_matched(workspace, name) for name in ("late", "words")] == [["picture1.png"]] * 2
    assert _counter(workspace, "matches_total") == {"early": 2, "late": 1, "words": 1}


def _discovered(workspace: Workspace) -> Workspace:
    discover(workspace, "source")
    return workspace


# -- killed between two writes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment", [(StandingQueries, "match"), (Lease, "finish")], ids=["before the match", "before the ledger's word"]
)
def test_a_kill_between_result_and_ledger_loses_and_doubles_no_match(
    moment: tuple[type, str], make_workspace: MakePlace
) -> None:
    """Results that the next run finds and keeps are matched, judged and searched like new ones."""
    place = make_workspace(*FILES)
    workspace = place.open()
    subscribe(workspace, Wish("all", text="x", threshold=-1, command=COMMAND))
    _process_until_killed(workspace, *moment)
    n_before = len(_matched(workspace))
    ends = process(_discovered(workspace))

    assert n_before == (0 if moment[1] == "match" else 3)
    assert not any(end.is_new for of in ends for end in of.ends if end.state == "done")
    assert _matched(workspace) == ["clip.mp4", "picture0.png", "picture1.png"]
    assert _counter(workspace, "matches_total") == {"all": 3}
    arrived = [workspace.lake.read_columns(stored.key).num_rows for stored in workspace.lake.walk("arrivals/visual/")]
    assert arrived == [4]


def _process_until_killed(workspace: Workspace, owner: type, method: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, _die)
        with pytest.raises(KilledError):
            _process(workspace)


def test_a_damaged_result_that_a_killed_run_left_is_made_again(make_workspace: MakePlace) -> None:
    """What cannot be read is not kept."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    _process_until_killed(workspace, Lease, "finish")
    [file] = (place.lake / "results" / "faces").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-40])
    ends = {end.step: end.is_new for of in process(_discovered(workspace)) for end in of.ends if end.state == "done"}
    assert [step for step, is_new in ends.items() if is_new] == ["faces"]


# -- telling -------------------------------------------------------------------------------------------------------------


def test_a_match_is_told_once_and_signed(told: Callable[..., Any]) -> None:
    """The receiver can check sender, time and body, and tell a repetition by its key."""
    workspace, receiver = told(names=("films/é.mp4",))
    assert deliver(workspace, 5) == {"sent": 1}
    assert deliver(workspace, 5) == {}

    [(_, headers, body)] = receiver.asked
    signed = f"{headers['X-MM-Assets-Timestamp']}.".encode() + body
    expected = "v1=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-MM-Assets-Signature"] == expected
    assert abs(int(headers["X-MM-Assets-Timestamp"]) - time.time()) < 60
    notice = json.loads(body)
    assert headers["Idempotency-Key"] == notice["match_id"]
    assert headers["Content-Type"] == "application/json"
    version = ObjectVersion("source", "films/é.mp4", "e")
    assert notice["object"] == {"bucket": "source", "key": version.key, "etag": "e", "object_id": version.object_id}
    assert (notice["watch"], notice["is_test"]) == ("all", False)
    assert [notice[name] for name in ("start_s", "end_s", "page_number", "score")] == [1.0, 2.5, None, 0.5]
    assert _states(workspace) == [("sent", 1, None)]


def test_matches_are_told_at_the_end_of_their_batch(
    make_workspace: MakePlace, receive: Callable[..., Receiver]
) -> None:
    """Nobody has to ask for it, and a receiver that fails does not make the batch fail."""
    workspace, good, bad = make_workspace("picture0.png", "broken.png").open(), receive(), receive(500)
    subscribe(workspace, Wish("good", text="x", threshold=-1, webhook=good.url))
    subscribe(workspace, Wish("bad", text="x", threshold=-1, webhook=bad.url))
    _process(workspace)
    assert (good.keys, bad.keys) == (["picture0.png"], ["picture0.png"])
    assert _counter(workspace, "deliveries_total") == {"sent": 1, "waiting": 1}
    assert _counter(workspace, "matches_waiting") == {"": 1}


def test_redirects_are_not_followed(told: Callable[..., Any]) -> None:
    """A receiver cannot send us to another place, inside our network, say."""
    workspace, receiver = told(302, names=("a",))
    deliver(workspace, 5)
    assert [path for path, *_ in receiver.asked] == ["/hook"]
    [(state, _, error)] = _states(workspace)
    assert state == "waiting"
    assert error is not None
    assert error.startswith("HTTP 302: redirects are not followed")


@pytest.mark.parametrize(
    ("status", "state"), [(410, "given_up"), (401, "given_up"), (429, "waiting"), (503, "waiting")]
)
def test_an_answer_says_whether_another_try_may_help(status: int, state: str, told: Callable[..., Any]) -> None:
    """Gone and forbidden end it at once; too many and out of order do not."""
    workspace, receiver = told(status, names=("a",))
    deliver(workspace, 5)
    _make_due(workspace)
    deliver(workspace, 5)
    n_tries = 1 if state == "given_up" else 2
    assert _states(workspace) == [(state, n_tries, f"HTTP {status}")]
    assert len(receiver.asked) == n_tries


def test_a_receiver_that_fails_is_asked_again_later_and_given_up_in_the_end(told: Callable[..., Any]) -> None:
    """Not at once, twelve times in all, each under the same key; then the match is given up with its reason."""
    workspace, receiver = told(500, names=("a",))
    for _ in range(15):
        deliver(workspace, 5)
        assert deliver(workspace, 5) == {}
        _make_due(workspace)
    assert _states(workspace) == [("given_up", 12, "12 tries, the last: HTTP 500")]
    assert len({headers["Idempotency-Key"] for _, headers, _ in receiver.asked}) == 1
    assert len(receiver.asked) == 12


def test_waits_double_and_differ() -> None:
    """From half a minute to six hours, never less than half of it, and not all the same."""
    waits = {tries: [delivering.wait_s(tries) for _ in range(50)] for tries in (1, 2, 5, 12)}
    for tries, longest in ((1, 30), (2, 60), (5, 480), (12, 21_600)):
        assert longest / 2 <= min(waits[tries]) < max(waits[tries]) <= longest


def test_a_receiver_that_fails_does_not_hold_up_the_others(told: Callable[..., Any], receive: Any) -> None:
    """It is asked once in a call, whatever waits for it."""
    workspace, bad = told(500, names=("a", "b", "c"))
    good = receive()
    subscribe(workspace, Wish("good", text="x", threshold=-1, webhook=good.url))
    _record(workspace, "a", "b", watch="good")
    assert deliver(workspace, 5) == {"waiting": 1, "sent": 2}
    assert (len(bad.asked), sorted(good.keys)) == (1, ["a", "b"])


@pytest.mark.parametrize("option", ["delay_s", "drip_s"])
def test_a_receiver_that_does_not_answer_costs_its_time_and_no_more(
    option: str, told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it sends its answer byte by byte."""
    monkeypatch.setattr(delivering, "_WEBHOOK_S", 0.3)
    workspace, _ = told(names=("a",), **{option: 0.1 if option == "drip_s" else 2.0})
    started = time.monotonic()
    deliver(workspace, 5)
    assert time.monotonic() - started < 1.5
    assert [state for state, *_ in _states(workspace)] == ["waiting"]


def test_two_that_tell_at_once_tell_nothing_twice(told: Callable[..., Any]) -> None:
    """Each match is claimed before it is sent."""
    names = tuple(f"k{n}" for n in range(12))
    workspace, receiver = told(names=names, delay_s=0.02)
    threads = [threading.Thread(target=deliver, args=(workspace, 10)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receiver.keys) == sorted(names)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open a ledger with a watch and a match, on SQLite and on PostgreSQL in turn."""
    opened = Ledger(ledger_url)
    opened.watches.add(Watch("w", "all", "text", "x", 0.5, vector=b"1234", recipe="r", command="true"), b"picture")
    version = ObjectVersion("b", "k", "e")
    scan = opened.objects.scan("b")
    opened.objects.record_page("b", [SeenObject(version, 1, 0.0)], at=scan, after=None, shard_objects=5)
    assert len(opened.watches.record([_match_of(version)])) == 1
    yield opened
    opened.close()


def _match_of(version: ObjectVersion, watch_id: str = "w") -> Match:
    return Match(watch_id, version.object_id, "s", None, None, 3, 0.5)


def test_a_claim_lasts_as_long_as_its_lease(ledger: Ledger) -> None:
    """Who died over it is replaced after that, and what it says when it wakes up counts no more."""
    first = ledger.watches.claim_due(-1.0)
    second = ledger.watches.claim_due(60.0)
    assert ledger.watches.claim_due(60.0) is None
    assert first is not None
    assert second is not None
    assert (first.tries, second.tries) == (1, 2)
    ledger.watches.settle(first, "given_up", "late")
    ledger.watches.settle(second, "sent")
    ledger.watches.settle(replace(second), "given_up", "twice")
    assert [(known.state, known.error) for known in ledger.watches.matches()] == [("sent", None)]


def test_the_books_keep_one_match_of_what_is_there(ledger: Ledger) -> None:
    """Not a second one, none of a watch that was removed meanwhile, none of a version that left."""
    version, gone = ObjectVersion("b", "k", "e"), ObjectVersion("b", "k", "f")
    others = [_match_of(version), _match_of(version, "removed"), _match_of(gone)]
    assert ledger.watches.record(others) == []
    assert ledger.watches.counts() == {"all": {"waiting": 1, "sent": 0, "given_up": 0}}
    [watch] = ledger.watches.all()
    assert (watch.vector, watch.threshold, ledger.watches.picture("w")) == (b"1234", 0.5, b"picture")
    assert not ledger.watches.add(replace(watch, watch_id="another"))
    assert ledger.watches.remove("all")
    assert not ledger.watches.remove("all")
    assert ledger.watches.matches() == []


def test_a_ledger_of_an_earlier_release_gets_the_tables(ledger_url: str) -> None:
    """Opening it is enough."""
    before = Ledger(ledger_url)
    with before._engine.begin() as connection:
        for statement in (
            "DROP TABLE matches",
            "DROP TABLE watches",
            "UPDATE facts SET value = '4' WHERE name = 'schema'",
        ):
            connection.execute(text(statement))
    before.close()
    after = Ledger(ledger_url)
    assert after.watches.add(Watch("w", "all", "said", "x", command="true"))
    assert after.watches.counts() == {"all": {"waiting": 0, "sent": 0, "given_up": 0}}
    after.close()


# -- commands ------------------------------------------------------------------------------------------------------------

_WRITE = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read()); sys.exit(int(sys.argv[2]))"
HOSTILE = "$(touch pwned) ; `id` \"'\n && 𝄞.mp4"


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_gets_the_match_on_its_input_and_no_shell(
    code: int, make_workspace: MakePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is data whatever stands in it; a command that fails is run again later."""
    monkeypatch.chdir(tmp_path)
    workspace, out = make_workspace().open(), tmp_path / "out.jsonl"
    command = f"'{sys.executable}' -c \"{_WRITE}\" '{out}' {code}"
    subscribe(workspace, Wish("all", text="x", threshold=-1, command=command))
    _record(workspace, HOSTILE)
    deliver(workspace, 20)
    assert [json.loads(line)["object"]["key"] for line in out.read_text().splitlines()] == [HOSTILE]
    assert not list(tmp_path.glob("pwned"))
    expected = ("waiting", 1, "it ended with code 3") if code else ("sent", 1, None)
    assert _states(workspace) == [expected]


def test_a_command_that_hangs_or_is_missing_is_a_failed_try(
    make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended after its time."""
    monkeypatch.setattr(delivering, "_COMMAND_S", 0.2)
    workspace = make_workspace().open()
    for name, command in (("slow", "sleep 30"), ("missing", "/no/such/program")):
        watch = subscribe(workspace, Wish(name, text="x", threshold=-1, command=command))
        outcome = tell(watch, to_test_notice(watch))
        assert (outcome.state, outcome.error is not None) == ("waiting", True)


# -- watches that see nothing --------------------------------------------------------------------------------------------


def test_a_watch_is_encoded_anew_for_another_model(
    make_workspace: MakePlace, looks_like: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, media: Path
) -> None:
    """Its vector of the former model is compared with nothing; the picture is kept for the new one."""
    place = make_workspace()
    looks_like("picture0.png")
    subscribe(place.open(), Wish("w", image=media / "picture5.png", threshold=0.99, command=COMMAND))
    monkeypatch.setattr(FakeVision, "code_version", "another")
    looks_like("picture1.png")
    place.add(*FILES)
    workspace = place.open()
    [before] = workspace.ledger.watches.all()
    assert why_stale(workspace, before) == "the model is another one; the next batch encodes the question anew"
    _process(workspace)

    [after] = workspace.ledger.watches.all()
    assert (after.recipe, why_stale(workspace, after)) == (workspace.recipes["visual_embeddings"], None)
    assert _matched(workspace) == ["picture1.png"]


def test_a_watch_that_another_model_cannot_encode_is_told_and_compared_with_nothing(
    make_workspace: MakePlace, looks_like: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, media: Path
) -> None:
    """The batch goes on, and the next one tries again."""
    place = make_workspace("picture0.png")
    looks_like("picture0.png")
    subscribe(place.open(), Wish("w", face=media / "picture5.png", threshold=0.99, command=COMMAND))
    monkeypatch.setattr(FakeFaces, "code_version", "another")
    nobody = np.empty((0, 4), np.float32), np.empty((0, 16), np.float32)
    monkeypatch.setattr(FakeFaces, "find_faces", lambda *_: nobody)
    workspace = _process(place.open())
    _use_fakes(monkeypatch)
    assert _matched(workspace) == []
    why = json.loads(mm("watch", "list", "--json", "-c", str(place.config_file)).stdout)["stale"]
    assert "no face is found in picture5.png" in why
    assert "Watch w sees nothing now: no face" in mm("status", "-c", str(place.config_file)).stdout

    looks_like("picture1.png")
    place.add("picture1.png")
    assert _matched(_process(workspace)) == ["picture1.png"]
    assert mm("status", "-c", str(place.config_file)).stdout.count("sees nothing") == 0


# -- leaving -------------------------------------------------------------------------------------------------------------


def test_matches_leave_with_their_object(make_workspace: MakePlace) -> None:
    """Nothing of a deleted object stays; the others' matches do."""
    place = make_workspace("picture0.png", "picture1.png")
    workspace = place.open()
    subscribe(workspace, Wish("all", text="x", threshold=-1, command=COMMAND))
    _process(workspace)
    refresh(workspace)
    (place.source / "picture0.png").unlink()
    discover(workspace, "source")
    refresh(workspace)
    with workspace.ledger._engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM matches")) == 1
    assert _matched(workspace) == ["picture1.png"]


def test_what_a_removed_watch_waited_for_is_not_told(told: Callable[..., Any]) -> None:
    """Removing it is the end of it, also for a batch that began before."""
    workspace, receiver = told(names=("a",))
    queries = StandingQueries(workspace)
    assert workspace.ledger.watches.remove("all")
    assert deliver(workspace, 5) == {}
    assert [watch.name for watch in queries._watches] == ["all"]
    assert receiver.asked == []


# -- following a bucket --------------------------------------------------------------------------------------------------


def test_who_follows_the_bucket_tells_what_waits(told: Callable[..., Any]) -> None:
    """``mm ingest --watch`` has a chore for it, and says what came of it."""
    workspace, receiver = told(names=("a", "b"))
    said: list[tuple[str, str]] = []
    runner: Any = None
    chores = watching._chores(workspace, runner, [], 60.0, lambda what, told, **_: said.append((what, told)))
    assert chores["matches"].do_if_due()
    assert not chores["matches"].do_if_due()
    assert sorted(receiver.keys) == ["a", "b"]
    assert said == [("told", "matches of watches: 2 sent (mm watch matches)")]


def test_the_sensor_of_events_tells_what_waits(
    told: Callable[..., Any], instance: dg.DagsterInstance, tmp_path: Path, media: Path
) -> None:
    """Without a run there is no batch at whose end it would be told."""
    workspace, receiver = told(names=("a",))
    Driver(Place(tmp_path, media), instance, workspace).tick("bucket_events_sensor")
    assert receiver.keys == ["a"]


# -- the commands --------------------------------------------------------------------------------------------------------


def _use_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mm_assets.resources.workspace.open_workspace", lambda settings, **_: open_fake_workspace(settings)
    )


def test_a_watch_from_add_to_remove(
    make_workspace: MakePlace, receive: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Added, tried, listed with its matches, removed; its secret is printed once."""
    place, receiver = make_workspace("picture0.png"), receive()
    _use_fakes(monkeypatch)

    def watch(*arguments: str, code: int = 0) -> str:
        return mm("watch", *arguments, "-c", str(place.config_file), code=code).stdout

    secret = watch("add", "all", "--text", "x", "--threshold", "-1", "--webhook", receiver.url).strip()
    assert watch("test", "all") == "The test was taken.\n"
    assert [json.loads(body)["is_test"] for _, _, body in receiver.asked] == [True]
    workspace = _process(place.open())
    [listed] = [json.loads(line) for line in watch("list", "--json").splitlines()]
    [match] = [json.loads(line) for line in watch("matches", "all", "--json").splitlines()]
    assert (listed["n_matches"], listed["n_waiting"], listed["stale"]) == (1, 0, None)
    assert (match["object"]["key"], match["state"], match["tries"]) == ("picture0.png", "sent", 1)
    assert "picture0.png" in watch("matches")
    assert secret.startswith("secret: ")
    assert secret.removeprefix("secret: ") not in watch("list") + watch("list", "--json") + watch("matches", "--json")
    assert watch("remove", "all") == "Removed; matches that went with it: 1.\n"
    for arguments in (("remove", "all"), ("test", "all"), ("matches", "all")):
        watch(*arguments, code=2)
    assert workspace.ledger.watches.all() == []


def test_a_given_secret_signs(
    make_workspace: MakePlace, receive: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It comes from a file, so that no list of processes shows it; a test that is not taken fails the command."""
    place, receiver, file = make_workspace(), receive(500), tmp_path / "secret"
    _use_fakes(monkeypatch)
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    options = ("--shown", "x", "--webhook", receiver.url, "--secret-file", str(file), "-c", str(place.config_file))
    assert mm("watch", "add", "all", *options).stdout == f"secret: {SECRET}\n"
    assert "the test was not taken: HTTP 500" in mm("watch", "test", "all", "-c", str(place.config_file), code=1).output
    [(_, headers, body)] = receiver.asked
    signed = f"{headers['X-MM-Assets-Timestamp']}.".encode() + body
    assert headers["X-MM-Assets-Signature"][3:] == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()


def test_status_says_what_waits_and_what_was_given_up(
    told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there is something to say."""
    workspace, _ = told(410, names=("a", "b"))
    _use_fakes(monkeypatch)
    config = str(workspace.settings.state.parent / "mm_assets.yaml")
    deliver(workspace, 5)
    line = "Matches of watches: 1 to be told, 1 given up. `mm watch matches` shows them."
    assert line in mm("status", "-c", config).stdout
    workspace.ledger.watches.remove("all")
    assert "watch" not in mm("status", "-c", config).stdout.lower()


TEXT = {"text": "x", "threshold": 0.5}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"said": "x", "shown": "x", "command": "true"}, "give one of --text"),
        ({"command": "true"}, "give one of --text"),
        ({**TEXT}, "either --webhook URL or --command"),
        ({**TEXT, "command": "true", "webhook": "https://h/"}, "either --webhook URL or --command"),
        ({"text": "x", "command": "true"}, "--threshold"),
        ({**TEXT, "threshold": 1.01, "command": "true"}, "--threshold"),
        ({**TEXT, "threshold": float("nan"), "command": "true"}, "--threshold"),
        ({"said": "x", "threshold": 0.5, "command": "true"}, "no threshold"),
        ({"said": "?!", "command": "true"}, "no word"),
        ({"text": " ", "threshold": 0.5, "command": "true"}, "text is empty"),
        ({**TEXT, "webhook": "file:///etc/passwd"}, "no address of a webhook"),
        ({**TEXT, "webhook": "ftp://h/"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https:///path"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://user:password@h/"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://h:99999/"}, "no address of a webhook"),
        ({**TEXT, "webhook": "https://h/", "secret": "short"}, "16 characters"),
        ({**TEXT, "command": "true", "secret": SECRET}, "belongs to a webhook"),
        ({**TEXT, "command": "echo 'x"}, "no command"),
        ({**TEXT, "command": " "}, "no command"),
        ({**TEXT, "name": "a b", "command": "true"}, "no name of a watch"),
        ({**TEXT, "name": "known", "command": "true"}, "there is a watch 'known'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(wish: dict[str, Any], message: str, make_workspace: MakePlace) -> None:
    """With words that say what to write instead, and without a trace."""
    workspace = make_workspace().open()
    subscribe(workspace, Wish("known", **TEXT, command=COMMAND))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        subscribe(workspace, Wish(**{"name": "new"} | wish))
    assert [watch.name for watch in workspace.ledger.watches.all()] == ["known"]


def test_a_picture_that_is_too_large_or_none_is_refused(make_workspace: MakePlace, tmp_path: Path) -> None:
    """It would be kept in the ledger."""
    workspace, file = make_workspace().open(), tmp_path / "picture.png"
    file.write_bytes(bytes((10 << 20) + 1))
    with pytest.raises(ConfigError, match="over 10 MiB"):
        subscribe(workspace, Wish("w", image=file, threshold=0.5, command=COMMAND))
    file.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"picture\.png cannot be read as a picture"):
        subscribe(workspace, Wish("w", image=file, threshold=0.5, command=COMMAND))


def test_a_step_that_no_source_asks_for_can_match_nothing(make_workspace: MakePlace) -> None:
    """It is said when the watch is added, and not left to waiting for ever."""
    place = make_workspace()
    place.write_settings(sources=[{"uri": str(place.source), "alias": "source", "steps": ["segments"]}])
    with pytest.raises(ConfigError, match="no source has the step transcripts"):
        subscribe(place.open(), Wish("w", said="x", command=COMMAND))
