"""Counters that all processes share, on both databases."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from mm_assets.ledger import Ledger


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """Open an empty ledger."""
    with closing(Ledger(ledger_url)) as opened:
        yield opened


def test_counters_add_up_over_processes(ledger: Ledger, ledger_url: str) -> None:
    """What two processes add at once is all there."""
    key = "step_ends_total", (("state", "done"), ("step", "faces"))

    def add() -> None:
        with closing(Ledger(ledger_url)) as own:
            for _ in range(20):
                own.meters.add({key: 1, ("runs_total", ()): 0.5})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ledger.meters.totals() == {key: 80, ("runs_total", ()): 40}
    assert ledger.meters.today("step_ends_total") == {key[1]: 80}


def test_days_are_kept_apart_and_summed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter never falls, and today begins at 00:00 GMT."""
    monkeypatch.setattr("mm_assets.ledger.meters.gmt_day", lambda: "2026-01-31")
    ledger.meters.add({("runs_total", ()): 3})
    monkeypatch.setattr("mm_assets.ledger.meters.gmt_day", lambda: "2026-02-01")
    ledger.meters.add({("runs_total", ()): 4})

    assert ledger.meters.today("runs_total") == {(): 4}
    assert ledger.meters.totals() == {("runs_total", ()): 7}


def test_order_of_labels_does_not_matter(ledger: Ledger) -> None:
    """The same labels are the same counter."""
    ledger.meters.add({("n", (("b", "2"), ("a", "1"))): 1, ("n", (("a", "1"), ("b", "2"))): 1})

    assert ledger.meters.totals() == {("n", (("a", "1"), ("b", "2"))): 2}


def test_strangers_labels_are_bounded(ledger: Ledger) -> None:
    """A server's error code cannot fill the database, break a line or hide a NUL in it."""
    ledger.meters.add({("n", (("code", 'x\0\n"\ud800é' + "y" * 5_000), ("operation", "\\" * 200))): 1})

    [(_, labels)] = ledger.meters.totals()
    assert labels == (("code", "x_____" + "y" * 42), ("operation", "_" * 48))


def test_nothing_to_add_writes_nothing(ledger: Ledger) -> None:
    """Zeros and empty mappings leave no row."""
    ledger.meters.add({})
    ledger.meters.add({("n", ()): 0})

    assert ledger.meters.totals() == {}
