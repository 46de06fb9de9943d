"""Exceptions as values, and what replaces one whose class the reader does not know."""

from __future__ import annotations

import builtins
from typing import Final

from llama_deploy.codec.texts import text_of

BUILTIN_ERRORS: Final[dict[str, type[BaseException]]] = {
    name: cls
    for name, cls in vars(builtins).items()
    if isinstance(cls, type) and issubclass(cls, BaseException) and cls.__name__ == name
}
"""The builtin exceptions by name; every reader knows them."""


class DescribedError(Exception):
    """Replaces an exception of which only a description was stored. It has the same text.

    Attributes:
        type_name: Qualified name of the exception's class, such as `package.QuotaError`.
        message: Its text.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return self.message


def describe(error: BaseException) -> tuple[str, str]:
    """Return the qualified name of an exception's class, and its text."""
    if isinstance(error, DescribedError):
        return error.type_name, error.message
    cls = type(error)
    return f"{cls.__module__}.{cls.__qualname__}", text_of(error)


def builtin_arguments(error: BaseException) -> list[object] | None:
    """Return the arguments from which a builtin exception can be rebuilt. None: it cannot."""
    cls = type(error)
    if BUILTIN_ERRORS.get(cls.__name__) is not cls:
        return None
    arguments = arguments_of(error)
    try:
        same = describe(build_builtin(cls.__name__, arguments)) == describe(error)
    except (TypeError, ValueError):
        return None
    return arguments if same else None


def arguments_of(error: BaseException) -> list[object]:
    """Return the arguments with which an exception was built, as far as it keeps them."""
    if isinstance(error, OSError):
        # It keeps file names outside of `args`; only its pickle form has all arguments.
        reduced = OSError.__reduce__(error)
        if isinstance(reduced, tuple) and isinstance(reduced[1], tuple):
            return list(reduced[1])
    return list(error.args)


def build_builtin(name: str, arguments: list[object]) -> BaseException:
    """Build a builtin exception.

    Raises:
        ValueError: There is no exception with this name.
        TypeError: The arguments are not valid.
    """
    cls = BUILTIN_ERRORS.get(name)
    if cls is None:
        raise ValueError(f"there is no builtin exception {name!r}")
    return cls(*arguments)
