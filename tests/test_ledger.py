"""The ledger: versions, scans, claims, budgets."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from mm_assets.errors import ConfigError
from mm_assets.identity import ObjectVersion
from mm_assets.ledger import Claim, Finished, Ledger, PageDelta, SeenObject, ShardFile
from mm_assets.ledger.dead import DeadFilter

RECIPES = {"segments": "r1", "faces": "r2"}
NEEDS = {"faces": {"segments": "r1"}}


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open an empty ledger, on SQLite and on PostgreSQL in turn."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def _seen(key: str, etag: str = "e") -> SeenObject:
    return SeenObject(ObjectVersion("b", key, etag), 10, 0.0)


def _list(ledger: Ledger, objects: dict[str, str], *, finish: bool = True) -> PageDelta:
    """Run one whole pass over a bucket that holds these keys and ETags."""
    at = ledger.objects.scan("b")
    seen = [_seen(*item) for item in objects.items()]
    delta = ledger.objects.record_page("b", seen, at=at, after=None, shard_objects=3)
    if finish:
        gone = [known.object_id for known in ledger.objects.missing("b")]
        ledger.objects.finish_pass("b", gone, None, at=at)
    return delta


def _open(ledger: Ledger, recipes: dict[str, str] = RECIPES) -> int:
    return ledger.work.open_work("b", recipes, limit=100)


def _claims(ledger: Ledger, *, size: int = 10, max_claims: int = 8, recipes: dict[str, str] = RECIPES) -> list[Claim]:
    _open(ledger, recipes)
    batches = ledger.work.plan(recipes, needs=NEEDS, aliases=["b"], size=size, max_tries=3, planner="p")
    return [
        c
        for b in batches
        for c in ledger.work.claim_batch(b.batch_id, "me", recipes=RECIPES, lease_s=60, max_claims=max_claims)
    ]


def _finish(claims: Sequence[Claim], state: str, **more: object) -> list[Finished]:
    return [
        Finished(c.known.object_id, step, recipe, c.tokens[step], state, n_rows=1, **more)  # type: ignore[arg-type]
        for c in claims
        for step, recipe in c.steps.items()
    ]


def test_listing_the_same_again_changes_nothing(ledger: Ledger) -> None:
    """A repeated pass finds nothing new and wants nothing more."""
    assert _list(ledger, {"a": "1", "b": "1"}).n_new == 2
    assert _open(ledger) == 2

    assert _list(ledger, {"a": "1", "b": "1"}) == PageDelta()
    assert _open(ledger) == 0


def test_a_new_version_takes_its_predecessors_shard(ledger: Ledger) -> None:
    """The old and the new version never stand in two files."""
    _list(ledger, {f"k{i}": "1" for i in range(7)})
    before = ledger.objects.find("k5")[0]

    assert _list(ledger, {f"k{i}": "2" if i == 5 else "1" for i in range(7)}).n_changed == 1

    live, old = ledger.objects.find("k5")
    assert (live.state, live.shard, live.version.etag) == ("live", before.shard, "2")
    assert old.state == "superseded"


def test_shards_are_filled_in_the_order_of_discovery(ledger: Ledger) -> None:
    """Three objects a shard, whatever the pages."""
    _list(ledger, {f"k{i}": "1" for i in range(4)})
    _list(ledger, {f"k{i}": "1" for i in range(8)})

    assert [ledger.objects.find(f"k{i}")[0].shard for i in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_version_that_comes_back_is_not_processed_again(ledger: Ledger) -> None:
    """A, B, A again: the results of A still hold."""
    _list(ledger, {"a": "1"})
    ledger.work.finish(_finish(_claims(ledger), "done"), RECIPES)
    _list(ledger, {"a": "2"})

    delta = _list(ledger, {"a": "1"})

    assert (delta.n_new, delta.n_changed, delta.n_revived) == (0, 0, 1)
    assert _open(ledger) == 0
    assert ledger.work.n_waiting(RECIPES) == 0
    assert [known.state for known in ledger.objects.find("a")] == ["live", "superseded"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("123")), min_size=1, max_size=6))
def test_after_a_pass_the_live_versions_are_the_bucket(
    tmp_path_factory: pytest.TempPathFactory, buckets: list[dict[str, str]]
) -> None:
    """Whatever was uploaded, overwritten, deleted and restored in between."""
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'l.db'}")
    for bucket in buckets:
        _list(ledger, bucket)

    live = {
        known.version.key: known.version.etag
        for key in "abcdef"
        for known in ledger.objects.find(key)
        if known.state == "live"
    }

    assert live == buckets[-1]
    assert ledger.objects.n_live("b") == len(buckets[-1])
    ledger.close()


def test_an_object_is_claimed_once(ledger: Ledger) -> None:
    """A second worker finds nothing left of a batch."""
    _list(ledger, {"a": "1"})
    _open(ledger)
    [batch] = ledger.work.plan(RECIPES, needs=NEEDS, aliases=["b"], size=10, max_tries=3, planner="p")

    first = ledger.work.claim_batch(batch.batch_id, "one", recipes=RECIPES, lease_s=60, max_claims=8)
    second = ledger.work.claim_batch(batch.batch_id, "two", recipes=RECIPES, lease_s=60, max_claims=8)

    assert len(first) == 1
    assert second == []


def test_a_stale_token_finishes_nothing(ledger: Ledger) -> None:
    """A worker that slept through its lease cannot overwrite its successor."""
    _list(ledger, {"a": "1"})
    _open(ledger)
    [batch] = ledger.work.plan(RECIPES, needs=NEEDS, aliases=["b"], size=10, max_tries=3, planner="p")
    slow = ledger.work.claim_batch(batch.batch_id, "slow", recipes=RECIPES, lease_s=-1, max_claims=8)
    assert ledger.work.release_expired() == 2
    quick = _claims(ledger)

    assert ledger.work.finish(_finish(slow, "done"), RECIPES) == [False, False]
    assert ledger.work.finish(_finish(quick, "done"), RECIPES) == [True, True]


def test_deaths_of_the_worker_end_as_crash_loop(ledger: Ledger) -> None:
    """After the allowed starts the object is given up, and says why."""
    _list(ledger, {"a": "1"})
    for _ in range(2):
        assert len(_claims(ledger, max_claims=2)) == 1
        ledger.work.release_dead(lambda _: True)

    assert _claims(ledger, max_claims=2) == []
    rows = ledger.work.states(ledger.objects.find("a")[0].object_id)
    assert {(row["state"], row["reason"]) for row in rows} == {("dead", "crash_loop")}
    assert {row[name] for row in rows for name in ("batch_id", "owner", "lease_until")} == {None}


def test_what_is_wanted_again_is_planned_again(ledger: Ledger) -> None:
    """A batch that was planned or is over does not keep it; what a worker holds stays with the worker."""
    _list(ledger, {"planned": "1", "held": "1"})
    claims = {claim.known.version.key: claim for claim in _claims(ledger, size=1)}
    ledger.work.finish(_finish([claims["planned"]], "wanted"), RECIPES)
    _plan = {"needs": NEEDS, "aliases": ["b"], "size": 9, "max_tries": 3, "planner": "p"}
    assert len(ledger.work.plan(RECIPES, **_plan)) == 1  # type: ignore[arg-type]
    ids = [claim.known.object_id for claim in claims.values()]

    for step, recipe in RECIPES.items():
        ledger.work.want_again(step, recipe, ids)

    assert [batch.n_objects for batch in ledger.work.plan(RECIPES, **_plan)] == [1]  # type: ignore[arg-type]
    assert ledger.work.finish(_finish([claims["held"]], "done"), RECIPES) == [True, True]


def test_a_cancelled_redo_keeps_its_earlier_result(ledger: Ledger) -> None:
    """Its rows stay published: only the work was taken back."""
    _list(ledger, {"a": "1"})
    ledger.work.finish(_finish(_claims(ledger), "done"), RECIPES)
    object_id = ledger.objects.find("a")[0].object_id
    ledger.dead.replay(ledger.dead.letters(DeadFilter(state="done")))

    assert ledger.tasks.cancel(object_id, RECIPES) == 2

    assert {(row["state"], row["n_rows"]) for row in ledger.work.states(object_id)} == {("skipped", 1)}


def test_stopping_in_good_order_burns_no_start(ledger: Ledger) -> None:
    """Ctrl-C any number of times is no crash loop."""
    _list(ledger, {"a": "1"})
    for _ in range(5):
        assert len(_claims(ledger, max_claims=1)) == 1
        assert ledger.work.release("me") == 2

    assert {row["claims"] for row in ledger.work.states(ledger.objects.find("a")[0].object_id)} == {0}


def test_the_last_try_runs_alone(ledger: Ledger) -> None:
    """First in the crowd, then in a small batch, then by itself; the others go on."""
    _list(ledger, {f"k{i}": "1" for i in range(12)})
    lanes = []
    for _ in range(3):
        _open(ledger)
        batches = ledger.work.plan(RECIPES, needs=NEEDS, aliases=["b"], size=50, max_tries=3, planner="p")
        lanes.append([(batch.lane, batch.n_objects) for batch in batches])
        for batch in batches:
            claims = ledger.work.claim_batch(batch.batch_id, "me", recipes=RECIPES, lease_s=60, max_claims=8)
            bad = [c for c in claims if c.known.version.key == "k0"]
            ledger.work.finish(_finish([c for c in claims if c not in bad], "done"), RECIPES)
            ledger.work.finish(_finish(bad, "wanted", counts_as_try=True), RECIPES)

    assert lanes == [[("bulk", 12)], [("bulk", 1)], [("single", 1)]]


def test_a_row_that_waits_is_not_taken_along(ledger: Ledger) -> None:
    """A step that failed keeps its wait, also when another step of the same object is ready."""
    _list(ledger, {"a": "1"})
    [claim] = _claims(ledger)
    ends = _finish([claim], "wanted", counts_as_try=True, retry_after_s=600.0)
    ledger.work.finish([replace(end, retry_after_s=0.0) if end.step == "faces" else end for end in ends], RECIPES)

    [batch] = ledger.work.plan(RECIPES, needs={}, aliases=["b"], size=9, max_tries=3, planner="p")

    claims = ledger.work.claim_batch(batch.batch_id, "me", recipes=RECIPES, lease_s=60, max_claims=8)
    assert [list(claim.steps) for claim in claims] == [["faces"]]


def test_work_waits_for_what_it_needs(ledger: Ledger) -> None:
    """A batch of models is planned only once the segments are done, under the same recipe."""
    _list(ledger, {"a": "1"})
    _open(ledger)
    faces = {"faces": "r2"}
    assert ledger.work.plan(faces, needs=NEEDS, aliases=["b"], size=9, max_tries=3, planner="p") == []

    ledger.work.finish(_finish(_claims(ledger, recipes={"segments": "r1"}), "done"), RECIPES)

    assert (
        ledger.work.plan(faces, needs={"faces": {"segments": "other"}}, aliases=["b"], size=9, max_tries=3, planner="p")
        == []
    )
    assert len(ledger.work.plan(faces, needs=NEEDS, aliases=["b"], size=9, max_tries=3, planner="p")) == 1


def test_a_retry_waits_for_its_time(ledger: Ledger) -> None:
    """Backoff is kept by the ledger, not by sleeping."""
    _list(ledger, {"a": "1"})
    ledger.work.finish(_finish(_claims(ledger), "wanted", retry_after_s=1.0), RECIPES)
    assert _claims(ledger) == []

    time.sleep(1.1)

    assert len(_claims(ledger)) == 1


def test_batches_of_a_dead_planner_are_planned_anew(ledger: Ledger) -> None:
    """A kill between planning and starting a run loses nothing."""
    _list(ledger, {"a": "1"})
    _open(ledger)
    assert len(ledger.work.plan(RECIPES, needs=NEEDS, aliases=["b"], size=9, max_tries=3, planner="dead")) == 1
    assert ledger.work.release_unstarted(lambda planner: planner != "dead", 3600) == 0

    assert ledger.work.release_unstarted(lambda planner: planner == "dead", 3600) == 2
    assert len(ledger.work.plan(RECIPES, needs=NEEDS, aliases=["b"], size=9, max_tries=3, planner="p")) == 1


def test_a_new_recipe_is_new_work_beside_the_old(ledger: Ledger) -> None:
    """Changing one model opens its rows again and no others."""
    _list(ledger, {"a": "1"})
    ledger.work.finish(_finish(_claims(ledger), "done"), RECIPES)

    _open(ledger, {"segments": "r1", "faces": "r3"})
    assert ledger.work.counts({"segments": "r1", "faces": "r3"}) == {
        ("segments", "done", None): 1,
        ("faces", "wanted", None): 1,
    }
    assert ledger.work.complete("faces", "r2", ["b"])
    assert not ledger.work.complete("faces", "r3", ["b"])


def test_an_earlier_result_holds_while_it_is_made_again(ledger: Ledger) -> None:
    """Rows do not leave the tables because somebody asked for them once more."""
    _list(ledger, {"a": "1"})
    ledger.work.finish(_finish(_claims(ledger), "done"), RECIPES)
    object_id = ledger.objects.find("a")[0].object_id
    ledger.work.claim_objects([object_id], RECIPES, "again", lease_s=60)

    assert [(row[4], row[6]) for row in ledger.work.published_rows(RECIPES)] == [("claimed", 1), ("claimed", 1)]


def test_the_cursor_moves_with_its_rows(ledger: Ledger) -> None:
    """A page that cannot be stored leaves the cursor where it was."""
    ledger.objects.record_page("b", [_seen("a")], at=ledger.objects.scan("b"), after="a", shard_objects=3)
    at = ledger.objects.scan("b")
    broken = SeenObject(ObjectVersion("b", "b", "1"), None, 0.0)  # type: ignore[arg-type]  what a bad listing may hold

    with pytest.raises(IntegrityError):
        ledger.objects.record_page("b", [_seen("c"), broken], at=at, after="c", shard_objects=3)

    assert ledger.objects.scan("b").after == "a"
    assert ledger.objects.find("c") == []


def test_a_ledger_keeps_to_its_lake(ledger: Ledger) -> None:
    """Pointing the lake elsewhere would make every 'done' untrue."""
    ledger.bind_lake("one")
    ledger.bind_lake("one")

    with pytest.raises(ConfigError, match="another `state`"):
        ledger.bind_lake("two")


def test_the_first_process_names_the_lake(ledger: Ledger) -> None:
    """All others that found no name get the same; two names for one lake would lock the ledger out for good."""
    assert ledger.bound_lake() is None

    assert ledger.bind_lake() == ledger.bind_lake() == ledger.bound_lake()


def test_an_unreachable_database_names_its_setting(tmp_path: Path) -> None:
    """The message says which setting leads there."""
    with pytest.raises(ConfigError, match="ledger_url"):
        Ledger(f"sqlite:///{tmp_path}")


def test_pointers_are_replaced_whole(ledger: Ledger) -> None:
    """Recipes, generations and shard files hold the last value, and going back is the same call."""
    ledger.catalog.publish({"a": "1", "b": "1"})
    ledger.catalog.publish({"a": "2"})
    ledger.catalog.set_generation("x", {"generation": "g1"})
    ledger.catalog.set_generation("x", {"generation": "g2", "n_rows": 3})
    ledger.catalog.set_shard_file(ShardFile("t", 0, "f1", 1))
    ledger.catalog.set_shard_file(ShardFile("t", 0, "f2", 2))

    assert ledger.catalog.published() == {"a": "2", "b": "1"}
    assert ledger.catalog.generation("x") == {"generation": "g2", "n_rows": 3}
    assert ledger.catalog.shard_files() == {("t", 0): ShardFile("t", 0, "f2", 2)}


def test_finished_keys_can_be_retired_and_dead_ones_stay(ledger: Ledger) -> None:
    """Dagster's working set gives up what needs nobody."""
    _list(ledger, {"good": "1", "bad": "1", "open": "1"})
    claims = {claim.known.version.key: claim for claim in _claims(ledger)}
    ledger.objects.set_in_dagster([claim.known.object_id for claim in claims.values()], held=True)
    ledger.work.finish(_finish([claims["good"]], "done") + _finish([claims["bad"]], "dead"), RECIPES)

    assert [known.version.key for known in ledger.objects.retirable(10, RECIPES.values())] == ["good"]
    assert ledger.objects.n_in_dagster() == 3
