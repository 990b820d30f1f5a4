"""Standing queries: each new object is put to each watch once, whatever is killed, made anew or removed."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from children import Moment, end, ingest, start
from cli_driver import mm
from fakes import FakeFaces, FakeVision, open_fake_workspace
from flow_driver import process, refresh
from media_factory import write_pdf
from places import Place
from sqlalchemy import text
from watch_driver import COMMAND, Receiver, counter, make_due, matched, process_new

from mm_assets.flows import processing
from mm_assets.flows.delivering import deliver
from mm_assets.flows.discovery import discover
from mm_assets.flows.standing import match_vectors, match_words, why_stale
from mm_assets.flows.subscribing import Wish, subscribe
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Watch
from mm_assets.vectors import to_arrow
from mm_assets.wording import SCHEMA

MakePlace = Callable[..., Place]
FILES = ("picture0.png", "picture1.png", "clip.mp4", "sound.wav")


# -- what is needed ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory, media: Path) -> dict[str, list[np.ndarray]]:
    """Give key → the vectors that the fake models make of it, which depend on its bytes alone."""
    place = Place(tmp_path_factory.mktemp("vectors"), media)
    place.write_settings()
    place.add(*FILES)
    workspace = process_new(place.open())
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


# -- matching ----------------------------------------------------------------------------------------------------------


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
    process_new(workspace)

    [known] = workspace.ledger.watches.matches("w")
    assert (known.key, known.state) == ("clip.mp4", "sent")
    assert known.match.score == pytest.approx(1.0)
    assert (known.match.start_s, known.match.end_s) == (0.0, pytest.approx(1.0, abs=0.1))
    assert counter(workspace, "matches_total") == {"w": 1}


def test_new_objects_are_put_to_words(make_workspace: MakePlace) -> None:
    """Words said, words shown in pictures, and words of a page's text layer."""
    place = make_workspace(*FILES)
    write_pdf(place.source / "page.pdf", ["An unusual melon"])
    workspace = place.open()
    wishes = {"a": {"said": "words"}, "b": {"shown": "tex*"}, "c": {"shown": "melon"}, "d": {"said": "text"}}
    for name, asked in wishes.items():
        subscribe(workspace, Wish(name, **asked, command=COMMAND))  # type: ignore[arg-type]
    process_new(workspace)

    assert {name: matched(workspace, name) for name in wishes} == {
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
    """Another model, of this step or any other, gives no second match, and none of objects from before; nor does a backfill."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    subscribe(workspace, Wish("early", text="x", threshold=-1, command=COMMAND))
    process_new(workspace)
    subscribe(workspace, Wish("late", text="x", threshold=-1, command=COMMAND))
    subscribe(workspace, Wish("words", shown="text", command=COMMAND))
    _backfill(workspace)
    for kind in (FakeFaces, FakeVision):
        monkeypatch.setattr(kind, "code_version", "another")
        workspace = place.open()
        assert process(_discovered(workspace))
        assert [matched(workspace, name) for name in ("early", "late", "words")] == [["picture0.png"], [], []]

    place.add("picture1.png")
    process_new(workspace)
    assert [matched(workspace, name) for name in ("late", "words")] == [["picture1.png"]] * 2
    assert counter(workspace, "matches_total") == {"early": 2, "late": 1, "words": 1}


def _backfill(workspace: Workspace) -> None:
    """Do everything again under the same recipes, as a person may ask Dagster to."""
    ids = [known.object_id for known in workspace.ledger.objects.find("picture0.png")]
    claims = workspace.ledger.work.claim_objects(ids, workspace.recipes, "owner/1/run", lease_s=60)
    assert [
        end for of in processing.process(workspace, claims, "owner/1/run", "batch") for end in of.ends if end.is_new
    ]


def _discovered(workspace: Workspace) -> Workspace:
    discover(workspace, "source")
    return workspace


# -- killed between two writes -------------------------------------------------------------------------------------------

QUERIES, LEASE = "mm_assets.flows.standing:StandingQueries", "mm_assets.flows.leases:Lease"
KILLS = [
    Moment("mm_assets.lake:Lake.write_result", nth=4),
    Moment(f"{QUERIES}.match", "before"),
    Moment(f"{QUERIES}.match", "within"),
    Moment(f"{QUERIES}.match"),
    Moment(f"{LEASE}.finish", "within"),
    Moment(f"{LEASE}.finish"),
    Moment("mm_assets.flows.delivering:tell", "before"),
]


@pytest.mark.parametrize("moment", KILLS, ids=str)
def test_a_kill_at_any_point_loses_and_doubles_no_match(
    moment: Moment, make_workspace: MakePlace, receive: Callable[..., Receiver]
) -> None:
    """What the killed process had made is found, kept, matched and told by the next one."""
    place, receiver = make_workspace(*FILES), receive()
    subscribe(place.open(), Wish("all", text="x", threshold=-1, webhook=receiver.url))
    place.close()
    assert end(start(ingest, str(place.config_file), moment)) == -signal.SIGKILL
    workspace = process_new(place.open())
    make_due(workspace)
    deliver(workspace, 5)

    pictures = ["clip.mp4", "picture0.png", "picture1.png"]
    assert matched(workspace) == pictures
    assert counter(workspace, "matches_total") == {"all": 3}
    assert sorted(receiver.keys) == pictures


def test_a_kill_after_the_telling_tells_again_under_the_same_key(
    make_workspace: MakePlace, receive: Callable[..., Receiver]
) -> None:
    """The one moment at which a match is told twice: it was taken, and nobody lived to note it."""
    place, receiver = make_workspace("picture0.png"), receive()
    subscribe(place.open(), Wish("all", text="x", threshold=-1, webhook=receiver.url))
    place.close()
    assert end(start(ingest, str(place.config_file), Moment("mm_assets.flows.delivering:tell"))) == -signal.SIGKILL
    workspace = place.open()
    assert deliver(workspace, 5) == {}
    make_due(workspace)  # the lease of the dead has ended
    assert deliver(workspace, 5) == {"sent": 1}
    keys = [headers["Idempotency-Key"] for _, headers, _ in receiver.asked]
    assert (len(keys), len(set(keys))) == (2, 1)


def test_what_a_killed_run_left_is_judged_and_searched_like_what_is_new(make_workspace: MakePlace) -> None:
    """Results that the next run keeps give their rows; a damaged one is made again."""
    place = make_workspace("picture0.png", "clip.mp4")
    moment = Moment("mm_assets.flows.processing:write_arrivals", "before")
    assert end(start(ingest, str(place.config_file), moment)) == -signal.SIGKILL
    damaged = sorted((place.lake / "results" / "faces").rglob("*.parquet"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    workspace = place.open()
    discover(workspace, "source")
    ends = process(workspace)

    done = [end for of in ends for end in of.ends if end.state == "done"]
    first_wave = [end.step for end in done if end.is_new and end.step != "text_embeddings"]
    assert first_wave == ["faces"]
    items = {"visual": "segment_id", "face": "face_id", "words": "text_id"}
    arrived = {
        space: {
            row
            for file in workspace.lake.walk(f"arrivals/{space}/")
            for row in workspace.lake.read_columns(file.key, [item])[item].to_pylist()
        }
        for space, item in items.items()
    }
    assert {space: len(rows) for space, rows in arrived.items()} == {"visual": 3, "face": 3, "words": 4}


# -- watches that see nothing ------------------------------------------------------------------------------------------


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
    process_new(workspace)

    [after] = workspace.ledger.watches.all()
    assert (after.recipe, why_stale(workspace, after)) == (workspace.recipes["visual_embeddings"], None)
    assert matched(workspace) == ["picture1.png"]


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
    workspace = process_new(place.open())
    monkeypatch.setattr("mm_assets.resources.workspace.open_workspace", lambda s, **_: open_fake_workspace(s))
    assert matched(workspace) == []
    why = json.loads(mm("watch", "list", "--json", "-c", str(place.config_file)).stdout)["stale"]
    assert "no face is found in the picture" in why
    assert "Watch w sees nothing now: no face" in mm("status", "-c", str(place.config_file)).stdout

    looks_like("picture1.png")
    place.add("picture1.png")
    assert matched(process_new(workspace)) == ["picture1.png"]
    assert mm("status", "-c", str(place.config_file)).stdout.count("sees nothing") == 0


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_matches_leave_with_their_object(make_workspace: MakePlace) -> None:
    """Nothing of a deleted object stays; the others' matches do."""
    place = make_workspace("picture0.png", "picture1.png")
    workspace = place.open()
    subscribe(workspace, Wish("all", text="x", threshold=-1, command=COMMAND))
    process_new(workspace)
    refresh(workspace)
    (place.source / "picture0.png").unlink()
    discover(workspace, "source")
    refresh(workspace)
    with workspace.ledger._engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM matches")) == 1
    assert matched(workspace) == ["picture1.png"]
