"""Errors: what can be retried, and crossing process borders."""

import pickle

import pytest

from mm_assets.errors import ConfigError, ObjectError, Reason, SchemaError, ServiceError


@pytest.mark.parametrize("reason", list(Reason))
def test_object_errors_survive_pickling(reason: Reason) -> None:
    """An error raised in a child arrives whole."""
    error = pickle.loads(pickle.dumps(ObjectError(reason, "what was found")))  # noqa: S301  our own bytes

    assert (error.reason, error.message) == (reason, "what was found")
    assert str(error) == f"{reason}: what was found"


def test_only_services_are_retried() -> None:
    """A retry can help against the world, not against the bytes or the settings."""
    assert ServiceError("x").is_retryable
    assert not ConfigError("x").is_retryable
    assert not SchemaError("t", "a", "b").is_retryable


def test_permanence_follows_the_reason() -> None:
    """What the bytes decide is permanent; what a machine decided may come out differently."""
    assert ObjectError(Reason.CORRUPT, "x").is_permanent
    assert not ObjectError(Reason.TIMEOUT, "x").is_permanent
    assert not ObjectError(Reason.OUT_OF_MEMORY, "x").is_permanent
