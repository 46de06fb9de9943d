"""Why a value cannot be encoded or decoded, and where it is.

The path is collected while the stack unwinds, so it costs nothing in the normal case.
"""

from __future__ import annotations

from llama_deploy.errors import SerializationError


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
            place += step
        return SerializationError(f"{place} {self.reason}", path=place, holds=self._holds)
