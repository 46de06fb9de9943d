"""What an attempt reports to the control plane: its events as they come, and its outcome once.

An event leaves at once when none is under way; what comes meanwhile leaves together with the next message,
the last ones together with the outcome. So a short task costs one message, and a fast stream few.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.payloads import StreamedEvent
from llama_deploy.types.attempts import AttemptEvents, EventPayload
from llama_deploy.types.topics import CONTROL_PLANE

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARACTERS: Final = 512 * 1024
"""Events are gathered into messages of about this size; a larger event travels alone."""
MAX_WAITING: Final = 5_000
"""The most events that wait to be published; then reading the run's stream waits."""
_FIRST_RETRY: Final = 0.1
_LAST_RETRY: Final = 5.0


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """Whose reports they are."""

    task_id: str
    attempt: int
    token: str


class AttemptReports:
    """Publishes the events of one attempt, in order, each once. `close` it.

    Args:
        key: The attempt.
        publish: Hands a message to the queue.
    """

    def __init__(self, key: AttemptKey, publish: Callable[[QueueMessage], Awaitable[None]]) -> None:
        self._key = key
        self._publish = publish
        self._waiting: deque[StreamedEvent] = deque()
        self._sent = 0
        self._ending = False
        self._worker: asyncio.Task[None] | None = None
        self._failure: LlamaDeployError | None = None
        self._room = asyncio.Event()
        self._room.set()

    async def add(self, event: StreamedEvent) -> None:
        """Take an event; waits while too many are waiting.

        Raises:
            LlamaDeployError: An earlier event was refused for good, as one that is too large is.
        """
        await self._room.wait()
        if self._failure is not None:
            raise self._failure
        self._waiting.append(event)
        if len(self._waiting) >= MAX_WAITING:
            self._room.clear()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain(), name=f"events-{self._key.task_id}")

    async def settle(self) -> tuple[int, list[EventPayload]]:
        """Wait until nothing is under way.

        Returns:
            How many events were sent, and the others, which are to travel with the outcome.

        Raises:
            LlamaDeployError: An event was refused for good.
        """
        self._ending = True
        if self._worker is not None:
            await asyncio.wait([self._worker])
        if self._failure is not None:
            raise self._failure
        return self._sent, [event.payload for event in self._waiting]

    def discard(self) -> int:
        """Forget the events that were not sent, as one of them cannot be; return how many were sent."""
        self._waiting.clear()
        return self._sent

    async def close(self) -> None:
        """Stop publishing; events that were not sent are lost. Idempotent."""
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _drain(self) -> None:
        while self._waiting and not (self._ending and self._rest_fits()):
            batch = self._next_batch()
            message = QueueMessage(
                type=CONTROL_PLANE,
                action=ActionTypes.TASK_STREAM,
                data=AttemptEvents(
                    task_id=self._key.task_id,
                    attempt=self._key.attempt,
                    token=self._key.token,
                    first=self._sent,
                    events=batch,
                ).model_dump(mode="json"),
            )
            try:
                await publish_until_accepted(self._publish, message)
            except LlamaDeployError as exc:
                self._failure = exc
                self._room.set()
                return
            for _ in batch:
                self._waiting.popleft()
            self._sent += len(batch)
            self._room.set()

    def _rest_fits(self) -> bool:
        return sum(event.size for event in self._waiting) <= MAX_MESSAGE_CHARACTERS

    def _next_batch(self) -> list[EventPayload]:
        batch: list[EventPayload] = []
        total = 0
        for event in self._waiting:
            if batch and total + event.size > MAX_MESSAGE_CHARACTERS:
                break
            batch.append(event.payload)
            total += event.size
        return batch


async def publish_until_accepted(
    publish: Callable[[QueueMessage], Awaitable[None]], message: QueueMessage
) -> None:
    """Publish a message, again and again while the queue is away or full.

    Raises:
        LlamaDeployError: The queue refuses the message for good.
    """
    delay = _FIRST_RETRY
    while True:
        try:
            await publish(message)
        except LlamaDeployError as exc:
            if not exc.retriable:
                raise
            logger.warning(
                "the queue did not take message %s: %s; trying again in %.1f s",
                message.id_,
                exc,
                delay,
                extra={"action": "publish_retry", "message_id": message.id_},
            )
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY)
        else:
            return
