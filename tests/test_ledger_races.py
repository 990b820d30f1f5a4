"""Two processes that meet on one version: whoever comes late changes nothing, on either database."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from mm_assets.identity import ObjectVersion
from mm_assets.ledger import Claim, Finished, Ledger, LedgerUnavailableError, SeenObject
from mm_assets.ledger.dead import DeadFilter

RECIPES = {"segments": "r1", "faces": "r2"}
NEEDS = {"faces": {"segments": "r1"}}
VERSION = ObjectVersion("b", "k", "1")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open a ledger that knows one version, with its work opened."""
    opened = Ledger(ledger_url)
    _see(opened)
    opened.work.open_work("b", RECIPES, 10)
    yield opened
    opened.close()


def _see(ledger: Ledger) -> None:
    seen = [SeenObject(VERSION, 1, 0.0)]
    ledger.objects.record_page("b", seen, at=ledger.objects.scan("b"), after=None, shard_objects=5)


def _claim(ledger: Ledger, owner: str, lease_s: float = 60, **recipes: str) -> Claim:
    [claim] = ledger.work.claim_objects([VERSION.object_id], recipes or RECIPES, owner, lease_s=lease_s)
    return claim


def _finish(ledger: Ledger, claim: Claim, step: str, state: Any, **more: Any) -> bool:
    end = Finished(VERSION.object_id, step, claim.steps[step], claim.tokens[step], state, **more)
    return ledger.work.finish([end], RECIPES) == [True]


def _states(ledger: Ledger) -> dict[str, tuple[Any, Any]]:
    return {str(row["step"]): (row["state"], row["reason"]) for row in ledger.work.states(VERSION.object_id)}


def _sweep(ledger: Ledger) -> None:
    ledger.objects.retire("b", [VERSION.object_id], ())
    assert ledger.removals.forget([VERSION.object_id]) == []


def test_a_token_never_comes_twice(ledger: Ledger) -> None:
    """A worker that stood still while its object left, was swept and came back cannot end the new claim."""
    old = _claim(ledger, "old/1/x", lease_s=-1)
    _sweep(ledger)
    _see(ledger)
    ledger.work.open_work("b", RECIPES, 10)
    new = _claim(ledger, "new/2/y")

    assert not _finish(ledger, old, "segments", "done", n_rows=3)
    assert _finish(ledger, new, "segments", "done", n_rows=3)
    assert not set(old.tokens.items()) & set(new.tokens.items())


def test_steps_that_miss_segments_wait_on_where_there_are_some_by_now(ledger: Ledger) -> None:
    """A worker read that there are none, and was overtaken by the one that made them."""
    failed = _claim(ledger, "d/1/x", segments="r1")
    assert _finish(ledger, failed, "segments", "dead", reason="timeout")
    slow = _claim(ledger, "i/1/y", faces="r2")
    ledger.dead.replay(ledger.dead.letters(DeadFilter(recipes=RECIPES)), RECIPES)
    made = _claim(ledger, "d/2/z", segments="r1")
    assert _finish(ledger, made, "segments", "done", n_rows=3)

    assert _finish(ledger, slow, "faces", "skipped", reason="segments_dead")

    assert _states(ledger) == {"segments": ("done", None), "faces": ("wanted", None)}


def test_steps_that_miss_segments_are_skipped_where_there_are_none(ledger: Ledger) -> None:
    """Both ends in one commit: the segments died, and what needs them has nothing to do."""
    claim = _claim(ledger, "d/1/x")
    ends = [
        Finished(VERSION.object_id, "faces", "r2", claim.tokens["faces"], "skipped", reason="segments_dead"),
        Finished(VERSION.object_id, "segments", "r1", claim.tokens["segments"], "dead", reason="corrupt"),
    ]

    assert ledger.work.finish(ends, RECIPES) == [True, True]

    assert _states(ledger) == {"segments": ("dead", "corrupt"), "faces": ("skipped", "segments_dead")}


def test_a_listing_retires_nothing_that_an_event_has_shown_since(ledger: Ledger) -> None:
    """The pass missed it, HEAD said absent, then it was uploaded again: it stays."""
    ledger.objects.finish_pass("b", [], None, at=ledger.objects.scan("b"))
    scan = ledger.objects.scan("b")
    assert ledger.objects.n_missing("b") == 1
    ledger.objects.record_hinted("b", [SeenObject(VERSION, 1, 0.0)], (), shard_objects=5)

    assert ledger.objects.retire("b", [VERSION.object_id], (), at=scan) == 0

    assert ledger.objects.n_live("b") == 1


def test_cancelling_what_was_swept_opens_nothing(ledger: Ledger) -> None:
    """A version that comes back later is done like any other."""
    _sweep(ledger)

    assert ledger.tasks.cancel(VERSION.object_id, RECIPES) == 0

    _see(ledger)
    ledger.work.open_work("b", RECIPES, 10)
    assert _states(ledger) == {"segments": ("wanted", None), "faces": ("wanted", None)}
    assert ledger.tasks.cancel(VERSION.object_id, RECIPES) == 2


_LOST = {"postgresql": "server closed the connection unexpectedly", "sqlite": "database is locked"}


def test_a_plan_whose_commit_was_not_answered_comes_with_the_next_call(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches are in the ledger and nobody was told of them: the next call gives them, and none is left behind."""
    dialect = ledger._engine.dialect
    commit, n_lost = dialect.do_commit, iter([True])

    def lose_the_answer(connection: Any) -> None:
        commit(connection)
        if next(n_lost, False):
            driver: Any = dialect.dbapi
            raise driver.OperationalError(_LOST[dialect.name])

    monkeypatch.setattr(dialect, "do_commit", lose_the_answer)
    options = {"needs": {}, "aliases": ["b"], "size": 9, "max_tries": 3, "planner": "p"}

    with pytest.raises((OperationalError, LedgerUnavailableError)):
        ledger.work.plan(RECIPES, **options)

    [batch] = ledger.work.plan(RECIPES, **options)

    claims = ledger.work.claim_batch(batch.batch_id, "me", recipes=RECIPES, lease_s=60, max_claims=8)
    assert [dict(claim.steps) for claim in claims] == [RECIPES]
    assert (batch.lane, batch.steps, batch.n_objects) == ("bulk", tuple(RECIPES), 1)
    assert ledger.work.plan(RECIPES, **options) == []
