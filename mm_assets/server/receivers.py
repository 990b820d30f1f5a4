"""``POST /events/…``: verify, read, store, and only then answer.

Put here: which header and which secret each provider uses. Keep out: their payloads, and the storing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from mm_assets.errors import ServiceError
from mm_assets.events import b2, s3, tigris
from mm_assets.events.base import Delivery, DeliveryRefusedError
from mm_assets.events.verification import is_authorized
from mm_assets.flows.receiving import Receiver
from mm_assets.server.access import Guard
from mm_assets.server.reading import read_body
from mm_assets.settings import EventSettings

_READ_WITHIN_S = 10.0
_ANSWER_WITHIN_S = 2.5  # B2 gives up after three
_JSON = frozenset({"", "application/json"})
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Provider:
    """One receiver.

    Attributes
    ----------
    title : what people call it
    setting : name of the setting with its secrets; without any, and without a key for events, the receiver is off
    content_types : what its deliveries may call themselves; '' where they say nothing
    read : parses (request, body), and verifies what only the body shows
    has_tokens : whether its secrets are tokens, which are looked at before the body is read
    """

    name: str
    title: str
    setting: str
    content_types: frozenset[str]
    read: Callable[[Request, bytes, EventSettings], Delivery]
    has_tokens: bool = True

    def secrets(self, events: EventSettings) -> Sequence[str]:
        """Return its secrets."""
        secrets: tuple[str, ...] = getattr(events, self.setting)
        return secrets


def _read_b2(request: Request, body: bytes, events: EventSettings) -> Delivery:
    return b2.parse(body, request.headers.get(b2.SIGNATURE_HEADER, ""), events.b2_secrets, max_batch=events.max_batch)


def _read_tigris(_: Request, body: bytes, events: EventSettings) -> Delivery:
    return tigris.parse(body, max_batch=events.max_batch)


def _read_s3(_: Request, body: bytes, events: EventSettings) -> Delivery:
    return s3.parse(body, max_batch=events.max_batch)


async def _require_token(request: Request, tokens: Sequence[str], guard: Guard) -> None:
    """Take one of the provider's tokens, or a key that allows events."""
    header = request.headers.get("authorization", "")
    if is_authorized(header, tokens):
        return
    caller = await run_in_threadpool(guard.find, header)
    if caller is None or "events" not in caller.rights:
        raise DeliveryRefusedError(401, "unauthorized", "the token is missing or wrong")


PROVIDERS = (
    Provider("b2", "Backblaze B2", "b2_secrets", _JSON, _read_b2, has_tokens=False),
    Provider("tigris", "Tigris", "tigris_tokens", _JSON, _read_tigris),
    Provider(
        "s3", "S3: SNS, EventBridge, MinIO, Ceph", "s3_tokens", _JSON | {"text/plain"}, _read_s3
    ),  # SNS calls its JSON plain text
)


def receivers_on(events: EventSettings, guard: Guard) -> Mapping[str, bool]:
    """Return path → whether the receiver is on."""
    return {f"/events/{provider.name}": _is_on(provider, events, guard) for provider in PROVIDERS}


def _is_on(provider: Provider, events: EventSettings, guard: Guard) -> bool:
    return bool(provider.secrets(events)) or (provider.has_tokens and guard.is_given("events"))


def build_receivers(events: EventSettings, receiver: Receiver, guard: Guard) -> APIRouter:
    """Build a route for each provider."""
    router = APIRouter()
    for provider in PROVIDERS:
        path, endpoint = f"/events/{provider.name}", _endpoint(provider, events, receiver, guard)
        router.add_api_route(path, endpoint, methods=["POST"], summary=f"Receive events of {provider.title}.")
    return router


def _endpoint(provider: Provider, events: EventSettings, receiver: Receiver, guard: Guard) -> Callable[..., object]:
    async def receive(request: Request) -> dict[str, object]:
        if not provider.secrets(events) and not await run_in_threadpool(_is_on, provider, events, guard):
            text = f"this receiver is off: it has no secret; set events.{provider.setting}"
            raise HTTPException(403, text)
        try:
            delivery = await _read(provider, request, events, guard)
        except DeliveryRefusedError as error:
            receiver.tally.count("events_refused_total", provider=provider.name, why=error.why)
            raise
        await _store(receiver, provider.name, delivery)
        return {"accepted": len(delivery.events), "ignored": sum(delivery.ignored.values())}

    return receive


async def _read(provider: Provider, request: Request, events: EventSettings, guard: Guard) -> Delivery:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in provider.content_types:
        raise DeliveryRefusedError(415, "content_type", "events are sent as application/json")
    if provider.has_tokens:
        await _require_token(request, provider.secrets(events), guard)
    return provider.read(request, await read_body(request, events.max_body_bytes, _READ_WITHIN_S), events)


async def _store(receiver: Receiver, provider: str, delivery: Delivery) -> None:
    """Wait until the delivery is durable; a ledger that takes too long is one that does not answer."""
    try:
        stored = receiver.receive(provider, delivery)
        await asyncio.wait_for(asyncio.wrap_future(stored), _ANSWER_WITHIN_S)
    except TimeoutError:
        msg = "the ledger takes too long; send again later"
        raise ServiceError(msg) from None
    except ServiceError as error:
        _LOG.warning("events of %s were not stored: %s", provider, error.__cause__ or error)
        raise
