"""A bucket of any S3-compatible service as a store, through a boto3 client that is handed in.

Put here: the few calls that every service does alike: ListObjectsV2, GET, HEAD, PUT, single DELETE.
Keep out: conditional requests (Backblaze B2 has no conditional write, others ignore the condition), DeleteObjects and
lifecycle (their checksums are refused), how a client is made (``mm_assets.resources.s3``).
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mm_assets.buckets.base import Download, ObjectChangedError, ObjectNotFoundError, Page, StoredObject
from mm_assets.buckets.bodies import Body
from mm_assets.buckets.faults import SilentRefusalError, told
from mm_assets.buckets.listings import StuckListingError, UnreadableListingError, as_utc, register, to_size
from mm_assets.buckets.multipart import abort_stale, encode_md5, upload_in_parts, verified_etag
from mm_assets.buckets.requests import Requests
from mm_assets.buckets.retry import RetriesExhaustedError, Retry, TransientError
from mm_assets.buckets.streams import save_stream
from mm_assets.buckets.traffic import Lane
from mm_assets.buckets.versions import erase_versions
from mm_assets.identity import normalize_etag

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        GetObjectOutputTypeDef,
        HeadObjectOutputTypeDef,
        ListObjectsV2OutputTypeDef,
        ObjectTypeDef,
        PutObjectOutputTypeDef,
    )

MAX_PAGE_KEYS = 1_000  # what S3 gives at most; some servers give more when asked
MAX_EMPTY_PAGES = 10_000  # hidden versions leave empty pages: so many are ten million of them in a row
CHECK_BUDGET_S = 10.0
_CHECK_KEY = ".mm_assets_check"
_MD5 = re.compile(r"[0-9a-fA-F]{32}")

T = TypeVar("T")
Position = dict[str, Any]  # the parameter that says where a listing goes on


@dataclass(frozen=True)
class Limits:
    """What is borne from a service, and how much it takes.

    Attributes
    ----------
    max_put_bytes : larger files go up in parts; Backblaze B2 counts 5 GB, Amazon 5 GiB
    stall_bytes, stall_s : fewer bytes of a body than this in so many seconds (1 KiB/s): another connection is tried
    """

    max_put_bytes: int = 5_000_000_000
    stall_bytes: int = 30 * 1_024
    stall_s: float = 30.0


class S3Store:
    """Objects in a bucket, below a prefix.

    Parameters
    ----------
    client : made by ``BucketS3Resource.get_client``: one attempt each, because all retries happen here
    prefix : put before every key as it is; '' or ending in '/'
    server_side_encryption : asked for on every write
    retry : how long failures of the service are borne
    lane : shares rate, breaker and counts with other stores (``Traffic.lane``); default: alone

    Attributes
    ----------
    uri : s3://bucket/prefix
    """

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        prefix: str = "",
        *,
        server_side_encryption: str | None = None,
        retry: Retry | None = None,
        lane: Lane | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self._requests = Requests(client, bucket, prefix, retry or Retry(), lane)
        self._encryption: dict[str, Any] = (
            {"ServerSideEncryption": server_side_encryption} if server_side_encryption else {}
        )
        self._limits = limits or Limits()
        self._etags_are_md5 = True  # until an object shows otherwise
        self.uri = self._requests.uri
        register(client)

    def check(self, *, writes: bool = False) -> None:
        """List one key; with ``writes`` also begin and abort an upload in parts, which leaves no object, no version."""
        quick = self._requests.within(CHECK_BUDGET_S)
        client, call = self._client, self._requests.call
        try:
            with suppress(UnreadableListingError):  # it answers, and listing steps over the entry
                self._list_once("", 1, {}, quick)
            if writes:
                begun = call(client.create_multipart_upload, _CHECK_KEY, retry=quick, **self._encryption)
                call(client.abort_multipart_upload, _CHECK_KEY, retry=quick, UploadId=told(begun, "UploadId"))
        except (RetriesExhaustedError, TransientError) as error:
            msg = f"{error}. Check endpoint_url and the network"
            raise RetriesExhaustedError(msg) from error

    def list_page(self, after: str = "", limit: int = 1_000, prefix: str = "") -> Page:
        """List one page; about 1,000 objects at most whatever the limit (what the service sends beyond is kept).

        An entry that cannot be parsed is isolated by halving the page, stepped over and told.
        """
        start: Position = {"StartAfter": self._prefix + after} if after else {}
        n_keys, skipped, tokens = min(limit, MAX_PAGE_KEYS), list[str](), set[str]()
        while True:
            try:
                answer = self._list_once(prefix, n_keys, start)
            except UnreadableListingError as error:
                if n_keys > 1:
                    n_keys //= 2
                else:
                    start = self._step_over(error.last_key, start)
                    skipped.append(start["StartAfter"].removeprefix(self._prefix))
                continue
            objects = self._objects(answer)
            is_last = not answer["IsTruncated"]
            if objects or is_last:
                return Page(objects, None if is_last else self._next_after(objects, after), tuple(skipped))
            start = self._go_on(answer, tokens)

    def head(self, key: str) -> StoredObject:
        """Ask for one object's ETag and size."""

        def attempt() -> StoredObject:
            return _to_described(key, self._client.head_object(Bucket=self._bucket, Key=self._prefix + key))

        try:
            return self._requests.run("head_object", key, attempt)
        except SilentRefusalError:
            with suppress(ObjectChangedError):  # an empty object has no first byte
                self.read_range(key, 0, 1)  # this answer has a body that says why: a used-up cap is no missing right
            raise

    def download(
        self, key: str, target: Path, *, etag: str | None = None, accept: Callable[[bytes], bool] | None = None
    ) -> Download:
        """GET one object into a file; a body that breaks off is read again from the start.

        One GET answers with one version, and its ETag is compared before the body is read. So no ``If-Match`` is sent:
        it would add nothing but a header that services treat differently.
        """

        def save(stored: StoredObject, _: "GetObjectOutputTypeDef", body: Body) -> Download:
            self._refuse_change(stored, etag)
            return save_stream(stored, body.read, target, accept)

        return self._get(key, save)

    def read(self, key: str) -> bytes:
        """GET one small object."""
        return self._get(key, lambda _, __, body: body.read())

    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        """GET a part of one object."""
        if length <= 0:
            return b""

        def read(stored: StoredObject, answer: "GetObjectOutputTypeDef", body: Body) -> bytes:
            self._refuse_change(stored, etag)
            if answer.get("ContentRange"):
                return body.read()
            return body.read(start + length)[start:]  # a service that does not know ranges sends the whole object

        return self._get(key, read, Range=f"bytes={start}-{start + length - 1}")

    def read_tail(self, key: str, length: int) -> tuple[StoredObject, bytes]:
        """GET the end of one object; the answer describes it, so that HEAD is not asked first."""

        def read(
            stored: StoredObject, answer: "GetObjectOutputTypeDef", body: Body
        ) -> tuple[StoredObject, bytes] | None:
            if not answer.get("ContentRange"):  # a service that does not know ranges sends the whole object
                return stored, body.read()[-length:]
            total = answer["ContentRange"].rpartition("/")[2]  # which may be a star: not known
            return (replace(stored, size_bytes=to_size(total)), body.read()) if total.isdigit() else None

        found = None
        with suppress(ObjectChangedError):  # 416: of an empty object there is no range
            found = self._get(key, read, Range=f"bytes=-{length}")
        if found is not None:
            return found
        stored = self.head(key)
        start = max(0, stored.size_bytes - length)
        return stored, self.read_range(key, start, stored.size_bytes - start, etag=stored.etag)

    def put(self, key: str, data: bytes) -> str:
        """PUT one object with its MD5, so that damage on the way is refused."""
        md5 = encode_md5(hashlib.md5(data, usedforsecurity=False))
        sent = self._requests.call(self._client.put_object, key, Body=data, ContentMD5=md5, **self._encryption)
        return self._written_etag(key, sent, len(data))

    def upload(self, key: str, file: Path) -> str:
        """PUT a file, streamed; in parts where it is larger than one PUT may be."""
        n_bytes = file.stat().st_size
        if n_bytes > self._limits.max_put_bytes:
            return upload_in_parts(self._requests, key, file, self._encryption)

        def attempt() -> "PutObjectOutputTypeDef":
            with file.open("rb") as source:
                md5 = encode_md5(hashlib.file_digest(source, partial(hashlib.md5, usedforsecurity=False)))
                source.seek(0)
                return self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=source, ContentMD5=md5, **self._encryption
                )

        return self._written_etag(key, self._requests.run("put_object", key, attempt), n_bytes)

    def delete(self, key: str) -> None:
        """DELETE one object; a versioned bucket (Backblaze B2 always) hides it and keeps the old version."""
        with suppress(ObjectNotFoundError):
            self._requests.call(self._client.delete_object, key)

    def erase(self, key: str, *, keep_current: bool = False) -> bool:
        """DELETE every version of one object by its id."""
        return erase_versions(self._requests, key, keep_current=keep_current)

    def abort_stale_uploads(self, older_than_s: float) -> int:
        """Abort unfinished uploads in parts below the prefix."""
        return abort_stale(self._requests, older_than_s)

    def _get(
        self,
        key: str,
        use: Callable[[StoredObject, "GetObjectOutputTypeDef", Body], T],
        **arguments: Any,
    ) -> T:
        seen: set[str] = set()

        def attempt() -> T:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **arguments)
            with answer["Body"] as raw:  # leaving early drops the connection, and with it the rest of the body
                stored = _to_described(key, answer)
                verify = partial(self._refuse_damage, stored, seen) if self._is_md5(answer) else None
                return use(stored, answer, self._body(raw, answer["ContentLength"], verify))

        return self._requests.run("get_object", key, attempt)

    def _body(self, raw: Any, n_bytes: int, verify: Callable[[str], None] | None) -> Body:
        limits = self._limits
        return Body(raw, n_bytes, stall_bytes=limits.stall_bytes, stall_s=limits.stall_s, verify=verify)

    def _is_md5(self, answer: "GetObjectOutputTypeDef") -> bool:
        """Whether the ETag is most likely the MD5 of this body: whole, not sent in parts, not encrypted by a key."""
        is_keyed = "SSECustomerAlgorithm" in answer or answer.get("ServerSideEncryption", "AES256") != "AES256"
        is_digest = _MD5.fullmatch(normalize_etag(answer["ETag"])) is not None
        return self._etags_are_md5 and is_digest and not is_keyed and "ContentRange" not in answer

    def _refuse_damage(self, stored: StoredObject, seen: set[str], md5: str) -> None:
        """Read again what does not match its ETag.

        The same bytes twice, as many as HEAD says, are the object, and the ETag is no MD5 here.
        """
        if md5 == stored.etag.lower():
            return
        if md5 in seen and self.head(stored.key).size_bytes == stored.size_bytes:
            self._etags_are_md5 = False
            return
        seen.add(md5)
        msg = (
            f"{self.uri}: the MD5 of what was read is {md5}, its ETag {stored.etag}; "
            "it may have been damaged on its way"
        )
        raise TransientError(msg)

    def _refuse_change(self, stored: StoredObject, etag: str | None) -> None:
        if etag is not None and stored.etag != normalize_etag(etag):
            msg = f"{self.uri}: the object is another version now"
            raise ObjectChangedError(msg)

    def _written_etag(self, key: str, sent: "PutObjectOutputTypeDef", n_bytes: int) -> str:
        told = normalize_etag(sent.get("ETag", ""))
        return told or verified_etag(self._requests, key, n_bytes)

    def _list_once(
        self, prefix: str, n_keys: int, start: Position, retry: Retry | None = None
    ) -> "ListObjectsV2OutputTypeDef":
        def attempt() -> "ListObjectsV2OutputTypeDef":
            answer = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=self._prefix + prefix, MaxKeys=n_keys, **start
            )
            if "IsTruncated" not in answer:  # any XML at all parses as an empty page
                msg = f"{self.uri}: the answer is no listing; is a proxy answering for the service?"
                raise TransientError(msg)
            return answer

        return self._requests.run("list_objects_v2", None, attempt, retry)

    def _objects(self, answer: "ListObjectsV2OutputTypeDef") -> tuple[StoredObject, ...]:
        """Return the objects of a page in order, each key once."""
        # The prefix itself as a key is a folder marker, and below the prefix it has no name.
        entries = [entry for entry in answer.get("Contents", []) if entry["Key"] != self._prefix]
        if any(one["Key"] >= other["Key"] for one, other in pairwise(entries)):
            by_key = {entry["Key"]: entry for entry in entries}  # of two, the one that was listed later
            entries = [by_key[key] for key in sorted(by_key)]
        return tuple(_to_stored(entry, self._prefix) for entry in entries)

    def _next_after(self, objects: tuple[StoredObject, ...], after: str) -> str:
        if objects[-1].key <= after:
            raise StuckListingError(self.uri, f"the page after {after!r:.300} ends before it")
        return objects[-1].key

    def _go_on(self, answer: "ListObjectsV2OutputTypeDef", tokens: set[str]) -> Position:
        """Return where a listing goes on after a page without objects (hidden versions leave such pages)."""
        token = answer.get("NextContinuationToken")
        if not token or token in tokens or len(tokens) >= MAX_EMPTY_PAGES:
            raise StuckListingError(self.uri, "an empty page names no next one, or there is no end to empty pages")
        tokens.add(token)
        return {"ContinuationToken": token}

    def _step_over(self, last_key: str | None, start: Position) -> Position:
        if last_key is None or last_key <= start.get("StartAfter", ""):
            raise StuckListingError(self.uri, "an entry cannot be parsed and does not show its key")
        return {"StartAfter": last_key}


def _to_stored(entry: "ObjectTypeDef", prefix: str) -> StoredObject:
    key = entry["Key"].removeprefix(prefix)
    return StoredObject(key, normalize_etag(entry["ETag"]), entry["Size"], entry["LastModified"])


def _to_described(key: str, answer: "HeadObjectOutputTypeDef | GetObjectOutputTypeDef") -> StoredObject:
    version_id = answer.get("VersionId", "")
    version_id = "" if version_id == "null" else version_id  # what S3 calls objects from before versioning
    etag, n_bytes = told(answer, "ETag"), to_size(told(answer, "ContentLength"))
    return StoredObject(key, normalize_etag(etag), n_bytes, as_utc(told(answer, "LastModified")), version_id)
