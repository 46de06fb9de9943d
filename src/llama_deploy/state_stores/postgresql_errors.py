"""Translation of the errors of PostgreSQL and its driver into the errors of this package."""

from __future__ import annotations

import ssl
from typing import Final, NoReturn

import asyncpg
from sqlalchemy import exc as sa_exc

from llama_deploy.errors import ConfigError, ConflictError, SerializationError, UnavailableError
from llama_deploy.web.tls_reasons import tls_reason

DRIVER_ERRORS: Final = (
    sa_exc.DBAPIError,
    sa_exc.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
)

# "PostgreSQL Error Codes" in its documentation.
_UNIQUE_VIOLATION: Final = "23505"
_READ_ONLY: Final = "25006"
_CONCURRENCY_ERRORS: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "0A000",  # a statement that was prepared before the schema was changed
    }
)
_BAD_DATA_CLASS: Final = "22"
_BUG_CLASS: Final = "42"
_WRONG_ADDRESS: Final = frozenset({"28000", "28P01", "3D000"})  # role, password, database
_MISSING_RIGHT: Final = frozenset({"42501", "3F000"})  # a right, and a schema to use


def is_caused_by_others(exc: BaseException) -> bool:
    """Whether a transaction failed because of concurrent ones, so that it may succeed when repeated."""
    return _sqlstate(exc) in _CONCURRENCY_ERRORS


def is_read_only(exc: BaseException) -> bool:
    """Whether the server rejects writes, as a former primary does after a failover."""
    return _sqlstate(exc) == _READ_ONLY


def text_of(exc: BaseException) -> str:
    """Return the message of the database in one line, without the statement and its parameters."""
    cause = _cause(exc)
    if isinstance(cause, ssl.SSLError):
        return tls_reason(cause, ca="sslrootcert in the address")
    return " ".join(str(cause).split()) or type(cause).__name__


def raise_translated(exc: BaseException, name: str) -> NoReturn:
    """Raise the driver's error as one of ours. An error that only a bug of ours causes stays as it is.

    Args:
        exc: One of `DRIVER_ERRORS`.
        name: The address of the database, for the message.
    """
    code, text = _sqlstate(exc), text_of(exc)
    if code == _UNIQUE_VIOLATION:
        raise ConflictError(f"a row with this key exists already in the state store {name}: {text}") from exc
    if code.startswith(_BAD_DATA_CLASS) or _is_rejected_value(_cause(exc)):
        raise SerializationError(f"PostgreSQL cannot store this value: {text}") from exc
    if code.startswith(_BUG_CLASS):
        raise exc
    raise UnavailableError(f"the state store {name} does not answer: {text}") from exc


def raise_translated_of_opening(exc: BaseException, name: str, *, remedy: str) -> NoReturn:
    """Like `raise_translated`, but the cause may be an invalid setting.

    Args:
        exc: One of `DRIVER_ERRORS`.
        name: The address of the database, for the message.
        remedy: What to do if the role lacks the right.
    """
    code = _sqlstate(exc)
    text = f"the state store {name} cannot be used: {text_of(exc)}"
    if code in _MISSING_RIGHT:
        raise ConfigError(f"{text}; {remedy}") from exc
    # Nothing is stored yet: a value that the driver rejects is part of the address, or a certificate.
    if code in _WRONG_ADDRESS or isinstance(_cause(exc), ValueError):
        raise ConfigError(text) from exc
    raise_translated(exc, name)


def _cause(exc: BaseException) -> BaseException:
    """Return the error of the driver under those of SQLAlchemy."""
    cause: BaseException | None = exc.orig if isinstance(exc, sa_exc.DBAPIError) else exc
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    return cause or exc


def _sqlstate(exc: BaseException) -> str:
    return getattr(_cause(exc), "sqlstate", None) or ""


def _is_rejected_value(cause: BaseException) -> bool:
    """Whether the driver rejects a value to be stored, not a setting or the server's certificate."""
    # TLS errors are OSError and ValueError at once.
    return isinstance(cause, ValueError) and not isinstance(
        cause, OSError | asyncpg.exceptions.ClientConfigurationError
    )
