"""Calls that are made again while they fail, which is told of once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llama_deploy.backoff import Backoff
from llama_deploy.errors import LlamaDeployError

T = TypeVar("T")


class Retrying:
    """Makes calls again, with growing pauses, that fail for a while.

    One for all calls to one place, so that its trouble is told of once, however many meet it.

    Args:
        backoff: The pauses.
        on_failure: Told each error, and whether it is the first since all was well.
        on_end: Called when the last of the calls that had failed has succeeded.
    """

    def __init__(
        self,
        backoff: Backoff,
        *,
        on_failure: Callable[[LlamaDeployError, bool], None],
        on_end: Callable[[], None],
    ) -> None:
        self._backoff = backoff
        self._on_failure = on_failure
        self._on_end = on_end
        self._failing = 0
        """How many calls have failed and are being made again."""

    async def run(self, call: Callable[[], Awaitable[T]], *, passes: Callable[[LlamaDeployError], bool]) -> T:
        """Return what `call` returns in the end.

        Args:
            call: The call.
            passes: Whether an error may pass; another one is raised.

        Raises:
            LlamaDeployError: What does not pass.
        """
        failures = 0
        try:
            while True:
                try:
                    result = await call()
                    break
                except LlamaDeployError as exc:
                    if not passes(exc):
                        raise
                    failures += 1
                    self._failing += failures == 1
                    self._on_failure(exc, failures == self._failing == 1)
                await asyncio.sleep(self._backoff.delay(failures))
        finally:
            self._failing -= failures > 0
        if failures and not self._failing:
            self._on_end()
        return result
