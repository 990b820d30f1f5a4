"""What Dagster is told: the definitions load, are what the snapshot says, and keep the grammar of names.

The snapshot is for reading: after an intended change write it anew with ``python tests/test_definitions.py``.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

import jobs
import sensors
from mm_assets.definitions import build_defs, defs
from mm_assets.schemas import TABLES

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).parent / "snapshots" / "definitions.json"
ASSET_NAME = re.compile(r"[a-z]+(_[a-z]+)*(/[a-z]+(_[a-z]+)*)?")
CHECK_NAME = re.compile(r"[a-z]+(_[a-z]+)*_(is|are)_[a-z]+(_[a-z]+)*")
# Judged per object but published by one asset, so that each of these is both an asset and a table.
ARTEFACTS = {
    "tables",
    "text_index",
    "vector_index/visual",
    "vector_index/face",
    "vector_index/text",
    "cluster_model",
    "anomaly_baseline",
    "taxonomy",
    "judgement_tables",
    "scan_report",
    "dead_letters",
    "removals",
}


def specs() -> dict[str, dg.AssetSpec]:
    """Asset name → its specification."""
    return {spec.key.to_user_string(): spec for spec in build_defs().resolve_all_asset_specs()}


def describe_asset(spec: dg.AssetSpec) -> dict[str, Any]:
    """Everything of an asset that other people may rely on."""
    return {
        "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
        "group": spec.group_name,
        "kinds": sorted(spec.kinds),
        "owners": list(spec.owners),
        "code_version": spec.code_version,
        "is_partitioned": spec.partitions_def is not None,
    }


def describe() -> dict[str, Any]:
    """Everything that Dagster is told, in plain types."""
    repository = build_defs().get_repository_def()
    graph = repository.asset_graph
    own_jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    return {
        "assets": {name: describe_asset(spec) for name, spec in sorted(specs().items())},
        "checks": sorted(f"{key.asset_key.to_user_string()}.{key.name}" for key in graph.asset_check_keys),
        "jobs": {
            job.name: {
                "assets": sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys),
                "checks": len(job.asset_layer.asset_graph.asset_check_keys),
                "executor": job.executor_def.name,
                "tags": job.tags,
            }
            for job in sorted(own_jobs, key=lambda job: job.name)
        },
        "schedules": {item.name: str(item.cron_schedule) for item in repository.schedule_defs},
        "sensors": {
            item.name: {
                "jobs": sorted(target.job_name for target in item.targets),
                "minimum_interval_s": item.minimum_interval_seconds,
            }
            for item in repository.sensor_defs
        },
    }


def write_snapshot() -> None:
    """Write what there is now."""
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(json.dumps(describe(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def test_definitions_are_those_of_the_snapshot() -> None:
    """Keys, dependencies, groups, kinds, owners, versions, jobs, sensors, schedules and checks change on purpose only."""
    assert json.loads(json.dumps(describe())) == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_definition_can_be_loaded() -> None:
    """Dagster itself finds no contradiction in what it is told."""
    dg.Definitions.validate_loadable(defs)


def test_no_asset_is_invented_by_a_misspelt_dependency() -> None:
    """Every dependency is an asset of ours; a key that nobody makes would load green as an external one."""
    graph = build_defs().resolve_asset_graph()
    assert set(graph.get_all_asset_keys()) == set(graph.materializable_asset_keys)


def test_every_definition_says_what_it_is() -> None:
    """Assets, jobs, sensors, schedules and checks have a description for Dagster's pages."""
    repository = build_defs().get_repository_def()
    own_jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    described: list[Any] = [*own_jobs, *repository.sensor_defs, *repository.schedule_defs, *specs().values()]
    checks = [
        spec for key in repository.asset_graph.asset_check_keys for spec in [repository.asset_graph.get_check_spec(key)]
    ]
    assert [item for item in [*described, *checks] if not item.description] == []


def test_names_follow_their_formula() -> None:
    """Jobs are <verb>_job, sensors <what happened>_sensor, checks a statement, assets a table or a known artefact."""
    found = describe()
    assert all(re.fullmatch(r"[a-z]+_job", name) for name in found["jobs"])
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+_sensor", name) for name in found["sensors"])
    assert all(re.fullmatch(r"[a-z]+_schedule", name) for name in found["schedules"])
    assert all(CHECK_NAME.fullmatch(name.partition(".")[2]) for name in found["checks"])
    assert all(ASSET_NAME.fullmatch(name) for name in found["assets"])
    assert set(found["assets"]) == {*TABLES, *ARTEFACTS} - {"step_states"}
    assert all(re.match(r"(dagster-k8s|mm_assets)/", tag) for job in found["jobs"].values() for tag in job["tags"])


def test_no_job_mixes_object_and_collection_assets() -> None:
    """Downstream of assets without an Output, collection assets in the same run would be skipped while it stays green."""
    found = describe()
    for job in found["jobs"].values():
        assert len({found["assets"][asset]["is_partitioned"] for asset in job["assets"]}) == 1


def test_every_asset_is_in_a_job() -> None:
    """Nothing is defined that no job makes."""
    found = describe()
    assert {asset for job in found["jobs"].values() for asset in job["assets"]} == set(found["assets"])


def test_runs_execute_in_their_own_process_only() -> None:
    """One process per run, also for backfills and the UI's own job: another executor would load the models per step."""
    repository = build_defs().get_repository_def()
    assert {job.executor_def.name for job in repository.get_all_jobs()} == {"in_process"}


def test_collection_assets_publish_one_at_a_time() -> None:
    """Everything that writes tables or generations is in the pool of one; the per-object work is in its own."""
    graph = build_defs().resolve_asset_graph()
    pools = {key.to_user_string(): graph.get(key).pools for key in graph.materializable_asset_keys}
    assert {name for name, pool in pools.items() if pool == {"publish"}} == ARTEFACTS - {"scan_report", "dead_letters"}
    assert {name for name, pool in pools.items() if pool == {"gpu"}} == set(specs()) - ARTEFACTS


def test_generic_package_names_are_ours() -> None:
    """``jobs`` and ``sensors`` are common names: what is imported must be this project's."""
    assert Path(str(jobs.__file__)).parent == ROOT / "jobs"
    assert Path(str(sensors.__file__)).parent == ROOT / "sensors"


def test_workspace_file_names_the_module_that_is_configured() -> None:
    """workspace.yaml and pyproject.toml lead to the same module under the same name, and it has definitions."""
    from dagster._core.workspace.load_target import WorkspaceFileTarget

    [origin] = WorkspaceFileTarget([str(ROOT / "workspace.yaml")]).create_origins()
    content = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    [entry] = [each["python_module"] for each in content["load_from"]]
    assert origin.location_name == "mm_assets"
    assert entry["module_name"] == "mm_assets.definitions"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["check", "defs"], ["list", "defs", "--json"]])
def test_dg_accepts_the_project(command: list[str], tmp_path: Path) -> None:
    """Dagster's own command line finds the project and its definitions."""
    home = {"HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path), "DAGSTER_DISABLE_TELEMETRY": "1"}
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / "dg", *command],
        cwd=ROOT,
        env={"PATH": f"{programs}:{os.defpath}", **home},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "list" in command:
        listed = json.loads(done.stdout)
        assert {asset["asset_key"] for asset in listed["assets"]} == set(specs())


if __name__ == "__main__":
    write_snapshot()
