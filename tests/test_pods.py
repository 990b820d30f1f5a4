"""The pods that a cluster would be asked for, built by dagster-k8s's own code from deploy/ and jobs/, without a cluster."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import construct_dagster_k8s_job, get_user_defined_k8s_config
from dagster_postgres.utils import pg_url_from_config
from kubernetes.client import ApiClient  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import create_engine

from jobs.pods import CPU, GPU, SMALL
from mm_assets.definitions import build_defs
from mm_assets.settings import load_settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
JOBS = {job.name: job for job in build_defs().get_repository_def().get_all_jobs() if not job.name.startswith("__")}
GPU_JOBS = {"ingest_job", "infer_job"}
K8S_TAG = "dagster-k8s/config"


def read_yaml(name: str) -> dict[str, Any]:
    """Content of a file in deploy/."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture
def instance_ref(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstanceRef:
    """Read deploy/dagster.yaml as Dagster does, which validates every part against its schema."""
    for name in ("HOST", "DB", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"DAGSTER_PG_{name}", f"the-{name.lower()}")
    return InstanceRef.from_dir(str(tmp_path), config_dir=str(DEPLOY))


@pytest.fixture
def launcher(instance_ref: InstanceRef) -> Iterator[K8sRunLauncher]:
    """Give the launcher that deploy/dagster.yaml configures; only its connection to a cluster is a mock."""
    with mock.patch("dagster_k8s.launcher.load_kubernetes_config"), mock.patch("dagster_k8s.client.kubernetes"):
        found = instance_ref.run_launcher
        assert isinstance(found, K8sRunLauncher)
        yield found


def build_pod(
    launcher: K8sRunLauncher, tags: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Give job spec, pod spec and container, as they would be sent to the cluster, of a run with these tags."""
    run = dg.DagsterRun(job_name="any_job", tags=dict(tags))
    context = launcher.get_container_context_for_run(run)
    config = context.get_k8s_job_config(job_image="example.com/mm-assets:1", run_launcher=launcher)
    built = construct_dagster_k8s_job(
        config,
        ["dagster", "api", "execute_run", "{}"],
        f"dagster-run-{run.run_id}",
        user_defined_k8s_config=context.run_k8s_config,
        component="run_worker",
    )
    spec = ApiClient().sanitize_for_serialization(built)["spec"]
    pod = spec["template"]["spec"]
    return spec, pod, pod["containers"][0]


def bytes_of(quantity: str) -> int:
    """Bytes of a Kubernetes quantity in Gi."""
    return int(quantity.removesuffix("Gi")) << 30


@pytest.mark.parametrize("name", sorted(JOBS))
def test_only_gpu_jobs_ask_for_a_gpu(launcher: K8sRunLauncher, name: str) -> None:
    """A GPU job has one GPU, may go to tainted nodes and refuses to compute without CUDA; the others hold no GPU."""
    _, pod, container = build_pod(launcher, JOBS[name].tags)
    device = [item["value"] for item in container["env"] if item["name"] == "MM_ASSETS_MODELS__DEVICE"]
    tolerations = [item["key"] for item in pod.get("tolerations") or []]
    assert (container["resources"]["limits"].get("nvidia.com/gpu"), tolerations, device) == (
        ("1", ["nvidia.com/gpu"], ["cuda"]) if name in GPU_JOBS else (None, [], [])
    )


@pytest.mark.parametrize("name", sorted(JOBS))
def test_pods_state_what_they_need_and_when_they_end(launcher: K8sRunLauncher, name: str) -> None:
    """CPU and memory are asked for within their limits; a run is tried once, ends in time and tidies up."""
    spec, pod, container = build_pod(launcher, JOBS[name].tags)
    asked, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert bytes_of(asked["memory"]) <= bytes_of(limits["memory"])
    assert int(asked["cpu"]) >= 1
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert spec["activeDeadlineSeconds"] == 4 * 3600
    assert spec["ttlSecondsAfterFinished"] == 600
    assert pod["terminationGracePeriodSeconds"] == 60


@pytest.mark.parametrize("name", sorted(JOBS))
def test_pods_keep_what_the_deployment_gives(launcher: K8sRunLauncher, name: str) -> None:
    """A job's own resources are merged with the launcher's volumes, user and secrets, none of which is a literal."""
    _, pod, container = build_pod(launcher, JOBS[name].tags)
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]  # noqa: S108  in the pod
    assert [volume["name"] for volume in pod["volumes"]] == ["scratch"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["serviceAccountName"] == "mm-assets-runs"
    assert container["image"] == "example.com/mm-assets:1"
    secrets = [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]
    assert secrets == ["mm-assets-buckets", "mm-assets-ledger"]
    [password] = [item for item in container["env"] if "PASSWORD" in item["name"]]
    assert password["valueFrom"]["secretKeyRef"]["name"] == "mm-assets-postgres"


def test_run_without_a_job_of_ours_gets_no_gpu(launcher: K8sRunLauncher) -> None:
    """Backfills run Dagster's own job, which has none of our tags: such a pod works, without a GPU."""
    _, _, container = build_pod(launcher, {})
    assert "nvidia.com/gpu" not in ((container.get("resources") or {}).get("limits") or {})


@pytest.mark.parametrize("tags", [GPU, CPU, SMALL], ids=["gpu", "cpu", "small"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("pod_config",), "pod_config"),
        (("container_config", "resourcez"), "resourcez"),
        (("pod_spec_config", "tolerationz"), "tolerationz"),
        (("job_spec_config", "ttl_seconds"), "ttl_seconds"),
    ],
)
def test_misspelt_key_fails(tags: dict[str, Any], path: tuple[str, ...], message: str) -> None:
    """dagster-k8s checks keys only at launch; this is what makes the tests above notice a slip in jobs/pods.py."""
    wrong = copy.deepcopy(tags[K8S_TAG])
    section = wrong
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = {}
    assert get_user_defined_k8s_config({K8S_TAG: json.dumps(tags[K8S_TAG])})
    with pytest.raises(Exception, match=message):
        get_user_defined_k8s_config({K8S_TAG: json.dumps(wrong)})


# -- deploy/ -----------------------------------------------------------------------------------------------------------


def test_dagster_yaml_says_what_the_design_asks(instance_ref: InstanceRef) -> None:
    """Dagster accepts the file; runs resume, GPU runs and publishes are bounded, ticks are purged, nothing calls home."""
    settings: Any = instance_ref.settings
    assert settings["run_monitoring"]["enabled"] is True
    assert settings["run_monitoring"]["max_resume_run_attempts"] == 2
    assert settings["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}
    assert settings["sensors"]["use_threads"] is True
    assert settings["retention"]["sensor"]["purge_after_days"]["success"] == 7
    assert settings["telemetry"]["enabled"] is False


def test_limits_name_tags_that_jobs_carry() -> None:
    """Each limit on a tag names a kind of pod that a job has; a misspelt one would limit nothing."""
    limits = read_yaml("dagster.yaml")["concurrency"]["runs"]["tag_concurrency_limits"]
    kinds = {job.tags["mm_assets/pod"] for job in JOBS.values()}
    assert {limit["key"] for limit in limits} == {"mm_assets/pod"}
    assert {limit["value"] for limit in limits} == {"gpu", "cpu"} <= kinds


def test_storage_url_leads_to_the_installed_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL that dagster-postgres builds opens with psycopg2, whatever SQLAlchemy makes of plain postgresql://."""
    config = read_yaml("dagster.yaml")["storage"]["postgres"]["postgres_db"]
    plain = {key: value if isinstance(value, str) else f"the-{key}" for key, value in config.items()}
    engine = create_engine(pg_url_from_config({"postgres_db": plain}))
    assert engine.dialect.driver == "psycopg2"


def to_snake(value: Any) -> Any:
    """Rename all keys from camelCase."""
    if isinstance(value, dict):
        return {re.sub(r"([A-Z])", lambda m: f"_{m[1].lower()}", key): to_snake(item) for key, item in value.items()}
    return [to_snake(item) for item in value] if isinstance(value, list) else value


def test_helm_values_say_the_same_as_dagster_yaml() -> None:
    """Whoever installs by the chart gets the instance that the tests above have checked."""
    plain, values = read_yaml("dagster.yaml"), read_yaml("values.yaml")
    daemon = to_snake(values["dagsterDaemon"])
    launcher, chart = plain["run_launcher"]["config"], values["runLauncher"]["config"]["k8sRunLauncher"]
    assert values["additionalInstanceConfig"] == {"concurrency": plain["concurrency"], "nux": plain["nux"]}
    assert values["runLauncher"]["type"] == plain["run_launcher"]["class"]
    assert to_snake(chart["runK8sConfig"]) == launcher["run_k8s_config"]
    assert chart["jobNamespace"] == launcher["job_namespace"]
    assert [item["name"] for item in chart["envSecrets"]] == launcher["env_secrets"]
    assert [item["name"] for item in chart["envConfigMaps"]] == launcher["env_config_maps"]
    assert {**daemon["run_monitoring"], "cancel_timeout_seconds": 180} == plain["run_monitoring"]
    assert daemon["run_retries"] == plain["run_retries"]
    assert daemon["sensors"] == plain["sensors"]
    assert {name: part["purgeAfterDays"] for name, part in values["retention"].items() if name != "enabled"} == {
        name: part["purge_after_days"] for name, part in plain["retention"].items()
    }
    assert values["postgresql"]["postgresqlScheme"] == plain["storage"]["postgres"]["postgres_db"]["scheme"]
    assert values["telemetry"] == plain["telemetry"]
    assert values["global"]["serviceAccountName"] == launcher["service_account_name"]
    assert values["global"]["postgresqlSecretName"] == launcher["postgres_password_secret"]


def test_chart_is_pinned_to_the_locked_dagster() -> None:
    """The chart's version is Dagster's: another one might not know these values."""
    text = (DEPLOY / "values.yaml").read_text(encoding="utf-8")
    assert f"--version {version('dagster')} " in text
    assert f"dagster=={version('dagster')}\n" in (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_cluster_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy/mm_assets.yaml loads, the ledger comes by variable, and no field holds a secret."""
    monkeypatch.setenv("MM_ASSETS_LEDGER_URL", "postgresql+psycopg2://user@host/mm_assets")
    settings = load_settings(DEPLOY / "mm_assets.yaml")
    assert settings.ledger_location.startswith("postgresql+psycopg2://")
    assert settings.kubernetes.split_by_device
    assert {location.secret_access_key for location in (settings.lake, *settings.sources)} == {None}


def locked() -> dict[str, str]:
    """Package → version of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_gpu_packages_replace_those_that_own_the_same_files() -> None:
    """Exactly the two CPU packages are left out, and their GPU forms have the same versions."""
    lines = (DEPLOY / "requirements-gpu.txt").read_text(encoding="utf-8").splitlines()
    gpu = dict(line.split("==") for line in lines if "==" in line)
    assert gpu["faiss-gpu"] == locked()["faiss-cpu"]
    assert gpu["onnxruntime-gpu"] == locked()["onnxruntime"]
    assert not set(gpu) & set(locked())
    assert "grep -vE '^(faiss-cpu|onnxruntime)=='" in (DEPLOY / "Dockerfile.gpu").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_images_copy_what_is_there(name: str) -> None:
    """Every file and folder that an image copies exists in the repository, the three packages among them."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    copied = [source for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for source in line.split()]
    assert {"mm_assets", "jobs", "sensors"} <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_deploy_holds_no_secret() -> None:
    """Secrets are named and never written: no key, password or URL with a password in any file."""
    secret = re.compile(
        r"(AKIA[0-9A-Z]{16}|://[^/\s:@]+:(?!password@)[^/\s@]+@|(secret_access_key|password): *[^{\s#])"
    )
    found = {path.name: secret.findall(path.read_text(encoding="utf-8")) for path in DEPLOY.iterdir() if path.is_file()}
    assert {name: hits for name, hits in found.items() if hits} == {}
