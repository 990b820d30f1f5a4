"""The order of writes: wherever a kill may come, what is durable by then is true, and repairs are not needed to say so.

Put here: a look at ledger and lake right before and after each durable write of a flow. Keep out: real kills (``faults``),
whose random moments let repairs mask a wrong order.
"""

from collections.abc import Callable
from typing import Any

import pytest
from flow_driver import plan, process
from places import Place

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.flows import dead_letters, receipts, removing
from mm_assets.flows.discovery import discover
from mm_assets.flows.hints import drain_inbox
from mm_assets.flows.publishing import publish_steps
from mm_assets.flows.refreshing import freeze_taxonomy
from mm_assets.flows.workspace import Workspace
from mm_assets.lake import Lake
from mm_assets.ledger import KnownObject
from mm_assets.ledger.catalog import Catalog
from mm_assets.ledger.dead import DeadBook, DeadFilter
from mm_assets.ledger.inbox import Hint
from mm_assets.ledger.removals import RemovalBook
from mm_assets.ledger.work import WorkBook

Make = Callable[..., Place]
WRITES = ((Lake, "write_result"), (Lake, "upload_result"), (Lake, "write_dead_letter"))


class Watch:
    """Looks at what is durable before and after each call of some methods, and keeps what it finds wrong there.

    Attributes
    ----------
    n_looks : how often it looked
    found : moment and finding; what a process that was killed there would have left
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look: Callable[[], list[str]], *points: tuple[Any, str]) -> None:
        self.n_looks = 0
        self.found: list[str] = []
        self._look = look
        for owner, name in points:
            monkeypatch.setattr(owner, name, self._watched(name, getattr(owner, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self._note(f"before {name}")
            answer = call(*arguments, **options)
            self._note(f"after {name}")
            return answer

        return watched

    def _note(self, moment: str) -> None:
        self.n_looks += 1
        self.found += [f"{moment}: {wrong}" for wrong in self._look()]


def _versions(workspace: Workspace) -> list[KnownObject]:
    return workspace.ledger.removals.find_below("source", "")


def _object(workspace: Workspace, key: str) -> KnownObject:
    return workspace.ledger.objects.live_at_key("source", [key])[key]


def _untold(workspace: Workspace) -> list[str]:
    """Return the rows that are done without a result in the lake, and those that are dead without a record."""
    found = []
    for known in _versions(workspace):
        for row in workspace.ledger.work.states(known.object_id):
            step, recipe = str(row["step"]), str(row["recipe"])
            if row["state"] == "done" and not workspace.lake.has_result(step, recipe, known.object_id):
                found.append(f"{step} of {known.version.key} is done and has no result")
            if row["state"] == "dead" and workspace.lake.read_dead_letter(known.object_id, step) is None:
                found.append(f"{step} of {known.version.key} is dead and has no record")
    return found


def _has(workspace: Workspace, key: str) -> bool:
    try:
        workspace.lake.store.head(key)
    except ObjectNotFoundError:
        return False
    return True


def _known(make_workspace: Make, *names: str, **options: Any) -> tuple[Place, Workspace]:
    """Give a workspace whose objects are processed and published, without indexes."""
    place = make_workspace(*names, **options)
    workspace = place.open()
    discover(workspace, "source")
    process(workspace)
    publish_steps(workspace)
    return place, workspace


# -- processing --------------------------------------------------------------------------------------------------------


def test_what_the_ledger_says_of_an_object_is_in_the_lake(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done means that the result is there, dead that the record is: at every moment, of media and of models."""
    place = make_workspace("picture0.png", "picture1.png", "broken.png", runs={"decode_workers": 1, "max_tries": 1})
    workspace = place.open(fails_on="picture1", failing_step="faces")
    discover(workspace, "source")
    watch = Watch(monkeypatch, lambda: _untold(workspace), *WRITES, (WorkBook, "finish"))

    process(workspace)

    assert watch.found == []
    assert watch.n_looks >= 2 * (2 * 4 + 3)
    states = [row["state"] for known in _versions(workspace) for row in workspace.ledger.work.states(known.object_id)]
    assert (states.count("dead"), "wanted" in states) == (2, False)


def test_a_crash_loop_is_recorded_before_the_ledger_gives_up(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed while an object is given up leaves records without dead rows, and never the reverse."""
    workspace = make_workspace("picture0.png", runs={"decode_workers": 1, "max_claims": 1}).open()
    discover(workspace, "source")
    [batch] = plan(workspace)
    workspace.ledger.work.claim_batch(
        batch.batch_id, "host/0/dies", recipes=workspace.recipes, lease_s=-1, max_claims=1
    )
    watch = Watch(monkeypatch, lambda: _untold(workspace), *WRITES, (WorkBook, "claim_batch"))

    process(workspace)

    assert watch.found == []
    assert watch.n_looks == 2 * (len(workspace.recipes) + 1)
    rows = workspace.ledger.work.states(_object(workspace, "picture0.png").object_id)
    assert {row["reason"] for row in rows} == {"crash_loop"}


def test_a_dropped_letter_keeps_its_record_until_the_ledger_lets_go(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves a record of a step that is skipped, and never a dead step that says nothing."""
    workspace = make_workspace("broken.png").open()
    discover(workspace, "source")
    process(workspace)
    letters = workspace.ledger.dead.letters(DeadFilter())
    watch = Watch(monkeypatch, lambda: _untold(workspace), (DeadBook, "drop"))

    assert dead_letters.drop(workspace, letters) == 1

    assert (watch.found, watch.n_looks) == ([], 2)
    assert list(workspace.lake.dead_letters()) == []


# -- events ------------------------------------------------------------------------------------------------------------


class _KilledError(BaseException):
    """Ends a process where it stands, as SIGKILL would."""


@pytest.mark.parametrize(("point", "key"), [("upsert", "picture1.png"), ("leave", "picture0.png")])
def test_a_hint_waits_until_what_it_led_to_is_stored(
    make_workspace: Make, monkeypatch: pytest.MonkeyPatch, point: str, key: str
) -> None:
    """Killed before the row is written or retired, the hint waits as before, and no listing is needed to make it good."""
    place = make_workspace("picture0.png")
    workspace = place.open()
    discover(workspace, "source")
    place.add("picture1.png", "picture2.png")
    (place.source / "picture0.png").unlink()
    drain_inbox(workspace)
    workspace.ledger.inbox.add([Hint("1", "test", "source", "picture2.png")])
    assert drain_inbox(workspace).n_new == 1  # so that what leaves is not all there is
    workspace.ledger.inbox.add([Hint("2", "test", "source", key)])

    def die(*_: Any, **__: Any) -> None:
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(f"mm_assets.ledger.objects.{point}", die)
        with pytest.raises(_KilledError):
            drain_inbox(workspace)

    assert workspace.ledger.inbox.depth() == 1
    assert drain_inbox(workspace).has_changes
    assert workspace.ledger.inbox.depth() == 0


# -- publishing --------------------------------------------------------------------------------------------------------


def test_what_the_ledger_calls_published_is_in_the_lake(make_workspace: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the ledger notes has that fingerprint in its footer: otherwise nobody would write it again."""
    place, workspace = _known(make_workspace, "picture0.png")
    place.add("picture1.png")
    discover(workspace, "source")
    process(workspace)

    def look() -> list[str]:
        files = workspace.ledger.catalog.shard_files().values()
        described = {file: workspace.lake.describe_shard(file.name, file.shard) for file in files}
        in_ledger = _noted(workspace)
        return [
            f"{file.name} is not what the ledger says"
            for file, there in described.items()
            if there is None or (there[0] != file.fingerprint and not _is_newer(there[0], in_ledger[file.name]))
        ]

    watch = Watch(monkeypatch, look, (Lake, "write_shard"), (Catalog, "set_shard_file"))
    published = publish_steps(workspace)

    assert watch.found == []
    assert watch.n_looks == 4 * published.n_written > 0
