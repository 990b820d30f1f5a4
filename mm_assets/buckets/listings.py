"""Pages of listings, read faster and more forgivingly than botocore does.

botocore parses each page twice and its entries one shape at a time, which would be most of the cost of a discovery.
And some servers write control characters of keys as they are, which no XML parser takes: botocore calls such a page a
failure of the service, and so would every attempt on it for as long as the key exists. The URL encoding that was asked
for is finished here instead; what is beyond that names its last key, so that the store can step over it.

Put here: reading and mending raw listing bodies. Keep out: requests.
"""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from xml.parsers import expat

from botocore.utils import parse_timestamp

from mm_assets.errors import ServiceError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# What XML 1.0 forbids: C0 controls but tab, newline and return; as bytes or as character references.
_FORBIDDEN = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:x0*([0-8bce-fBCE-F]|1[0-9a-fA-F])|0*([0-8]|1[124-9]|2\d|3[01]));"
)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_URL_ENCODED = re.compile(rb"<EncodingType>\s*url\s*</EncodingType>")
_REFERENCE = re.compile(r"&(?:#x([0-9a-fA-F]{1,6})|#(\d{1,7})|(amp|lt|gt|quot|apos));")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
# A wildcard where the service's name stands: botocore calls these before its own handlers, which parse the body.
_EVENT = "before-parse.*."
_MAX_BYTES = 2**63 - 1


class UnreadableListingError(Exception):
    """A page of a listing cannot be parsed.

    Attributes
    ----------
    last_key : the last key on the page, from its raw text; None when there is none to be found
    """

    def __init__(self, last_key: str | None) -> None:
        super().__init__("a page of the listing cannot be parsed")
        self.last_key = last_key


class StuckListingError(ServiceError):
    """A listing that cannot go on; it is the service's fault, and another pass may meet a mended one."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(f"{uri}: the listing cannot go on: {why}; report this to the service")


def register(client: "S3Client") -> None:
    """Let a client read its listings by this module: entries then have Key, ETag, Size and LastModified only."""
    events = client.meta.events
    events.register(f"{_EVENT}ListObjectsV2", _read_listing, unique_id="mm_assets.read_listing")
    events.register(f"{_EVENT}ListObjectVersions", _mend_versions, unique_id="mm_assets.mend_versions")
    events.register(f"{_EVENT}GetBucketVersioning", _doubt_versioning, unique_id="mm_assets.doubt_versioning")


def to_timestamp(text: str) -> datetime:
    """Parse ISO 8601 directly and leave every other form to botocore; timezone-aware.

    botocore's guess of the format, which is always the same, would be half of the time of a listing.
    """
    if text[:4].isdigit() and text.endswith("Z"):
        return datetime.fromisoformat(text)
    return as_utc(parse_timestamp(text))


def as_utc(moment: datetime) -> datetime:
    """Take a moment without a zone for one in UTC, in which services speak."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def to_size(size: str | int) -> int:
    """Return a size in bytes; raises ValueError where no object can be of that size (0 … 2⁶³ - 1)."""
    n_bytes = int(size)
    if not 0 <= n_bytes <= _MAX_BYTES:
        msg = f"no object has {size} bytes"
        raise ValueError(msg)
    return n_bytes


def _read_listing(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Take the entries out of a page and leave botocore the rest; its handler of ``before-parse``."""
    body = response_dict["body"]
    if response_dict["status_code"] != 200 or b"<ListBucketResult" not in body:
        return
    try:
        entries, body = _read(body)
    except (expat.ExpatError, KeyError, OverflowError, RuntimeError, ValueError) as error:
        raise UnreadableListingError(_last_key(body)) from error
    rest = _without_entries(body)
    if _URL_ENCODED.search(rest):
        rest = _URL_ENCODED.sub(b"", rest)  # or botocore would decode the keys once more
        for entry in entries:
            entry["Key"] = _decoded(entry["Key"])
    customized_response_dict["Contents"] = entries
    response_dict["body"] = rest


def _mend_versions(response_dict: dict[str, Any], **_: object) -> None:
    """Mend a page of versions, of which there are few: botocore reads it."""
    body = response_dict["body"]
    if response_dict["status_code"] != 200 or b"<ListVersionsResult" not in body:
        return
    try:
        response_dict["body"] = _read(body)[1]
    except expat.ExpatError as error:
        raise UnreadableListingError(_last_key(body)) from error


def _doubt_versioning(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Let no other answer pass for one that names no status, which means that the bucket never kept versions."""
    if response_dict["status_code"] == 200 and b"<VersioningConfiguration" not in response_dict["body"]:
        customized_response_dict["Status"] = "unknown"


def _read(body: bytes) -> tuple[list[dict[str, Any]], bytes]:
    try:
        return _parse(body), body
    except expat.ExpatError:
        if not _URL_ENCODED.search(body):
            raise
    mended = _FORBIDDEN.sub(_percent, body)
    return _parse(mended), mended


def _without_entries(body: bytes) -> bytes:
    head, *others = body.split(b"<Contents>")
    return head + b"".join([other.partition(b"</Contents>")[2] for other in others])


def _parse(body: bytes) -> list[dict[str, Any]]:
    """Return the entries of a page, keys as they are written; other elements are only seen to be well-formed."""
    entries: list[dict[str, Any]] = []
    fields: dict[str, str] = {}
    text = ""

    def start(name: str, _: object) -> None:
        nonlocal fields, text
        text = ""
        if name == "Contents":
            fields = {}

    def characters(data: str) -> None:
        nonlocal text
        text += data

    def end(name: str) -> None:
        if name == "Contents":
            entries.append(_entry(fields))
        else:
            fields[name] = text

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    parser.Parse(body, True)
    return entries


def _entry(fields: dict[str, str]) -> dict[str, Any]:
    return {
        "Key": fields["Key"],
        "ETag": fields["ETag"],
        "Size": to_size(fields["Size"]),
        "LastModified": to_timestamp(fields["LastModified"]),
    }


def _decoded(key: str) -> str:
    """Undo the URL encoding of a listing; what is no UTF-8 is replaced, as botocore does."""
    if "%" not in key and "+" not in key:
        return key
    return unquote_to_bytes(key.replace("+", " ")).decode("utf-8", "replace")


def _percent(match: re.Match[bytes]) -> bytes:
    hexadecimal, decimal = match.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(decimal) if decimal else match.group()[0]
    return b"%%%02X" % number


def _last_key(body: bytes) -> str | None:
    keys = _KEY.findall(body)
    if not keys:
        return None
    key = _REFERENCE.sub(_character, keys[-1].decode("utf-8", "replace"))
    return _decoded(key) if _URL_ENCODED.search(body) else key


def _character(match: re.Match[str]) -> str:
    hexadecimal, decimal, name = match.groups()
    if name:
        return _NAMED[name]
    number = int(hexadecimal, 16) if hexadecimal else int(decimal)
    return chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else match.group()
