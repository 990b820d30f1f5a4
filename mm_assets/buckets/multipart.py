"""Uploads in parts, for files larger than one PUT may be.

An object appears only when the upload is completed, so a kill leaves parts that nobody sees and the owner pays for:
they are removed by age. What the completion answers is not trusted: services say 200 with an error inside, leave the
ETag out or tell another one than later, and an answer may be lost. HEAD tells what is there.

Put here: sending, completing, verifying and aborting. Keep out: single PUTs.
"""

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.buckets.faults import told
from mm_assets.buckets.listings import StuckListingError, as_utc
from mm_assets.buckets.requests import Requests
from mm_assets.buckets.retry import TransientError
from mm_assets.errors import MmAssetsError
from mm_assets.identity import normalize_etag

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 16 << 20
_MAX_PARTS = 10_000
_THREADS = 4  # memory is this many parts
_ABORT_BUDGET_S = 10.0


def encode_md5(md5: "hashlib._Hash") -> str:
    """Return the Content-MD5 header by which a service refuses what was damaged on its way."""
    return base64.b64encode(md5.digest()).decode("ascii")


def upload_in_parts(requests: Requests, key: str, file: Path, encryption: dict[str, Any]) -> str:
    """Upload a file and return the ETag that HEAD tells; where it cannot be verified, it is sent once more.

    On any error the parts are aborted.
    """
    return requests.retry.run(partial(_upload, requests, key, file, encryption))


def verified_etag(requests: Requests, key: str, n_bytes: int, other_than: str | None = None) -> str:
    """Return the ETag of an object just written, by HEAD.

    Raises
    ------
    TransientError
        It is not there, has another length, or is still the version ``other_than``.
    """
    try:
        found = requests.call(requests.client.head_object, key)
    except ObjectNotFoundError as error:
        msg = f"{error}, though it was just written"
        raise TransientError(msg) from error
    etag, n_found = normalize_etag(told(found, "ETag")), told(found, "ContentLength")
    if n_found != n_bytes or etag == other_than:
        msg = f"{requests.uri}: after an upload of {n_bytes} bytes another object of {n_found} is there"
        raise TransientError(msg)
    return etag


def abort_stale(requests: Requests, older_than_s: float) -> int:
    """Abort the uploads below the prefix that were begun longer ago than this; returns how many."""
    client, before = requests.client, datetime.now(UTC) - timedelta(seconds=older_than_s)
    n_aborted, marker = 0, dict[str, Any]()
    while True:
        try:
            page = requests.call(client.list_multipart_uploads, None, Prefix=requests.prefix, **marker)
        except ObjectNotFoundError:  # how rclone says that there are none
            return n_aborted
        for upload in page.get("Uploads", []):
            key = told(upload, "Key")
            if key.startswith(requests.prefix) and as_utc(told(upload, "Initiated")) < before:
                _abort(requests, key.removeprefix(requests.prefix), told(upload, "UploadId"))
                n_aborted += 1
        following = {"KeyMarker": page.get("NextKeyMarker", ""), "UploadIdMarker": page.get("NextUploadIdMarker", "")}
        if not page.get("IsTruncated"):
            return n_aborted
        if following == marker:
            raise StuckListingError(requests.uri, "a page of unfinished uploads names no next one")
        marker = following


def _upload(requests: Requests, key: str, file: Path, encryption: dict[str, Any]) -> str:
    etag_before = _etag(requests, key)
    begun = requests.call(requests.client.create_multipart_upload, key, **encryption)
    upload_id = told(begun, "UploadId")
    try:
        parts = _send_parts(requests, key, upload_id, file)
        is_told = _complete(requests, key, upload_id, parts)
        return verified_etag(requests, key, file.stat().st_size, other_than=None if is_told else etag_before)
    except BaseException:
        with suppress(MmAssetsError):
            _abort(requests, key, upload_id)
        raise


def _send_parts(requests: Requests, key: str, upload_id: str, file: Path) -> "list[CompletedPartTypeDef]":
    n_bytes = file.stat().st_size
    size = max(PART_BYTES, -(-n_bytes // _MAX_PARTS))

    def send(number: int) -> "CompletedPartTypeDef":
        with file.open("rb") as source:
            source.seek(number * size)
            data = source.read(size)
        md5 = encode_md5(hashlib.md5(data, usedforsecurity=False))
        place: dict[str, Any] = {"UploadId": upload_id, "PartNumber": number + 1}
        try:
            sent = requests.call(requests.client.upload_part, key, Body=data, ContentMD5=md5, **place)
        except ObjectNotFoundError as error:
            msg = f"{error}; the upload vanished and is begun anew"
            raise TransientError(msg) from error
        return {"PartNumber": number + 1, "ETag": told(sent, "ETag")}

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(send, range(-(-n_bytes // size))))


def _complete(requests: Requests, key: str, upload_id: str, parts: "list[CompletedPartTypeDef]") -> bool:
    """Return False where the upload is unknown: an answer was lost after success, or somebody aborted it."""
    complete = requests.client.complete_multipart_upload
    try:
        requests.call(complete, key, UploadId=upload_id, MultipartUpload={"Parts": parts})
    except ObjectNotFoundError:
        return False
    return True


def _etag(requests: Requests, key: str) -> str | None:
    with suppress(ObjectNotFoundError):
        return normalize_etag(told(requests.call(requests.client.head_object, key), "ETag"))
    return None


def _abort(requests: Requests, key: str, upload_id: str) -> None:
    with suppress(ObjectNotFoundError):
        abort = requests.client.abort_multipart_upload
        place: dict[str, Any] = {"Bucket": requests.bucket, "Key": requests.prefix + key, "UploadId": upload_id}
        retry = requests.within(_ABORT_BUDGET_S)
        requests.run(abort.__name__, key, lambda: abort(**place), retry, is_urgent=True)
