"""Is it from whom it says: signatures and tokens, compared in constant time.

Put here: comparisons with secrets. Keep out: what is refused because of them, and HTTP.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_SIGNATURE_VERSION = "v1="


def sign(body: bytes, secret: str) -> str:
    """Return the header with which Backblaze B2 signs a body: HMAC-SHA256, its key the secret's bytes as they are."""
    return _SIGNATURE_VERSION + hmac.new(secret.encode("utf-8"), body, hashlib.sha256).hexdigest()


def is_signed(body: bytes, header: str, secrets: Sequence[str]) -> bool:
    """Return whether any signature of a comma-separated header is that of the raw body under any of the secrets.

    Several of either are what a change of secrets looks like.
    """
    given = [part.strip() for part in header.split(",")]
    expected = [sign(body, secret) for secret in secrets]
    return any([_are_equal(one, other) for one in given for other in expected])  # noqa: C419  no early end


def is_authorized(header: str, tokens: Sequence[str]) -> bool:
    """Return whether an ``Authorization`` header holds one of the tokens: as Bearer, or as user:password of Basic."""
    scheme, _, credentials = header.strip().partition(" ")
    given = _read_credentials(scheme.lower(), credentials.strip())
    return given is not None and any([_are_equal(given, token) for token in tokens])  # noqa: C419  no early end


def _read_credentials(scheme: str, credentials: str) -> str | None:
    if scheme == "bearer":
        return credentials
    if scheme != "basic":
        return None
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None


def _are_equal(one: str, other: str) -> bool:
    """Compare hashes of both, so that not even the length of the secret shows in the time."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (one, other)]
    return hmac.compare_digest(*digests)
