"""The taxonomy: its file, its frozen vectors, its judgements."""

import io
from contextlib import suppress
from textwrap import dedent

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_factory import unit

from mm_assets.errors import ConfigError, SchemaError
from mm_assets.tagging import MAX_CHARACTERS, FrozenTaxonomy, Taxonomy
from mm_assets.vectors import Floats

YAML = dedent("""
    groups:
      - name: colour
        mode: threshold
        threshold: 0.35
        tags:
          - {name: red, prompts: ["something red", "a red thing"]}
          - {name: blue, prompts: ["something blue"], threshold: 0.8}
      - name: shape
        mode: best
        threshold: 0.3
        tags:
          - {name: circle, prompts: ["a circle"]}
          - {name: square, prompts: ["a square"]}
""")
AXES = {"red": 0, "blue": 1, "circle": 2, "square": 3}


def encode(prompts: list[str]) -> Floats:
    """Each word of ``AXES`` has an axis; 'thing' leans to a further one."""
    rows = np.zeros((len(prompts), 6))
    for row, prompt in zip(rows, prompts, strict=True):
        row[next(axis for word, axis in AXES.items() if word in prompt)] = 1
        row[5] = 0.5 if prompt.endswith("thing") else 0
    return unit(rows)


def judge(frozen: FrozenTaxonomy, *images: tuple[float, ...]) -> list[tuple[int, str, str]]:
    """Return (row, group, tag) of images given by their share of each axis."""
    rows = frozen.judge(unit(np.array(images, float).reshape(-1, 6))).to_pylist()
    return [(row["row"], row["tag_group"], row["tag"]) for row in rows]


@pytest.fixture
def frozen() -> FrozenTaxonomy:
    """Freeze the example."""
    return Taxonomy.from_yaml(YAML).freeze(encode)


def test_freeze_takes_the_direction_of_the_mean(frozen: FrozenTaxonomy) -> None:
    """A tag's vector lies midway between its prompts and has length 1."""
    first, second = encode(["something red", "a red thing"])
    np.testing.assert_allclose(np.linalg.norm(frozen.vectors, axis=1), 1, atol=1e-6)
    assert frozen.vectors[0] @ first == pytest.approx(frozen.vectors[0] @ second)
    assert frozen.vectors.shape == (4, 6)


def test_judge_gives_every_tag_of_a_threshold_group(frozen: FrozenTaxonomy) -> None:
    """Red and blue together where both are similar enough; a tag's own threshold wins over the group's."""
    assert judge(frozen, (1, 1.7, 0, 0, 0, 0)) == [(0, "colour", "red"), (0, "colour", "blue")]
    assert judge(frozen, (1, 1, 0, 0, 0, 0)) == [(0, "colour", "red")]


def test_judge_gives_at_most_the_best_of_a_best_group(frozen: FrozenTaxonomy) -> None:
    """Of two shapes above the threshold the more similar one, of none none, of equals the first in the file."""
    images = [(0, 0, 1, 0.9, 0, 0), (0, 0, 0.9, 1, 0, 0), (0, 0, 0.2, 0.1, 1, 0), (0, 0, 1, 1, 0, 0)]
    assert judge(frozen, *images) == [(0, "shape", "circle"), (1, "shape", "square"), (3, "shape", "circle")]


def test_judge_includes_the_threshold_itself() -> None:
    """A similarity equal to the threshold is enough."""
    text = "groups: [{name: g, mode: threshold, threshold: 1.0, tags: [{name: red, prompts: [red]}]}]"
    assert judge(Taxonomy.from_yaml(text).freeze(encode), (1, 0, 0, 0, 0, 0)) == [(0, "g", "red")]


@settings(deadline=None, max_examples=50)
@given(n=st.integers(0, 30), seed=st.integers(0, 999))
def test_judge_equals_its_definition(n: int, seed: int) -> None:
    """Row by row and tag by tag, what the two modes say in words; similarity is the cosine."""
    frozen = Taxonomy.from_yaml(YAML).freeze(encode)
    images = unit(np.random.default_rng(seed).normal(size=(n, 6)))
    expected = []
    for row, image in enumerate(images):
        red, blue, circle, square = frozen.vectors @ image
        given_tags = [("red", red, red >= 0.35), ("blue", blue, blue >= 0.8)]
        given_tags += [
            ("circle", circle, circle >= max(0.3, square)),
            ("square", square, square >= 0.3 > -1 and square > circle),
        ]
        expected += [
            (row, tag, pytest.approx(similarity, abs=1e-6)) for tag, similarity, is_given in given_tags if is_given
        ]
    table = frozen.judge(images)
    assert list(zip(*(table[name].to_pylist() for name in ("row", "tag", "similarity")), strict=True)) == expected
    assert table.schema.types == [pa.int64(), pa.string(), pa.string(), pa.float32()]


def test_judge_refuses_vectors_of_another_space(frozen: FrozenTaxonomy) -> None:
    """Another dimension is a SchemaError."""
    with pytest.raises(SchemaError, match=r"\(n, 6\)"):
        frozen.judge(np.eye(5, dtype=np.float32))


def test_table_round_trips(frozen: FrozenTaxonomy) -> None:
    """Through Parquet and back: the same judgements, digest and bytes."""
    sink = io.BytesIO()
    pq.write_table(frozen.to_table(), sink)
    restored = FrozenTaxonomy.from_table(pq.read_table(pa.BufferReader(sink.getvalue())))
    images = unit(np.random.default_rng(0).normal(size=(200, 6)))
    assert restored.judge(images).equals(frozen.judge(images))
    assert restored.digest == frozen.digest
    assert restored.to_table().equals(frozen.to_table(), check_metadata=True)


def test_digest_follows_content_and_not_layout() -> None:
    """Comments and order of keys do not matter; a prompt, a threshold, a tag and the text model do."""
    taxonomy = Taxonomy.from_yaml(YAML)
    same = "# colours and shapes\n" + YAML.replace("mode: best\n    threshold: 0.3", "threshold: 0.30\n    mode: best")
    assert Taxonomy.from_yaml(same).digest == taxonomy.digest
    edits = [("a circle", "a ring"), ("0.35", "0.36"), ("name: blue", "name: navy"), (", threshold: 0.8", "")]
    digests = {Taxonomy.from_yaml(YAML.replace(*edit)).digest for edit in edits}
    assert len(digests | {taxonomy.digest}) == 5
    assert taxonomy.freeze(lambda prompts: -encode(prompts)).digest != taxonomy.freeze(encode).digest


def test_freeze_refuses_prompts_that_cancel_out() -> None:
    """The mean of opposite vectors has no direction; the error names the tag."""
    with pytest.raises(ConfigError, match="'red'"):
        Taxonomy.from_yaml(YAML).freeze(lambda prompts: encode(["red"] * len(prompts)) * np.resize([[1], [-1]], (5, 1)))


@pytest.mark.parametrize("rows", [slice(0, 4), slice(0, 0)])
def test_freeze_refuses_a_model_that_loses_prompts(rows: slice) -> None:
    """Fewer vectors than prompts would shift all tags after the first lost one."""
    with pytest.raises(SchemaError, match="5 rows"):
        Taxonomy.from_yaml(YAML).freeze(lambda prompts: encode(prompts)[rows])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("mode: best", "mode: all", r"line 10: groups\.1\.mode in 'shape'"),
        ("threshold: 0.35", "threshold: 35", r"line 5: groups\.0\.threshold in 'colour'"),
        ("threshold: 0.35", "threshold: .nan", r"line 5: groups\.0\.threshold"),
        ("    threshold: 0.35\n", "", r"line 3: groups\.0\.threshold in 'colour'.*required"),
        ('["a circle"]', "[]", r"line 13: groups\.1\.tags\.0\.prompts in 'shape' / 'circle'"),
        ('["a circle"]', '["  "]', r"line 13: groups\.1\.tags\.0\.prompts\.0"),
        ('["a circle"]', "a circle", r"line 13: .*prompts"),
        ("name: circle", "name: on", r"line 13: .*string"),
        ("name: circle", "nome: circle", r"line 13: .*nome"),
        ("name: blue", "name: red", r"line 8: groups\.0\.tags\.1 in 'colour' / 'red': the name occurs 2 times"),
        ("name: shape", "name: colour", r"line 9: groups\.1 in 'colour': the name occurs 2 times"),
        ("mode: best", "mode: best\n    mode: best", r"line 11: 'mode' is written twice"),
        ("groups:", "groups: [", "cannot be read as YAML"),
        ("groups:", "group:", r"line \d+: group"),
        ("a circle", "a \x07 circle", "cannot be read as YAML"),
    ],
)
def test_from_yaml_says_where_the_file_is_wrong(old: str, new: str, expected: str) -> None:
    """The message has the line, the path, and the names of group and tag."""
    assert old in YAML
    with pytest.raises(ConfigError, match=expected):
        Taxonomy.from_yaml(YAML.replace(old, new, 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "groups: []",
        "groups:",
        "[]",
        "- 1",
        "just text",
        "a: &a [x]\ngroups: [*a, *a]",
        "[" * 5_000,
        "{" * 5_000,
        "groups: !!python/object/apply:os.system ['true']",
        "? [a, b]\n: c",
        "groups: 2024-99-99",
        "groups: " + "9" * 5_000,
        "#" * (MAX_CHARACTERS + 1),
        "--- a\n--- b",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_from_yaml_refuses_what_is_no_taxonomy(text: str) -> None:
    """Empty, foreign, nested, self-referring and oversized files end as ConfigError and in no other way."""
    with pytest.raises(ConfigError, match=r"taxonomy|line"):
        Taxonomy.from_yaml(text)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="groups: []{}-\n\t&*!|>'\"nametx#?,01.", max_size=80))
def test_from_yaml_fails_with_config_errors_alone(text: str) -> None:
    """Whatever is in the file, it is read or refused."""
    with suppress(ConfigError):
        assert Taxonomy.from_yaml(text).groups
