"""A server's decoded JSON as the types that a caller expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from llama_deploy.errors import InternalServerError
from llama_deploy.types.validation import describe_validation_error

T = TypeVar("T")

as_object: Final = TypeAdapter(dict[str, Any]).validate_python
"""Returns decoded JSON as an object."""


def read_answer(value: Any, returns: Callable[[Any], T], *, source: str) -> T:
    """Return a server's decoded JSON as the expected type.

    Args:
        value: The decoded JSON.
        returns: Validates it; raises `pydantic.ValidationError`.
        source: The URL or the path of the request, for the error.

    Raises:
        InternalServerError: The JSON does not match the expected type.
    """
    try:
        return returns(value)
    except ValidationError as exc:
        raise InternalServerError(
            f"the response to {source} has an unexpected form: {describe_validation_error(exc)}; "
            "check that the URL leads to a llama_deploy server of a compatible version"
        ) from exc
