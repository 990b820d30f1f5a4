"""A bucket of any S3-compatible service as a store, through a boto3 client that is handed in.

Put here: the few calls that every service does alike: ListObjectsV2, GET, HEAD, PUT, multipart upload, single DELETE.
Keep out: conditional writes (Backblaze B2 has none, others ignore them), DeleteObjects and lifecycle (their checksums
are refused), how a client is made (``mm_assets.resources.s3``).
"""

import base64
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from mm_assets.buckets.base import Download, ObjectChangedError, ObjectNotFoundError, Page, StoredObject
from mm_assets.buckets.faults import translated
from mm_assets.buckets.listings import UnreadableListingError, mend_listing
from mm_assets.buckets.retry import RetriesExhaustedError, Retry, TransientError
from mm_assets.buckets.streams import save_stream
from mm_assets.errors import ConfigError, ServiceError
from mm_assets.identity import normalize_etag

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        GetObjectOutputTypeDef,
        HeadObjectOutputTypeDef,
        ListObjectsV2OutputTypeDef,
        ObjectTypeDef,
    )

MAX_PAGE_KEYS = 1_000  # what S3 gives at most; some servers give more when asked
MAX_PUT_BYTES = 5_000_000_000  # Backblaze B2 counts 5 GB, Amazon 5 GiB
CHECK_BUDGET_S = 10.0
_CHECK_KEY = ".mm_assets_check"

T = TypeVar("T")
Position = dict[str, str]  # the parameter that says where a listing goes on


class StuckListingError(ServiceError):
    """A listing that cannot go on; it is the service's fault, and another pass may meet a mended one."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(f"{uri}: the listing cannot go on: {why}; report this to the service")


class S3Store:
    """Objects in a bucket, below a prefix.

    Parameters
    ----------
    client : made by ``BucketS3Resource.get_client``: one attempt each, because all retries happen here
    prefix : put before every key as it is; '' or ending in '/'
    server_side_encryption : asked for on every write
    uri : name in messages; default: s3://bucket/prefix
    retry : how long failures of the service are borne
    max_put_bytes : larger files go up in parts
    """

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        prefix: str = "",
        *,
        server_side_encryption: str | None = None,
        uri: str = "",
        retry: Retry | None = None,
        max_put_bytes: int = MAX_PUT_BYTES,
    ) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self._encryption = {"ServerSideEncryption": server_side_encryption} if server_side_encryption else {}
        self._retry = retry or Retry()
        self._max_put_bytes = max_put_bytes
        self.uri = uri or f"s3://{bucket}/{prefix}"
        client.meta.events.register("before-parse.s3.ListObjectsV2", mend_listing, unique_id="mm_assets.mend_listing")

    def check(self, *, writes: bool = False) -> None:
        """List one key; with ``writes`` also begin and abort an upload in parts, which leaves no object, no version."""
        quick = dataclasses.replace(self._retry, budget_s=min(CHECK_BUDGET_S, self._retry.budget_s))
        client = self._client
        try:
            with suppress(UnreadableListingError):  # it answers, and listing steps over the entry
                self._list_once("", 1, {}, quick)
            if writes:
                begun = self._call("write", _CHECK_KEY, client.create_multipart_upload, self._encryption, quick)
                ended = {"UploadId": begun["UploadId"]}
                self._call("write", _CHECK_KEY, client.abort_multipart_upload, ended, quick)
        except RetriesExhaustedError as error:
            msg = f"{error}. Check endpoint_url and the network"
            raise ConfigError(msg) from error

    def list_page(self, after: str = "", limit: int = 1_000, prefix: str = "") -> Page:
        """List one page; at most 1,000 objects whatever the limit.

        An entry that cannot be parsed is isolated by halving the page, stepped over and counted.
        """
        start: Position = {"StartAfter": self._prefix + after} if after else {}
        n_keys, n_skipped = min(limit, MAX_PAGE_KEYS), 0
        while True:
            try:
                answer = self._list_once(prefix, n_keys, start)
            except UnreadableListingError as error:
                if n_keys > 1:
                    n_keys //= 2
                else:
                    start, n_skipped = self._step_over(error.last_key, start), n_skipped + 1
                continue
            # The prefix itself as a key is a folder marker, and below the prefix it has no name.
            objects = tuple(
                _to_stored(entry, self._prefix) for entry in answer.get("Contents", []) if entry["Key"] != self._prefix
            )
            is_last = not answer["IsTruncated"]
            if objects or is_last:
                return Page(objects, None if is_last else self._next_after(objects, after), n_skipped)
            start = self._go_on(answer, start)

    def head(self, key: str) -> StoredObject:
        """Ask for one object's ETag and size."""

        def attempt() -> StoredObject:
            with self._translated("describe", key):
                return _to_described(key, self._client.head_object(Bucket=self._bucket, Key=self._prefix + key))

        return self._retry.run(attempt)

    def download(
        self, key: str, target: Path, *, etag: str | None = None, accept: Callable[[bytes], bool] | None = None
    ) -> Download:
        """GET one object into a file; a body that breaks off is read again from the start.

        One GET answers with one version, and its ETag is compared before the body is read. So no ``If-Match`` is sent:
        it would add nothing but a header that services treat differently.
        """

        def save(stored: StoredObject, answer: "GetObjectOutputTypeDef") -> Download:
            self._refuse_change(stored, etag)
            return save_stream(stored, answer["Body"].read, target, accept)

        return self._get(key, save)

    def read(self, key: str) -> bytes:
        """GET one small object."""
        return self._get(key, lambda _, answer: answer["Body"].read())

    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """GET a part of one object."""
        if length <= 0:
            return b""

        def read(stored: StoredObject, answer: "GetObjectOutputTypeDef") -> bytes:
            self._refuse_change(stored, etag)
            data = answer["Body"].read()
            # A service that does not know ranges sends the whole object and names no range.
            return data if answer.get("ContentRange") else data[start : start + length]

        return self._get(key, read, {"Range": f"bytes={start}-{start + length - 1}"})

    def put(self, key: str, data: bytes) -> str:
        """PUT one object with its MD5, so that damage on the way is refused."""
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        answer = self._call("write", key, self._client.put_object, {"Body": data, **self._written(md5)})
        return normalize_etag(answer["ETag"])

    def upload(self, key: str, file: Path) -> str:
        """PUT a file, streamed; in parts where it is larger than one PUT may be."""
        if file.stat().st_size > self._max_put_bytes:
            return self._upload_parts(key, file)

        def attempt() -> str:
            with self._translated("write", key), file.open("rb") as source:
                md5 = hashlib.file_digest(source, partial(hashlib.md5, usedforsecurity=False)).digest()
                source.seek(0)
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=source, **self._written(md5)
                )
                return normalize_etag(answer["ETag"])

        return self._retry.run(attempt)

    def delete(self, key: str) -> None:
        """DELETE one object; a versioned bucket (Backblaze B2 always) hides it and keeps the old version."""
        with suppress(ObjectNotFoundError):
            self._call("delete", key, self._client.delete_object, {})

    def _get(
        self,
        key: str,
        use: Callable[[StoredObject, "GetObjectOutputTypeDef"], T],
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> T:
        def attempt() -> T:
            with self._translated("read", key):
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **arguments)
                with closing(answer["Body"]):  # closing early drops the connection, and with it the rest of the body
                    return use(_to_described(key, answer), answer)

        return self._retry.run(attempt)

    def _refuse_change(self, stored: StoredObject, etag: str | None) -> None:
        if etag is not None and stored.etag != normalize_etag(etag):
            msg = f"{self.uri}: the object is another version now"
            raise ObjectChangedError(msg)

    def _upload_parts(self, key: str, file: Path) -> str:
        def attempt() -> None:
            with self._translated("write", key), file.open("rb") as source:
                self._client.upload_fileobj(source, self._bucket, self._prefix + key, ExtraArgs=self._encryption)

        self._retry.run(attempt)
        return self.head(key).etag  # some services complete an upload in parts without telling its ETag

    def _list_once(
        self, prefix: str, n_keys: int, start: Position, retry: Retry | None = None
    ) -> "ListObjectsV2OutputTypeDef":
        asked: dict[str, Any] = {"Prefix": self._prefix + prefix, "MaxKeys": n_keys, **start}

        def attempt() -> "ListObjectsV2OutputTypeDef":
            with self._translated("list", None):
                answer = self._client.list_objects_v2(Bucket=self._bucket, **asked)
            if "IsTruncated" not in answer:  # any XML at all parses as an empty page
                msg = f"{self.uri}: the answer is no listing; is a proxy answering for the service?"
                raise TransientError(msg)
            return answer

        return (retry or self._retry).run(attempt)

    def _next_after(self, objects: tuple[StoredObject, ...], after: str) -> str:
        if objects[-1].key.encode() <= after.encode():
            raise StuckListingError(self.uri, f"the page after {after!r:.300} ends before it")
        return objects[-1].key

    def _go_on(self, answer: "ListObjectsV2OutputTypeDef", start: Position) -> Position:
        """Return where a listing goes on after a page without objects (hidden versions leave such pages)."""
        token = answer.get("NextContinuationToken")
        if not token or token == start.get("ContinuationToken"):
            raise StuckListingError(self.uri, "an empty page names no next one")
        return {"ContinuationToken": token}

    def _step_over(self, last_key: str | None, start: Position) -> Position:
        if last_key is None or last_key.encode() <= start.get("StartAfter", "").encode():
            raise StuckListingError(self.uri, "an entry cannot be parsed and does not show its key")
        return {"StartAfter": last_key}

    def _written(self, md5: bytes) -> dict[str, Any]:
        return {"ContentMD5": base64.b64encode(md5).decode("ascii"), **self._encryption}

    def _call(
        self, verb: str, key: str, operation: Callable[..., T], arguments: Mapping[str, Any], retry: Retry | None = None
    ) -> T:
        def attempt() -> T:
            with self._translated(verb, key):
                return operation(Bucket=self._bucket, Key=self._prefix + key, **arguments)

        return (retry or self._retry).run(attempt)

    def _translated(self, verb: str, key: str | None) -> AbstractContextManager[None]:
        about = self._client.meta
        what = self.uri if key is None else f"{key!r:.300} in {self.uri}"
        return translated(f"{verb} {what} (endpoint {about.endpoint_url}, region {about.region_name})")


def _to_stored(entry: "ObjectTypeDef", prefix: str) -> StoredObject:
    key = entry["Key"].removeprefix(prefix)
    return StoredObject(key, normalize_etag(entry["ETag"]), entry["Size"], entry["LastModified"])


def _to_described(key: str, answer: "HeadObjectOutputTypeDef | GetObjectOutputTypeDef") -> StoredObject:
    version_id = answer.get("VersionId", "")
    version_id = "" if version_id == "null" else version_id  # what S3 calls objects from before versioning
    try:
        etag, n_bytes, modified_at = answer["ETag"], answer["ContentLength"], answer["LastModified"]
    except KeyError as missing:
        msg = f"the answer for {key!r:.300} has no {missing}; is a proxy answering for the service?"
        raise TransientError(msg) from missing
    return StoredObject(key, normalize_etag(etag), n_bytes, modified_at, version_id)
