"""Kubernetes pods for each kind of run, as run tags that dagster-k8s merges into the Job.

Put here: resources, tolerations, time limits. Keep out: images, secrets and volumes: they are the deployment's.

The tag ``mm_assets/pod`` says the kind in Dagster's own words, so that its queue can limit GPU and CPU runs apart.
"""

from typing import Any

_KEY = "dagster-k8s/config"
_JOB = {"ttl_seconds_after_finished": 600, "active_deadline_seconds": 4 * 3600}


def _pod(kind: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "mm_assets/pod": kind,
        _KEY: {
            "container_config": container,
            # Long enough to finish or give back what is claimed after SIGTERM.
            "pod_spec_config": {"termination_grace_period_seconds": 60, **spec},
            "job_spec_config": _JOB,
        },
    }


GPU = _pod(
    "gpu",
    {
        "resources": {
            "requests": {"cpu": "4", "memory": "16Gi"},
            "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
        },
        # A GPU pod whose GPU cannot be used must fail and not compute on its CPUs for hours.
        "env": [{"name": "MM_ASSETS_MODELS__DEVICE", "value": "cuda"}],
    },
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
)
CPU = _pod("cpu", {"resources": {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}})
SMALL = _pod("small", {"resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "16Gi"}}})
