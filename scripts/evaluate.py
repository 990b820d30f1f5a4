"""Measure the models through the whole pipeline: ingest media whose truth is known, compare what the tables say.

Put here: the command line, the ingest, reading the published tables.
Keep out: how a figure is measured (evaluation).

Made for `make_media.py --profile evaluation`, whose scenes are all different; elsewhere copies make search look worse.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml
from evaluation.boxes import measure_objects
from evaluation.costs import Meter, step_seconds
from evaluation.cuts import measure_cuts
from evaluation.faces import measure_faces
from evaluation.figures import Figure, Row, format_table, share
from evaluation.moments import N_ANSWERS, measure_moments
from evaluation.speech import measure_speech
from evaluation.texts import measure_texts
from evaluation.views import pair_views
from world.truth import CollectionTruth, MediaObject, read_truth

if TYPE_CHECKING:
    from mm_assets.retrieval import Retriever
    from mm_assets.settings import Settings

CONFIG_NAME = "mm_assets.yaml"
TABLES = ("raw_objects", "segments", "detected_objects", "faces", "ocr_text", "transcripts", "step_states")
STEPS = ("visual_embeddings", "detected_objects", "faces", "ocr_text", "transcripts", "media_quality")
Tables: TypeAlias = Mapping[str, list[Row]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the models through the whole pipeline.")
    parser.add_argument("--media", type=Path, required=True, help="folder of the media")
    parser.add_argument("--truth", type=Path, help="default: truth.json beside the folder")
    parser.add_argument(
        "--lake",
        type=Path,
        metavar="DIR",
        help="folder that keeps settings, lake and ledger: a later run does only "
        "what has changed; default: a temporary one",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write figures and costs as JSON")
    parser.add_argument("--min-figures", action="store_true", help="exit with 1 when a figure misses its target")
    return parser.parse_args(arguments)


@contextmanager
def open_home(kept: Path | None) -> Iterator[Path]:
    """Give a folder for settings, lake and ledger."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="mm_evaluate_") as folder:
        yield Path(folder)


def write_config(home: Path, media: Path) -> Path:
    """Write default settings with the media as the one source, unless the folder has settings of its own."""
    config = home / CONFIG_NAME
    if not config.exists():
        settings = {"sources": [{"uri": str(media.absolute())}], "lake": {"uri": "lake"}}
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config


def run_ingest(config: Path) -> dict[str, Any]:
    """Ingest as `mm ingest` does and give what it cost; raises RuntimeError when a run failed."""
    from mm_assets.cli.runs import ingest, open_instance
    from mm_assets.settings import load_settings

    since = time.time()
    with Meter() as meter:
        summary = ingest(config, on_progress=meter.note)
    if summary.failed_runs or summary.n_waiting:
        message = f"the ingest is not complete, {summary.n_waiting} objects wait: {summary.failed_runs}"
        raise RuntimeError(message)
    with open_instance(load_settings(config)) as instance:
        seconds = step_seconds(instance, STEPS, since)
    return {
        "n_processed": summary.n_processed,
        "phases": {name: asdict(clocks) for name, clocks in meter.phases.items()},
        "step_wall_s": seconds,
        "peak_memory_bytes": meter.peak_bytes,
    }


def read_tables(settings: "Settings") -> Tables:
    """Read the published tables."""
    from mm_assets.resources.readers import open_lake
    from mm_assets.retrieval import open_tables

    with open_tables(open_lake(settings), settings.cache) as connection:
        return {name: connection.sql(f'FROM "{name}"').to_arrow_table().to_pylist() for name in TABLES}


def read_frame_durations(media: Path, films: Sequence[MediaObject]) -> dict[str, float]:
    """Give the mean duration of a frame of each film."""
    import av

    durations = {}
    for film in films:
        with av.open(str(media / film.key)) as container:
            durations[film.key] = float(1 / (container.streams.video[0].average_rate or 25))
    return durations


def ask(retriever: "Retriever", text: str) -> list[SimpleNamespace]:
    """Search by words; answers with key, start_s and end_s."""
    return [SimpleNamespace(**row) for row in retriever.search(text=text, k=N_ANSWERS).iter_rows(named=True)]


def measure(truth: CollectionTruth, tables: Tables, media: Path, retriever: "Retriever") -> list[Figure]:
    """Measure everything that the tables and the search answer."""
    objects = {item.key: item for item in truth.objects if item.expect == "ok"}
    films = [item for item in objects.values() if item.media_kind == "video"]
    segments = [row for row in tables["segments"] if row["key"] in objects]
    views = sorted(pair_views(segments, objects), key=lambda view: view.place)
    containers = {row["key"]: row["container_kind"] for row in tables["raw_objects"]}
    return [
        measure_completeness(objects, tables["step_states"]),
        *measure_moments(list(objects.values()), partial(ask, retriever)),
        *measure_speech(list(objects.values()), tables["transcripts"]),
        *measure_objects(views, tables["detected_objects"]),
        *measure_faces(views, tables["faces"]),
        *measure_texts(views, tables["ocr_text"]),
        *measure_cuts(films, segments, read_frame_durations(media, films), containers),
    ]


def measure_completeness(objects: Mapping[str, MediaObject], states: Sequence[Row]) -> Figure:
    """Measure how many readable objects have no step that was given up."""
    dead = {row["key"]: f"{row['key']}: {row['step']} {row['error']}" for row in states if row["state"] == "dead"}
    done = {row["key"] for row in states} - dead.keys()
    worst = [dead.get(key, f"{key}: unknown to the ledger") for key in objects if key not in done]
    return share("objects_processed", len(done & objects.keys()), len(objects), target=1.0, worst=worst)


def describe_machine() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def to_report(truth: CollectionTruth, figures: Sequence[Figure], costs: Mapping[str, Any]) -> dict[str, Any]:
    """Give everything that was measured, and on what."""
    return {
        "measured_on": {
            "profile": truth.profile,
            "seed": truth.seed,
            "generator_version": truth.generator_version,
            "n_objects": len(truth.objects),
            "machine": describe_machine(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        },
        "figures": [{**asdict(figure), "is_met": figure.is_met} for figure in figures],
        "costs": costs,
    }


def format_costs(costs: Mapping[str, Any]) -> str:
    """Give the costs as lines of text."""
    phases = [
        f"{name:<12} {p['wall_s']:6.1f} s wall, {p['own_cpu_s']:6.1f} s CPU, {p['child_cpu_s']:6.1f} s CPU of children"
        for name, p in costs["phases"].items()
    ]
    steps = [f"  {name:<20} {seconds:6.1f} s wall" for name, seconds in costs["step_wall_s"].items()]
    return "\n".join([*phases, *steps, f"peak memory of all processes: {costs['peak_memory_bytes'] / 1e6:.0f} MB"])


def main() -> int:
    """Ingest, measure, print; 1 when a figure misses its target and that was asked for."""
    from mm_assets.resources.readers import open_retriever
    from mm_assets.settings import load_settings

    options = parse_arguments()
    truth = read_truth(options.truth or options.media.parent / "truth.json")
    with open_home(options.lake) as home:
        config = write_config(home, options.media)
        costs = run_ingest(config)
        settings = load_settings(config)
        figures = measure(truth, read_tables(settings), options.media, open_retriever(settings))
    print(format_table(figures), format_costs(costs), sep="\n\n")
    if options.out:
        report = to_report(truth, figures, costs)
        options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(options.min_figures and not all(figure.is_met for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
