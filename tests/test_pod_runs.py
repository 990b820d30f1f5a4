"""Runs through the real ``K8sRunLauncher`` against a loopback stand-in for the cluster: launched, done, terminated.

What it does not prove: images, rights, networks and device plugins of a real cluster.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster_driver import Driver
from kube_server import KubeServer
from places import Place

from mm_assets.ledger import Batch
from mm_assets.resources.workspace import open_workspace
from mm_assets.settings import load_settings

pytestmark = pytest.mark.slow
PROGRAMS = Path(sys.executable).parent
WAIT_S = 120.0


@dataclass
class Cluster:
    """A stand-in cluster, a Dagster instance that launches on it, and a place to ingest."""

    server: KubeServer
    driver: Driver
    environment: dict[str, str]

    def launch(self, batch: Batch) -> str:
        """Launch ingest_job for a batch as the daemon would; returns the run's id."""
        config = json.dumps({"ops": {"process_batch": {"config": {"batch_id": batch.batch_id}}}})
        command = [str(PROGRAMS / "dagster"), "job", "launch", "-m", "mm_assets.definitions", "-j", "ingest_job"]
        before = {run.run_id for run in self.driver.instance.get_runs()}
        done = subprocess.run(
            [*command, "--config-json", config],
            env=self.environment,
            cwd=self.driver.place.folder,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        [run] = [run for run in self.driver.instance.get_runs() if run.run_id not in before]
        return run.run_id

    def wait(self, is_true: Callable[[], bool]) -> None:
        """Wait until something is true, or fail with the pods' output."""
        ends_at = time.monotonic() + WAIT_S
        while not is_true():
            if time.monotonic() > ends_at:
                pytest.fail("\n".join(log.read_text(errors="replace") for log in self.server.logs.glob("*.log")))
            time.sleep(0.05)

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        """Status of a run, which another process writes."""
        run = self.driver.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def is_over(self, run_id: str) -> bool:
        """Whether the run has ended and its pod too."""
        ended = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
        return self.status(run_id) in ended and all(pod.process.poll() is not None for pod in self.server.pods.values())

    def states(self) -> dict[str, int]:
        """Ledger's state → rows."""
        work = self.driver.workspace.ledger.work
        found: dict[str, int] = {}
        for (_, state, _), n in work.counts(dict(self.driver.workspace.recipes)).items():
            found[state] = found.get(state, 0) + n
        return found


@pytest.fixture
def cluster(make_workspace: Callable[..., Place], tmp_path: Path) -> Iterator[Cluster]:
    """Give a cluster and a place whose only extractor needs no model."""
    place = make_workspace()
    place.write_settings(sources=[{"uri": str(tmp_path / "source"), "alias": "source", "steps": ["media_quality"]}])
    home, logs = tmp_path / "home", tmp_path / "logs"
    home.mkdir()
    logs.mkdir()
    environment = {"PATH": f"{PROGRAMS}:{os.defpath}", "HOME": str(tmp_path), "DAGSTER_HOME": str(home)}
    environment |= {"MM_ASSETS_CONFIG": str(place.config_file), "DAGSTER_DISABLE_TELEMETRY": "1"}
    with KubeServer(environment, logs) as server:
        launcher = {
            "load_incluster_config": False,
            "kubeconfig_file": str(server.write_kubeconfig(tmp_path / "kubeconfig.json")),
            "service_account_name": "mm-assets-runs",
            "instance_config_map": "mm-assets-instance",
            "dagster_home": "/opt/dagster/dagster_home",
            "job_image": "example.com/mm-assets:1",
            "job_namespace": "mm-assets",
        }
        config = {
            "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher},
            "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
            "telemetry": {"enabled": False},
        }
        (home / "dagster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        # The pod's process opens the real workspace, so what is planned must have its recipes.
        workspace = open_workspace(load_settings(place.config_file))
        with closing(workspace), dg.DagsterInstance.from_config(str(home)) as instance:
            yield Cluster(server, Driver(place, instance, workspace), environment)


def test_run_goes_through_a_pod(cluster: Cluster) -> None:
    """The Job that the launcher posts asks for a GPU, its process does the batch, and Dagster shows the partitions."""
    cluster.driver.place.add("picture0.png", "picture1.png", "broken.png")
    [batch] = cluster.driver.plan()
    run_id = cluster.launch(batch)
    cluster.wait(lambda: cluster.is_over(run_id))
    assert cluster.status(run_id) == dg.DagsterRunStatus.SUCCESS
    [job] = cluster.server.jobs.values()
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert job["metadata"]["labels"]["dagster/job"] == "ingest_job"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster.states() == {"done": 7, "dead": 1, "skipped": 1}
    names = ["picture0.png", "picture1.png", "broken.png"]
    assert list(cluster.driver.statuses("media_quality", names).values()) == ["MATERIALIZED"] * 2 + ["MISSING"]


def test_terminated_pod_gives_back_what_it_claimed(cluster: Cluster) -> None:
    """SIGTERM in the middle of a batch: the run is canceled, no claim is left, and the rest is planned again at once."""
    for number in range(100):
        cluster.driver.place.add_as("picture0.png", f"copy{number}.png")
    [batch] = cluster.driver.plan()
    run_id = cluster.launch(batch)
    cluster.wait(lambda: cluster.states().get("claimed", 0) > 0)
    assert cluster.driver.instance.run_launcher.terminate(run_id)
    cluster.wait(lambda: cluster.is_over(run_id))
    assert cluster.status(run_id) == dg.DagsterRunStatus.CANCELED
    states = cluster.states()
    assert states.get("claimed", 0) == 0
    assert states["wanted"] > 0
    assert cluster.driver.plan()
