"""Golden queries: reading them, figures by hand, ``mm evaluate``, the check on new indexes, and the demo's file."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import make_golden
import pytest
from cli_driver import mm
from click.testing import Result
from fakes import fake_extractors
from flow_driver import ingest
from places import Place
from world.truth import CollectionTruth, MediaObject, PersonBox, SceneTruth, SpeechTruth, WordTruth, read_truth

from mm_assets.checks import golden_moments_are_found
from mm_assets.errors import ConfigError
from mm_assets.retrieval import Question
from mm_assets.retrieval.evaluation import Evaluation, evaluate, is_right, relevance
from mm_assets.retrieval.golden import Expected, Golden, GoldenQuery, read_golden
from mm_assets.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo"
HIT = "{shown: text, where: \"key = 'picture0.png'\", expect: [{object: picture0.png}]}"
MISS = "{shown: text, where: \"key = 'picture0.png'\", expect: [{object: source/picture1.png}]}"


def write(folder: Path, *queries: str) -> Path:
    """Write a golden file of queries in flow style."""
    file = folder / "golden.yaml"
    file.write_text("queries:\n" + "".join(f"  - {query}\n" for query in queries), encoding="utf-8")
    return file


def row(key: str, start_s: float | None = None, end_s: float | None = None, page: int | None = None) -> dict[str, Any]:
    """Answer from a source called b."""
    return {"bucket": "b", "key": key, "start_s": start_s, "end_s": end_s, "page_number": page}


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("{text: x, txet: y, expect: [{object: a}]}", "query 2, txet: there is no such field; is `text` meant?"),
        (
            "{text: x, expect: [{object: a}, {object: b, pag: 1}]}",
            "query 2, expect 2, pag: there is no such field; is `page`",
        ),
        ("{text: x}", "query 2, expect: it must be given"),
        ("{text: x, expect: []}", "query 2, expect: it must not be empty"),
        ("{text: x, expect: a.mp4}", "query 2, expect: it must be a list"),
        ("{text: x, expect: [a.mp4]}", "query 2, expect 1: it must be a section"),
        ("{text: x, expect: [{object: ''}]}", "query 2, expect 1, object: it must not be empty"),
        ("{text: 12, expect: [{object: a}]}", "query 2, text: it must be a text; put it in quotes"),
        ("{expect: [{object: a}]}", "query 2: nothing is asked"),
        ("{text: x, where: ' ', expect: [{object: a}]}", "query 2: where is empty"),
        ("{text: x, expect: [{object: a, start_s: 1}]}", "query 2, expect 1: start_s and end_s belong together"),
        ("{text: x, expect: [{object: a, start_s: 2, end_s: 2}]}", "query 2, expect 1: end_s must be after start_s"),
        (
            "{text: x, expect: [{object: a, start_s: .nan, end_s: 2}]}",
            "query 2, expect 1, start_s: it must be a finite",
        ),
        ("{text: x, expect: [{object: a, start_s: 1, end_s: 2, page: 1}]}", "a time or a page, not both"),
        ("{text: x, within_s: 1, expect: [{object: a}]}", "query 2: within_s compares starts"),
        (
            "{text: x, within_s: 1, expect: [{object: a, start_s: 1, end_s: 2}, {object: b}]}",
            "query 2: within_s compares starts",
        ),
        ("{image: absent.jpg, expect: [{object: a}]}", "query 2, image: there is no file .*absent.jpg"),
        ("just words", "query 2: it must be a section"),
    ],
)
def test_a_query_that_is_wrong_is_named(tmp_path: Path, query: str, told: str) -> None:
    """One error names the file, the query and what is wrong with it, in plain words."""
    file = write(tmp_path, HIT, query, HIT)
    with pytest.raises(ConfigError, match=told) as raised:
        read_golden(file)
    assert str(raised.value).startswith(f"{file} is wrong:\n")
    assert "query 1" not in str(raised.value)
    assert "query 3" not in str(raised.value)


def test_all_wrong_queries_are_told_at_once(tmp_path: Path) -> None:
    """Whoever writes a file corrects it once."""
    with pytest.raises(ConfigError, match=r"query 1, expect: .*\n.*query 2: nothing is asked"):
        read_golden(write(tmp_path, "{text: x}", "{expect: [{object: a}]}"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must hold `queries:`"),
        ("queries: []\n", "must hold `queries:`"),
        ("queries: {text: x}\n", "must hold `queries:`"),
        ("queries: [{text: x, expect: [{object: a}]}]\nmore: 1\n", "must hold `queries:`"),
        ("queries: [\n", "cannot be read"),
    ],
)
def test_a_file_without_queries_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """Empty, of another form, or no YAML: it is said what the file must hold."""
    file = tmp_path / "golden.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        read_golden(file)


def test_a_file_that_is_absent_is_refused(tmp_path: Path) -> None:
    """As an error of the settings, which a check can tell."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_golden(tmp_path / "absent.yaml")


def test_pictures_lie_beside_the_file(tmp_path: Path) -> None:
    """Wherever the command is called from; all that is asked reaches the question."""
    (tmp_path / "who.jpg").touch()
    file = write(tmp_path, '{face: who.jpg, where: "duration_s > 5", group_by: object, expect: [{object: a}]}')
    [query] = read_golden(file).queries
    wanted = Question(face=tmp_path / "who.jpg", where="duration_s > 5", group_by="object", k=7)
    assert query.question(7) == wanted
    assert str(query) == "face: who.jpg, where: duration_s > 5, group_by: object"
    assert query.kind == "face"


def test_what_narrows_a_question_reaches_it(tmp_path: Path) -> None:
    """Signals, a threshold, which may be 0, names, a segment."""
    asked = "{seen: 'tree, dog', like: s1, spaces: 'visual, names', threshold: 0, expect: [{object: a}]}"
    [query] = read_golden(write(tmp_path, asked)).queries
    assert query.question(3) == Question(seen="tree, dog", like="s1", spaces=("visual", "names"), threshold=0.0, k=3)
    assert query.kind == "seen+like"
    with pytest.raises(ConfigError, match="query 1: unknown signal 'smell'"):
        read_golden(write(tmp_path, "{text: x, spaces: smell, expect: [{object: a}]}"))


def test_the_example_of_the_page_can_be_read(tmp_path: Path) -> None:
    """What docs/evaluation.md shows is a golden file."""
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    file = tmp_path / "golden.yaml"
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "anna.jpg").touch()
    assert [query.kind for query in read_golden(file).queries] == ["text", "said", "shown", "face"]


def test_the_kind_of_a_query_is_what_it_asks_by() -> None:
    """Conditions make no kind of their own, several parts a kind together."""
    assert GoldenQuery(said="x", where="true", expect=(Expected(object="a"),)).kind == "said"
    assert GoldenQuery(text="x", shown="y", expect=(Expected(object="a"),)).kind == "text+shown"


def test_the_setting_is_relative_to_the_settings_file(tmp_path: Path) -> None:
    """So that every process reads the same golden file."""
    (tmp_path / "mm_assets.yaml").write_text("refresh: {golden: queries/golden.yaml}\n", encoding="utf-8")
    assert load_settings(tmp_path / "mm_assets.yaml").refresh.golden == tmp_path / "queries" / "golden.yaml"


# -- right answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "answer", "within_s", "is_expected"),
    [
        ({"object": "a"}, row("a"), None, True),
        ({"object": "b/a"}, row("a"), None, True),
        ({"object": "c/a"}, row("a"), None, False),
        ({"object": "a"}, row("a", 3, 5), None, True),
        ({"object": "a"}, row("other"), None, False),
        ({"object": "a", "page": 3}, row("a", page=3), None, True),
        ({"object": "a", "page": 3}, row("a", page=4), None, False),
        ({"object": "a", "page": 3}, row("a"), None, False),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 6.9, 9), None, True),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 1, 3.1), None, True),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 4, 4), None, True),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 7, 9), None, False),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 1, 3), None, False),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a"), None, False),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("b", 3, 7), None, False),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 3.5, 7), 0.5, True),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 3.6, 7), 0.5, False),
        ({"object": "a", "start_s": 3, "end_s": 7}, row("a", 2.4, 7), 0.5, False),
    ],
)
def test_an_answer_is_right_in_its_place(
    expected: dict[str, Any], answer: dict[str, Any], within_s: float | None, is_expected: bool
) -> None:
    """The object, and its page, or some time in common and a start that is near enough."""
    assert is_right(answer, Expected(**expected), within_s) is is_expected


def query_for(*keys: str, **asked: Any) -> GoldenQuery:
    """Expect whole objects."""
    return GoldenQuery(**(asked or {"text": "x"}), expect=tuple(Expected(object=key) for key in keys))


def test_every_expected_moment_counts_once() -> None:
    """A second answer of the same moment is no gain, also where an answer would be right for two of them."""
    assert relevance(query_for("a", "b"), [row("a"), row("a"), row("c"), row("b")]) == (True, False, False, True)
    both = GoldenQuery(text="x", expect=(Expected(object="a"), Expected(object="a", start_s=1, end_s=2)))
    assert relevance(both, [row("a", 1, 2), row("a", 1, 2), row("a", 1, 2)]) == (True, True, False)


# -- figures -------------------------------------------------------------------------------------------------------------


def answered(*answers: Sequence[str], k: int, queries: Sequence[GoldenQuery]) -> Evaluation:
    """Answer queries in their order with whole objects."""
    left = [[row(key) for key in keys] for keys in answers]
    return evaluate(Golden(Path("golden.yaml"), tuple(queries)), lambda _: left.pop(0), k)


def test_figures_are_those_worked_out_by_hand() -> None:
    """One found second, two of three found first and third, and nothing found.

    The gains are 1/log2(3) of 1, and 1 + 1/log2(4) of 1 + 1/log2(3) + 1/log2(4).
    """
    queries = [query_for("a"), query_for("a", "b", "c", said="x"), query_for("a", said="x")]
    found = answered("xa", "aab", "", k=3, queries=queries)

    everything, text, said = (found.by_kind[kind] for kind in ("all", "text", "said"))
    assert (text.n_queries, text.recall_at_1, text.recall_at_k, text.mrr) == (1, 0.0, 1.0, 0.5)
    assert text.ndcg_at_k == pytest.approx(0.630930)
    assert (text.median_rank, text.worst_rank) == (2, 2)
    assert said.recall_at_1 == 0.5
    assert said.recall_at_k == pytest.approx(1 / 3)
    assert said.mrr == 0.5
    assert said.ndcg_at_k == pytest.approx(1.5 / 2.130930 / 2)
    assert (said.median_rank, said.worst_rank) == (1, None)
    assert (everything.n_queries, everything.mrr, everything.median_rank) == (3, 0.5, 2)
    assert everything.recall_at_1 == pytest.approx(1 / 3)
    assert everything.recall_at_k == pytest.approx(5 / 9)
    assert everything.ndcg_at_k == pytest.approx((0.630930 + 0.703918) / 3, abs=1e-6)
    assert found.overall == everything


def test_more_expected_moments_than_answers_can_all_be_found() -> None:
    """Recall is capped: the best k answers make it 1, and the best order a gain of 1."""
    found = answered("ab", k=2, queries=[query_for("a", "b", "c")]).overall
    assert (found.recall_at_1, found.recall_at_k, found.ndcg_at_k) == (1.0, 1.0, 1.0)


def test_answers_beyond_k_do_not_count() -> None:
    """Whoever answers with more than was asked for gains nothing by it."""
    found = answered("xya", k=2, queries=[query_for("a")]).overall
    assert (found.recall_at_k, found.mrr, found.ndcg_at_k) == (0.0, 0.0, 0.0)


def test_the_worst_queries_come_first() -> None:
    """Not found before found late, and none whose first answer is right."""
    found = answered("a", "xa", "xxa", "x", k=3, queries=[query_for("a")] * 4)
    assert [item.number for item in found.missed] == [4, 3, 2]


def test_a_query_that_cannot_be_asked_is_named() -> None:
    """An error of search names the query that it came from."""

    def ask(question: Question) -> list[dict[str, Any]]:
        if question.text == "second":
            msg = "no face is found"
            raise ConfigError(msg)
        return []

    golden = Golden(Path("golden.yaml"), (query_for("a", text="first"), query_for("a", text="second")))
    with pytest.raises(ConfigError, match=r"golden\.yaml, query 2: no face is found"):
        evaluate(golden, ask, 1)


def test_progress_counts_every_query() -> None:
    """From none to all."""
    told: list[tuple[int, int]] = []
    evaluate(Golden(Path(), (query_for("a"),) * 2), lambda _: [], 1, lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]


# -- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Place]:
    """Give a place whose media are ingested and published."""
    place = Place(tmp_path_factory.mktemp("golden"), media)
    place.write_settings()
    place.add("picture0.png", "picture1.png", "clip.mp4")
    ingest(place.open())
    yield place
    place.close()


@pytest.fixture(autouse=True)
def _fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let search open the fakes where it would open models, and no setting come from outside."""
    for name in [name for name in os.environ if name.startswith("MM_ASSETS_")]:
        monkeypatch.delenv(name)

    def build(step: str, *_: object) -> Any:
        return fake_extractors(Settings(sources=({"uri": "source", "steps": [step]},)))[step]  # type: ignore[arg-type]

    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", build)


@pytest.fixture
def run(filled: Place, tmp_path: Path) -> Callable[..., Result]:
    """Give a function that evaluates queries over that place."""

    def evaluate_them(queries: Sequence[str], *options: str, code: int = 0) -> Result:
        return mm("evaluate", str(write(tmp_path, *queries)), "-c", str(filled.config_file), *options, code=code)

    return evaluate_them


def test_figures_and_misses_are_printed(run: Callable[..., Result]) -> None:
    """A table by kind, then what was asked, what was expected and what came first instead."""
    result = run([HIT, MISS, "{text: anything, expect: [{object: clip.mp4}, {object: picture0.png}]}"], "--k", "5")
    figures, misses = result.stdout.split("\nWhere the first answer is wrong:\n")
    lines = [line.split("\t") for line in figures.splitlines()]
    assert lines[0] == ["kind", "queries", "recall@1", "recall@5", "MRR", "nDCG@5", "median rank", "worst rank"]
    assert [line[:2] for line in lines[1:]] == [["all", "3"], ["shown", "2"], ["text", "1"]]
    assert lines[2] == ["shown", "2", "0.500", "0.500", "0.500", "0.500", "1", "> 5"]
    [missed] = [line.split("\t") for line in misses.splitlines() if line.startswith("2\t")]
    asked = "shown: text, where: key = 'picture0.png'"
    assert missed == ["2", asked, "source/picture1.png", "> 5", "source/picture0.png"]
    assert "queries: 0 of 3" in result.stderr


def test_a_query_without_an_answer_is_missed(run: Callable[..., Result]) -> None:
    """It is printed as such."""
    result = run(["{shown: absent, expect: [{object: picture0.png}]}"])
    assert result.stdout.splitlines()[-1] == "1\tshown: absent\tpicture0.png\t> 10\tnothing"


def test_json_holds_every_query(run: Callable[..., Result]) -> None:
    """One document with the figures of each kind, and each query with its rank and what came first."""
    found = json.loads(run([HIT, MISS], "--json").stdout)
    assert found["k"] == 10
    assert found["metrics"]["all"]["recall_at_1"] == 0.5
    assert found["metrics"]["shown"]["worst_rank"] is None
    assert [(item["query"], item["rank"], item["came_first"]) for item in found["queries"]] == [
        (1, 1, "source/picture0.png"),
        (2, None, "source/picture0.png"),
    ]


def test_a_missed_bar_ends_with_1(run: Callable[..., Result]) -> None:
    """So that a pipeline stops; the bar itself is enough."""
    assert "recall@1 is 0.500, below 0.9" in run([HIT, MISS], "--min-recall", "0.9", code=1).stderr
    run([HIT, MISS], "--min-recall", "0.5")


def test_an_unknown_object_is_said_before_anything_is_asked(run: Callable[..., Result]) -> None:
    """A slip in a key is no miss of the search."""
    result = run([HIT, "{text: x, expect: [{object: other/picture0.png}]}"], code=2)
    assert "query 2: no object is called 'other/picture0.png'" in result.stderr
    assert result.stdout == ""


def test_an_empty_lake_says_what_to_run(make_workspace: Callable[..., Place]) -> None:
    """And not that every object is unknown."""
    place = make_workspace()
    place.open()
    result = mm("evaluate", str(write(place.folder, HIT)), "-c", str(place.config_file), code=2)
    assert "run `mm ingest`" in result.stderr


def test_a_missing_picture_is_said(run: Callable[..., Result]) -> None:
    """With the query that names it."""
    assert "query 1, face: there is no file" in run(["{face: a.jpg, expect: [{object: picture0.png}]}"], code=2).stderr


# -- the check -----------------------------------------------------------------------------------------------------------


def check(place: Place, golden: Path | None, **refresh: Any) -> dg.AssetCheckResult:
    """Run the check under settings that name a golden file."""
    place.write_settings(refresh={"golden": str(golden)} | refresh if golden else {})
    result = golden_moments_are_found(workspace=place.resource())
    assert isinstance(result, dg.AssetCheckResult)
    return result


def test_the_check_compares_recall_with_the_bar(filled: Place, tmp_path: Path) -> None:
    """It passes from the bar on; the figures and the misses are its metadata."""
    golden = write(tmp_path, HIT, MISS)
    failed, passed = check(filled, golden), check(filled, golden, min_golden_recall=0.5)
    assert (failed.passed, passed.passed) == (False, True)
    assert "recall@1 is 0.500, below 0.9" in str(failed.description)
    assert failed.metadata["recall_at_1"].value == 0.5
    assert failed.metadata["by_kind"].value["shown"]["n_queries"] == 2  # type: ignore[index, call-overload]
    [missed] = failed.metadata["missed"].value  # type: ignore[misc]
    assert missed["expected"] == ["source/picture1.png"]


def test_the_check_says_why_it_asks_nothing(filled: Place) -> None:
    """Without a golden file there is nothing to promise."""
    result = check(filled, None)
    assert result.passed
    assert "no golden file is set" in str(result.description)


def test_the_check_fails_in_words_where_the_file_is_wrong(filled: Place, tmp_path: Path) -> None:
    """The refresh goes on, and the check says what to correct."""
    result = check(filled, write(tmp_path, "{text: x, expect: [{object: absent.png}]}"))
    assert not result.passed
    assert "no object is called 'absent.png'" in str(result.description)


# -- the demo's file -----------------------------------------------------------------------------------------------------


def test_the_demo_file_is_what_the_script_makes() -> None:
    """It follows from the truth alone, and can be read."""
    truth = read_truth(DEMO / "truth.json")
    file = DEMO / "golden.yaml"
    assert file.read_text(encoding="utf-8") == make_golden.make_golden(truth)
    golden = read_golden(file)
    golden.require_objects({item.key for item in truth.objects})
    assert {query.kind for query in golden.queries} == {"text", "said", "shown", "image", "face"}


def utterance(text: str) -> SpeechTruth:
    """Words a quarter of a second apart."""
    words = tuple(WordTruth(word, place / 4) for place, word in enumerate(text.split()))
    return SpeechTruth(0.0, 5.0, text, words)


def made(*objects: MediaObject) -> str:
    """Golden file of some objects."""
    return make_golden.make_golden(CollectionTruth("test", 1, objects=list(objects)))


def picture(key: str, caption: str, *texts: str) -> MediaObject:
    """One scene without a time."""
    return MediaObject(key, "image", scenes=(SceneTruth(caption, texts=texts),))


def test_only_captions_of_one_scene_are_asked() -> None:
    """Not those that are true of another one as well: a copy, a larger one, one with more in it, or several."""
    twins = [picture("a.png", "a red star on a blue background"), picture("b.png", "a red star on a blue background")]
    assert "text:" not in made(*twins)
    for other in ("a large red star on a blue background with a house", "two red stars on a blue background"):
        text = made(twins[0], picture("b.png", other))
        assert f'text: "{other}"' in text
        assert 'text: "a red star' not in text
    assert made(twins[0], picture("b.png", "a red ring on a blue background")).count("text:") == 2


def test_only_phrases_of_one_place_are_asked() -> None:
    """What is said or shown twice names no moment."""
    one = MediaObject("a.wav", "audio", speech=(utterance("now we see Ben"), utterance("then she sees Anna")))
    two = MediaObject("b.wav", "audio", speech=(utterance("and we see Ben"),))
    assert 'said: "\\"she sees anna\\""' in made(one, two)
    assert "we see" not in made(one, two)
    assert (
        made(picture("a.png", "", "One two three four"), picture("x/b.png", "", "Zero one two three")).count("shown:")
        == 1
    )


def test_a_face_is_asked_by_a_picture_of_one_person() -> None:
    """Where several are seen, it were not said who is meant; such scenes are expected all the same."""
    anna, ben = (PersonBox(name, 0, 0, 9, 9) for name in ("Anna", "Ben"))
    people = {"a.png": (anna, ben), "b.png": (anna,), "c.png": (anna,)}
    text = made(*(MediaObject(key, "image", scenes=(SceneTruth("", people=who),)) for key, who in people.items()))
    assert text.splitlines()[-5:] == [
        '  - face: "media/b.png"',
        "    where: \"key <> 'b.png'\"",
        "    expect:",
        '      - {object: "a.png"}',
        '      - {object: "c.png"}',
    ]
    assert text.count("face:") == 1


def test_a_near_copy_is_asked_for_its_original() -> None:
    """And is not to find itself, whatever its name."""
    text = made(MediaObject("it's.png", "image", near_duplicate_of="a.png"))
    assert text.endswith("where: \"key <> 'it''s.png'\"\n    expect:\n      - {object: \"a.png\"}\n")


def test_scenes_are_expected_without_their_edges() -> None:
    """A neighbour that was cut a few frames off is no answer."""
    scene = SceneTruth("a red star", start_s=1.0, end_s=3.0)
    assert '{object: "a.mp4", start_s: 1.25, end_s: 2.75}' in made(MediaObject("a.mp4", "video", scenes=(scene,)))
