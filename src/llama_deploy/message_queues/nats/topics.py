"""Topics in the stream of a NATS server: creating their groups and storing their messages."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from nats.js import api
from nats.js import errors as js_errors

from llama_deploy.errors import PayloadTooLargeError, QueueFullError
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, DEFAULT_GROUP
from llama_deploy.message_queues.nats.connection import LiveConnection, NatsConnection
from llama_deploy.message_queues.nats.wire import consumer_name, subject_of
from llama_deploy.message_queues.remembering import remember

logger = logging.getLogger(__name__)

_FULL: Final = frozenset({10023, 10047, 10077})
"""Error codes: insufficient resources, no storage left, a limit of the stream is reached."""
_TOO_LARGE: Final = 10054
"""Error code: the stream has a limit of its own for messages."""


class NatsTopics:
    """The topics of one stream."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._config = connection.config
        self._creating = asyncio.Lock()

    async def ensure(self, live: LiveConnection, topic: str) -> None:
        """Create the group `default` of a topic, which keeps its messages, unless it exists."""
        if topic in live.topics:
            return
        async with self._creating:
            settings = self.group_settings(topic, DEFAULT_GROUP, None)
            try:
                await live.js.consumer_info(self._config.stream, str(settings.name))
            except js_errors.NotFoundError:
                await live.js.add_consumer(self._config.stream, settings)
        remember(live.topics, topic, None)

    def group_settings(self, topic: str, group: str, expires_after: float | None) -> api.ConsumerConfig:
        """Return the settings of the consumer that is a group."""
        name = consumer_name(topic, group)
        return api.ConsumerConfig(
            name=name,
            durable_name=name,
            filter_subject=subject_of(self._config.stream, topic),
            deliver_policy=api.DeliverPolicy.ALL if group == DEFAULT_GROUP else api.DeliverPolicy.NEW,
            ack_wait=self._config.visibility_timeout,
            max_deliver=-1,
            max_ack_pending=-1,
            inactive_threshold=expires_after,
        )

    async def store(self, topic: str, body: bytes, id_: str) -> None:
        """Store a message; a second one of the same id and topic is a duplicate."""
        subject = subject_of(self._config.stream, topic)
        headers = {str(api.Header.MSG_ID.value): f"{subject}:{id_}"}

        async def store(live: LiveConnection) -> None:
            limit = live.client.max_payload - len(str(headers).encode())
            if len(body) > limit:
                raise PayloadTooLargeError(
                    f"message {id_} has {len(body)} bytes, the NATS server takes {limit}; "
                    "send less, or raise max_payload of the server",
                    limit_bytes=limit,
                )
            await self.ensure(live, topic)
            try:
                await live.js.publish(subject, body, headers=headers)
            except js_errors.APIError as exc:
                if exc.err_code in _FULL:
                    raise QueueFullError(
                        f"topic {topic!r} is full ({exc.description}); retry when messages are settled",
                        topic=topic,
                    ) from exc
                if exc.err_code == _TOO_LARGE:
                    raise PayloadTooLargeError(f"message {id_} has {len(body)} bytes: {exc}") from exc
                raise

        await self._connection.call(store)

    async def store_dead_letter(self, topic: str, body: bytes, id_: str) -> None:
        """Store a message among the dead letters of its topic."""
        dead = topic + DEAD_LETTERS_SUFFIX
        try:
            await self.store(dead, body, id_)
        except QueueFullError:
            await self._connection.call(lambda live: self._drop_oldest(live, dead))
            await self.store(dead, body, id_)

    async def _drop_oldest(self, live: LiveConnection, topic: str) -> None:
        """Drop the older half of a topic's messages."""
        subject, keep = subject_of(self._config.stream, topic), self._config.max_messages_per_topic // 2
        await live.js.purge_stream(self._config.stream, subject=subject, keep=max(keep, 1))
