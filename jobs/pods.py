"""Kubernetes pods for each kind of run, as run tags that dagster-k8s merges into the Job.

Put here: resources, node selection, time limits. Keep out: images, secrets and volumes: they are the deployment's.
"""

from typing import Any

_KEY = "dagster-k8s/config"
_JOB = {"ttl_seconds_after_finished": 600, "active_deadline_seconds": 4 * 3600}


def _pod(requests: dict[str, str], limits: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {
        _KEY: {
            "container_config": {"resources": {"requests": requests, "limits": limits}},
            # Long enough to finish or give back what is claimed after SIGTERM.
            "pod_spec_config": {"termination_grace_period_seconds": 60, **spec},
            "job_spec_config": _JOB,
        }
    }


GPU = _pod(
    {"cpu": "4", "memory": "16Gi"},
    {"memory": "16Gi", "nvidia.com/gpu": "1"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
)
CPU = _pod({"cpu": "4", "memory": "8Gi"}, {"memory": "8Gi"})
SMALL = _pod({"cpu": "2", "memory": "8Gi"}, {"memory": "16Gi"})
