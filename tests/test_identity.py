"""Identity: ids and partition keys of object versions, hostile keys included."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_assets.errors import ObjectError, Reason
from mm_assets.identity import (
    MAX_PARTITION_KEY_BYTES,
    ObjectVersion,
    from_partition_key,
    item_id,
    normalize_etag,
    segment_id,
    vector_id,
)

KEYS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=60)
ETAGS = st.text("0123456789abcdef-/@%,|.", min_size=1, max_size=40)
HOSTILE = [
    "a b.jpg",
    "a//b",
    "../../etc/passwd",
    "./a",
    "/a",
    "a\nb",
    "a\tb\x1f\x7f\x85",
    "a...b",
    "....",
    "[a...b],c",
    "a|b,c%41",
    "café.jpg",
    "cafe\u0301.jpg",
    "🎬/clip.mp4",
    "x" * 1024,
    "%" * 1024,
    "__ASSET_JOB",
    "~",
    ".",
]


@given(KEYS, ETAGS, ETAGS | st.just(""))
def test_partition_key_round_trips(key: str, etag: str, version_id: str) -> None:
    """A partition key that is kept whole gives back the object version."""
    version = ObjectVersion("alias", key, etag, version_id)

    assert from_partition_key(version.partition_key) == version


@pytest.mark.parametrize("key", HOSTILE)
def test_partition_key_holds_nothing_that_dagster_reads_as_syntax(key: str) -> None:
    """Controls, ranges and separators are escaped, and the length stays below PostgreSQL's index row."""
    partition_key = ObjectVersion("alias", key, "etag").partition_key

    assert not re.search(r"[\x00-\x1f\x7f-\x9f,\[\]|]|\.\.\.", partition_key)
    assert len(partition_key.encode()) <= MAX_PARTITION_KEY_BYTES


def test_partition_keys_and_ids_are_unique() -> None:
    """No two hostile keys share an id or a partition key, in whatever Unicode form."""
    versions = [ObjectVersion("alias", key, "etag") for key in HOSTILE]

    assert len({version.object_id for version in versions}) == len(HOSTILE)
    assert len({version.partition_key for version in versions}) == len(HOSTILE)


def test_object_id_has_one_reading_of_its_parts() -> None:
    """Moving a character from one part to the next is another object."""
    assert ObjectVersion("a", "b/c", "e").object_id != ObjectVersion("a-b", "c", "e").object_id
    assert ObjectVersion("a", "bc", "e").object_id != ObjectVersion("a", "b", "ce").object_id
    assert ObjectVersion("a", "b", "c", "d").object_id != ObjectVersion("a", "b", "cd").object_id


@pytest.mark.parametrize("etag", ['"abc"', "abc", 'W/"abc"', ' "abc" '])
def test_etags_of_list_head_and_get_agree(etag: str) -> None:
    """Quotes and the weak mark are not part of the identity."""
    assert normalize_etag(etag) == "abc"


@pytest.mark.parametrize("key", ["a\x00b", "a\udcffb"])
def test_keys_that_no_database_holds_are_refused(key: str) -> None:
    """NUL and lone surrogates end as an object error that no retry mends."""
    with pytest.raises(ObjectError) as caught:
        ObjectVersion("alias", key, "etag")

    assert caught.value.reason is Reason.POLICY
    assert caught.value.is_permanent


def test_ids_of_parts_come_from_content_and_place() -> None:
    """The same place gives the same id, another place another one, and FAISS ids are positive 64-bit numbers."""
    first = segment_id("0" * 32, "scene", 3)

    assert first == f"{'0' * 32}-s000003"
    assert item_id(first, 2) == f"{first}-0002"
    assert vector_id(first) == vector_id(first) != vector_id(item_id(first, 2))
    assert 0 <= vector_id(first) < 1 << 63
