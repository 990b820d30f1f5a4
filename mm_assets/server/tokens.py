"""Tokens of an identity provider (OpenID Connect) in place of keys.

Put here: verifying a JWT (RFC 7519; RS256 and ES256, keys by JWKS). Keep out: keys of the ledger and of the settings.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.ledger.keys import RIGHTS
from mm_assets.settings import OidcSettings

_ALGORITHMS = ("RS256", "ES256")
_FETCH_WITHIN_S = 3.0
_CLOCKS_DIFFER_S = 30
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it is, and what it allows."""

    subject: str
    rights: tuple[str, ...]


class TokenReader:
    """Verifies tokens; the provider's keys are fetched when first needed, and kept for five minutes.

    Raises
    ------
    ConfigError
        PyJWT is missing.
    """

    def __init__(self, oidc: OidcSettings) -> None:
        try:
            import jwt
        except ImportError as error:
            msg = "`serve.oidc` needs PyJWT: pip install 'mm-assets[oidc]', or take `serve.oidc` out of the settings"
            raise ConfigError(msg) from error
        self._jwt, self._oidc = jwt, oidc
        # It looks for an unknown key id once in thirty seconds, so tokens with invented ids reach the provider no more often.
        self._keys = jwt.PyJWKClient(oidc.jwks_url, timeout=_FETCH_WITHIN_S)

    def read(self, token: str) -> Identity | None:
        """Return whose token it is; None where it is none, or none of ours, or is over.

        Raises
        ------
        ServiceError
            The provider's keys cannot be fetched; a retry may help.
        """
        try:
            claims = self._jwt.decode(
                token,
                self._keys.get_signing_key_from_jwt(token),
                algorithms=list(_ALGORITHMS),
                audience=self._oidc.audience,
                issuer=self._oidc.issuer,
                leeway=_CLOCKS_DIFFER_S,
                options={"require": ["exp", "aud", "iss"]},
            )
        except self._jwt.PyJWKClientConnectionError as error:
            msg = f"the keys at {self._oidc.jwks_url} cannot be fetched ({error})"
            raise ServiceError(msg) from error
        except self._jwt.PyJWTError as error:
            _LOG.info("a token was refused: %s", type(error).__name__)  # its text may be the caller's
            return None
        return Identity(str(claims.get("sub", "")), _rights(claims, self._oidc.rights_claim))


def _rights(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the rights among the words of a claim, which is a text (RFC 8693) or a list."""
    claim = claims.get(name, "")
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return tuple(right for right in RIGHTS if right in words)
