"""Queues that hold events until they are fetched: Amazon SQS, Cloudflare Queues.

Put here: fetching and acknowledging messages. Keep out: what they say, and when they may be acknowledged.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.events import r2, s3
from mm_assets.events.base import Delivery
from mm_assets.settings import EventSettings, R2Queue, SqsQueue

_HIDDEN_S = 120  # a message that was fetched and not acknowledged comes again after this
_TIMEOUT_S = (5.0, 20.0)  # to connect, to answer
_NO_RIGHTS = frozenset({401, 403})
_NO_RIGHTS_CODES = frozenset({"AccessDenied", "AccessDeniedException", "InvalidClientTokenId", "SignatureDoesNotMatch"})


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes
    ----------
    handle : what acknowledges this delivery of it
    body : as its queue gives it
    """

    handle: str
    body: Any


class Queue(Protocol):
    """Messages that come until they are acknowledged, each at least once.

    All calls raise ServiceError where the queue fails, and ConfigError where keys, rights or names are wrong.
    """

    name: str
    provider: str

    def parse(self, body: Any) -> Delivery:
        """Read the body of a message; raises DeliveryRefusedError."""
        ...

    def receive(self) -> Sequence[Message]:
        """Fetch what is there, without waiting; none when the queue is empty."""
        ...

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Remove messages from the queue."""
        ...


def open_queues(events: EventSettings) -> list[Queue]:
    """Return the queues of the settings; opens no connection."""
    return [*(Sqs(queue) for queue in events.sqs), *(CloudflareQueue(queue) for queue in events.r2)]


class Sqs:
    """A queue of Amazon SQS."""

    provider = "sqs"

    def __init__(self, settings: SqsQueue) -> None:
        self.name = settings.queue_url
        self._settings = settings
        self._client: Any = None

    def parse(self, body: Any) -> Delivery:
        """Read an S3 notification, through SNS or not."""
        return s3.parse(body, max_batch=None)

    def receive(self) -> Sequence[Message]:
        """Fetch at most ten, SQS's limit."""
        with self._translated():
            answer = self._open().receive_message(
                QueueUrl=self.name, MaxNumberOfMessages=10, WaitTimeSeconds=0, VisibilityTimeout=_HIDDEN_S
            )
        return [Message(item["ReceiptHandle"], item["Body"]) for item in answer.get("Messages", [])]

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Delete; what could not be deleted comes again and is known then."""
        entries = [{"Id": str(n), "ReceiptHandle": message.handle} for n, message in enumerate(messages)]
        with self._translated():
            self._open().delete_message_batch(QueueUrl=self.name, Entries=entries)

    def _open(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            settings = self._settings
            session = boto3.Session(profile_name=settings.profile, region_name=settings.region)
            limits = Config(
                connect_timeout=_TIMEOUT_S[0], read_timeout=_TIMEOUT_S[1], retries={"total_max_attempts": 2}
            )
            self._client = session.client("sqs", endpoint_url=settings.endpoint_url, config=limits)
        return self._client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            NoRegionError,
            PartialCredentialsError,
            ProfileNotFound,
        )

        try:
            yield
        except (NoCredentialsError, PartialCredentialsError, NoRegionError, ProfileNotFound, ValueError) as error:
            raise ConfigError(self._wrong(error)) from error
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            is_wrong = code in _NO_RIGHTS_CODES or "NonExistentQueue" in code or "QueueDoesNotExist" in code
            raise (ConfigError if is_wrong else ServiceError)(self._wrong(error)) from error
        except BotoCoreError as error:
            raise ServiceError(self._wrong(error)) from error

    def _wrong(self, error: Exception) -> str:
        return f"queue {self.name}: {error}; check events.sqs (queue_url, region, profile)"


class CloudflareQueue:
    """A queue of Cloudflare that has an HTTP pull consumer."""

    provider = "r2"

    def __init__(self, settings: R2Queue) -> None:
        self.name = settings.queue_id
        self._url = f"{settings.api_url.rstrip('/')}/accounts/{settings.account_id}/queues/{settings.queue_id}/messages"
        self._token = settings.api_token

    def parse(self, body: Any) -> Delivery:
        """Read an event of R2 in any of its forms."""
        return r2.parse(body)

    def receive(self) -> Sequence[Message]:
        """Pull at most a hundred, Cloudflare's limit."""
        answer = self._post("pull", {"batch_size": 100, "visibility_timeout_ms": _HIDDEN_S * 1_000})
        try:
            return [Message(item["lease_id"], item["body"]) for item in answer["result"]["messages"]]
        except (KeyError, TypeError) as error:
            msg = f"queue {self.name}: the answer holds no messages; is a proxy answering for Cloudflare?"
            raise ServiceError(msg) from error

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """End the leases for good."""
        self._post("ack", {"acks": [{"lease_id": message.handle} for message in messages]})

    def _post(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        import requests

        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            answer = requests.post(
                f"{self._url}/{action}", json=body, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False
            )
            if answer.status_code in _NO_RIGHTS or answer.status_code == 404:
                msg = f"queue {self.name}: HTTP {answer.status_code}; check events.r2 (account_id, queue_id, api_token)"
                raise ConfigError(msg)
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except requests.RequestException as error:  # its JSONDecodeError included
            msg = f"queue {self.name} does not answer: {type(error).__name__}; a later tick asks again"
            raise ServiceError(msg) from error
        return found
