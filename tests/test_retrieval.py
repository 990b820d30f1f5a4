"""Search over a lake: what is asked, refused, fused, filtered, grouped; what an answer shows."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fakes import fake_extractors
from flow_driver import ingest, plan, process, refresh
from PIL import Image
from places import Place
from vector_factory import unit

from mm_assets.errors import ConfigError
from mm_assets.flows.discovery import discover
from mm_assets.flows.processing import process_batch
from mm_assets.flows.removing import erase, sweep
from mm_assets.identity import vector_id
from mm_assets.indexing import GrownIndex, Part, Rows, build_index, write_part
from mm_assets.ledger.dead import DeadFilter
from mm_assets.resources.readers import open_retriever as open_product_retriever
from mm_assets.retrieval import Models, Question, Retriever
from mm_assets.retrieval.answers import _matching
from mm_assets.retrieval.fusing import Fused, choose, fuse
from mm_assets.retrieval.signals import MeaningSignal, Ranked
from mm_assets.retrieval.tables import open_tables, segments_where
from mm_assets.settings import Settings, SourceSettings
from mm_assets.texts import parse_question
from mm_assets.vectors import Floats, as_vector_ids

MakePlace = Callable[..., Place]
NAMES = ("picture0.png", "picture1.png", "clip.mp4")


def open_retriever(place: Place, **options: Any) -> Retriever:
    """Open search over a place's lake, with the fakes that filled it."""
    workspace = place.open()
    models: dict[str, Any] = fake_extractors(workspace.settings)
    used = Models(
        models["visual_embeddings"],
        models["faces"],
        models["text_embeddings"],
        options.pop("recipes", workspace.recipes),
    )
    return Retriever(workspace.lake, used, cache=place.folder / "cache", **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Place]:
    """Give a place whose media are searchable."""
    place = Place(tmp_path_factory.mktemp("retrieval"), media)
    place.write_settings()
    place.add(*NAMES)
    ingest(place.open())
    yield place
    place.close()


@pytest.fixture(scope="module")
def retriever(place: Place) -> Retriever:
    """Search over it."""
    return open_retriever(place, link=lambda alias, key: f"https://media/{alias}/{key}")


# -- questions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "nothing is asked"),
        ({"text": " \x00\n "}, "text is empty"),
        ({"text": "x" * 10_000}, "10000 characters, 2000 at most"),
        ({"said": "..."}, "no word in"),
        ({"text": "x", "spaces": ("smell",)}, "unknown signal 'smell'; there are visual, face, text, words, names"),
        ({"text": "x", "spaces": "names"}, "text is asked, .* leave no signal .*: visual, text, words"),
        ({"said": "x", "spaces": "visual, face"}, "said is asked, and spaces"),
        ({"seen": "x", "weights": {"names": 0.0}}, "seen is asked, and spaces and weights"),
        ({"text": "x", "spaces": "visual smell"}, "unknown signal 'smell'"),
        ({"said": ["x"]}, "said is a text, not list"),
        ({"text": "x", "image": ""}, "image is empty"),
        ({"text": "x", "face": b""}, "face is empty"),
        ({"seen": " , "}, "nothing is asked"),
        ({"seen": ",".join("abcdefghijklmnopq")}, "17 names, 16 at most"),
        ({"text": "x", "weights": {"words": -1.0}}, "no weight may be below 0"),
        ({"text": "x", "k": 0}, "k must be at least 1"),
        ({"text": "x", "diversify": 2.0}, "diversify is between 0 and 1, not 2"),
        ({"text": "x", "diversify": float("nan")}, "diversify is between"),
        ({"text": "x", "threshold": 1.5}, "threshold is a cosine, -1…1, not 1.5"),
        ({"text": "x", "threshold": float("nan")}, "threshold is a cosine"),
        ({"said": "x", "threshold": 0.5}, "words and names have no threshold"),
        ({"text": "x", "spaces": "words", "threshold": 0.5}, "words and names have no threshold"),
        ({"text": "x", "group_by": "day"}, "grouped by 'object'"),
        ({"like": "nobody"}, "no keyframe is indexed for segment 'nobody'"),
        ({"text": "x", "where": "durations_s > 5"}, "did you mean duration_s"),
        ({"text": "x", "where": "start_s >"}, "not a condition"),
        ({"text": "x", "where": "start_s"}, "no condition but DOUBLE"),
        ({"text": "x", "where": " "}, "where is empty"),
        ({"text": "x", "where": "true " * 5_000}, "25000 characters, 10000 at most"),
    ],
)
def test_a_question_that_cannot_be_asked_is_an_error(retriever: Retriever, asked: dict[str, Any], told: str) -> None:
    """It says what is wrong and what to write instead."""
    with pytest.raises(ConfigError, match=told):
        retriever.search(**asked)


def test_control_characters_are_spaces(retriever: Retriever) -> None:
    """A pasted line break or escape changes no answer."""
    plain, pasted = (retriever.search(text=text) for text in ("a b", "a\x1b\nb\x00"))
    assert plain.drop("why").equals(pasted.drop("why"))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff half a picture", b"<svg/>"])
def test_a_picture_that_cannot_be_read_is_an_error(retriever: Retriever, tmp_path: Path, content: bytes) -> None:
    """Corrupt, or of another kind: it names the kinds."""
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(content)
    with pytest.raises(ConfigError, match="give a JPEG, PNG"):
        retriever.search(image=picture)


def test_a_picture_may_come_as_bytes(retriever: Retriever, media: Path) -> None:
    """It is the same question, and no message names what only Python knows of it."""
    file = media / "picture0.png"
    assert retriever.search(image=file).equals(retriever.search(image=file.read_bytes()))
    assert retriever.search(image=file).equals(retriever.search(image=str(file)))
    with pytest.raises(ConfigError, match=r"^the picture cannot be read as a picture; give a JPEG"):
        retriever.search(image=b"<svg/>")


def test_too_many_answers_are_bounded_and_said(retriever: Retriever) -> None:
    """A million answers are a thousand, and it is told."""
    answer = retriever.ask(Question(text="anything", k=1_000_000))
    assert answer.notes == ("1000 answers at most are given, not 1000000",)
    assert 3 <= answer.rows.num_rows <= 1_000


# -- names of what was detected and tagged -------------------------------------------------------------------------------


def _tables(place: Place, query: str) -> list[tuple[Any, ...]]:
    with open_tables(place.open().lake, place.folder / "cache") as connection:
        return connection.execute(query).fetchall()


def test_what_was_detected_is_found_by_its_name(place: Place, retriever: Retriever) -> None:
    """Each segment once, with its surest detection and the box of that, surest first."""
    surest = dict(_tables(place, "SELECT segment_id, max(confidence) FROM detected_objects GROUP BY ALL"))
    found = retriever.search(seen="THING")
    assert dict(zip(found["segment_id"], (signals[0]["score"] for signals in found["signals"]), strict=True)) == surest
    assert [signals[0]["score"] for signals in found["signals"]] == sorted(surest.values(), reverse=True)
    assert all(box is not None for box in found["box_px"])
    assert found["why"][0].startswith("shows THING (")


def test_what_is_tagged_is_found_by_its_tag(place: Place, retriever: Retriever) -> None:
    """Most similar first."""
    [(tag, n)] = _tables(place, "SELECT tag, count(*) AS n FROM tags GROUP BY tag ORDER BY n DESC, tag LIMIT 1")
    found = retriever.search(seen=tag)
    assert len(found) == n
    assert found["why"][0].startswith(f"is tagged {tag} (")


def test_names_count_beside_other_signals_and_within_conditions(retriever: Retriever) -> None:
    """A moment that both name comes first, and a condition narrows both."""
    found = retriever.search(text="anything", seen="thing", where="media_kind = 'video'")
    assert set(found["key"]) == {"clip.mp4"}
    assert {signal["signal"] for signal in found["signals"][0]} == {"looks like the text", "shows thing"}


def test_a_name_that_nothing_has_is_told_with_its_likes(retriever: Retriever) -> None:
    """The other names are answered."""
    answer = retriever.ask(Question(seen="thin, thing"))
    assert answer.notes == ("nothing is detected or tagged as 'thin'; did you mean 'thing'?",)
    assert answer.rows.num_rows
    assert retriever.ask(Question(seen="thin", where="false")).notes == ("nothing is detected or tagged as 'thin'",)
    left_out = "'Thing' is detected or tagged only in what the condition leaves out"
    assert retriever.ask(Question(seen="Thing", where="false")).notes == (left_out,)


# -- conditions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        "1=1); COPY (SELECT 1) TO '{out}'; SELECT (1",
        "1=1); ATTACH '{out}' AS other; SELECT (1",
        "1=1); SET enable_external_access = true; SELECT (1",
        "segment_id IN (SELECT content FROM read_text('{secret}'))",
        "segment_id IN (SELECT line FROM read_csv('{secret}', columns = {{'line': 'VARCHAR'}}))",
        "segment_id = getenv('HOME') OR true); DROP VIEW moments; SELECT (1",
    ],
)
def test_a_condition_writes_and_reads_no_file(place: Place, tmp_path: Path, where: str) -> None:
    """Whatever SQL can be put into it: neither a file of the machine is read nor one is made."""
    secret, out = tmp_path / "secret", tmp_path / "out"
    secret.write_text("secret")
    with pytest.raises(ConfigError):
        segments_where(place.open().lake, tmp_path / "cache", where.format(secret=secret, out=out))
    assert not out.exists()


def test_a_condition_that_takes_too_long_is_stopped(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted, and says so."""
    monkeypatch.setattr("mm_assets.retrieval.tables._SECONDS", 0.5)
    endless = "(SELECT count(*) FROM range(10000000) a, range(10000000) b) > 0"
    with pytest.raises(ConfigError, match="took longer"):
        segments_where(place.open().lake, tmp_path, endless)


def test_a_condition_leaves_only_what_passes(retriever: Retriever) -> None:
    """For every signal, and however few are left there are k answers."""
    for asked in ({"text": "anything"}, {"shown": "text"}):
        assert set(retriever.search(**asked, where="media_kind = 'video'")["key"]) == {"clip.mp4"}
    assert retriever.search(text="anything", where="false").is_empty()
    [only] = retriever.search(text="anything", where="key = 'picture1.png'")["key"]
    assert only == "picture1.png"


# -- signals -----------------------------------------------------------------------------------------------------------


def test_an_answer_has_place_reason_link_and_picture(retriever: Retriever) -> None:
    """Films lead to their second, pictures to themselves; the thumbnail is a small JPEG."""
    frame = retriever.search(text="anything", has_thumbnails=True)
    assert frame["rank"].to_list() == list(range(1, len(frame) + 1))
    assert set(frame["key"]) == set(NAMES)
    for row in frame.iter_rows(named=True):
        fragment = f"#t={row['start_s']:.2f}" if row["start_s"] is not None else ""
        assert row["link"] == f"https://media/source/{row['key']}{fragment}"
        assert row["thumbnail_jpeg"].startswith(b"\xff\xd8\xff")
        assert row["why"].startswith("looks like the text (")
        assert row["signals"] == [
            {"signal": "looks like the text", "rank": row["rank"], "score": row["signals"][0]["score"]}
        ]


def test_like_finds_the_segment_itself_first(retriever: Retriever) -> None:
    """And then others; the score of the first is a cosine of 1."""
    segment = retriever.search(text="anything")["segment_id"][-1]
    first = retriever.search(like=segment).row(0, named=True)
    assert first["segment_id"] == segment
    assert math.isclose(first["signals"][0]["score"], 1.0, abs_tol=1e-5)


def test_words_lead_to_where_they_stand(retriever: Retriever) -> None:
    """What is shown has its box, and the words are marked."""
    frame = retriever.search(shown="text")
    assert len(frame) >= 3
    assert set(frame["snippet"]) == {"**text**"}
    assert frame["box_px"].to_list()[0] == [0.0, 0.0, 10.0, 10.0]
    assert retriever.search(shown="absent").is_empty()
    assert retriever.search(said="text").is_empty()


@pytest.mark.parametrize(("said", "at"), [("squ*", (4, 5)), ('"red cir*"', (1, 3)), ('"red circle" squ*', (1, 5))])
def test_what_is_said_leads_to_its_own_words(said: str, at: tuple[int, int]) -> None:
    """A beginning to the word that goes on, a phrase to all of its words."""
    spoken = ["A", "red", "circle,", "red", "square."]
    pieces = pa.array([{"text": word, "start_s": float(n), "end_s": n + 1.0} for n, word in enumerate(spoken)])
    assert _matching(pieces, parse_question(said)) == at


def test_signals_can_be_chosen_and_weighed(retriever: Retriever) -> None:
    """A free text asks what it looks like, what means it and where it stands; one alone where only that is wanted."""
    names = {
        signal["signal"]
        for spaces in ((), ("visual",), ("text",), ("words",))
        for row in retriever.search(text="text", spaces=spaces)["signals"]
        for signal in row
        if spaces
    }
    assert names == {"looks like the text", "means the text", "said or shown"}
    assert {s["signal"] for row in retriever.search(text="text", weights={"visual": 0.0})["signals"] for s in row} == {
        "means the text",
        "said or shown",
    }


def test_answers_are_grouped_by_object(retriever: Retriever) -> None:
    """Each object once, by its best moment."""
    frame = retriever.search(text="anything", group_by="object")
    assert sorted(frame["key"]) == sorted(NAMES)


# -- generations -------------------------------------------------------------------------------------------------------


def test_an_index_of_another_model_is_refused(place: Place) -> None:
    """A question is never compared with vectors of another model."""
    other = {**place.open().recipes, "visual_embeddings": "another"}
    with pytest.raises(ConfigError, match="made by another model"):
        open_retriever(place, recipes=other).search(text="anything")


def test_nothing_indexed_yet_says_what_to_run(make_workspace: MakePlace) -> None:
    """Before the first ingest."""
    place = make_workspace()
    place.open()
    with pytest.raises(ConfigError, match="run `mm ingest`"):
        open_retriever(place).search(text="anything")


def test_a_retriever_goes_on_when_its_generation_is_replaced(
    make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New objects are found by one that was opened before, also when the files of the old generation are gone."""
    monkeypatch.setattr("mm_assets.retrieval.retriever._CHECKED_EVERY_S", 0.0)
    place = make_workspace("picture0.png")
    workspace = place.open()
    ingest(workspace)
    retriever = open_retriever(place)
    assert set(retriever.search(text="anything")["key"]) == {"picture0.png"}
    place.add("picture1.png")
    before = workspace.ledger.catalog.generation("indexes/visual")
    ingest(workspace)
    assert before is not None
    shutil.rmtree(place.lake / "indexes" / "visual" / before["generation"], ignore_errors=True)
    assert set(retriever.search(text="anything")["key"]) == {"picture0.png", "picture1.png"}


def test_what_a_batch_made_is_found_before_it_is_published(make_workspace: MakePlace) -> None:
    """Vectors and words of new objects are searched at once, first of all and beside an index; then the index has them."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)
    retriever = open_retriever(place, link=lambda *_: "")
    assert set(retriever.search(text="anything")["key"]) == {"picture0.png"}
    assert not list(place.lake.glob("indexes/**/*.faiss"))

    refresh(workspace)
    place.add("clip.mp4", "picture1.png")
    discover(workspace, "source")
    process(workspace)
    retriever = open_retriever(place, link=lambda *_: "")
    before = retriever.search(text="anything", said="words", has_thumbnails=True)
    assert set(before["key"]) == {"picture0.png", "picture1.png", "clip.mp4"}
    rows = before.to_dicts()
    assert any(row["snippet"] for row in rows if row["key"] == "clip.mp4")
    assert all(row["thumbnail_jpeg"] for row in rows if row["key"] == "picture1.png")
    assert set(retriever.search(text="anything", where="media_kind = 'image'")["key"]) == {"picture0.png"}

    refresh(workspace)
    assert not [file for file in place.lake.rglob("arrivals/**/*") if file.is_file()]
    after = open_retriever(place).search(text="anything", said="words")
    assert set(after["segment_id"]) == set(before["segment_id"])


def test_the_product_finds_words_of_new_batches(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What opens search for commands and servers sees texts before they are published, also where nobody transcribes."""
    place = make_workspace("picture0.png")
    place.write_settings(sources=[{"uri": str(place.source), "alias": "source", "steps": ["ocr_text"]}])
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)
    fakes = fake_extractors(Settings(sources=(SourceSettings(uri="x"),)))
    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", lambda step, *_: fakes[step])
    assert set(open_product_retriever(workspace.settings).search(shown="text")["key"]) == {"picture0.png"}


def test_what_left_while_its_batch_ran_is_nowhere(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is erased between two groups of its batch leaves nothing that can be found, or lies in the lake."""
    place = make_workspace(*(f"picture{n}.png" for n in range(4)), runs={"decode_workers": 1})
    workspace = place.open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    monkeypatch.setattr("mm_assets.flows.processing._GROUP_OBJECTS", 1)
    ends = process_batch(workspace, batch.batch_id)
    first = next(ends).claim.known
    erase(workspace, [first])
    refresh(workspace)
    assert len(list(ends)) == 3
    refresh(workspace)
    assert first.version.key not in set(open_retriever(place).search(text="anything")["key"])
    assert not list(place.lake.rglob("arrivals/**/*.parquet"))
    assert not list(place.lake.rglob("judgements/**/*.parquet"))


def test_a_damaged_arrival_stops_no_search(make_workspace: MakePlace, caplog: pytest.LogCaptureFixture) -> None:
    """The rest is answered, and the log names the file."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    ingest(workspace)
    place.add("picture1.png")
    discover(workspace, "source")
    process(workspace)
    for file in place.lake.glob("arrivals/**/*.parquet"):
        file.write_bytes(file.read_bytes()[:-20])
    assert set(open_retriever(place).search(text="anything")["key"]) == {"picture0.png"}
    assert "arrivals/visual/" in caplog.text


def test_texts_stay_until_their_own_table_shows_them(make_workspace: MakePlace) -> None:
    """That the segments of an object are shown does not say that its words are."""
    place = make_workspace("picture0.png", "clip.mp4", runs={"decode_workers": 1, "max_tries": 1})
    workspace = place.open(fails_on="clip", failing_step="transcripts")
    ingest(workspace)
    workspace = place.open()
    letters = workspace.ledger.dead.letters(DeadFilter())
    workspace.ledger.dead.replay(letters)
    process(workspace)
    sweep(workspace)
    assert list(place.lake.glob("arrivals/words/transcripts/*.parquet"))
    assert set(open_retriever(place).search(said="words")["key"]) == {"clip.mp4"}


def test_what_a_batch_says_is_found_by_meaning_before_any_refresh(make_workspace: MakePlace) -> None:
    """And leaves with its object."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    ingest(workspace)
    place.add("clip.mp4")
    discover(workspace, "source")
    process(workspace)
    [found] = open_retriever(place).search(text="words", spaces=("text",), k=1).to_dicts()
    assert (found["key"], found["why"], found["snippet"]) == ("clip.mp4", "means the text (1.00)", "words")
    assert found["end_s"] > found["start_s"] >= 0
    (place.source / "clip.mp4").unlink()
    discover(workspace, "source")
    refresh(workspace)
    assert set(open_retriever(place).search(text="words", spaces=("text",))["key"]) == {"picture0.png"}
    assert not list(place.lake.glob("arrivals/text/*/*.parquet"))


def meaning(tmp_path: Path, *scores: float) -> MeaningSignal:
    """Compare texts that have these cosines with every question."""
    angles = np.arccos(np.array(scores))
    flat = pa.array(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32).reshape(-1))
    ids = [f"piece{n}" for n in range(len(scores))]
    rows = pa.table({"piece_id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, 2)})
    file = tmp_path / f"part{len(scores)}"
    write_part(file, rows, "piece_id")
    index = build_index(Rows.of_parts([Part(file.name, file)], 2), exact_rows=100, min_recall=0.0)

    class Encoder:
        def load(self) -> None:
            """Nothing."""

        def encode_texts(self, texts: Sequence[str]) -> Floats:
            return np.array([[1.0, 0.0]] * len(texts), np.float32)

    return MeaningSignal(GrownIndex(index, []), Encoder())


def test_meaning_counts_where_few_are_near(tmp_path: Path) -> None:
    """Far texts say nothing, and neither do many near ones; all are ranked for who asks for this signal alone."""
    few = meaning(tmp_path, 0.99, 0.9, 0.5, 0.1)
    [ranked] = few.rank(Question(text="q"), 100, None)
    np.testing.assert_allclose(ranked.scores, [0.99, 0.9], atol=1e-6)
    [ranked] = few.rank(Question(text="q", spaces=("text",)), 100, None)
    assert len(ranked.ids) == 4
    [ranked] = few.rank(Question(text="q", threshold=0.95), 100, None)
    np.testing.assert_allclose(ranked.scores, [0.99], atol=1e-6)
    crowd = meaning(tmp_path, 0.99, *[0.9] * 11)
    assert crowd.rank(Question(text="q", threshold=0.95), 100, None) == []
    assert meaning(tmp_path, *[0.99] * 11).rank(Question(text="q"), 100, None) == []
    assert meaning(tmp_path, 0.5).rank(Question(text="q"), 100, None) == []


def test_texts_of_other_models_are_left_out_or_refused(make_workspace: MakePlace) -> None:
    """A question goes on without them and says so, unless it asks for them."""
    place = make_workspace("clip.mp4")
    workspace = place.open()
    ingest(workspace)
    retriever = open_retriever(place, recipes={**workspace.recipes, "text_embeddings": "another"})
    answer = retriever.ask(Question(text="words"))
    assert any("text index" in note for note in answer.notes)
    assert not any("means" in why for why in answer.frame["why"])
    with pytest.raises(ConfigError, match="text index was made by another model"):
        retriever.search(text="words", spaces=("text",))


def test_a_running_search_sees_new_batches(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retriever that is open looks again; what was erased meanwhile is found no more."""
    monkeypatch.setattr("mm_assets.retrieval.retriever._CHECKED_EVERY_S", 0.0)
    place = make_workspace("picture0.png")
    workspace = place.open()
    ingest(workspace)
    retriever = open_retriever(place)
    assert set(retriever.search(text="anything")["key"]) == {"picture0.png"}

    place.add("picture1.png")
    discover(workspace, "source")
    process(workspace)
    assert set(retriever.search(text="anything")["key"]) == {"picture0.png", "picture1.png"}

    (place.source / "picture1.png").unlink()
    discover(workspace, "source")
    refresh(workspace)
    assert set(retriever.search(text="anything")["key"]) == {"picture0.png"}


def test_arrivals_beyond_the_bound_are_told(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded during a backlog, and the answer says that it is not the whole."""
    monkeypatch.setattr(
        "mm_assets.retrieval.retriever._ARRIVED_BYTES", dict.fromkeys(("visual", "face", "text", "words"), 10)
    )
    place = make_workspace("picture0.png")
    workspace = place.open()
    ingest(workspace)
    place.add("picture1.png")
    discover(workspace, "source")
    process(workspace)
    answer = open_retriever(place).ask(Question(text="anything"))
    assert set(answer.frame["key"]) == {"picture0.png"}
    assert any("mm ingest" in note for note in answer.notes)


def test_a_part_that_did_not_change_is_not_written_again(make_workspace: MakePlace) -> None:
    """One shard more is one part more; the index of the same rows is no new generation."""
    place = make_workspace("picture0.png", refresh={"shard_objects": 1})
    workspace = place.open()
    ingest(workspace)
    folder = place.lake / "indexes" / "visual" / "vectors"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    first = workspace.ledger.catalog.generation("indexes/visual")
    refresh(workspace)
    assert workspace.ledger.catalog.generation("indexes/visual") == first
    place.add("picture1.png")
    ingest(workspace)
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(before) == 1
    assert len(after) == 2
    assert before.items() <= after.items()


# -- fusion ------------------------------------------------------------------------------------------------------------


def ranked(tmp_path: Path, name: str, items: Sequence[tuple[str, str, float | None, float | None]]) -> Ranked:
    """Let a signal name (segment, object, start, end), best first."""
    rows = pa.table(
        {
            "item_id": [f"{name}-{place}" for place in range(len(items))],
            "segment_id": [item[0] for item in items],
            "object_id": [item[1] for item in items],
            "start_s": pa.array([item[2] for item in items], pa.float64()),
            "end_s": pa.array([item[3] for item in items], pa.float64()),
        }
    )
    file = tmp_path / f"{name}.arrow"
    write_part(file, rows, "item_id")
    ids = as_vector_ids(rows["item_id"].to_pylist())
    scores = np.linspace(1, 0.5, len(items), dtype=np.float32)
    return Ranked(name, name, ids, scores, Rows.of_parts([Part(name, file)]))


def test_fusion_adds_reciprocal_ranks(tmp_path: Path) -> None:
    """1/(60 + rank) for each signal, by its weight; of a signal only the best item of a segment counts."""
    one = ranked(tmp_path, "visual", [("a", "x", None, None), ("b", "y", None, None), ("a", "x", None, None)])
    two = ranked(tmp_path, "words", [("b", "y", None, None), ("c", "z", None, None)])
    found = fuse([one, two], Question(text="q", weights={"words": 2.0}))
    assert [(moment.segment_id, moment.score) for moment in found] == [
        ("b", pytest.approx(1 / 62 + 2 / 61)),
        ("c", pytest.approx(2 / 62)),
        ("a", pytest.approx(1 / 61)),
    ]


def test_what_is_said_in_a_scene_belongs_to_it(tmp_path: Path) -> None:
    """A common time of one object is one moment, from when to when both hold; another object's is another."""
    scenes = ranked(tmp_path, "visual", [("s0", "x", 0.0, 10.0), ("s1", "x", 10.0, 20.0), ("t0", "y", 0.0, 10.0)])
    words = ranked(tmp_path, "words", [("a0", "x", 12.0, 13.5)])
    found = fuse([scenes, words], Question(text="q"))
    assert [(m.segment_id, m.start_s, m.end_s, len(m.evidence)) for m in found] == [
        ("s1", 12.0, 13.5, 2),
        ("s0", 0.0, 10.0, 1),
        ("t0", 0.0, 10.0, 1),
    ]


@pytest.mark.parametrize("number_of", [vector_id, lambda _: 0, lambda name: len(name) // 3])
def test_no_answer_is_left_out_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number_of: Callable[[str], int]
) -> None:
    """The k best are those of all that signals name, also where objects share a number."""
    monkeypatch.setattr("mm_assets.indexing.parts.vector_id", number_of)
    random = np.random.default_rng(3)
    drawn = {
        name: random.integers(0, 9 + 10 * place, (60, 2)) for place, name in enumerate(("visual", "face", "words"))
    }
    signals = [
        ranked(
            tmp_path, name, [(f"s{of}-{scene}", "x" * of, float(scene), scene + 1.0) for of, scene in items.tolist()]
        )
        for name, items in drawn.items()
    ]
    best = [(m.segment_id, m.score, len(m.evidence)) for m in fuse(signals, Question(text="q", k=1_000))]
    for k in (1, 3, 10):
        found = fuse(signals, Question(text="q", k=k))
        assert [(m.segment_id, m.score, len(m.evidence)) for m in found[:k]] == best[:k]
        assert number_of is not vector_id or len(found) < len(best)
    assert fuse([], Question(text="q")) == []


def test_near_duplicates_and_sameness_give_way() -> None:
    """Collapsing leaves one of each look; diversity prefers what differs, and at 0 changes nothing."""
    base = unit(np.eye(4, dtype=np.float32))
    looks = {"a": base[0], "a2": unit([base[0] + 0.05 * base[1]])[0], "b": unit([base[0] + base[1]])[0], "c": base[2]}
    moments = [Fused(name, name, None, None, None, 1 / (60 + place)) for place, name in enumerate(looks)]

    def vectors(names: Sequence[str]) -> Floats:
        return np.array([looks[name] for name in names], np.float32)

    def names(**options: Any) -> list[str]:
        return [moment.segment_id for moment in choose(moments, Question(text="q", **options), vectors)]

    assert names() == ["a", "a2", "b", "c"]
    assert names(collapse=True) == ["a", "b", "c"]
    assert names(diversify=0.5, k=2) == ["a", "c"]
    assert names(k=2) == ["a", "a2"]


def test_a_face_is_asked_for_by_the_largest_in_the_picture(place: Place, tmp_path: Path) -> None:
    """Several faces are told, none is an error."""
    picture = tmp_path / "people.png"
    Image.new("RGB", (8, 8)).save(picture)
    faces = place.open().lake.read_table("faces")
    assert faces is not None
    wanted = np.array(faces["vector"][0].as_py(), np.float32)

    class Finder:
        """Finds what it is told."""

        found = (np.array([[0, 0, 2, 2], [0, 0, 5, 5]], np.float32), np.array([-wanted, wanted]))

        def find_faces(self, _: object) -> tuple[Floats, Floats]:
            return self.found

    finder, workspace = Finder(), place.open()
    encoder: Any = fake_extractors(workspace.settings)["visual_embeddings"]
    retriever = Retriever(workspace.lake, Models(encoder, finder, encoder, workspace.recipes), cache=tmp_path)
    answer = retriever.ask(Question(face=picture))
    assert answer.notes == (f"2 faces are in {picture}; the largest one is asked for",)
    assert answer.frame["segment_id"][0] == faces["segment_id"][0].as_py()
    alike = retriever.search(face=picture, threshold=0.999)
    assert alike["segment_id"].to_list() == answer.frame["segment_id"][:1].to_list()
    assert len(answer.frame) > 1
    finder.found = (np.empty((0, 4), np.float32), np.empty((0, len(wanted)), np.float32))
    with pytest.raises(ConfigError, match="no face is found"):
        retriever.search(face=picture)
