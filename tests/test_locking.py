"""Locks of the ledger as flows hold them: one holder, renewed, given back, and taken over from the dead."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from places import Place

from mm_assets.flows.locking import BusyError, held
from mm_assets.flows.processing import new_owner

MakePlace = Callable[..., Place]


def test_one_holds_and_the_other_is_told_who(make_workspace: MakePlace) -> None:
    """A lock is not waited for: who comes second learns who holds it, and other names are free."""
    place = make_workspace()
    workspace, other = place.open(), place.open()
    with held(workspace, "list:a") as token:
        assert workspace.ledger.locks.is_held("list:a", token)
        with pytest.raises(BusyError) as busy, held(other, "list:a"):
            pass
        assert busy.value.holder == workspace.ledger.locks.holder("list:a")
        assert busy.value.holder in str(busy.value)
        with held(other, "list:b"):
            pass
    with held(other, "list:a") as later:
        assert later > token


def test_a_lock_is_given_back_on_any_way_out(make_workspace: MakePlace) -> None:
    """After an error or Ctrl-C in the block the lock is free at once."""
    workspace = make_workspace().open()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), held(workspace, "x"):
            raise error
        assert workspace.ledger.locks.holder("x") is None


def test_a_lock_is_renewed_as_long_as_it_is_held(make_workspace: MakePlace) -> None:
    """Work that takes longer than the lease keeps the lock."""
    place = make_workspace()
    workspace, other = place.open(), place.open()
    with held(workspace, "x", lease_s=0.6) as token:
        time.sleep(1.5)
        assert workspace.ledger.locks.is_held("x", token)
        with pytest.raises(BusyError), held(other, "x"):
            pass


@pytest.mark.fault(18)
def test_a_lock_of_a_killed_process_is_taken_over(make_workspace: MakePlace) -> None:
    """On the same machine at once; from another machine when the lease is over, and its token is worth nothing then."""
    workspace = make_workspace().open()
    locks = workspace.ledger.locks
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        machine, _, word = new_owner().split("/")
        dead = locks.take("here", f"{machine}/{process.pid}/{word}", 600)
        with pytest.raises(BusyError), held(workspace, "here"):
            pass
        process.kill()
    assert dead is not None
    with held(workspace, "here") as token:
        assert token > dead
        assert not locks.renew("here", dead, 600)

    far = locks.take("far", "another-machine/1/word", 0.5)
    assert far is not None
    with pytest.raises(BusyError), held(workspace, "far"):
        pass
    time.sleep(0.6)
    with held(workspace, "far"):
        assert not locks.is_held("far", far)


def test_a_lost_lock_does_not_end_the_next_holders(make_workspace: MakePlace) -> None:
    """Who slept beyond the lease and then gives back takes nothing from who holds the lock now."""
    place = make_workspace()
    workspace, other = place.open(), place.open()
    locks = workspace.ledger.locks
    with held(workspace, "x", lease_s=3_600) as slept:
        assert locks.renew("x", slept, -1.0)  # as if its time had passed
        later = other.ledger.locks.take("x", "other/1/word", 60)
    assert later is not None
    assert locks.is_held("x", later)
