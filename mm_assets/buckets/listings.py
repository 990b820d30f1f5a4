"""Listing answers that no XML parser takes, because some servers write control characters of keys as they are.

botocore calls such a page a failure of the service, and so would every attempt on it for as long as the key exists.
The URL encoding that was asked for is finished here instead; what is beyond that names its last key, so that the
store can step over it.

Put here: mending and reading raw listing bodies. Keep out: requests.
"""

import re
from typing import Any
from urllib.parse import unquote_plus
from xml.parsers import expat

# What XML 1.0 forbids: C0 controls but tab, newline and return; as bytes or as character references.
_FORBIDDEN = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:x0*([0-8bce-fBCE-F]|1[0-9a-fA-F])|0*([0-8]|1[124-9]|2\d|3[01]));"
)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_URL_ENCODED = re.compile(rb"<EncodingType>\s*url\s*</EncodingType>")
_REFERENCE = re.compile(r"&(?:#x([0-9a-fA-F]{1,6})|#(\d{1,7})|(amp|lt|gt|quot|apos));")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


class UnreadableListingError(Exception):
    """A page of a listing cannot be parsed.

    Attributes
    ----------
    last_key : the last key on the page, from its raw text; None when there is none to be found
    """

    def __init__(self, last_key: str | None) -> None:
        super().__init__("a page of the listing cannot be parsed")
        self.last_key = last_key


def mend_listing(response_dict: dict[str, Any], **_: object) -> None:
    """Repair a page that botocore could not parse; its handler of ``before-parse.s3.ListObjectsV2``.

    botocore has turned the answer's status into 500 by then; the body still shows that it was a listing.
    """
    body = response_dict["body"]
    if response_dict["status_code"] != 500 or b"<ListBucketResult" not in body:
        return
    mended = _FORBIDDEN.sub(_percent, body) if _URL_ENCODED.search(body) else body
    if not _is_well_formed(mended):
        raise UnreadableListingError(_last_key(body))
    response_dict.update(status_code=200, body=mended)


def _percent(match: re.Match[bytes]) -> bytes:
    hexadecimal, decimal = match.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(decimal) if decimal else match.group()[0]
    return b"%%%02X" % number


def _is_well_formed(body: bytes) -> bool:
    try:
        expat.ParserCreate().Parse(body, True)
    except expat.ExpatError:
        return False
    return True


def _last_key(body: bytes) -> str | None:
    keys = _KEY.findall(body)
    if not keys:
        return None
    key = _REFERENCE.sub(_character, keys[-1].decode("utf-8", "replace"))
    return unquote_plus(key) if _URL_ENCODED.search(body) else key


def _character(match: re.Match[str]) -> str:
    hexadecimal, decimal, name = match.groups()
    if name:
        return _NAMED[name]
    number = int(hexadecimal, 16) if hexadecimal else int(decimal)
    return chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else match.group()
