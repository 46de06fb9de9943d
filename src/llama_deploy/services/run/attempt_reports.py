"""What an attempt reports to the control plane: its events as they come, and its outcome once.

An event leaves at once when none is under way; what comes meanwhile leaves together with the next message,
the last ones together with the outcome. So a short task costs one message, and a fast stream few.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.values.payloads import StreamedEvent
from llama_deploy.types.instance_protocol import AttemptEvents, EventPayload
from llama_deploy.types.topics import CONTROL_PLANE

MAX_MESSAGE_CHARACTERS: Final = 512 * 1024
"""Events are gathered into journal writes of about this size; a larger event travels alone."""
MAX_BATCH_CHARACTERS: Final = 128 * 1024
"""The same for messages, which are to stay below `MAX_REPORT_BYTES` with all that is around the events."""
MAX_WAITING: Final = 5_000
"""The most events that are kept; then a step that streams another waits."""
MAX_WAITING_CHARACTERS: Final = 16 * MAX_MESSAGE_CHARACTERS
"""The most that kept events may take."""


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """Whose reports they are."""

    task_id: str
    attempt: int
    token: str


class AttemptReports:
    """Publishes the events of one attempt, in order, each once. `close` it.

    With `keep_published` events are kept until the run's journal has stored them too, so that a step's events
    are durable together with its result, whatever the queue loses.

    Args:
        key: The attempt.
        publish: Hands a message to the queue; returns when it has it, raises when it refuses it for good.
        keep_published: Whether events are kept until `stored` tells of them.
    """

    def __init__(
        self,
        key: AttemptKey,
        publish: Callable[[QueueMessage], Awaitable[None]],
        *,
        keep_published: bool = False,
    ) -> None:
        self._key = key
        self._publish = publish
        self._keep = keep_published
        self._kept: deque[StreamedEvent] = deque()
        self._kept_size = 0
        self._first = 0
        """The place in the attempt of the first event that is kept."""
        self._sent = 0
        self._ending = False
        self._worker: asyncio.Task[None] | None = None
        self._failure: LlamaDeployError | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._turn = asyncio.Lock()
        self.on_crowded: Callable[[], None] | None = None
        """Called when events are kept that should be stored soon."""

    async def add(self, event: StreamedEvent) -> None:
        """Take an event; waits while too many are waiting.

        Raises:
            LlamaDeployError: An earlier event was refused for good, as one that is too large is.
        """
        async with self._turn:  # whoever came first goes on first
            await self._room.wait()
            if self._failure is not None:
                raise self._failure
            self._kept.append(event)
            self._kept_size += event.size
            self._open_or_close()
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._drain(), name=f"events-{self._key.task_id}")

    def not_stored(self) -> tuple[int, list[EventPayload]]:
        """Return how many events are stored, and the others, as many as one journal write may hold."""
        return self._first, self._batch(self._first, MAX_MESSAGE_CHARACTERS)

    @property
    def is_crowded(self) -> bool:
        """Whether so many events are kept that they should be stored soon."""
        return len(self._kept) >= MAX_WAITING // 4 or self._kept_size > MAX_MESSAGE_CHARACTERS

    def stored(self, count: int) -> None:
        """The control plane has stored the first `count` events of the attempt."""
        self._sent = max(self._sent, count)
        self._forget(count)

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
        return self._sent, [event.payload for event in self._unsent()]

    def discard(self) -> int:
        """Forget the events that were not sent, as one of them cannot be; return how many were sent."""
        self._kept.clear()
        self._kept_size = 0
        self._first = self._sent
        return self._sent

    async def close(self) -> None:
        """Stop publishing; events that were not sent are lost. Idempotent."""
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _drain(self) -> None:
        while self._count > self._sent and not (self._ending and self._rest_fits()):
            batch = self._batch(self._sent, MAX_BATCH_CHARACTERS)
            first = self._sent
            message = QueueMessage(
                type=CONTROL_PLANE,
                action=ActionTypes.TASK_STREAM,
                data=AttemptEvents(
                    task_id=self._key.task_id,
                    attempt=self._key.attempt,
                    token=self._key.token,
                    first=first,
                    events=batch,
                ).model_dump(mode="json"),
            )
            try:
                await self._publish(message)
            except LlamaDeployError as exc:
                self._failure = exc
                self._room.set()
                return
            self._sent = max(self._sent, first + len(batch))
            if not self._keep:
                self._forget(self._sent)

    @property
    def _count(self) -> int:
        """How many events the attempt has streamed."""
        return self._first + len(self._kept)

    def _unsent(self) -> Iterator[StreamedEvent]:
        return islice(self._kept, self._sent - self._first, None)

    def _forget(self, count: int) -> None:
        while self._first < count and self._kept:
            self._kept_size -= self._kept.popleft().size
            self._first += 1
        self._open_or_close()

    def _open_or_close(self) -> None:
        if len(self._kept) >= MAX_WAITING or self._kept_size >= MAX_WAITING_CHARACTERS:
            self._room.clear()
        else:
            self._room.set()
        if self._keep and self.is_crowded and self.on_crowded is not None:
            self.on_crowded()

    def _rest_fits(self) -> bool:
        return sum(event.size for event in self._unsent()) <= MAX_BATCH_CHARACTERS

    def _batch(self, start: int, limit: int) -> list[EventPayload]:
        batch: list[EventPayload] = []
        total = 0
        for event in islice(self._kept, start - self._first, None):
            if batch and total + event.size > limit:
                break
            batch.append(event.payload)
            total += event.size
        return batch
