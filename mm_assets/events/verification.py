"""Is it from whom it says: signatures and tokens, compared in constant time.

Put here: comparisons with secrets. Keep out: what is refused because of them, and HTTP.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_SIGNATURE_VERSION = "v1="
_SIGNATURE_LENGTH = len(_SIGNATURE_VERSION) + 64
_MAX_SIGNATURES = 8  # B2 sends one, or two while a secret changes


def sign(body: bytes, secret: str) -> str:
    """Return the signature of a body as Backblaze B2 writes it, and we do: HMAC-SHA256, its key the secret's bytes as they are."""
    return _SIGNATURE_VERSION + hmac.new(secret.encode("utf-8"), body, hashlib.sha256).hexdigest()


def is_signed(body: bytes, header: str, secrets: Sequence[str]) -> bool:
    """Return whether one of the first signatures of a comma-separated header is the raw body's under any of the secrets.

    Several of either are what a change of secrets looks like.
    """
    parts = [part.strip() for part in header.split(",", _MAX_SIGNATURES)[:_MAX_SIGNATURES]]
    given = [part.encode() for part in parts if part.isascii() and len(part) == _SIGNATURE_LENGTH]
    if not given:
        return False
    expected = [sign(body, secret).encode() for secret in secrets]
    return any([hmac.compare_digest(one, other) for one in given for other in expected])  # noqa: C419  no early end


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
