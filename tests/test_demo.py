"""The demo media through the real thing: Dagster, guarded decoding, the demo models, and the truth about what is there.

Put here: what a user of `make demo` may rely on. Keep out: figures on held-out media, which scripts/evaluate.py measures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from evaluate import measure, read_tables
from evaluation.figures import Figure
from world.truth import CollectionTruth, MediaObject, read_truth

from mm_assets.cli.runs import Summary, ingest, open_instance
from mm_assets.resources.readers import open_retriever
from mm_assets.settings import Settings, load_settings

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
    vectors = demo.summary.n_rows["visual_embeddings"] + demo.summary.n_rows["faces"]
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
