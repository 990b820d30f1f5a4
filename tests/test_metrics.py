"""Metrics: what is counted while objects are processed, and what the books tell at any moment."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from flow_driver import plan, process, refresh
from places import Place
from sqlalchemy import insert

from mm_assets.flows import metrics
from mm_assets.flows.discovery import discover
from mm_assets.flows.workspace import Workspace
from mm_assets.identity import ObjectVersion
from mm_assets.ledger.inbox import Hint
from mm_assets.ledger.progress import mark_of
from mm_assets.ledger.tables import OBJECTS, WORK, short_key

FILES = ("picture0.png", "clip.mp4", "broken.png", "notes.txt")


def _values(workspace: Workspace) -> dict[str, float]:
    """Return 'name{label=value,…}' → value."""
    return {
        f"{s.name}{{{','.join(f'{name}={value}' for name, value in s.labels)}}}": s.value
        for s in metrics.collect(workspace)
    }


def test_steps_runs_and_failures_are_counted(make_workspace: Callable[..., Place]) -> None:
    """Durations as sum and count, ends by state and reason, failures by reason, dead letters by reason."""
    workspace = make_workspace(*FILES).open()
    discover(workspace, "source")
    process(workspace)

    found = _values(workspace)
    assert found["runs_total{outcome=done}"] == 2  # of two waves
    assert found["run_seconds_total{outcome=done}"] > 0
    assert found["step_results_total{step=raw_objects}"] == 4
    assert found["step_results_total{step=faces}"] == 2
    assert found["step_seconds_total{step=segments}"] > 0
    assert found["step_ends_total{reason=corrupt,state=dead,step=segments}"] == 1
    assert found["step_ends_total{reason=segments_dead,state=skipped,step=faces}"] == 1
    assert found["step_failures_total{reason=corrupt,step=segments}"] == 1
    assert found["dead_letters{reason=corrupt}"] == 1
    assert found["ledger_rows{state=done,step=raw_objects}"] == 4
    assert found["oldest_unprocessed_seconds{}"] == 0
    assert metrics.failures_today(workspace)[0] == 1


def test_a_run_that_fails_or_is_stopped_is_counted_as_that(make_workspace: Callable[..., Place]) -> None:
    """The three ways a run can end are kept apart."""
    workspace = make_workspace().open()
    for error in (None, ValueError, KeyboardInterrupt):
        try:
            with metrics.timed_run(workspace):
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass

    found = _values(workspace)
    assert {name: n for name, n in found.items() if name.startswith("runs_total")} == {
        "runs_total{outcome=done}": 1,
        "runs_total{outcome=failed}": 1,
        "runs_total{outcome=stopped}": 1,
    }


def test_requests_of_the_process_are_told_with_each_group(make_workspace: Callable[..., Place]) -> None:
    """What the stores counted is drained into the ledger once, not twice."""
    workspace = make_workspace("picture0.png").open()
    with workspace.traffic.lane("source", "https://endpoint", "bucket").request("GetObject"):
        pass
    discover(workspace, "source")
    process(workspace)

    assert _values(workspace)["store_requests_total{alias=source,code=200,operation=GetObject}"] == 1


def test_what_waits_has_an_age(make_workspace: Callable[..., Place]) -> None:
    """An object counts from its first sight until its last step has ended, before and after its batch is planned."""
    workspace = make_workspace("picture0.png").open()
    assert _values(workspace)["oldest_unprocessed_seconds{}"] == 0
    discover(workspace, "source")
    time.sleep(0.02)
    assert 0.02 <= _values(workspace)["oldest_unprocessed_seconds{}"] < 60
    plan(workspace)
    assert 0.02 <= _values(workspace)["oldest_unprocessed_seconds{}"] < 60
    workspace.ledger.inbox.add([Hint("a" * 64, "b2", "source", "picture0.png")])
    time.sleep(0.02)
    found = _values(workspace)
    assert found["inbox_depth{}"] == 1
    assert 0.02 <= found["inbox_oldest_seconds{}"] < 60


def test_pauses_and_alarms_are_gauges(make_workspace: Callable[..., Place]) -> None:
    """Each source tells whether it is paused, alarmed or without events."""
    workspace = make_workspace("picture0.png").open()
    discover(workspace, "source")
    names = ("source_paused", "deletions_alarm", "rule_suspended")
    assert [_values(workspace)[f"{name}{{alias=source}}"] for name in names] == [0, 0, 0]
    assert _values(workspace)["list_calls_today{alias=source}"] >= 1

    workspace.ledger.objects.pause("source", time.time() + 60, "cap")
    workspace.ledger.objects.set_events_alarm("source", "suspended")
    assert [_values(workspace)[f"{name}{{alias=source}}"] for name in names] == [1, 0, 1]


def test_every_name_is_explained(make_workspace: Callable[..., Place]) -> None:
    """A person who reads a metric for the first time is told what it is; all of one name stand together."""
    workspace = make_workspace(*FILES).open()
    discover(workspace, "source")
    process(workspace)
    refresh(workspace)
    samples = metrics.collect(workspace)

    assert {sample.name for sample in samples if not sample.help} == set()
    names = [sample.name for sample in samples]
    assert len([i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]) == len(set(names))
    assert {s.kind for s in samples if s.name.endswith("_total")} == {"counter"}


@pytest.mark.slow
def test_collecting_counts_a_large_ledger(make_workspace: Callable[..., Place]) -> None:
    """A tenth of the objects is dead; what it costs to count them is measured in benchmarks."""
    workspace = make_workspace().open()
    discover(workspace, "source")
    _fill(workspace, 10_000)
    found = _values(workspace)
    assert found["objects{alias=source}"] == 10_000
    assert found["dead_letters{reason=corrupt}"] == 1_000
    assert found["oldest_unprocessed_seconds{}"] > 0


def _fill(workspace: Workspace, n: int) -> None:
    """Write objects with all their rows: of each hundred, ten are dead in segments and one waits in every step."""
    now, mark = time.time(), mark_of(workspace.recipes_of("source"))
    objects: list[dict[str, Any]] = []
    work: list[dict[str, Any]] = []
    for place in range(n):
        version = ObjectVersion("source", f"folder/{place}", "etag", "")
        row: dict[str, Any] = {
            "object_id": version.object_id,
            "alias": "source",
            "key": version.key,
            "etag": "etag",
            "version_id": "",
        }
        row |= {"short_key": short_key(version.key), "partition_key": version.key, "size_bytes": 1, "modified_at": now}
        row |= {"place": place, "shard": place // 2_000, "state": "live", "first_seen_at": now - 9, "seen_pass": 1}
        objects.append(row | {"opened_for": mark})
        for step, recipe in workspace.recipes.items():
            is_dead = step == "segments" and place % 10 == 0
            state = "wanted" if place % 100 == 1 else "dead" if is_dead else "done"
            reason = "corrupt" if is_dead else None
            values = {"object_id": version.object_id, "step": step, "recipe": recipe, "state": state}
            work.append(values | {"reason": reason, "changed_at": now})
    with workspace.ledger.meters._engine.begin() as connection:
        for start in range(0, len(objects), 5_000):
            connection.execute(insert(OBJECTS), objects[start : start + 5_000])
        for start in range(0, len(work), 5_000):
            connection.execute(insert(WORK), work[start : start + 5_000])
