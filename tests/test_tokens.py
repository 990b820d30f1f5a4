"""Tokens of an identity provider: which are taken, which are not, and what they allow."""

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from places import Place
from pydantic import ValidationError
from server_driver import Client, serving

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.server.tokens import Identity, TokenReader
from mm_assets.settings import OidcSettings

ISSUER, AUDIENCE = "https://login.example.com", "mm-assets"
RSA, EC, OTHER = (
    rsa.generate_private_key(65_537, 2_048),
    ec.generate_private_key(ec.SECP256R1()),
    rsa.generate_private_key(65_537, 2_048),
)


@dataclass
class Provider:
    """An identity provider that serves its public keys."""

    url: str = ""
    n_asked: int = 0
    claims: dict[str, Any] = field(
        default_factory=lambda: {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60, "sub": "ann", "scope": "read"}
    )

    @property
    def settings(self) -> OidcSettings:
        """The settings that name it."""
        return OidcSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=self.url)

    def sign(self, key: Any = RSA, algorithm: str = "RS256", kid: str = "rsa", **claims: Any) -> str:
        """Return a token; a claim of None is left out."""
        told = {name: value for name, value in (self.claims | claims).items() if value is not None}
        return jwt.encode(told, key, algorithm, headers={"kid": kid})


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Run one."""
    provider = Provider()
    keys = [RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "rsa", "use": "sig"}]
    keys += [ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "ec"}]

    class Handler(BaseHTTPRequestHandler):
        """Answers with the keys."""

        def do_GET(self) -> None:
            """Answer."""
            provider.n_asked += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": keys}).encode())

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        provider.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
        yield provider
        server.shutdown()
        thread.join()


def test_a_token_allows_what_its_claim_says(provider: Provider) -> None:
    """Words of a text or of a list, of which unknown ones mean nothing; RSA and elliptic curves."""
    reader = TokenReader(provider.settings)
    assert reader.read(provider.sign()) == Identity("ann", ("read",))
    assert reader.read(provider.sign(EC, "ES256", "ec", scope=["upload", "openid", 5])) == Identity("ann", ("upload",))
    assert reader.read(provider.sign(scope="openid searching search read,events")) == Identity("ann", ("search",))
    assert reader.read(provider.sign(scope=None)) == Identity("ann", ())
    other = TokenReader(provider.settings.model_copy(update={"rights_claim": "permissions"}))
    assert other.read(provider.sign(permissions=["search"])) == Identity("ann", ("search",))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1_700_000_000},
        {"exp": None},
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"nbf": 4_000_000_000},
    ],
    ids=str,
)
def test_a_token_for_others_or_over_is_none(provider: Provider, claims: dict[str, Any]) -> None:
    """It must say who made it, for whom, and until when."""
    assert TokenReader(provider.settings).read(provider.sign(**claims)) is None


def test_a_token_that_is_not_signed_by_the_provider_is_none(provider: Provider) -> None:
    """By another's key, under an unknown id, with the public key as a password, or not at all."""
    reader = TokenReader(provider.settings)
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    good = provider.sign()
    head, claims, signature = good.split(".")
    forged = [
        provider.sign(OTHER),
        provider.sign(OTHER, kid="unknown"),
        _sign_with_password(provider, public),
        provider.sign(RSA, "PS256"),
        provider.sign(EC, "ES256", "rsa"),
        jwt.encode(provider.claims, None, "none", headers={"kid": "rsa"}),
        f"{head}.{claims}.",
        f"{head}.{claims}.{signature[:-4]}AAAA",
        "a.b.c",
        "",
        "é",
    ]
    assert [reader.read(token) for token in forged] == [None] * len(forged)
    assert reader.read(good) is not None


def _sign_with_password(provider: Provider, password: bytes) -> str:
    """Sign by HS256; PyJWT itself refuses to do that with a public key."""
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "kid": "rsa"}, provider.claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.new(password, signed, hashlib.sha256).digest()
    return b".".join([signed, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_invented_key_ids_do_not_reach_the_provider(provider: Provider) -> None:
    """Its keys are kept; an unknown id is looked for once in a while."""
    reader = TokenReader(provider.settings)
    for number in range(20):
        assert reader.read(provider.sign(OTHER, kid=str(number))) is None
    assert provider.n_asked <= 2


def test_a_provider_that_is_down_is_no_refusal(provider: Provider) -> None:
    """A retry may help."""
    gone = provider.settings.model_copy(update={"jwks_url": "http://127.0.0.1:9/jwks.json"})
    with pytest.raises(ServiceError, match="cannot be fetched"):
        TokenReader(gone).read(provider.sign())


def test_missing_library_is_named(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to get it."""
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigError, match=r"pip install 'mm-assets\[oidc\]'"):
        TokenReader(provider.settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": ISSUER},
        {"issuer": ISSUER, "audience": AUDIENCE},
        {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "http://login.example.com/jwks.json"},
        {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "file:///jwks.json"},
    ],
)
def test_half_of_the_settings_is_refused(settings: dict[str, str]) -> None:
    """All of them, and keys that nobody can change on their way."""
    with pytest.raises(ValidationError, match=r"none of them|must be https"):
        OidcSettings(**settings)


def test_the_server_takes_tokens(provider: Provider, make_workspace: Callable[..., Place]) -> None:
    """As it takes keys: 401 for none, 403 for too few rights, 503 never for what is no token."""
    place = make_workspace(serve={"oidc": provider.settings.model_dump()})
    with serving(place.open()) as client:
        assert status(client, None) == 401
        assert status(client, "no token") == 401
        assert status(client, provider.sign(OTHER)) == 401
        assert status(client, provider.sign(scope="search")) == 403
        assert status(client, provider.sign(scope="search read")) == 200


def status(client: Client, token: str | None) -> int:
    """Ask for the tables."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return client.ask("GET", "/tables", headers=headers).status
