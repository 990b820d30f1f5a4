"""Several who list at once, and clocks that disagree."""

import threading
import time
from collections import Counter

import pytest
from fault_proxy import late
from rig import Rig, everywhere

from mm_assets.flows.discovery import Discovery, discover
from mm_assets.flows.locking import BusyError, held


@pytest.mark.fault(18)
@everywhere
def test_two_sensors_and_a_person_at_once_are_one_lister(rig: Rig) -> None:
    """One lists; the others are told who does, and nothing is seen twice."""
    rig.add(*(f"picture{number}.png" for number in range(5)))
    workspaces = [rig.open() for _ in range(3)]
    rig.proxy.spoil(late(1.0), "ListObjectsV2", bucket=rig.source)
    found: list[Discovery] = []
    threads = [threading.Thread(target=lambda w=w: found.append(discover(w, "source"))) for w in workspaces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rig.proxy.mend()

    assert Counter(item.is_complete for item in found) == {True: 1, False: 2}
    assert sum(item.n_new for item in found) == 5
    assert all("under way in" in (item.stopped_by or "") for item in found if not item.is_complete)
    assert [e.request.bucket for e in rig.proxy.asked("ListObjectsV2")].count(rig.source) == 1
    rig.settle(workspaces[0])
    assert rig.violations() == []


@pytest.mark.fault(18)
@everywhere
@pytest.mark.parametrize("skew_s", [300, -300], ids=["ahead", "behind"])
def test_a_host_whose_clock_is_wrong_neither_steals_nor_keeps_a_lock(
    rig: Rig, skew_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's clock decides: five minutes ahead or behind change nothing for anybody."""
    rig.add("picture0.png")
    mine, other = rig.open(), rig.open()
    usual = time.time
    with held(mine, "list:source"):
        monkeypatch.setattr(time, "time", lambda: usual() + skew_s)
        assert not discover(other, "source").is_complete
        with pytest.raises(BusyError), held(other, "list:source"):
            pass
    token = other.ledger.locks.take("list:source", "elsewhere/1/x", 0.3)
    assert token is not None
    assert not discover(mine, "source").is_complete
    time.sleep(0.4)

    assert discover(mine, "source").is_complete
    assert not other.ledger.locks.is_held("list:source", token)
