"""What went wrong at an S3-compatible service, in this project's terms.

Put here: the one table from botocore's errors to ours. Keep out: trying again, which is ``retry``'s.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ParamValidationError,
)
from botocore.exceptions import (
    ConnectionError as ConnectError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from mm_assets.buckets.base import DailyCapError, ObjectChangedError, ObjectNotFoundError
from mm_assets.buckets.retry import TransientError, parse_retry_after
from mm_assets.errors import ConfigError, ObjectError, Reason

_BROKEN_EXCHANGES = (
    ConnectError,
    FlexibleChecksumError,
    HTTPClientError,
    HTTPError,  # urllib3's own, where botocore lets one through while a body is read
    IncompleteReadError,
    ResponseParserError,
)
# What botocore lets through where a header or an element says nonsense: a date that is none, a number out of range.
_NONSENSE = (KeyError, OverflowError, RuntimeError, ValueError)
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {
    "BadDigest",  # the body was damaged on its way
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_ABSENT_CODES = {"404", "NoSuchKey", "NoSuchUpload", "NoSuchVersion", "NotFound"}
_OBJECT_CODES = {
    "InvalidObjectName": "the service does not take this key; store the object under another one",
    "InvalidObjectState": "the object is archived; restore it to a storage class that can be read",
    "InvalidURI": "the service does not take this key; store the object under another one",
    "KeyTooLongError": "the service does not take keys longer than 1,024 bytes; store the object under a shorter one",
}
_RIGHTS = "check that the key may list, read (and for the lake write and delete) this bucket and prefix"
_KEYS = "check access_key_id and secret_access_key (or the profile), and that they belong to this endpoint"
_REGION = "check region and endpoint_url: the bucket lies elsewhere"
_CONFIG_HINTS = {
    "AccessDenied": _RIGHTS,
    "403": _RIGHTS,
    "401": _KEYS,
    "400": "expired keys or a wrong region are the usual reasons; check both",
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": "the session's keys have expired; renew them",
    "InvalidAccessKeyId": _KEYS,
    "InvalidToken": _KEYS,
    "NoSuchBucket": "check the bucket's name in `uri`, and endpoint_url and region: it does not exist there",
    "PermanentRedirect": _REGION,
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it (NTP)",
    "SignatureDoesNotMatch": f"{_KEYS}; check region too",
}
_OTHER_HINT = "check endpoint_url, region, bucket and the key's rights; `mm doctor` tries them"
# A word, not a part of one: refusals speak of "capabilities" too.
_CAP = re.compile(r"(?:\b|_)caps?(?:\b|_)", re.IGNORECASE)
_DAY_S = 86_400


class SilentRefusalError(ConfigError):
    """A 403 whose body is not sent (to HEAD), so that a missing right and a used-up cap look alike."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise this project's errors for botocore's; ``doing`` says what was tried, on which object, where."""
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, doing) from error
    except _BROKEN_EXCHANGES as error:
        msg = f"{doing}: {error}"
        raise TransientError(msg) from error
    except (ParamValidationError, UnicodeEncodeError) as error:
        raise ObjectError(Reason.POLICY, f"{doing}: no service can hold this key ({error})") from error
    except BotoCoreError as error:  # keys, profiles, regions: all of it is configuration
        msg = f"{doing}: {error}; check the location's settings"
        raise ConfigError(msg) from error
    except RecursionError as error:  # botocore asks where the bucket lies, is sent elsewhere again, asks again
        msg = f"{doing}: sent elsewhere again and again; {_REGION}"
        raise ConfigError(msg) from error
    except _NONSENSE as error:
        msg = f"{doing}: the answer cannot be read ({type(error).__name__}: {error!s:.300})"
        raise TransientError(msg) from error


def told(answer: Mapping[str, Any], name: str) -> Any:
    """Return what an answer must say; raises TransientError where it does not."""
    if name not in answer:
        msg = f"the answer has no {name}; is a proxy answering for the service?"
        raise TransientError(msg)
    return answer[name]


def next_midnight(now: float) -> float:
    """Return the next 00:00 GMT after ``now``, both in seconds since the epoch."""
    return (now // _DAY_S + 1) * _DAY_S


def _from_answer(error: ClientError, doing: str) -> Exception:
    code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    about = error.response.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    said = f"{doing}: answered {status} {code} {message!r:.300}"
    if code in _ABSENT_CODES:
        return ObjectNotFoundError(said)
    if status == 416:
        return ObjectChangedError(f"{said}; the object has become smaller")
    if code in _OBJECT_CODES:
        return ObjectError(Reason.POLICY, f"{said}; {_OBJECT_CODES[code]}")
    if status == 403 and _CAP.search(f"{code} {message}"):
        msg = f"{said}; the account's daily cap is used up: it resets at 00:00 GMT, or raise it"
        return DailyCapError(msg, next_midnight(time.time()))
    if status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
        return TransientError(said, parse_retry_after(about.get("HTTPHeaders", {}).get("retry-after")))
    kind = SilentRefusalError if code == "403" else ConfigError
    return kind(f"{said}; {_CONFIG_HINTS.get(code, _OTHER_HINT)}")
