"""The state of a run as its journal stores it, and how a new one leads back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from llama_deploy.types.run_points import NO_MARK, mark_of


@dataclass(frozen=True, slots=True)
class StoredState:
    """The state that was written last. It is not kept twice in memory, although it is stored sealed."""

    text: str = ""
    """The state. Empty: there is none."""
    mark: str = NO_MARK
    """Identifies what is stored. `NO_MARK`: nothing is, although the run may have begun with a state."""
    _head: str = ""
    """What is stored before the text."""
    _tail: str = ""
    """What is stored after it."""

    @classmethod
    def of(cls, text: str, sealed: str | None) -> Self:
        """Return a state.

        Args:
            text: The state.
            sealed: How it is stored. None: it is not stored.
        """
        if sealed is None:
            return cls(text)
        signature, _, body = sealed.partition("\n")
        return cls(text, mark_of(sealed), f"{signature}\n", body[len(text) :])

    @property
    def sealed(self) -> str | None:
        """How it is stored. None: it is not stored."""
        return None if self.mark == NO_MARK else f"{self._head}{self.text}{self._tail}"


@dataclass(frozen=True, slots=True)
class WrittenState:
    """A state that is to be written."""

    sealed: str
    mark: str
    """Identifies it."""
    change: str | None
    """See `JournalWrite.state_change`."""
