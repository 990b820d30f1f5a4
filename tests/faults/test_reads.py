"""What a service may do to an object between the listing and the last byte of its body."""

from pathlib import Path

import pytest
from fault_proxy import Fault, answer, before, cut, flip_a_bit, lengthen, with_etags
from rig import Rig, alternately, everywhere, once, pairwise, run_once

from mm_assets.buckets.base import ObjectChangedError
from mm_assets.flows.discovery import discover
from mm_assets.lake import RangeFile

DAMAGES = {
    "cut": cut(100),
    "too_long": lengthen(100),
    "too_long_alike": lengthen(100, bytes),  # by the same bytes each time, as a broken cache would
    "one_bit": flip_a_bit,
}


def _max_tries(rig: Rig) -> int:
    return max(int(row["tries"]) for row in rig.rows("SELECT tries FROM work"))


@pytest.mark.fault(11)
@alternately("damage", {name: (damage,) for name, damage in DAMAGES.items()})
def test_a_damaged_body_is_read_again_and_never_processed(rig: Rig, damage: Fault) -> None:
    """What was promised, counted and hashed must agree; the object is not to blame."""
    rig.add("picture0.png", "picture1.png")
    rule = rig.proxy.spoil(damage, "GetObject", bucket=rig.source, times=3)

    rig.settle(rig.open())

    assert rule.n_done == 3
    assert rig.violations() == []
    assert _max_tries(rig) == 0


@pytest.mark.fault(11)
@pairwise
def test_a_damaged_result_is_never_taken_for_one(rig: Rig) -> None:
    """What is read back from the lake is spoiled too, and all tables are right in the end."""
    rig.add("picture0.png", "picture1.png")
    rule = rig.proxy.spoil(cut(50), "GetObject", bucket=rig.lake, share=0.2, times=8)

    rig.settle(rig.open())

    assert rule.n_done > 0
    assert rig.violations() == []


@pytest.mark.fault(12)
@everywhere
def test_every_form_of_an_etag_names_the_same_version(rig: Rig) -> None:
    """LIST, HEAD and GET may quote, not quote or mark it weak: one version, read once."""
    rig.add("picture0.png")
    for form, operation in (("{}", "ListObjectsV2"), ('W/"{}"', "HeadObject"), ('"{}"', "GetObject")):
        rig.proxy.spoil(with_etags(form), operation, bucket=rig.source)
    workspace = rig.open()
    rig.settle(workspace)
    rig.proxy.mend()
    for form in ("{}", '"{}"', 'W/"{}"'):
        rig.proxy.mend()
        rig.proxy.spoil(with_etags(form), bucket=rig.source)
        found = discover(workspace, "source")
        assert (found.n_new, found.n_changed, found.n_gone) == (0, 0, 0)

    assert rig.violations() == []
    assert len(rig.rows("SELECT * FROM objects")) == 1


@pytest.mark.fault(13)
@everywhere
def test_an_object_overwritten_before_its_get_is_processed_as_the_new_one(rig: Rig) -> None:
    """Bytes of one version are never stored under the name of another."""
    rig.add("picture0.png")
    other = rig.drawn("picture1.png")
    rule = rig.proxy.spoil(before(lambda: rig.put("picture0.png", other)), "GetObject", bucket=rig.source, times=1)

    rig.settle(rig.open())

    assert rule.n_done == 1
    assert rig.violations() == []
    assert sorted(row["state"] for row in rig.rows("SELECT state FROM objects")) == ["live", "superseded"]
    assert _max_tries(rig) == 0


@pytest.mark.fault(13)
@pairwise
def test_ranges_of_two_versions_are_never_mixed(rig: Rig, media: Path) -> None:
    """A file that is read in pieces and overwritten in between ends in an error, not in a mixture."""
    workspace = rig.open()
    store = workspace.lake.store
    store.put("piece.bin", b"a" * 200_000)
    with RangeFile(store, "piece.bin") as file:
        assert file.read(10) == b"a" * 10
        store.put("piece.bin", b"b" * 200_000)
        with pytest.raises(ObjectChangedError):
            file.read(10)


@pytest.mark.fault(14)
@everywhere
def test_an_object_deleted_before_its_get_is_gone_and_no_failure(rig: Rig) -> None:
    """A 404 is news about the bucket, not about the object."""
    rig.add("picture0.png", "picture1.png")
    rule = rig.proxy.spoil(
        before(lambda: rig.delete("picture0.png")), "GetObject", bucket=rig.source, key="picture0", times=1
    )

    rig.settle(rig.open())

    assert rule.n_done == 1
    assert rig.violations() == []
    assert [row["state"] for row in rig.rows("SELECT state FROM objects WHERE key = 'picture0.png'")] == ["gone"]
    assert _max_tries(rig) == 0


@pytest.mark.fault(14)
@once
def test_an_object_behind_a_hide_marker_is_gone(rig: Rig) -> None:
    """Backblaze B2 keeps what is deleted and hides it: for readers it is gone."""
    rig.client.put_bucket_versioning(Bucket=rig.source, VersioningConfiguration={"Status": "Enabled"})
    rig.add("picture0.png", "picture1.png")
    workspace = rig.open()
    rig.settle(workspace)
    rig.delete("picture0.png")
    assert rig.client.list_object_versions(Bucket=rig.source)["DeleteMarkers"]

    rig.settle(workspace)

    assert rig.violations() == []
    assert len(rig.evidence().live) == 1


@pytest.mark.fault(15)
@once
def test_the_same_bytes_uploaded_again_are_not_processed_again(rig: Rig) -> None:
    """Another version id over the same ETag is the same content: nothing is read, nothing is written."""
    rig.client.put_bucket_versioning(Bucket=rig.source, VersioningConfiguration={"Status": "Enabled"})
    rig.add("picture0.png")
    workspace = rig.open()
    rig.settle(workspace)
    n_read = len(rig.proxy.asked("GetObject", "picture0.png"))

    rig.add("picture0.png")
    rig.settle(workspace)

    assert len(rig.client.list_object_versions(Bucket=rig.source)["Versions"]) == 2
    assert len(rig.proxy.asked("GetObject", "picture0.png")) == n_read == 1
    assert rig.violations() == []


@pytest.mark.fault(9)
@pairwise
def test_one_forbidden_object_waits_and_the_others_are_done(rig: Rig) -> None:
    """A right that is missing for one object alone stops nothing and blames nobody."""
    rig.add("picture0.png", "picture1.png")
    rig.proxy.spoil(answer(403, "AccessDenied"), "GetObject", key="picture0.png")
    workspace = rig.open()
    run_once(workspace)
    assert {state for state, _ in rig.states("picture1.png").values()} <= {"done", "skipped"}
    assert {state for state, _ in rig.states("picture0.png").values()} == {"wanted"}
    assert _max_tries(rig) == 0
    rig.proxy.mend()

    rig.settle(workspace)

    assert rig.violations() == []
