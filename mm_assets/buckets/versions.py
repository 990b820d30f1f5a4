"""Old versions of an object: on many services a DELETE only hides, and what was deleted can still be read by its id.

Put here: finding and removing all versions of one key. Keep out: listings of what is visible.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.buckets.listings import StuckListingError, UnreadableListingError
from mm_assets.buckets.requests import Requests
from mm_assets.errors import ConfigError

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectVersionsOutputTypeDef


def erase_versions(requests: Requests, key: str, *, keep_current: bool = False) -> bool:
    """Delete every version and delete marker of exactly this key, one by one, or hide it where that is refused.

    With ``keep_current`` what readers see stays, and nothing is hidden.

    Returns True when none is left. False: the service cannot list or delete versions and does not say that it keeps
    none, so old bytes may remain.
    """
    client = requests.client
    try:
        for version_id in _version_ids(requests, key, keep_current=keep_current):
            with suppress(ObjectNotFoundError):
                requests.call(client.delete_object, key, VersionId=version_id)
    except (ConfigError, UnreadableListingError):
        with suppress(ObjectNotFoundError):
            if not keep_current:
                requests.call(client.delete_object, key)
        return _keeps_none(requests)
    return True


def _version_ids(requests: Requests, key: str, *, keep_current: bool) -> Iterator[str]:
    """Yield the ids page by page; deleting on the way does not move the pages, which go on by id, not by number."""
    name, marker = requests.prefix + key, dict[str, Any]()
    while True:
        page = requests.call(requests.client.list_object_versions, None, Prefix=name, **marker)
        _refuse_other_answers(requests, page)
        for version in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
            if version["Key"] == name and not (keep_current and version["IsLatest"]):
                yield version["VersionId"]
        # Longer keys that start with this one come after all of its versions.
        if not page.get("IsTruncated") or page.get("NextKeyMarker") != name:
            return
        following = {"KeyMarker": name, "VersionIdMarker": page.get("NextVersionIdMarker", "")}
        if following == marker:
            raise StuckListingError(requests.uri, "a page of versions names no next one")
        marker = following


def _refuse_other_answers(requests: Requests, page: "ListObjectVersionsOutputTypeDef") -> None:
    """See that it is a list of versions: a plain listing, as some servers give, parses as one without versions."""
    if "KeyMarker" not in page:
        msg = f"{requests.uri}: the service does not list versions"
        raise ConfigError(msg)


def _keeps_none(requests: Requests) -> bool:
    """Whether the service proves that it keeps no old versions: it says so, or it was never told to keep them."""
    with suppress(ConfigError, ObjectNotFoundError):
        return "Status" not in requests.call(requests.client.get_bucket_versioning, None)
    return False
