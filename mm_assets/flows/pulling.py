"""Fetching events from queues into the inbox.

Put here: the order (fetch, store, acknowledge) and the deadline. Keep out: the queues' own calls.

A message is acknowledged after the commit that holds its events: killed between, it comes again and is known. A message
that is no event would come for ever, so it is counted, logged and acknowledged, too.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mm_assets.errors import MmAssetsError
from mm_assets.events.base import Delivery, DeliveryRefusedError, Ignored
from mm_assets.flows.asking import answer
from mm_assets.flows.queues import Message, Queue, open_queues
from mm_assets.flows.receiving import Router, Tally
from mm_assets.flows.workspace import Workspace
from mm_assets.ledger.inbox import Hint

_LOG = logging.getLogger(__name__)


@dataclass
class Pulled:
    """What one call fetched.

    Attributes
    ----------
    n_new : events of our sources that were not known
    n_ignored : events and messages of no use
    failures : queue → what went wrong; its messages come again
    """

    n_messages: int = 0
    n_new: int = 0
    n_ignored: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def pull_queues(workspace: Workspace, deadline_s: float = 40.0) -> Pulled:
    """Empty all queues of the settings into the inbox, until nothing comes or the time is over.

    A queue that fails does not stop the others. Raises ServiceError where the ledger does not answer.
    """
    pulled, tally = Pulled(), Tally(workspace.ledger.meters)
    router = Router(workspace.settings)
    queues = open_queues(workspace.settings.events)
    ends_at = time.monotonic() + deadline_s
    for n, queue in enumerate(queues):
        share_s = (ends_at - time.monotonic()) / (len(queues) - n)
        _pull(_Pull(workspace, router, tally, pulled), queue, time.monotonic() + share_s)
    tally.flush()
    return pulled


@dataclass(frozen=True, slots=True)
class _Pull:
    """What fetching works with."""

    workspace: Workspace
    router: Router
    tally: Tally
    pulled: Pulled


def _pull(pull: _Pull, queue: Queue, ends_at: float) -> None:
    while time.monotonic() < ends_at:
        try:
            messages = answer(
                queue.receive, ends_at=ends_at
            )  # what comes too late is hidden for a while, and comes again
        except MmAssetsError as error:
            pull.pulled.failures[queue.name] = str(error)
            return
        if not messages:
            return
        _store(pull, queue, messages)
        try:
            queue.acknowledge(messages)
        except MmAssetsError as error:
            pull.pulled.failures[queue.name] = str(error)
            return


def _store(pull: _Pull, queue: Queue, messages: Sequence[Message]) -> None:
    hints: list[Hint] = []
    ignored: Counter[Ignored] = Counter()
    for message in messages:
        delivery = _parse(queue, message)
        routed = pull.router.route(queue.provider, delivery)
        hints += routed.hints
        ignored += routed.ignored
        pull.tally.count("events_received_total", len(delivery.events), provider=queue.provider)
    n_new = pull.workspace.ledger.inbox.add(hints)
    pull.tally.count_ignored(queue.provider, ignored)
    pull.tally.count("events_duplicate_total", len(hints) - n_new)
    pulled = pull.pulled
    pulled.n_messages, pulled.n_new = pulled.n_messages + len(messages), pulled.n_new + n_new
    pulled.n_ignored += ignored.total()


def _parse(queue: Queue, message: Message) -> Delivery:
    try:
        return queue.parse(message.body)
    except DeliveryRefusedError as error:
        _LOG.warning("queue %s: a message is no event and was removed: %s", queue.name, error)
        return Delivery(ignored={Ignored.POISON: 1})
