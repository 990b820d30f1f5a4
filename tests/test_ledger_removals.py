"""Leaving and restoring in the ledger, on both databases: what is forgotten, what stays, in which order streams come."""

from collections.abc import Iterator

import pytest

from mm_assets.identity import ObjectVersion
from mm_assets.ledger import KnownObject, Ledger, SeenObject
from mm_assets.ledger.restoring import UNKNOWN_SIZE, RestoredVersion, RestoredWork

RECIPES = {"raw_objects": "r1", "segments": "s1"}


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open a new ledger."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def _version(key: str, etag: str = "1") -> ObjectVersion:
    return ObjectVersion("a", key, etag)


def _see(ledger: Ledger, *versions: ObjectVersion) -> None:
    seen = [SeenObject(version, 7, 1.0) for version in versions]
    ledger.objects.record_page("a", seen, at=ledger.objects.scan("a"), after=None, shard_objects=2)


def _done(version: ObjectVersion, step: str = "segments", **facts: object) -> RestoredWork:
    values: dict[str, object] = {"state": "done", "n_rows": 3} | facts
    return RestoredWork(version.object_id, step, RECIPES[step], **values)  # type: ignore[arg-type]


def _known(ledger: Ledger, version: ObjectVersion) -> KnownObject:
    [known] = ledger.objects.by_ids([version.object_id])
    return known


def test_a_version_leaves_until_it_is_forgotten(ledger: Ledger) -> None:
    """Superseded and gone versions are to be swept once; then their work is no longer known."""
    _see(ledger, _version("k"), _version("other"))
    ledger.restoring.set_ends([_done(_version("k"))])
    assert ledger.removals.n_leaving() == 0
    _see(ledger, _version("k", "2"))

    [leaving] = ledger.removals.leaving(10)
    assert leaving.object_id == _version("k").object_id
    assert [known.object_id for known in ledger.removals.to_sweep()] == [leaving.object_id]
    assert ledger.removals.hold_rows(["segments"])
    assert not ledger.removals.hold_rows(["raw_objects"])
    [row] = ledger.removals.work_of([leaving.object_id])[leaving.object_id]
    assert (row.step, row.n_rows) == ("segments", 3)

    assert ledger.removals.forget([leaving.object_id]) == []

    assert ledger.removals.n_leaving() == 0
    assert ledger.work.states(leaving.object_id) == []
    assert ledger.removals.kept([leaving.object_id, _version("other").object_id]) == {_version("other").object_id}


def test_a_version_that_came_back_is_opened_anew(ledger: Ledger) -> None:
    """Its files may be gone: it loses its rows, stays live, and is named to the caller."""
    version = _version("k")
    _see(ledger, version)
    ledger.restoring.set_ends([_done(version)])

    assert ledger.removals.forget([version.object_id]) == [version.object_id]

    assert _known(ledger, version).state == "live"
    assert ledger.work.states(version.object_id) == []


def test_a_version_under_work_is_not_swept(ledger: Ledger) -> None:
    """Until its worker ends."""
    version = _version("k")
    _see(ledger, version)
    ledger.restoring.set_ends([_done(version)])
    ledger.work.claim_objects([version.object_id], {"segments": "s1"}, "h/1/a", lease_s=60)
    ledger.removals.erase([version.object_id])
    assert list(ledger.removals.to_sweep()) == []

    ledger.work.release("h/1/a")

    assert len(list(ledger.removals.to_sweep())) == 1


def test_what_left_is_not_claimed(ledger: Ledger) -> None:
    """A sweep may be at it: neither a batch that was planned before nor a run of its own begins it."""
    version = _version("k")
    _see(ledger, version)
    ledger.work.open_work("a", RECIPES, 10)
    [batch] = ledger.work.plan(RECIPES, needs={}, aliases=["a"], size=9, max_tries=3, planner="p")
    ledger.removals.erase([version.object_id])

    assert ledger.work.claim_batch(batch.batch_id, "h/1/a", recipes=RECIPES, lease_s=60, max_claims=8) == []
    assert ledger.work.claim_objects([version.object_id], RECIPES, "h/1/a", lease_s=60) == []
    assert ledger.work.n_open_objects(batch.batch_id) == 0


def test_a_version_under_work_is_not_forgotten(ledger: Ledger) -> None:
    """A worker that woke during the sweep may write a result yet: the next sweep takes it, and a record can be made."""
    version = _version("k")
    _see(ledger, version)
    ledger.work.open_work("a", RECIPES, 10)
    ledger.work.claim_objects([version.object_id], {"segments": "s1"}, "h/1/a", lease_s=60)
    ledger.removals.erase([version.object_id])

    assert ledger.removals.forget([version.object_id]) == [version.object_id]

    assert ledger.removals.n_leaving() == 1
    ledger.work.release("h/1/a")
    assert ledger.removals.forget([version.object_id]) == []
    assert ledger.removals.n_leaving() == 0
    assert ledger.dead.history(version.object_id, "segments", "s1")[1] == 0


@pytest.mark.parametrize(
    ("state", "reason", "holds"),
    [
        ("wanted", None, True),
        ("dead", "corrupt", True),
        ("skipped", "segments_dead", True),
        ("skipped", "cancelled", True),
        ("skipped", "unsupported", False),
        ("skipped", "no audio", False),
    ],
)
def test_work_done_again_may_have_had_vectors(ledger: Ledger, state: str, reason: str | None, holds: bool) -> None:
    """Builds that hold them are found although the rows are no longer counted; some bytes never gave any."""
    version = _version("k")
    _see(ledger, version)
    ledger.restoring.set_ends([_done(version, state=state, reason=reason, n_rows=None)])
    ledger.objects.retire("a", [version.object_id], ())

    assert ledger.removals.hold_rows(["segments"]) is holds


def test_an_erased_version_is_swept_again_and_never_returns(ledger: Ledger) -> None:
    """Erasing what was swept before looks through the lake once more; a listing changes nothing."""
    version = _version("k")
    _see(ledger, version)
    _see(ledger, _version("k", "2"))
    ledger.removals.forget([version.object_id])

    assert ledger.removals.erase([version.object_id]) == 1
    assert ledger.removals.erase([version.object_id]) == 0
    _see(ledger, version)

    assert _known(ledger, version).state == "erased"
    assert ledger.removals.n_leaving() >= 1


def test_restored_rows_keep_places_and_what_comes_later_follows(ledger: Ledger) -> None:
    """Shards stay as they were published; new versions fill the last one and go on from there."""
    restored = [RestoredVersion(_version(f"k{n}"), 7, 1.0, n, n // 2) for n in range(3)]
    for _ in range(2):  # a rebuild that was killed writes the same again
        ledger.restoring.add_versions(restored, [_done(item.version) for item in restored])

    _see(ledger, _version("new"), _version("newer"))

    shards = {key: ledger.objects.find(key)[0].shard for key in ("k0", "k1", "k2", "new", "newer")}
    assert shards == {"k0": 0, "k1": 0, "k2": 1, "new": 1, "newer": 2}
    assert ledger.objects.n_missing("a") == 3


def test_an_unknown_size_is_learned_from_a_listing(ledger: Ledger) -> None:
    """And a known one is not changed by it."""
    for key, size in (("pending", UNKNOWN_SIZE), ("sized", 5)):
        ledger.restoring.add_versions([RestoredVersion(_version(key), size, 0.0, 0, 0)], [])
    assert ledger.restoring.unsized() == {"a"}

    ledger.restoring.set_sizes([SeenObject(_version(key), 9, 2.0) for key in ("pending", "sized")])

    assert [_known(ledger, _version(key)).size_bytes for key in ("pending", "sized")] == [9, 5]
    assert ledger.restoring.unsized() == set()


def test_ends_newer_than_the_last_publish_fill_what_is_open(ledger: Ledger) -> None:
    """A result counts more than a death, an end more than none, and a death that is known learns its tries."""
    keys = ("open", "dead", "done")
    versions = {key: _version(key) for key in keys}
    dead = {"state": "dead", "reason": "corrupt", "n_rows": None}
    work = [
        _done(versions["open"], state="wanted", n_rows=None),
        _done(versions["dead"], **dead),
        _done(versions["done"]),
    ]
    ledger.restoring.add_versions([RestoredVersion(v, 7, 1.0, n, 0) for n, v in enumerate(versions.values())], work)

    ledger.restoring.set_ends([_done(version, **dead, tries=3) for version in versions.values()])

    def states() -> dict[str, tuple[object, object]]:
        rows = {key: ledger.work.states(version.object_id)[0] for key, version in versions.items()}
        return {key: (row["state"], row["tries"]) for key, row in rows.items()}

    assert states() == {"open": ("dead", 3), "dead": ("dead", 3), "done": ("done", 0)}
    found = ledger.restoring.without_end("segments", "s1", [version.object_id for version in versions.values()])
    assert found == [versions["open"].object_id, versions["dead"].object_id]
    ledger.restoring.set_ends([_done(versions["dead"])])
    assert states()["dead"] == ("done", 0)


def test_a_rebuild_brings_no_work_of_what_was_swept(ledger: Ledger) -> None:
    """A second rebuild after a kill may find a version swept meanwhile: its results are gone."""
    version = RestoredVersion(_version("k"), 7, 1.0, 0, 0)
    ledger.restoring.add_versions([version], [_done(version.version)])
    _see(ledger, _version("k", "2"))
    ledger.removals.forget([version.version.object_id])

    ledger.restoring.add_versions([version], [_done(version.version)])

    assert ledger.work.states(version.version.object_id) == []


def test_erased_versions_are_known_by_their_hash_alone(ledger: Ledger) -> None:
    """A listing then does not bring them back."""
    version = _version("k")
    ledger.restoring.add_erased([version.object_id, _version("l").object_id])

    _see(ledger, version)

    assert _known(ledger, version).state == "erased"
    assert ledger.objects.n_live("a") == 0
    assert ledger.removals.n_leaving() == 2


def test_streams_are_in_the_order_of_bytes(ledger: Ledger) -> None:
    """Listings are sorted by UTF-8 bytes, and no locale may change that."""
    keys = ["B", "a", "b", "a/b", "a b", "é", "e", "z", "Z", "_", "~", "\U0001f3ac", "\uffee"]
    _see(ledger, *(_version(key) for key in keys))

    assert [key for key, _ in ledger.comparing.by_key("a")] == sorted(keys, key=str.encode)


def test_only_an_untouched_ledger_is_empty(ledger: Ledger) -> None:
    """But for one whose rebuild was begun and not ended."""
    assert ledger.restoring.is_empty()
    ledger.restoring.begin()
    _see(ledger, _version("k"))
    assert ledger.restoring.is_empty()

    ledger.restoring.end()

    assert not ledger.restoring.is_empty()
    assert not ledger.restoring.is_under_way()
