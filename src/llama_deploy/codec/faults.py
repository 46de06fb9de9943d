"""Why a value cannot be encoded or decoded, and where it is.

The path is collected while the stack unwinds, so it costs nothing in the normal case.
"""

from __future__ import annotations

from typing import Final

from llama_deploy.errors import SerializationError
from llama_deploy.workflow_library import UNDECLARED

_SHORT: Final = 60
_LARGE: Final = 10**_SHORT


class Fault(Exception):  # noqa: N818 - it never leaves the codec, which turns it into a SerializationError
    """A value that cannot be encoded or decoded. `reason` follows the name of the place: "is a ..."."""

    def __init__(self, reason: str, *, cls: type | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self._holds = None if cls is None else cls.__name__
        self._trail: list[tuple[object, str]] = []

    def within(self, container: object, step: str) -> None:
        """Note that the place is inside `container`, and the step that leads there."""
        self._trail.append((container, step))

    def as_error(self, path: str) -> SerializationError:
        """Return the public error for a value at `path`."""
        place = path
        seen: dict[int, str] = {}
        for container, step in reversed(self._trail):
            if (first := seen.get(id(container))) is not None:
                return SerializationError(
                    f"{place} is the same object as {first}, so the value contains itself; keep a reference, "
                    "such as an id, in its place, or exclude the field",
                    path=place,
                )
            seen[id(container)] = place
            place += "" if step == f".{UNDECLARED}" else step
        return SerializationError(f"{place} {self.reason}", path=place, holds=self._holds)


def step_to(key: object) -> str:
    """Return the step from a mapping to the value under `key`: `.name`, or `['another key']`."""
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    # The text of a user's class may be long or fail, and so may that of a long integer.
    plain = type(key) in (str, float, bool) or (type(key) is int and -_LARGE < key < _LARGE)
    text = ascii(key) if plain else type(key).__name__
    return f"[{text if len(text) <= _SHORT else text[:_SHORT] + '...'}]"
