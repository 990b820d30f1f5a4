"""Requests to one bucket: admitted, counted, translated, tried again.

Put here: what all operations of a bucket have in common. Keep out: the operations.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mm_assets.buckets.faults import translated
from mm_assets.buckets.retry import Retry
from mm_assets.buckets.traffic import Lane, Traffic

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")


class Requests:
    """The way from keys below a prefix to answers of a service.

    Parameters
    ----------
    client : makes one attempt for each call, because all retries happen here
    prefix : put before every key as it is
    lane : admission, shared with other stores; None for a store that is alone

    Attributes
    ----------
    uri : the place, for messages
    retry : how long failures of the service are borne; its waits are counted
    """

    def __init__(self, client: "S3Client", bucket: str, prefix: str, retry: Retry, lane: Lane | None) -> None:
        self.client, self.bucket, self.prefix = client, bucket, prefix
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        endpoint = client.meta.endpoint_url
        self._where = f"{self.uri} (endpoint {endpoint}, region {client.meta.region_name})"
        self._lane = lane or Traffic(retry.clock, retry.sleep).lane(self.uri, endpoint, bucket)
        self._sleep = retry.sleep
        self.retry = dataclasses.replace(retry, sleep=self._pause)

    def run(
        self,
        operation: str,
        key: str | None,
        attempt: Callable[[], T],
        retry: Retry | None = None,
        *,
        is_urgent: bool = False,
    ) -> T:
        """Run one request, and what reads its answer, until it succeeds or the budget is used up.

        With ``is_urgent`` it is sent although the bucket's breaker is open.
        """
        what = self._where if key is None else f"{key!r:.300} in {self._where}"

        def admitted() -> T:
            with self._lane.request(operation, is_urgent=is_urgent), translated(f"{operation} {what}"):
                return attempt()

        return (retry or self.retry).run(admitted)

    def call(self, operation: Callable[..., T], key: str | None, *, retry: Retry | None = None, **arguments: Any) -> T:
        """Call one of the client's methods on this bucket and, unless it is None, this key."""
        place = {"Bucket": self.bucket} | ({} if key is None else {"Key": self.prefix + key})
        return self.run(operation.__name__, key, lambda: operation(**place, **arguments), retry)

    def within(self, budget_s: float) -> Retry:
        """Return the retry with a smaller budget."""
        return dataclasses.replace(self.retry, budget_s=min(budget_s, self.retry.budget_s))

    def _pause(self, seconds: float) -> None:
        self._lane.waited(seconds)
        self._sleep(seconds)
