"""Publishing the messages of the outbox."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.control_plane.storage.outgoing import Outgoing
from llama_deploy.errors import ClosedError, InternalServerError, LlamaDeployError, QueueFullError
from llama_deploy.interceptors import DispatchCall, Hooks, surround
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback, is_refused_for_good
from llama_deploy.messages import ActionTypes, QueueMessage

logger = logging.getLogger(__name__)

_MAX_BATCH: Final = 256
MAX_HELD: Final = 4000
"""How many messages for one topic are held in memory. Further ones wait in the outbox."""
MAX_HELD_BYTES: Final = 8 * 1024 * 1024
"""The same, in bytes; the last message may exceed it."""
MAX_ALL_BYTES: Final = 64 * 1024 * 1024
"""How many bytes are held for all topics. When there are more, a topic holds no more than one message."""
_BACKOFF: Final = Backoff(first=0.1, longest=5.0)


@dataclass(slots=True, eq=False)
class _Waiting:
    """The messages for one topic that wait."""

    held: deque[QueueMessage] = field(default_factory=deque)
    left: int = 0
    """How many more were left in the outbox."""
    size: int = 0
    """How many bytes the messages have that are not published."""
    type: str = ""
    """The type of the messages, for a topic of a service its name. Empty: not known yet."""

    @property
    def is_full(self) -> bool:
        """Whether further messages are left in the outbox: they would overtake others, or have no room."""
        return self.left > 0 or len(self.held) >= MAX_HELD or self.size >= MAX_HELD_BYTES


@dataclass(slots=True, eq=False)
class OutboxRelay:
    """Publishes stored messages, in order for each topic, until the queue has them.

    The topics do not wait for each other. For a topic that accepts nothing, a bounded number of messages is
    held in memory. The others are left in the outbox; `next_drained` tells when to read them.

    Any error that is not the fault of the message itself is retried, such as rejected credentials. Only
    `ClosedError` is not: `run` raises it. Create it in the running loop.
    """

    queue: AbstractMessageQueue
    on_sent: Callable[[Sequence[str]], None]
    """Called with the ids of messages that the queue has accepted, or has rejected for good."""
    on_refused: Callable[[QueueMessage, LlamaDeployError], Awaitable[None]]
    """Called with a message that the queue rejects for good, and the error."""
    publish_callback: PublishCallback | None = None
    """Called with each message that the queue has accepted."""
    on_dispatch: Hooks[DispatchCall] = ()
    """The hooks around the publication of an attempt."""
    _waiting: dict[str, _Waiting] = field(default_factory=dict, init=False)
    _workers: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    _failure: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future(), init=False
    )
    _pending: dict[str, int] = field(default_factory=dict, init=False)
    """The ids of the messages that wait or are being published, each with its size."""
    _held_bytes: int = field(default=0, init=False)
    """How large they are together."""
    _drained: asyncio.Queue[str] = field(default_factory=asyncio.Queue, init=False)
    """Topics whose held messages are published, while others were left in the outbox."""
    _is_closed: bool = field(default=False, init=False)
    _failing: dict[str, LlamaDeployError] = field(default_factory=dict, init=False)
    """The topics whose messages are being retried, with the first error of each."""
    _moved_at: dict[str, float] = field(default_factory=dict, init=False)
    """When the publication that is under way for a topic began, by the loop's clock."""

    @property
    def backlog(self) -> int:
        """How many messages are held in memory."""
        return len(self._pending)

    @property
    def failing(self) -> int:
        """For how many topics messages are being retried."""
        return len(self._failing)

    def count(self, topic: str) -> int:
        """Return how many messages for a topic wait, without those that are being published now."""
        waiting = self._waiting.get(topic)
        return 0 if waiting is None else len(waiting.held) + waiting.left

    def count_of_type(self, message_type: str) -> int:
        """Return how many messages of a type wait, for any topic, without those being published now."""
        return sum(self.count(topic) for topic, each in self._waiting.items() if each.type == message_type)

    def full_topics(self) -> list[str]:
        """Return the topics of which no further messages are held: there is no use in reading them."""
        return [topic for topic, waiting in self._waiting.items() if self._is_full(waiting)]

    def _is_full(self, waiting: _Waiting) -> bool:
        return waiting.is_full or (self._held_bytes >= MAX_ALL_BYTES and waiting.size > 0)

    def send(self, outgoing: Sequence[Outgoing]) -> None:
        """Publish messages that are stored in the outbox; one that waits already is left out.

        After `close` this does nothing: the messages stay in the outbox.
        """
        for item in outgoing:
            if self._is_closed or item.message.id_ in self._pending:
                continue
            waiting = self._waiting.setdefault(item.topic, _Waiting())
            if self._is_full(waiting):
                waiting.left += 1
            else:
                self._hold(waiting, item)

    def leave(self, topics: Iterable[str]) -> None:
        """Note that messages for topics may have been left in the outbox, because the topics were full."""
        for topic in topics:
            waiting = self._waiting.setdefault(topic, _Waiting())
            waiting.left += 1
            if waiting.left == 1 and topic not in self._workers:
                self._drained.put_nowait(topic)  # it has been published meanwhile

    async def next_drained(self) -> tuple[str, int]:
        """Wait until the messages that were held for a topic are published, while others were left.

        Returns:
            The topic, and how many of its messages were left. Read them and call `resume`.
        """
        topic = await self._drained.get()
        return topic, self._waiting[topic].left

    def resume(self, topic: str, messages: Iterable[Outgoing], *, read: int) -> None:
        """Publish the oldest of the messages that were left for a topic.

        Args:
            topic: The topic, as `next_drained` has returned it.
            messages: The messages. They may be more than are held otherwise.
            read: How many of those that were left are known to be among the messages that were read.
        """
        if self._is_closed:
            return
        waiting = self._waiting[topic]
        waiting.left -= read
        for item in messages:
            if item.message.id_ not in self._pending:
                self._hold(waiting, item)
        if topic not in self._workers:
            self._finish(topic)

    def _hold(self, waiting: _Waiting, item: Outgoing) -> None:
        topic, message = item.topic, item.message
        self._pending[message.id_] = item.size
        self._held_bytes += item.size
        waiting.size += item.size
        waiting.type = message.type
        waiting.held.append(message)
        if topic not in self._workers:
            worker = asyncio.create_task(self._relay(topic, waiting), name=f"outbox-{topic}")
            worker.add_done_callback(self._on_worker_done)
            self._workers[topic] = worker

    def _finish(self, topic: str) -> None:
        """All messages that were held for a topic are published."""
        if self._waiting[topic].left:
            self._drained.put_nowait(topic)
        else:
            del self._waiting[topic]

    def is_waiting(self, topic: str) -> bool:
        """Whether messages for a topic wait."""
        return topic in self._waiting

    def problem(self, *, stalled_after: float) -> str | None:
        """Return why messages do not leave, None if they do.

        A topic that is full is no problem here: other topics, and thus other services, go on.

        Args:
            stalled_after: Seconds after which a publication counts as stuck that has not failed either.
        """
        for topic, error in self._failing.items():
            if not isinstance(error, QueueFullError):
                return f"topic {topic} does not accept messages, {self.count(topic)} wait: {error}"
        now = asyncio.get_running_loop().time()
        for topic, since in self._moved_at.items():
            if now - since > stalled_after:
                return f"the queue has not answered a publication to topic {topic} for {now - since:.0f} s"
        return None

    async def run(self) -> None:
        """Wait until a worker fails with an unexpected error, and raise it. Cancel it to stop waiting."""
        await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Stop. Messages that were not published stay in the outbox. Idempotent."""
        self._is_closed = True
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self._failure.cancel()

    def _on_worker_done(self, worker: asyncio.Task[None]) -> None:
        if not worker.cancelled() and (exc := worker.exception()) and not self._failure.done():
            self._failure.set_exception(exc)

    async def _relay(self, topic: str, waiting: _Waiting) -> None:
        def on_start(error: LlamaDeployError) -> None:
            self._failing[topic] = error
            logger.warning(
                "topic %s does not accept messages, %d wait; retrying: %s",
                topic,
                len(waiting.held),
                error,
                extra={"action": "queue_lost"},
            )

        def on_end() -> None:
            self._failing.pop(topic, None)
            logger.info("topic %s accepts messages again", topic, extra={"action": "queue_back"})

        outage = Outage(on_start=on_start, on_end=on_end)
        publish = partial(self._publish_batch, topic, waiting)
        while waiting.held:
            await retry(publish, backoff=_BACKOFF, retry_on=_is_transient, outage=outage)
        del self._workers[topic]
        self._finish(topic)

    async def _publish_batch(self, topic: str, waiting: _Waiting) -> None:
        """Publish the first messages of a topic; put those that fail back and raise their error."""
        held = waiting.held
        batch = [held.popleft() for _ in range(min(len(held), _MAX_BATCH))]
        self._moved_at[topic] = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(
            *(self._publish(message, topic) for message in batch),
            return_exceptions=True,
        )
        self._moved_at.pop(topic, None)
        unsent, error = await self._settle(waiting, batch, outcomes)
        held.extendleft(reversed(unsent))
        if isinstance(error, LlamaDeployError):
            raise error
        if error is not None:
            raise InternalServerError(f"publishing failed with {type(error).__name__}: {error}") from error

    def _publish(self, message: QueueMessage, topic: str) -> Awaitable[None]:
        if self.on_dispatch and message.action is ActionTypes.NEW_TASK:
            return self._dispatch(message, topic)
        return self.queue.publish(message, topic, self.publish_callback)

    def _dispatch(self, message: QueueMessage, topic: str) -> Awaitable[None]:
        publish = partial(self.queue.publish, message, topic, self.publish_callback)
        return surround(self.on_dispatch, DispatchCall(topic, message), publish)

    async def _settle(
        self,
        waiting: _Waiting,
        batch: Sequence[QueueMessage],
        outcomes: Sequence[BaseException | None],
    ) -> tuple[list[QueueMessage], BaseException | None]:
        """Return the messages to publish again, and the error of the last of them."""
        done: list[str] = []
        unsent: list[QueueMessage] = []
        last: BaseException | None = None
        for message, outcome in zip(batch, outcomes, strict=True):
            error = await self._reject(message, outcome) if is_refused_for_good(outcome) else outcome
            if error is None:
                done.append(message.id_)
            else:
                unsent.append(message)
                last = error
        size = sum(self._pending.pop(each) for each in done)
        self._held_bytes -= size
        waiting.size -= size
        self.on_sent(done)
        return unsent, last

    async def _reject(self, message: QueueMessage, error: LlamaDeployError) -> LlamaDeployError | None:
        """Report that a message is rejected for good; return the error if that has to be repeated."""
        try:
            await self.on_refused(message, error)
        except LlamaDeployError as exc:
            return exc
        return None


def _is_transient(error: LlamaDeployError) -> bool:
    return not isinstance(error, ClosedError)
