"""``GET /healthz`` and ``GET /metrics``.

Put here: Prometheus' text form. Keep out: what is measured, which is ``flows.metrics``'.
"""

import asyncio
from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from mm_assets.errors import ServiceError
from mm_assets.flows.metrics import Sample, collect, count
from mm_assets.flows.receiving import Tally
from mm_assets.flows.workspace import Workspace
from mm_assets.server.access import require_key

_ANSWER_WITHIN_S = 3.0
_NAMESPACE = "mm_assets_"


def build_health(workspace: Workspace, tally: Tally) -> APIRouter:
    """Build both routes; health is open, metrics need a key where keys are set."""
    router = APIRouter()
    api_keys = workspace.settings.serve.api_keys

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say whether the ledger answers."""
        try:
            await asyncio.wait_for(run_in_threadpool(workspace.ledger.check), _ANSWER_WITHIN_S)
        except TimeoutError:
            msg = "the ledger does not answer"
            raise ServiceError(msg) from None
        return {"status": "ok"}

    @router.get("/metrics")
    def metrics(request: Request) -> Response:
        """Give all metrics in Prometheus' text form."""
        if api_keys:
            require_key(request, api_keys)
        tally.flush()
        count(workspace, {})  # the requests of uploads
        return Response(render(collect(workspace)), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router


def render(samples: Iterable[Sample]) -> bytes:
    """Write samples in Prometheus' text form, one family for each name, all of one namespace."""
    families: dict[str, Metric] = {}
    for sample in samples:
        name = f"{_NAMESPACE}{sample.name}"
        family = families.setdefault(name, Metric(name.removesuffix("_total"), sample.help, sample.kind))
        family.add_sample(name, dict(sample.labels), sample.value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families.values()))
    return generate_latest(registry)


class _Collected(Collector):
    """Families that are already there."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
