"""Whether a run holds a value that cannot be written. It then continues in memory only, and is volatile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llama_deploy.errors import SerializationError
from llama_deploy.services.values.unwritable import in_words


@dataclass(slots=True, eq=False)
class _FirstChange:
    """Keeps the first of any number of changes."""

    text: str | None = None

    def note(self, change: str) -> None:
        self.text = self.text or change


@dataclass(slots=True, eq=False)
class Volatility:
    """Knows whether a run is volatile and why, and whether it may become so."""

    on_volatile: Callable[[str], None] | None = None
    """Called once, with the reason, when the run has become volatile. None: it may not become so."""
    reason: str | None = field(default=None, init=False)
    """Which value cannot be written. None: the run is not volatile."""
    _change: _FirstChange = field(default_factory=_FirstChange, init=False)
    """What a step has changed that cannot be written. Timers may keep it in memory for a while."""

    def __bool__(self) -> bool:
        """Return whether the run is volatile."""
        return self.reason is not None

    @property
    def on_change(self) -> Callable[[str], None] | None:
        """Notes, in any thread, that a step has changed something which cannot be written, in words."""
        return None if self.on_volatile is None else self._change.note

    @property
    def due(self) -> str | None:
        """Why the run must become volatile now. None: it need not, or is already."""
        return None if self else self._change.text

    def reason_for(self, error: SerializationError) -> str:
        """Return the reason that an error gives.

        Raises:
            SerializationError: The run may not become volatile.
        """
        if self.on_volatile is None:
            raise error
        return in_words(error)

    def begin(self, reason: str) -> None:
        """The run is volatile from now on."""
        self.reason = reason
        if self.on_volatile is not None:
            self.on_volatile(reason)
