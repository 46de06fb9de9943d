"""What a run says of its progress, sent seldom enough that it may say it as often as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.types.task_lists import MAX_PROGRESS_CHARACTERS

_PAUSE: Final = 0.25
"""Seconds between two messages that only carry a text."""


@dataclass(slots=True, eq=False)
class ProgressText:
    """The last text that was not sent yet. `close` it. Create it in the loop of the run."""

    send: Callable[[], None]
    """Called in the loop when a text is due."""
    text: str | None = field(default=None, init=False)
    """The text. None: there is no new one."""
    is_due: bool = field(default=False, init=False)
    """Whether it is to be sent now, even if nothing else is."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop, init=False)
    _sent_at: float = field(default=0.0, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _is_closed: bool = field(default=False, init=False)

    def tell(self, text: str) -> None:
        """Note a text, the beginning of a long one. It replaces one that was not sent yet. Thread-safe."""
        with suppress(RuntimeError):  # the loop is closed, and the run has ended
            self._loop.call_soon_threadsafe(self._note, text[:MAX_PROGRESS_CHARACTERS])

    def take(self) -> str | None:
        """Return the text, which is about to be sent."""
        text, self.text, self.is_due = self.text, None, False
        if text is not None:
            self._sent_at = self._loop.time()
        return text

    def close(self) -> None:
        """Send nothing any more; the text is kept. Idempotent."""
        self._is_closed = True
        self.send = _nothing  # what sends holds this, and the two would be a cycle
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, text: str) -> None:
        self.text = text
        if not self._is_closed and self._timer is None:
            delay = max(0.0, self._sent_at + _PAUSE - self._loop.time())
            self._timer = self._loop.call_later(delay, self._become_due)

    def _become_due(self) -> None:
        self._timer = None
        if self.text is not None:
            self.is_due = True
            self.send()


def _nothing() -> None:
    """Send nothing."""
