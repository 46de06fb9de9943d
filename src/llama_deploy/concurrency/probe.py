"""A check that many may ask for: it runs once at a time, not too often, and keeps nobody waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.errors import LlamaDeployError
from llama_deploy.health import PASSED, Check, failed

logger = logging.getLogger(__name__)

MAX_AGE_SECONDS: Final = 1.0
"""For how long an outcome is given again."""
PATIENCE_SECONDS: Final = 3.0
"""How long a check may take before it counts as failed."""


@dataclass(slots=True, eq=False)
class Probe:
    """Runs one check. `close` it."""

    name: str
    """What is checked, for the log."""
    check: Callable[[], Awaitable[None]]
    """Raises `LlamaDeployError` with the reason if something is wrong."""
    patience: float = PATIENCE_SECONDS
    _running: asyncio.Task[Check] | None = field(default=None, init=False)
    _begun_at: float = field(default=0.0, init=False)
    _last: Check | None = field(default=None, init=False)
    _last_at: float = field(default=0.0, init=False)

    async def outcome(self) -> Check:
        """Return the outcome of the check, at most `MAX_AGE_SECONDS` old, within `patience`.

        A check that has not answered by then goes on; until it has ended it counts as failed, and no other
        one is begun.
        """
        now = asyncio.get_running_loop().time()
        if self._running is None:
            if self._last is not None and now - self._last_at < MAX_AGE_SECONDS:
                return self._last
            self._running = asyncio.create_task(self._run(), name=f"check of {self.name}")
            self._begun_at = now
        running = self._running
        done, _ = await asyncio.wait({running}, timeout=max(0.0, self._begun_at + self.patience - now))
        if done and not running.cancelled():
            return running.result()
        seconds = asyncio.get_running_loop().time() - self._begun_at
        return failed(f"it has not answered for {seconds:.0f} s")

    async def close(self) -> None:
        """End the check that runs. Idempotent."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> Check:
        try:
            await self.check()
        except LlamaDeployError as exc:
            outcome = failed(str(exc))
        except Exception as exc:
            logger.exception("the check of %s has failed", self.name, extra={"action": "check_failed"})
            outcome = failed(f"{type(exc).__name__} in the check; see the log of the process")
        else:
            outcome = PASSED
        finally:
            self._running = None
        self._last, self._last_at = outcome, asyncio.get_running_loop().time()
        return outcome
