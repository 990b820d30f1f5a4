"""The inbox on both databases: nothing is stored twice, nothing is lost, nothing is done before it is booked."""

import threading
import time
from collections.abc import Iterator

import pytest

from mm_assets.ledger import Ledger
from mm_assets.ledger.inbox import Hint, settle


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Give an empty ledger."""
    opened = Ledger(ledger_url)
    yield opened
    opened.close()


def hints(*numbers: int, alias: str = "source") -> list[Hint]:
    """Return hints, one for each number, for ten keys."""
    return [Hint(f"{n:064d}", "b2", alias, f"key{n % 10}") for n in numbers]


def test_event_is_stored_once(ledger: Ledger) -> None:
    """Repetitions count as known, within one call and between calls."""
    assert ledger.inbox.add(hints(1, 2, 2)) == 2
    assert ledger.inbox.add(hints(2, 3)) == 1
    assert ledger.inbox.add([]) == 0
    assert ledger.inbox.depth() == 3


def test_more_events_than_one_statement_holds(ledger: Ledger) -> None:
    """A commit may hold thousands; the count of what was new stays exact."""
    assert ledger.inbox.add(hints(*range(7_000))) == 7_000
    assert ledger.inbox.add(hints(*range(6_500, 7_500))) == 500


def test_one_look_settles_all_events_of_a_key(ledger: Ledger) -> None:
    """What waits is given out by key, the oldest first."""
    ledger.inbox.add(hints(3))
    ledger.inbox.add(hints(1, 13, 2))
    waiting = ledger.inbox.waiting(100)
    assert [hint.key for hint in waiting] == ["key3", "key1", "key2"]
    assert [len(hint.inbox_ids) for hint in waiting] == [2, 1, 1]


def test_sources_do_not_share_keys(ledger: Ledger) -> None:
    """The same key of two sources is two looks."""
    ledger.inbox.add(hints(1))
    ledger.inbox.add(hints(11, alias="other"))
    assert [(hint.alias, hint.key) for hint in ledger.inbox.waiting(10)] == [("source", "key1"), ("other", "key1")]


def test_settled_events_wait_no_longer(ledger: Ledger) -> None:
    """Settling is part of the transaction that books the look: undone with it."""
    ledger.inbox.add(hints(1, 2))
    first, second = ledger.inbox.waiting(10)
    with ledger._engine.begin() as connection:
        settle(connection, first.inbox_ids)
    with ledger._engine.connect() as connection:
        settle(connection, second.inbox_ids)
        connection.rollback()
    assert [hint.key for hint in ledger.inbox.waiting(10)] == [second.key]
    assert ledger.inbox.depth() == 1
    assert ledger.inbox.add(hints(1)) == 0


def test_put_off_waits(ledger: Ledger) -> None:
    """A look that failed is due again after its time, and the failure counts."""
    ledger.inbox.add(hints(1, 2))
    first = ledger.inbox.waiting(1)[0]
    ledger.inbox.put_off(first.inbox_ids, 60.0)
    assert [hint.key for hint in ledger.inbox.waiting(10)] == ["key2"]
    ledger.inbox.put_off(first.inbox_ids, -1.0)
    again = {hint.key: hint.fails for hint in ledger.inbox.waiting(10)}
    assert again == {"key1": 2, "key2": 0}


def test_age_is_that_of_the_oldest_waiting(ledger: Ledger) -> None:
    """Nothing waiting has no age; what is put off has."""
    assert ledger.inbox.oldest_at() is None
    ledger.inbox.add(hints(1))
    ledger.inbox.put_off(ledger.inbox.waiting(1)[0].inbox_ids, 60.0)
    oldest = ledger.inbox.oldest_at()
    assert oldest is not None
    assert abs(oldest - time.time()) < 5


def test_purge_forgets_only_what_is_done(ledger: Ledger) -> None:
    """What waits stays however old; a purged event is a hint again."""
    ledger.inbox.add(hints(1, 2))
    done = ledger.inbox.waiting(10)[0]
    with ledger._engine.begin() as connection:
        settle(connection, done.inbox_ids)
    assert ledger.inbox.purge(time.time() - 60) == 0
    assert ledger.inbox.purge(time.time() + 60) == 1
    assert ledger.inbox.depth() == 1
    assert ledger.inbox.add(hints(1, 2)) == 1


def test_writers_at_once_store_each_event_once(ledger: Ledger) -> None:
    """Several servers receive the same events in other orders: no deadlock, no double, none lost."""
    counts: list[int] = []

    def add(seed: int) -> None:
        for start in range(0, 200, 20):
            numbers = range(start, start + 40)
            counts.append(ledger.inbox.add(hints(*(reversed(numbers) if seed % 2 else numbers))))

    threads = [threading.Thread(target=add, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == ledger.inbox.depth() == 220
