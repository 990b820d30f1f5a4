"""Backblaze suspends an event rule whose receiver failed for long: then no event comes, and nothing else says so.

Put here: asking B2's native API about the rules of watched buckets. Keep out: the events themselves.

Four calls for each bucket, some billed: once an hour is enough. The listing finds meanwhile what is not told.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from mm_assets.errors import ConfigError, MmAssetsError, ServiceError
from mm_assets.flows.asking import answer
from mm_assets.flows.workspace import Workspace
from mm_assets.settings import SourceSettings

CHECK_EVERY_S = 3_600.0
_API = "b2api/v3"
_TIMEOUT_S = (5.0, 10.0)
_LOG = logging.getLogger(__name__)


def check_b2_rules(workspace: Workspace, deadline_s: float = 40.0) -> dict[str, str | None]:
    """Set or clear the alarm of each source on Backblaze B2; returns source → alarm of those that could be asked.

    Each source has its share of the time that is left, so one that hangs does not keep the others from being asked.
    Nothing is asked where ``events.b2_secrets`` is empty: then no rule of B2 is meant for us. A source that cannot be
    asked, or does not answer in its time, keeps its alarm, and the log says why.
    """
    events, ends_at = workspace.settings.events, time.monotonic() + deadline_s
    sources = [source for source in workspace.settings.sources if events.b2_secrets and _is_on_b2(source)]
    alarms: dict[str, str | None] = {}
    for n, source in enumerate(sources):
        now = time.monotonic()
        if now >= ends_at:
            break
        share_ends_at = now + (ends_at - now) / (len(sources) - n)
        try:
            rules = answer(partial(_read_rules, source, events.b2_api_url), ends_at=share_ends_at)
            alarms[source.alias] = _alarm(source, rules)
        except MmAssetsError as error:
            _LOG.warning("the event rules of source %s cannot be checked: %s", source.alias, error)
            continue
        workspace.ledger.objects.set_events_alarm(source.alias, alarms[source.alias])
    return alarms


def _is_on_b2(source: SourceSettings) -> bool:
    host = urlsplit(source.endpoint_url or "").hostname or ""
    return source.is_bucket and (host == "backblazeb2.com" or host.endswith(".backblazeb2.com"))


def _alarm(source: SourceSettings, rules: list[Mapping[str, Any]]) -> str | None:
    suspended = [rule for rule in rules if rule.get("isSuspended")]
    if not suspended:
        return None
    told = "; ".join(f"{rule.get('name', '?')!s:.63}: {rule.get('suspensionReason', '')!s:.200}" for rule in suspended)
    return (
        f"Backblaze suspended event rules of bucket {source.bucket} ({told}): changes are found by listing only. "
        "Mend the receiver, then enable the rule again."
    )


def _read_rules(source: SourceSettings, api_url: str) -> list[Mapping[str, Any]]:
    with _asking(source):
        account = _call("GET", f"{api_url}/{_API}/b2_authorize_account", auth=_keys(source))
        url, token = f"{account['apiInfo']['storageApi']['apiUrl']}/{_API}", account["authorizationToken"]
        wanted = {"accountId": account["accountId"], "bucketName": source.bucket}
        [bucket] = _call("POST", f"{url}/b2_list_buckets", token=token, json=wanted)["buckets"]
        params = {"bucketId": bucket["bucketId"]}
        told = _call("GET", f"{url}/b2_get_bucket_notification_rules", token=token, params=params)
        return [dict(rule) for rule in told["eventNotificationRules"]]


def _keys(source: SourceSettings) -> tuple[str, str]:
    """Return key id and key, as the source's store takes them."""
    import boto3

    if source.access_key_id and source.secret_access_key:
        return source.access_key_id, source.secret_access_key
    found = boto3.Session(profile_name=source.profile).get_credentials()
    if found is None:
        msg = "there are no keys for it; set access_key_id and secret_access_key of the source"
        raise ConfigError(msg)
    keys = found.get_frozen_credentials()
    return str(keys.access_key), str(keys.secret_key)


def _call(method: str, url: str, *, token: str = "", **options: Any) -> dict[str, Any]:
    import requests

    headers = {"Authorization": token} if token else {}
    told = requests.request(method, url, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False, **options)
    if told.status_code in {401, 403}:
        msg = f"{url}: HTTP {told.status_code}; its key needs listBuckets and readBucketNotifications"
        raise ConfigError(msg)
    told.raise_for_status()
    found: dict[str, Any] = told.json()
    return found


@contextmanager
def _asking(source: SourceSettings) -> Iterator[None]:
    """Translate what can go wrong with another's API: no network, no JSON, another form, no or several buckets."""
    import requests
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (requests.RequestException, BotoCoreError, KeyError, TypeError, ValueError) as error:
        msg = f"Backblaze's native API did not tell the event rules of {source.bucket}: {type(error).__name__}"
        raise ServiceError(msg) from error
