"""A loopback stand-in for the part of the Kubernetes API that dagster-k8s uses; a Job's container runs as a process here.

Put here: Jobs and Pods enough for ``K8sRunLauncher``. Keep out: assertions, and anything of Dagster.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_JOBS = re.compile(r"/apis/batch/v1/namespaces/[^/]+/jobs(?:/([^/]+))?(?:/status)?")
_PODS = re.compile(r"/api/v1/namespaces/[^/]+/pods(?:/([^/]+))?(/log)?")
Json = dict[str, Any]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass
class Pod:
    """One pod: what was asked for, and the process that stands for its container."""

    name: str
    job: str
    template: Json
    process: subprocess.Popen[bytes]

    def to_json(self) -> Json:
        """As the API tells it."""
        container = self.template["spec"]["containers"][0]
        code = self.process.poll()
        state: Json = {"running": {"startedAt": _now()}}
        if code is not None:
            state = {"terminated": {"exitCode": abs(code), "reason": "Error" if code else "Completed"}}
        status = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        return {
            "metadata": {"name": self.name, "labels": {**self.template["metadata"]["labels"], "job-name": self.job}},
            "spec": self.template["spec"],
            "status": {"phase": phase, "containerStatuses": [{**status, "ready": code is None, "state": state}]},
        }


@dataclass
class KubeServer:
    """Serves one namespace on 127.0.0.1 while it is open as a context manager.

    Attributes
    ----------
    environment : variables of every container, over those that its Job asks for
    logs : folder for the containers' output
    jobs : name → Job as it was posted, deleted ones included
    """

    environment: dict[str, str]
    logs: Path
    jobs: dict[str, Json] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        """Listen."""
        handler = type("Handler", (_Handler,), {"cluster": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what still runs, and stop."""
        for pod in self.pods.values():
            with suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)
            pod.process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def write_kubeconfig(self, path: Path) -> Path:
        """Write what a client needs to find this server."""
        server = {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "loopback",
            "clusters": [{"name": "loopback", "cluster": server}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "loopback", "context": {"cluster": "loopback", "user": "nobody"}}],
        }
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    def answer(self, method: str, url: str, body: Json | None) -> Json | None:
        """Answer one request; None for what is not there."""
        parts = urlsplit(url)
        if match := _JOBS.fullmatch(parts.path):
            return self._answer_jobs(method, match[1], body)
        if match := _PODS.fullmatch(parts.path):
            return self._answer_pods(method, match[1], parse_qs(parts.query).get("labelSelector", [""])[0])
        return None

    def _answer_jobs(self, method: str, name: str | None, body: Json | None) -> Json | None:
        if method == "POST" and body is not None:
            return self._create(body)
        if name not in self.jobs or name in self.deleted:
            return None
        if method == "DELETE":
            self.deleted.add(name)
            return {"kind": "Status", "status": "Success"}
        codes = [pod.process.poll() for pod in self.pods.values() if pod.job == name]
        status: Json = {"startTime": _now(), "active": codes.count(None) or None, "succeeded": codes.count(0) or None}
        return {**self.jobs[name], "status": status}

    def _answer_pods(self, method: str, name: str | None, selector: str) -> Json | None:
        if name is None:
            wanted = selector.partition("job-name=")[2].partition(",")[0]
            items = [pod.to_json() for pod in self.pods.values() if pod.job == wanted]
            return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        pod = self.pods.get(name)
        if pod is not None and method == "DELETE":
            with suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGTERM)  # as the kubelet does first
        return pod.to_json() if pod is not None else None

    def _create(self, job: Json) -> Json:
        name, template = job["metadata"]["name"], job["spec"]["template"]
        [container] = template["spec"]["containers"]
        variables = {item["name"]: item["value"] for item in container["env"] if item.get("value") is not None}
        program, *arguments = container["args"]
        pod_name = f"{name}-{uuid.uuid4().hex[:5]}"
        with (self.logs / f"{pod_name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / program), *arguments],
                env={**variables, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.jobs[name], self.pods[pod_name] = job, Pod(pod_name, name, template, process)
        return job


class _Handler(BaseHTTPRequestHandler):
    cluster: KubeServer

    def _do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        answer = self.cluster.answer(self.command, self.path, body)
        missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        data = json.dumps(missing if answer is None else answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _do  # noqa: N815  names of the base class

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  name of the base class
        """Say nothing."""
