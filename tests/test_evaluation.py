"""Metrics of the evaluation on tables made by hand: perfect tables give 1, known errors give known figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import yaml
from evaluation.boxes import average_precision, match_boxes, measure_objects, overlap
from evaluation.costs import Meter
from evaluation.cuts import count_hits, found_cuts, measure_cuts
from evaluation.faces import measure_faces
from evaluation.figures import Figure, format_table, share, spread
from evaluation.moments import measure_moments
from evaluation.speech import measure_speech
from evaluation.texts import measure_texts
from evaluation.views import View, pair_views
from evaluation.words import align, words_of
from world.truth import LabelBox, MediaObject, PageTruth, PersonBox, SceneTruth, SpeechTruth, WordTruth


def value_of(figures: Sequence[Figure], name: str) -> float:
    """Value of one figure."""
    return next(figure.value for figure in figures if figure.name == name)


def view_of(scene: SceneTruth, number: int = 0, kind: str = "image", scale: tuple[float, float] = (1.0, 1.0)) -> View:
    """View number such and such."""
    return View(f"s{number}", kind, f"place {number}", scene, scale)


def box_row(number: int, box: tuple[float, float, float, float], **values: Any) -> dict[str, Any]:
    """Row of a found box."""
    names = ("box_x0_px", "box_y0_px", "box_x1_px", "box_y1_px")
    return {"segment_id": f"s{number}", "confidence": 0.9, **dict(zip(names, box, strict=True)), **values}


# --- figures --------------------------------------------------------------------------------------------------------


def test_targets_are_lower_bounds_except_of_errors() -> None:
    """A share meets a target from above, an error from below, and nothing measured meets no target."""
    assert share("s", 9, 10, target=0.9).is_met
    assert not share("s", 8, 10, target=0.9).is_met
    assert not share("s", 0, 0, target=0.0).is_met
    assert Figure("e", 0.04, 5, target=0.05, is_error=True).is_met
    assert not Figure("e", 0.06, 5, target=0.05, is_error=True).is_met
    assert share("s", 0, 10).is_met


def test_spread_is_the_median_of_sizes() -> None:
    """Errors to both sides do not cancel."""
    figure = spread("t", [-0.2, 0.2, 1.0])
    assert figure.value == pytest.approx(0.2)
    assert "66.7% ≤ .5 s" in figure.counts


def test_table_marks_what_is_missed() -> None:
    """A missed target and its worst case are seen in the printed table."""
    text = format_table([share("good", 1, 1, target=1.0), share("bad", 0, 1, target=1.0, worst=["the case"])])
    assert [line.split()[0] for line in text.splitlines()] == ["figure", "good", "bad", "the"]
    assert "MISSED" in text.splitlines()[2]
    assert "MISSED" not in text.splitlines()[1]


# --- views ----------------------------------------------------------------------------------------------------------


def test_views_pair_keyframes_by_time_and_scale_boxes() -> None:
    """A keyframe belongs to the scene at its time, and true boxes arrive in its stored pixels."""
    scenes = (
        SceneTruth("a", start_s=0.0, end_s=2.0),
        SceneTruth("b", (LabelBox("star", 10, 20, 30, 40),), start_s=2.0, end_s=4.0),
    )
    film = MediaObject("f.mp4", "video", width_px=640, height_px=360, scenes=scenes)
    paper = MediaObject("d.pdf", "document", pages=(PageTruth(1, ("one",), ""), PageTruth(2, ("two",), "")))
    place: dict[str, Any] = {"page_number": None, "frame_s": None, "width_px": 320, "height_px": 180}
    segments = [
        {**place, "segment_id": "s0", "segment_kind": "scene", "key": "f.mp4", "frame_s": 2.0},
        {**place, "segment_id": "s1", "segment_kind": "page", "key": "d.pdf", "page_number": 2},
        {**place, "segment_id": "s2", "segment_kind": "audio", "key": "f.mp4"},
        {**place, "segment_id": "s3", "segment_kind": "scene", "key": "f.mp4", "frame_s": 4.0},
    ]
    first, second, beyond = pair_views(segments, {"f.mp4": film, "d.pdf": paper})
    assert first.scene.caption == "b"
    assert first.to_stored(first.scene.label_boxes[0]) == (5, 10, 15, 20)
    assert second.scene.texts == ("two",)
    assert beyond.scene == SceneTruth("")


# --- boxes ----------------------------------------------------------------------------------------------------------


def test_overlap_of_known_boxes() -> None:
    """Half shared of two equal boxes is a third; apart, and empty, is nothing."""
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_a_true_box_is_taken_once() -> None:
    """The second box on the same thing is an invention, and each takes what it overlaps most."""
    assert match_boxes([(0, 0, 10, 10), (0, 0, 10, 9)], [(0, 0, 10, 10)]) == [0, None]
    assert match_boxes([(0, 0, 10, 10)], [(3, 0, 13, 10), (1, 0, 11, 10)]) == [1]


def test_average_precision_of_known_rankings() -> None:
    """Perfect is 1; a miss costs the recalls not reached; an invention costs precision only from its rank on."""
    assert average_precision([0.9, 0.8], [True, True], 2) == 1
    assert average_precision([0.9], [True], 2) == pytest.approx(51 / 101)
    assert average_precision([0.9, 0.8, 0.7], [True, False, True], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([0.7, 0.8, 0.9], [True, False, True], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([0.9, 0.8], [True, False], 1) == 1
    assert average_precision([], [], 3) == 0


def test_objects_found_exactly_are_perfect() -> None:
    """Boxes in stored pixels, found exactly, give 1 for all three figures."""
    scene = SceneTruth("", (LabelBox("star", 0, 0, 20, 20), LabelBox("ring", 40, 40, 80, 80)))
    rows = [box_row(0, (0, 0, 10, 10), label="star"), box_row(0, (20, 20, 40, 40), label="ring")]
    figures = measure_objects([view_of(scene, scale=(0.5, 0.5))], rows)
    assert [figure.value for figure in figures] == [1, 1, 1]
    assert all(figure.is_met for figure in figures)


def test_objects_of_another_class_or_place_are_errors() -> None:
    """A wrong label is a miss of the one class and an invention of the other; a box on an empty page is one too."""
    scenes = [SceneTruth("", (LabelBox("star", 0, 0, 10, 10), LabelBox("ring", 40, 40, 60, 60))), SceneTruth("")]
    rows = [box_row(0, (0, 0, 10, 10), label="star"), box_row(0, (40, 40, 60, 60), label="star")]
    rows += [box_row(1, (0, 0, 10, 10), label="ring")]
    figures = measure_objects([view_of(scene, k) for k, scene in enumerate(scenes)], rows)
    assert value_of(figures, "map50") == pytest.approx(0.5)
    assert value_of(figures, "object_recall") == pytest.approx(1 / 2)
    assert value_of(figures, "object_precision") == pytest.approx(1 / 3)
    assert len(figures[1].worst) == 3


# --- faces ----------------------------------------------------------------------------------------------------------


def faces_of(names: Sequence[str], looks: Sequence[str]) -> list[Figure]:
    """Figures for one picture per person, whose face looks like another's."""
    vectors = {"Ada": np.array([1.0, 0.0]), "Bob": np.array([0.0, 1.0])}
    views = [view_of(SceneTruth("", people=(PersonBox(name, 0, 0, 10, 10),)), k) for k, name in enumerate(names)]
    rows = [box_row(k, (0, 0, 10, 10), vector=vectors[look].tolist()) for k, look in enumerate(looks)]
    return measure_faces(views, rows)


def test_faces_are_named_by_three_enrolled_ones() -> None:
    """Only the faces after the third of each person are asked for, and each is named by the nearest."""
    names = ["Ada", "Bob"] * 5
    figures = faces_of(names, names)
    assert [figure.value for figure in figures] == [1, 1, 1]
    assert figures[0].n_items == 4
    assert value_of(faces_of(names, [*names[:-1], "Ada"]), "face_rank1") == pytest.approx(3 / 4)


def test_faces_missed_and_made_up_are_counted() -> None:
    """A face where nobody was drawn costs precision, a person without a face recall."""
    views = [view_of(SceneTruth("", people=(PersonBox("Ada", 0, 0, 10, 10),)), k) for k in range(2)]
    rows = [box_row(0, box, vector=[1.0, 0.0]) for box in ((0, 0, 10, 10), (50, 50, 60, 60))]
    figures = measure_faces(views, rows)
    assert value_of(figures, "face_recall") == value_of(figures, "face_precision") == 0.5


# --- words ----------------------------------------------------------------------------------------------------------


def test_words_have_one_form() -> None:
    """Case, punctuation and the spelling of small numbers do not matter."""
    assert words_of("Scene 10: it's TWO\nred stars.") == ["scene", "ten", "its", "two", "red", "stars"]


@pytest.mark.parametrize(
    ("said", "n_errors", "pairs"),
    [
        ("a b c", 0, ((0, 0), (1, 1), (2, 2))),
        ("a c", 1, ((0, 0), (2, 1))),
        ("a x b c", 1, ((0, 0), (1, 2), (2, 3))),
        ("a x c", 1, ((0, 0), (2, 2))),
        ("", 3, ()),
    ],
)
def test_alignment_counts_the_fewest_errors(said: str, n_errors: int, pairs: tuple[tuple[int, int], ...]) -> None:
    """A word left out, put in or changed is one error, and equal words find each other."""
    found = align(["a", "b", "c"], said.split())
    assert found.n_errors == n_errors
    assert found.pairs == pairs


def test_texts_count_words_as_often_as_written() -> None:
    """Reading one of two equal words is half of the recall; pages have figures of their own."""
    views = [
        view_of(SceneTruth("", texts=("Red red star", "Scene 2"))),
        view_of(SceneTruth("", texts=("on",)), 1, "page"),
    ]
    rows = [
        {"segment_id": "s0", "text": "SCENE two"},
        {"segment_id": "s0", "text": "red moon"},
        {"segment_id": "s1", "text": "on"},
    ]
    figures = measure_texts(views, rows)
    assert value_of(figures, "ocr_word_recall") == pytest.approx(3 / 5)
    assert value_of(figures, "ocr_word_precision") == pytest.approx(3 / 4)
    assert value_of(figures, "ocr_page_word_recall") == value_of(figures, "ocr_page_word_precision") == 1
    assert "lost ['red', 'star'], made up ['moon']" in figures[0].worst[0]


def utterance(text: str, start_s: float, onsets_s: Sequence[float]) -> dict[str, Any]:
    """Row of a transcript."""
    words = [{"text": word, "start_s": at_s} for word, at_s in zip(text.split(), onsets_s, strict=True)]
    return {"key": "r.wav", "start_s": start_s, "text": text, "words": words}


RECORDING = MediaObject(
    "r.wav",
    "audio",
    speech=(
        SpeechTruth(1.0, 2.0, "Find the dog.", (WordTruth("Find", 1.0), WordTruth("dog", 1.6))),
        SpeechTruth(3.0, 4.0, "Two cats.", (WordTruth("Two", 3.0), WordTruth("cats", 3.4))),
    ),
)


def test_speech_understood_rightly_is_perfect() -> None:
    """The same words at the same seconds are no errors, in whatever order the rows come."""
    rows = [utterance("2 cats", 3.0, [3.0, 3.4]), utterance("find the dog", 1.0, [1.0, 1.3, 1.6])]
    figures = measure_speech([RECORDING], rows)
    assert [figure.value for figure in figures] == [0, 0, 0, 0]
    assert [figure.n_items for figure in figures] == [5, 5, 2, 4]
    assert figures[0].is_met


def test_speech_errors_are_counted_and_timed() -> None:
    """A changed word is one of five; one utterance for two sentences starts two seconds early for the second."""
    figures = measure_speech([RECORDING], [utterance("find a dog two cats", 1.0, [1.2, 1.3, 1.8, 3.2, 3.6])])
    assert value_of(figures, "word_error_rate") == pytest.approx(1 / 5)
    assert figures[0].worst == ("r.wav: said 'the', understood 'a'",)
    assert value_of(figures, "utterance_start_error_s") == pytest.approx(1.0)
    assert "bias -1.000" in figures[2].counts
    assert value_of(figures, "word_onset_error_s") == pytest.approx(0.2)


def test_speech_not_heard_at_all_is_all_wrong() -> None:
    """An object without a transcript counts all its words; words understood where nobody speaks are errors too."""
    quiet = MediaObject("q.wav", "audio")
    figures = measure_speech([RECORDING, quiet], [{**utterance("hello", 0.0, [0.0]), "key": "q.wav"}])
    assert value_of(figures, "word_error_rate") == pytest.approx(6 / 5)


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_found_cuts_are_starts_of_scenes() -> None:
    """The first scene begins at no cut, and the second segment of a long scene is none."""
    segments = [
        {"key": "f.mp4", "segment_kind": "scene", "scene_number": number, "start_s": start_s}
        for number, start_s in ((1, 12.0), (0, 0.0), (1, 4.0), (2, 20.0))
    ]
    assert found_cuts([*segments, {"key": "f.mp4", "segment_kind": "audio", "scene_number": None}], "f.mp4") == [
        4.0,
        20.0,
    ]


@pytest.mark.parametrize(
    ("found", "n_hits"),
    [([1.0, 2.0, 3.0], 3), ([1.04, 1.96, 3.0], 3), ([1.05, 2.0], 1), ([0.99, 1.01], 1), ([], 0), ([0.5, 2.99], 1)],
)
def test_cuts_are_hit_once_within_the_tolerance(found: list[float], n_hits: int) -> None:
    """A true cut is found by at most one cut, at most one frame away."""
    assert count_hits(found, [1.0, 2.0, 3.0], 0.0401) == n_hits


def test_cuts_are_measured_for_each_container() -> None:
    """One miss in two cuts is an F1 of two thirds, in its container alone."""
    films = [MediaObject(key, "video", cuts_s=(1.0, 2.0)) for key in ("a.mp4", "b.mkv")]
    found = [("a.mp4", 0, 0.0), ("a.mp4", 1, 1.04), ("a.mp4", 2, 2.0), ("b.mkv", 0, 0.0), ("b.mkv", 1, 1.0)]
    segments = [{"key": k, "segment_kind": "scene", "scene_number": n, "start_s": s} for k, n, s in found]
    frame_s = dict.fromkeys(("a.mp4", "b.mkv"), 0.04)
    figures = measure_cuts(films, segments, frame_s, {"a.mp4": "mp4", "b.mkv": "matroska"})
    assert value_of(figures, "cuts_f1_mp4") == 1
    assert value_of(figures, "cuts_f1_matroska") == pytest.approx(2 / 3)
    assert value_of(figures, "cuts_f1") == pytest.approx(6 / 7)
    assert not figures[0].is_met


# --- moments --------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a search found."""

    key: str
    start_s: float | None = None
    end_s: float | None = None


def test_moments_must_be_in_the_scene_and_first() -> None:
    """The right object at another second is wrong, also when it touches the scene, and the second rank is not the first."""
    scenes = (
        SceneTruth("a", start_s=0.0, end_s=2.0),
        SceneTruth("b", start_s=2.0, end_s=4.0),
        SceneTruth("", start_s=4.0),
    )
    film = MediaObject("f.mp4", "video", scenes=scenes)
    still = MediaObject("i.jpg", "image", scenes=(SceneTruth("c"),))
    right = {"a": [Answer("f.mp4", 0.0, 2.04)], "b": [Answer("f.mp4", 2.04, 4.0)], "c": [Answer("i.jpg")]}
    assert [figure.value for figure in measure_moments([film, still], right.__getitem__)] == [1, 1]
    wrong = {
        "a": [Answer("f.mp4", 1.96, 4.0)],
        "b": [Answer("i.jpg"), Answer("f.mp4", 2.0, 4.0)],
        "c": [Answer("i.jpg")],
    }
    figures = measure_moments([film, still], wrong.__getitem__)
    assert [figure.value for figure in figures] == pytest.approx([1 / 3, 2 / 3])
    assert figures[0].worst == ("'a' (f.mp4): rank above 5", "'b' (f.mp4): rank 2")


# --- the command ----------------------------------------------------------------------------------------------------


def test_completeness_counts_what_was_given_up() -> None:
    """An object with a dead step, or one that nobody knows, is not processed; skipped steps do not matter."""
    objects = {key: MediaObject(key, "image") for key in ("a", "b", "c")}
    states = [("a", "done"), ("a", "skipped"), ("b", "done"), ("b", "dead"), ("broken", "dead")]
    rows = [{"key": key, "state": state, "step": "faces", "error": "why"} for key, state in states]
    figure = evaluate.measure_completeness(objects, rows)
    assert figure.value == pytest.approx(1 / 3)
    assert figure.worst == ("b: faces why", "c: unknown to the ledger")


def test_settings_of_a_kept_folder_stay(tmp_path: Path) -> None:
    """A folder gets settings with the media as its source, once."""
    config = evaluate.write_config(tmp_path, tmp_path / "media")
    assert yaml.safe_load(config.read_text())["sources"] == [{"uri": str(tmp_path / "media")}]
    evaluate.write_config(tmp_path, tmp_path / "other")
    assert "other" not in config.read_text()


def test_meter_tells_phases_apart_and_sees_memory() -> None:
    """Each phase has its own seconds, and the memory is at least what this process holds."""
    with Meter() as meter:
        meter.note("discover", 1, None)
        sum(k * k for k in range(2_000_000))
        meter.note("process", 0, 1)
    assert list(meter.phases) == ["discover", "process"]
    assert meter.phases["discover"].own_cpu_s > meter.phases["process"].own_cpu_s >= 0
    assert meter.peak_bytes > 10_000_000
