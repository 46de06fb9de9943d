"""Asks Amazon SQS for the messages of one group."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.errors import TopicNotFoundError, UnavailableError
from llama_deploy.message_queues.aws.connection import MAX_ENTRIES, SqsConnection
from llama_deploy.message_queues.aws.topics import SqsTopics
from llama_deploy.message_queues.holding_subscription import ReceivedMessage

_EMPTY_BACKOFF: Final = Backoff(first=0.1, longest=5.0)
_SOON_SECONDS: Final = 0.5
"""A request that was to wait and ends without messages so soon is followed by a pause."""
_MAX_AT_ONCE: Final = 10 * MAX_ENTRIES
"""How many messages one `receive` brings, by requests of ten."""
_RECEIVE_COUNT: Final = "ApproximateReceiveCount"


class SqsReader:
    """Reads the queue of one group, and keeps it from expiring.

    Args:
        connection: The connections to the service.
        topics: The queues of all topics.
        topic: The topic.
        group: The group.
        lifetime: Seconds without a reader after which the queue is dropped. None: never.
    """

    def __init__(
        self,
        connection: SqsConnection,
        topics: SqsTopics,
        *,
        topic: str,
        group: str,
        lifetime: float | None,
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._topic = topic
        self._group = group
        self._lifetime = lifetime
        self._renew_at = 0.0
        """When to put off the expiry of the queue."""
        self._empty = 0
        """How many requests in a row have brought nothing, and ended too soon."""
        self._has_read = False
        """Whether the service has ever let it read; if not, its role lacks a permission."""

    async def url(self) -> str:
        """Return the URL of the queue."""
        return await self._topics.url(self._topic, self._group)

    async def join(self) -> None:
        """Create topic and group where they do not exist."""
        with self._missing_is_transient():
            await self._topics.join(self._topic, self._group)
            await self._renew()

    async def fetch(self, max_messages: int) -> list[ReceivedMessage]:
        """Wait for messages, at most 20 seconds; retry while the service does not answer.

        Raises:
            ConfigError: The service has never let it read, and refuses to.
        """
        return await self._connection.retry_forever(
            partial(self._fetch_once, max_messages), was_granted=lambda: self._has_read
        )

    async def _fetch_once(self, max_messages: int) -> list[ReceivedMessage]:
        loop = asyncio.get_running_loop()
        with self._missing_is_transient():
            await self._renew()
            asked = loop.time()
            ask = partial(
                self._connection.receive,
                QueueUrl=await self.url(),
                VisibilityTimeout=self._connection.config.visibility_timeout,
                MessageSystemAttributeNames=[_RECEIVE_COUNT],
            )
            messages = await ask(wait=True, MaxNumberOfMessages=min(max_messages, MAX_ENTRIES))
            self._has_read = True
            received = _received(messages, since=loop.time())
            if len(messages) == MAX_ENTRIES:
                more = await _receive_more(ask, min(max_messages, _MAX_AT_ONCE) - MAX_ENTRIES)
                received += _received(more, since=received[0].since)
        if received or loop.time() - asked > _SOON_SECONDS:
            self._empty = 0
        else:
            self._empty += 1
            await asyncio.sleep(_EMPTY_BACKOFF.delay(self._empty))
        return received

    @contextmanager
    def _missing_is_transient(self) -> Iterator[None]:
        """Find or create the queue again when it does not exist.

        It has expired, was deleted, or is so new that not every server knows it.
        """
        try:
            yield
        except TopicNotFoundError as exc:
            self._topics.forget(self._topic, self._group)
            self._renew_at = 0.0
            raise UnavailableError(str(exc)) from exc

    async def _renew(self) -> None:
        """Put off the expiry of a queue that expires without a reader."""
        now = asyncio.get_running_loop().time()
        if self._lifetime is not None and now >= self._renew_at:
            await self._topics.keep(self._topic, self._group, self._lifetime)
            self._renew_at = now + self._lifetime / 3


def _received(messages: Sequence[dict[str, Any]], *, since: float) -> list[ReceivedMessage]:
    return [
        ReceivedMessage(
            body=message["Body"].encode(errors="replace"),
            receipt=message["ReceiptHandle"],
            attempt=int(message["Attributes"][_RECEIVE_COUNT]),
            since=since,
        )
        for message in messages
    ]


async def _receive_more(
    ask: Callable[..., Awaitable[list[dict[str, Any]]]], limit: int
) -> list[dict[str, Any]]:
    """Receive what is there beyond one request, with concurrent requests."""
    sizes = [min(MAX_ENTRIES, limit - taken) for taken in range(0, limit, MAX_ENTRIES)]
    answers = await asyncio.gather(
        *(ask(wait=False, MaxNumberOfMessages=size) for size in sizes), return_exceptions=True
    )
    # The next request that waits reports the error of one that failed.
    return [message for answer in answers if isinstance(answer, list) for message in answer]
