"""The demo media through the real thing: Dagster, guarded decoding, the demo models, and the truth about what is there.

Put here: what a user of `make demo` may rely on. Keep out: figures on held-out media, which scripts/evaluate.py measures.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from evaluate import measure, read_tables
from evaluation.figures import Figure
from world.truth import CollectionTruth, MediaObject, read_truth

from mm_assets.cli.runs import Summary, ingest, open_instance
from mm_assets.lake import Lake
from mm_assets.resources.readers import evaluate_search, open_retriever
from mm_assets.retrieval.golden import read_golden
from mm_assets.settings import Settings, load_settings
from mm_assets.spaces import SPACES

pytestmark = [pytest.mark.slow, pytest.mark.models, pytest.mark.filterwarnings("default")]
DEMO = Path(__file__).parents[1] / "demo"


@dataclass
class Demo:
    """An ingested demo."""

    config: Path
    settings: Settings
    summary: Summary
    truth: CollectionTruth
    tables: Mapping[str, list[dict[str, Any]]]

    @property
    def lake(self) -> Path:
        """The folder of the results."""
        return self.settings.lake.folder

    @property
    def keys(self) -> list[str]:
        """Keys of all objects."""
        return [item.key for item in self.truth.objects]

    @property
    def recipe_of_segments(self) -> str:
        """Recipe of the published segments."""
        return next(row["recipe"] for row in self.tables["segments"])

    def rows(self, table: str, key: str) -> list[dict[str, Any]]:
        """Return the rows of one object."""
        return [row for row in self.tables[table] if row["key"] == key]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Ingest the demo media once."""
    home = tmp_path_factory.mktemp("demo")
    config = home / "mm_assets.yaml"
    config.write_text(f"sources: [{{uri: '{DEMO / 'media'}'}}]\nlake: {{uri: lake}}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        summary = ingest(config)
        settings = load_settings(config)
        yield Demo(config, settings, summary, read_truth(DEMO / "truth.json"), read_tables(settings))


def _figures(demo: Demo) -> dict[str, Figure]:
    retriever = open_retriever(demo.settings)
    return {figure.name: figure for figure in measure(demo.truth, demo.tables, DEMO / "media", retriever)}


def test_every_object_ends_as_it_should(demo: Demo) -> None:
    """What can be read is done, what is broken is a row with a reason, and nothing is left over."""
    state_of = {"ok": "done", "dead_letter": "dead", "skipped": "skipped"}
    segments = {row["key"]: row for row in demo.tables["step_states"] if row["step"] == "segments"}

    assert {item.key: state_of[item.expect] for item in demo.truth.objects} == {
        k: r["state"] for k, r in segments.items()
    }
    assert all(row["reason"] for row in segments.values() if row["state"] != "done")
    assert demo.summary.n_waiting == 0
    assert demo.summary.failed_runs == {}


def test_the_tables_say_what_was_drawn_and_spoken(demo: Demo) -> None:
    """Scenes are found by their captions, words, boxes, faces, texts and cuts are where the truth has them."""
    figures = _figures(demo)

    missed = {name: figure for name, figure in figures.items() if figure.is_met is False}
    # Copies and near-duplicates share a caption with their original, so the first answer may be a twin.
    missed.pop("text_to_moment_recall_at_1", None)
    assert missed == {}
    assert figures["text_to_moment_recall_at_5"].value >= 0.9


def test_golden_queries_find_their_moments_first(demo: Demo) -> None:
    """Nine of ten captions lead to the one moment that they name, and no kind of query finds nothing."""
    figures = evaluate_search(demo.settings, read_golden(DEMO / "golden.yaml"), 10).by_kind
    assert figures["text"].recall_at_1 >= 0.9
    assert all(metrics.recall_at_1 > 0 for metrics in figures.values())


def _has(answers: Iterable[Mapping[str, Any]], key: str, at_s: float, within_s: float) -> bool:
    return any(
        row["key"] == key and abs(row["start_s"] - at_s) <= within_s for row in answers if row["start_s"] is not None
    )


def test_a_spoken_phrase_is_found_at_its_second(demo: Demo) -> None:
    """Three words in a row that were heard right are found in their object, half a second from where they begin."""
    retriever = open_retriever(demo.settings)
    heard = {key: " ".join(row["text"] for row in demo.rows("transcripts", key)) for key in demo.keys}
    asked = [
        (item.key, " ".join(word.word for word in utterance.words[1:4]), utterance.words[1].start_s)
        for item in demo.truth.objects
        for utterance in item.speech
        if item.expect == "ok" and len(utterance.words) > 3
    ]
    asked = [(key, phrase, at_s) for key, phrase, at_s in asked if phrase.lower() in heard[key].lower()]
    assert len(asked) >= 20
    missed = [
        (key, phrase, at_s)
        for key, phrase, at_s in asked
        if not _has(retriever.search(said=f'"{phrase}"', k=20).iter_rows(named=True), key, at_s, 0.5)
    ]
    assert missed == []


def test_words_on_screen_are_found_in_their_scene_with_their_box(demo: Demo) -> None:
    """Two words in a row that were read right lead to the scene that shows them."""
    retriever = open_retriever(demo.settings)
    lines = [row for row in demo.tables["ocr_text"] if row["start_s"] is not None and len(row["text"].split()) > 2]
    assert len(lines) >= 5
    for line in lines:
        phrase = " ".join(line["text"].split()[:3])
        answers = retriever.search(shown=f'"{phrase}"', k=20).rows(named=True)
        [answer] = [row for row in answers if row["segment_id"] == line["segment_id"]]
        assert (answer["key"], answer["start_s"]) == (line["key"], line["start_s"])
        assert answer["box_px"][0] == pytest.approx(line["box_x0_px"])


def test_a_person_is_found_in_another_film_by_the_face(demo: Demo, tmp_path: Path) -> None:
    """A picture of each person who is in two objects finds the others first."""
    retriever = open_retriever(demo.settings)
    named: dict[str, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    for item in demo.truth.objects:
        for scene in item.scenes:
            for row in demo.rows("faces", item.key):
                is_there = scene.start_s is None or scene.start_s <= (row["start_s"] + row["end_s"]) / 2 <= (
                    scene.end_s or 0
                )
                if is_there and len(scene.people) == 1:
                    named[scene.people[0].name].append((item.key, row))
    people = {name: found for name, found in named.items() if len({key for key, _ in found}) > 1}
    assert len(people) >= 2
    who = {row["segment_id"]: name for name, found in named.items() for _, row in found}
    for name, found in people.items():
        key, row = found[0]
        picture = tmp_path / f"{name}.jpg"
        results = Path(demo.lake, *Lake.result_key("segments", demo.recipe_of_segments, row["object_id"]).split("/"))
        segments = pq.read_table(results, columns=["segment_id", "keyframe_jpeg"], partitioning=None).to_pylist()
        picture.write_bytes(next(s["keyframe_jpeg"] for s in segments if s["segment_id"] == row["segment_id"]))
        answers = retriever.search(face=picture, k=len({key for key, _ in found}), group_by="object")
        others = [who.get(answer["segment_id"]) for answer in answers.rows(named=True) if answer["key"] != key]
        assert others
        assert set(others) <= {name, None}, (name, others)


def test_identical_files_have_one_checksum(demo: Demo) -> None:
    """A copy is told by its bytes, whatever its name."""
    copies: list[MediaObject] = [item for item in demo.truth.objects if item.duplicate_of]

    assert copies
    for item in copies:
        [copy], [original] = demo.rows("raw_objects", item.key), demo.rows("raw_objects", str(item.duplicate_of))
        assert copy["sha256"] == original["sha256"]
        assert copy["object_id"] != original["object_id"]


def test_every_step_and_judgement_has_rows(demo: Demo) -> None:
    """No table is empty, and the index holds all vectors."""
    assert all(demo.summary.n_rows.values())
    vectors = sum(demo.summary.n_rows[space.table] for space in SPACES.values())
    assert demo.summary.n_rows["indexed_vectors"] == vectors


def test_all_checks_pass(demo: Demo) -> None:
    """Schemas are exact, ids unique, vectors unit, and index rows are live rows."""
    with open_instance(demo.settings) as instance:
        [refresh] = instance.get_run_records(dg.RunsFilter(job_name="refresh_job"))
        events = instance.all_logs(refresh.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)

    results = {
        e.dagster_event.event_specific_data.check_name: e.dagster_event.event_specific_data.passed for e in events
    }  # type: ignore[union-attr]
    assert results == dict.fromkeys(
        (
            "schemas_are_exact",
            "ids_are_unique",
            "vectors_are_unit",
            "index_rows_are_live_rows",
            "golden_moments_are_found",
            "dead_letters_are_few",
        ),
        True,
    )


def test_partitions_are_keyed_by_bucket_key_and_etag(demo: Demo) -> None:
    """Dagster knows each object version by name, and which steps it has."""
    with open_instance(demo.settings) as instance:
        keys = instance.get_dynamic_partitions("objects")
        done = instance.get_materialized_partitions(dg.AssetKey("transcripts"))
    garden = demo.rows("raw_objects", "films/2026/spring/garden.mp4")[0]

    assert len(keys) == len(demo.truth.objects)
    assert f"media/films/2026/spring/garden.mp4/{garden['etag']}" in done


def test_a_second_ingest_does_and_writes_nothing(demo: Demo) -> None:
    """Nothing new costs a listing: no run, no extraction, no changed file."""
    before = {file: file.stat().st_mtime_ns for file in demo.lake.rglob("*") if file.is_file()}

    again = ingest(demo.config)

    assert (again.n_runs, again.n_processed, again.is_refreshed) == (0, 0, False)
    assert {file: file.stat().st_mtime_ns for file in demo.lake.rglob("*") if file.is_file()} == before
