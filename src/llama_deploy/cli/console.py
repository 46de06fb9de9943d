"""The console for readable output; importing it takes a while."""

from __future__ import annotations

from rich.console import Console


class OutputConsole(Console):
    """A console without a width, whose lines can be copied."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Leave the error to `Commands`: services have to end before the process does."""
        raise  # noqa: PLE0704 - called while the error is handled
