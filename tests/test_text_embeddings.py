"""text_embeddings: texts are cut where the model's sight ends, and what means the same lies near."""

from typing import Any

import numpy as np
import pytest
from extractor_samples import demo_pack, extractor, rows_of, segments_for

from mm_assets.extractors.packs import Pack
from mm_assets.extractors.registry import build_extractor
from mm_assets.extractors.text_embeddings import TextEmbeddingExtractor, cut_words
from mm_assets.schemas import TABLES

STEP = "text_embeddings"


def pieces(text: str, most: int) -> list[str]:
    """Cut a text whose words have a token for each letter."""
    return list(cut_words(text.split(), len, most))


def test_texts_are_cut_between_words() -> None:
    """Each piece holds as many whole words as fit; nothing is lost or repeated."""
    assert pieces("aa bb cc dd", 4) == ["aa bb", "cc dd"]
    assert pieces("aaa bb c", 4) == ["aaa", "bb c"]
    assert pieces("aa bb", 100) == ["aa bb"]
    assert pieces("  ", 4) == []


def test_a_word_that_is_too_long_is_a_piece_of_its_own() -> None:
    """The model reads its beginning."""
    assert pieces("a bbbbbbbb c", 4) == ["a", "bbbbbbbb", "c"]


def test_it_takes_texts_of_what_it_reads_alone() -> None:
    """Nothing of a step that gave none."""
    kind = build_extractor(STEP, demo_pack())
    segments = TABLES["segments"].published_schema().empty_table()
    assert kind.gather({"segments": segments}).num_rows == 0


def test_a_pack_may_have_a_model_of_its_own_for_texts() -> None:
    """Without one the visual model is used."""
    pack = demo_pack()
    own = Pack("own", {**pack.cards, STEP: pack.cards["faces"]}, pack.taxonomy)
    assert build_extractor(STEP, pack).card == pack.cards["visual_embeddings"]
    assert build_extractor(STEP, own).card == pack.cards["faces"]


@pytest.mark.models
def test_pieces_are_what_the_model_can_read() -> None:
    """A long text has several, with ids of their own; a blank one none; texts of other letters are read, too."""
    rows = rows_of(STEP)
    clip: Any = extractor(STEP)
    most = clip._clip.max_tokens
    assert all(clip._clip.count_tokens(piece) <= most for piece in rows["text"].to_pylist())
    texts = segments_for(STEP)["text"].to_pylist()
    long = [row["text"] for row in rows.to_pylist() if row["segment_id"].startswith(f"{5:032x}")]
    assert len(long) > 1
    assert " ".join(long) == " ".join(texts[5].split())
    assert f"{2:032x}" not in set(rows["object_id"].to_pylist())
    assert len(set(rows["piece_id"].to_pylist())) == rows.num_rows


@pytest.mark.models
def test_the_pieces_of_a_text_are_bounded() -> None:
    """What is beyond is left to the words."""
    few = build_extractor(STEP, demo_pack(), {"max_pieces": 1})
    rows = few.extract(segments_for(STEP))
    assert rows.num_rows == len(set(rows["text_id"].to_pylist()))


@pytest.mark.models
def test_the_model_is_loaded_once_for_pictures_and_texts() -> None:
    """Both have the same one in memory."""
    texts: Any = extractor(STEP)
    pictures: Any = extractor("visual_embeddings")
    texts.load()
    pictures.load()
    assert texts._clip is pictures._clip


@pytest.mark.models
def test_what_means_the_same_is_nearer_than_what_does_not() -> None:
    """Of sentences that the demo's model knows."""
    clip = extractor(STEP)
    assert isinstance(clip, TextEmbeddingExtractor)
    said = ["A red circle below an orange diamond.", "Scene four shows a yellow heart.", "A purple star."]
    asked = ["an orange diamond above a red circle", "a yellow heart in scene four", "a star that is purple"]
    similarity = clip.encode_texts(asked) @ clip.encode_texts(said).T
    assert np.argmax(similarity, axis=1).tolist() == [0, 1, 2]
