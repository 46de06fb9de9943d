"""Sends settlements in batches. No consumer waits for them: a lost settlement lets its message come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from llama_deploy.concurrency.batching import Batcher
from llama_deploy.errors import LlamaDeployError

logger = logging.getLogger(__name__)

S = TypeVar("S")

_MAX_BATCH: Final = 1024


class SettlementBatcher(Generic[S]):
    """Collects settlements and sends them together; acknowledgements may wait for more to come.

    Args:
        send: Sends a batch and returns for each settlement whether the broker has taken it.
        name: Names the batcher in errors and tasks.
        ack_delay: Seconds that acknowledgements wait for others: no caller waits for them, and each request
            costs both sides.
        delay: The same for all other settlements.
        max_batch: How many settlements are sent together at most.
    """

    def __init__(
        self,
        send: Callable[[Sequence[S]], Awaitable[Sequence[bool]]],
        *,
        name: str,
        ack_delay: float = 0.0,
        delay: float = 0.0,
        max_batch: int = _MAX_BATCH,
    ) -> None:
        self._send = send
        self._acks = Batcher(self._flush, max_batch=max_batch, gather_seconds=ack_delay, name=f"{name}: acks")
        self._others = Batcher(self._flush, max_batch=max_batch, gather_seconds=delay, name=name)
        self._last: dict[Batcher[S, bool], asyncio.Future[bool]] = {}

    def submit(self, settlement: S, *, is_ack: bool = False) -> asyncio.Future[bool]:
        """Send a settlement with the next batch. The future never fails; it says whether it was taken."""
        batcher = self._acks if is_ack else self._others
        try:
            sent = batcher.submit_nowait(settlement)
        except LlamaDeployError as exc:
            logger.warning("a settlement is lost, its message comes back: %s", exc)
            sent = asyncio.get_running_loop().create_future()
            sent.set_result(False)
        else:
            self._last[batcher] = sent
        return sent

    async def wait_sent(self) -> None:
        """Wait until all settlements so far were sent, or are lost."""
        if self._last:
            await asyncio.wait(self._last.values())

    async def close(self) -> None:
        """Send what waits, then take nothing more. Idempotent."""
        await self._others.close()
        await self._acks.close()

    async def _flush(self, batch: Sequence[S]) -> Sequence[bool]:
        try:
            return await self._send(batch)
        except LlamaDeployError as exc:
            logger.warning("%d settlements are lost, their messages come back: %s", len(batch), exc)
            return [False] * len(batch)
