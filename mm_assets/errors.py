"""The errors of mm_assets, each saying whether a retry can help and what to do.

    MmAssetsError
    ├── ObjectError    this object is at fault: a ledger row and a dead letter, never a failed batch
    ├── ServiceError   network, throttling, storage: retried with backoff, burns no try
    ├── ConfigError    said before any work: names the setting or command and what to write instead
    └── SchemaError    a table does not have the columns it promises: names table, expected, actual

Put here: exception classes and the reasons of dead letters. Keep out: handling, which lives in the flows.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why an object could not be processed; stored in the ledger and in dead letters."""

    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    CRASH_LOOP = "crash_loop"
    MODEL_ERROR = "model_error"
    POLICY = "policy"


# The bytes decide these outcomes, so another try would end the same way.
PERMANENT_REASONS = frozenset({Reason.CORRUPT, Reason.UNSUPPORTED, Reason.TOO_LARGE, Reason.POLICY, Reason.CRASH_LOOP})


class MmAssetsError(Exception):
    """Base of all errors raised on purpose by this package."""

    is_retryable = False


class ObjectError(MmAssetsError):
    """One object cannot be processed; the rest of its batch goes on.

    Parameters
    ----------
    reason : the class of fault, by which dead letters are listed and replayed
    message : what was tried and what was found, without the object's key (callers add it)
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["ObjectError"], tuple[Reason, str]]:
        """Rebuild from both arguments, so that the error crosses process borders."""
        return type(self), (self.reason, self.message)

    def __str__(self) -> str:
        """Reason and message on one line."""
        return f"{self.reason}: {self.message}"

    @property
    def is_permanent(self) -> bool:
        """True when another try would end the same way."""
        return self.reason in PERMANENT_REASONS


class ServiceError(MmAssetsError):
    """A service did not do its part (network, throttling, full disk); a later retry may help."""

    is_retryable = True


class ConfigError(MmAssetsError):
    """A setting, file, program or right is missing or wrong; the message says what to do."""


class SchemaError(MmAssetsError):
    """A table's columns differ from what ``schemas`` promises."""

    def __init__(self, table: str, expected: object, actual: object) -> None:
        super().__init__(f"table {table}: expected {expected}, found {actual}")
        self.table = table
        self.expected = expected
        self.actual = actual
