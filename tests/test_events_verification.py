"""Tokens and passwords of providers that do not sign."""

import base64

import pytest

from mm_assets.events.verification import is_authorized

TOKEN = "receiver:a-long-password"  # noqa: S105  of these tests


def basic(text: str) -> str:
    """Return credentials as Basic sends them."""
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "header", [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic(TOKEN), basic(TOKEN).replace("B", "b", 1)]
)
def test_token_is_accepted(header: str) -> None:
    """A token comes as Bearer, or as user and password of Basic; the scheme's case does not count."""
    assert is_authorized(header, ["another-long-token", TOKEN])


@pytest.mark.parametrize(
    "header",
    ["", TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", basic(TOKEN[:-1]), basic(""), "Basic \xe9", "Basic ????",
     "Basic " + base64.b64encode(b"\xff\xfe").decode(), f"Digest {TOKEN}", f"Token {TOKEN}"],
)  # fmt: skip
def test_anything_else_is_refused(header: str) -> None:
    """Missing, cut, longer, of another scheme, no base64, no UTF-8."""
    assert not is_authorized(header, [TOKEN])


@pytest.mark.parametrize("header", ["", "Bearer ", basic("")])
def test_no_token_lets_nobody_in(header: str) -> None:
    """An empty setting is not a password."""
    assert not is_authorized(header, [])
