"""``GET /healthz`` and ``GET /metrics``.

Put here: Prometheus' text form. Keep out: what is measured, which is ``flows.metrics``'.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from mm_assets.errors import ServiceError
from mm_assets.flows.metrics import Sample, collect, count
from mm_assets.flows.receiving import Receiver
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger import Ledger
from mm_assets.server.access import Caller, Guard

_ANSWER_WITHIN_S = 3.0
_NAMESPACE = "mm_assets_"


def build_health(workspace: Workspace, receiver: Receiver, guard: Guard) -> APIRouter:
    """Build both routes; health is open, metrics are read."""
    router, question = APIRouter(), _Question(workspace.ledger)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say whether the ledger answers, and what comes can be stored."""
        if not receiver.is_alive:
            msg = "the writer of the inbox is gone"
            raise ServiceError(msg)
        await question.ask()
        return {"status": "ok"}

    @router.get("/metrics")
    def metrics(caller: Annotated[Caller, Depends(guard.requires("read"))]) -> Response:
        """Give all metrics in Prometheus' text form."""
        if caller.sources:
            raise HTTPException(403, "metrics are of all sources, and this key is for some")
        receiver.tally.flush()
        count(workspace, {})  # the requests of uploads
        return Response(render(collect(workspace)), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router


class _Question:
    """Asks in a thread, once at a time: whoever asks meanwhile waits for the same answer, so no flood takes threads."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._under_way: asyncio.Task[object] | None = None

    async def ask(self) -> None:
        """Wait for the answer; raises ServiceError when there is none in time."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(run_in_threadpool(self._ledger.check))
            self._under_way.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may wait
        try:
            await asyncio.wait_for(asyncio.shield(self._under_way), _ANSWER_WITHIN_S)
        except TimeoutError:
            msg = "the ledger does not answer"
            raise ServiceError(msg) from None


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
