"""Old versions of an object: on many services a DELETE only hides, and what was deleted can still be read by its id.

Put here: finding and removing all versions of one key. Keep out: listings of what is visible.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from mm_assets.buckets.base import ObjectNotFoundError
from mm_assets.buckets.faults import told
from mm_assets.buckets.listings import StuckListingError, UnreadableListingError
from mm_assets.buckets.requests import Requests
from mm_assets.errors import ConfigError


def erase_versions(requests: Requests, key: str, *, keep_current: bool = False) -> bool:
    """Delete every version and delete marker of exactly this key, one by one, or hide it where that is refused.

    With ``keep_current`` what readers see stays, and nothing is hidden.

    Returns True when none is left. False: the service cannot list or delete versions and does not say that it keeps
    none, so old bytes may remain.
    """
    delete = requests.client.delete_object
    with suppress(ConfigError, ObjectNotFoundError, UnreadableListingError):
        for version_id in _version_ids(requests, key, keep_current=keep_current):
            with suppress(ObjectNotFoundError):
                requests.call(delete, key, VersionId=version_id)
        if keep_current or not _is_there(requests, key):
            return True
    if not keep_current:
        with suppress(ObjectNotFoundError):
            requests.call(delete, key)
    return _keeps_none(requests)


def _is_there(requests: Requests, key: str) -> bool:
    """Whether the object can still be seen, whatever the list of versions said."""
    with suppress(ObjectNotFoundError):
        requests.call(requests.client.head_object, key)
        return True
    return False


def _version_ids(requests: Requests, key: str, *, keep_current: bool) -> Iterator[str]:
    """Yield the ids page by page; deleting on the way does not move the pages, which go on by id, not by number."""
    name, marker = requests.prefix + key, dict[str, Any]()
    while True:
        page = requests.call(requests.client.list_object_versions, None, Prefix=name, **marker)
        _refuse_other_answers(requests, page, name)
        for version in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
            if version["Key"] == name and not (keep_current and told(version, "IsLatest")):
                yield version["VersionId"]
        # Longer keys that start with this one come after all of its versions.
        if not page.get("IsTruncated") or page.get("NextKeyMarker") != name:
            return
        following = {"KeyMarker": name, "VersionIdMarker": page.get("NextVersionIdMarker", "")}
        if following == marker:
            raise StuckListingError(requests.uri, "a page of versions names no next one")
        marker = following


def _refuse_other_answers(requests: Requests, page: Mapping[str, Any], name: str) -> None:
    """See that it is a list of the versions that were asked for.

    A plain listing, as some servers give, parses as one without versions; keys in an encoding that is not undone, or
    without the prefix that was asked for, would not be found; a version without an id cannot be deleted.
    """
    entries = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
    are_whole = all(entry.get("Key", "").startswith(name) and entry.get("VersionId") for entry in entries)
    if "KeyMarker" not in page or not are_whole:
        msg = f"{requests.uri}: the service does not list versions"
        raise ConfigError(msg)


def _keeps_none(requests: Requests) -> bool:
    """Whether the service proves that it keeps no old versions: it says so, or it was never told to keep them."""
    with suppress(ConfigError, ObjectNotFoundError):
        return "Status" not in requests.call(requests.client.get_bucket_versioning, None)
    return False
