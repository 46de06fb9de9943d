"""The connections to Kafka: a producer, an admin client, and the driver's errors translated."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka import errors as driver
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    InvalidRequestError,
    LlamaDeployError,
    PayloadTooLargeError,
    UnavailableError,
)
from llama_deploy.message_queues.broker_connection import BrokerConnection
from llama_deploy.message_queues.kafka.config import KafkaMessageQueueConfig
from llama_deploy.message_queues.kafka.envelope import Envelope
from llama_deploy.message_queues.remembering import remember

logger = logging.getLogger(__name__)

_CLOSE_SECONDS: Final = 5.0
_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,235}")
"""A topic's name, with room for the suffix of its dead letters."""
_TOO_LARGE: Final = (driver.MessageSizeTooLargeError, driver.RecordTooLargeError)
_PERMANENT: Final = (
    driver.AuthenticationFailedError,
    driver.AuthenticationMethodNotSupported,
    driver.ClusterAuthorizationFailedError,
    driver.GroupAuthorizationFailedError,
    driver.IllegalSaslStateError,
    driver.InconsistentGroupProtocolError,
    driver.InvalidConfigurationError,
    driver.InvalidPartitionsError,
    driver.InvalidReplicationFactorError,
    driver.InvalidSessionTimeoutError,
    driver.PolicyViolationError,
    driver.SaslAuthenticationFailed,
    driver.TopicAuthorizationFailedError,
    driver.UnsupportedSaslMechanismError,
)
"""Errors that a retry does not change."""


class KafkaConnection(BrokerConnection):
    """The producer and the admin client of a queue, both opened when they are needed. `close` it."""

    def __init__(self, config: KafkaMessageQueueConfig) -> None:
        self.config = config
        self.address = ",".join(config.servers)
        super().__init__(f"Kafka at {self.address}", retry_seconds=config.retry_seconds)
        self._closed = False
        self._producer: Any = None
        self._admin: Any = None
        self._opening = asyncio.Lock()
        self._creating = asyncio.Lock()
        self._known: dict[str, None] = {}
        self._turns = count(random.randrange(1000))  # noqa: S311 - spreads load

    def options(self, *, wait: float = 0.0) -> dict[str, Any]:
        """Return the arguments of a client.

        Args:
            wait: Seconds for which a request waits at the broker.
        """
        seconds = self.config.timeout + wait
        return self.config.connection_options | {
            "client_id": "llama_deploy",
            "request_timeout_ms": int(seconds * 1000),
        }

    async def open(self) -> None:
        """Connect the producer, unless it is connected.

        Raises:
            UnavailableError: No broker answers.
            ConfigError: It refuses the credentials.
        """
        await self._open_producer()

    async def ping(self) -> None:
        """Ask a broker about the topics that are in use.

        Raises:
            UnavailableError: No broker answers.
            ConfigError: It refuses the credentials.
        """
        producer = await self._open_producer()
        async with self.answering(self.config.timeout):
            has_answered = await producer.client.force_metadata_update()
        if not has_answered:
            raise UnavailableError(f"{self.broker}: no broker answers")

    async def send(
        self, topic: str, body: bytes, envelope: Envelope | None = None, *, among: Sequence[int] = ()
    ) -> int:
        """Write a record and return its partition when all replicas in sync have it.

        Args:
            topic: Created if it does not exist.
            body: The message; empty for a note.
            envelope: What its headers say.
            among: The partitions to choose from. Empty: all.

        Raises:
            PayloadTooLargeError: It is larger than `max_message_bytes`.
            UnavailableError: No broker has confirmed it. One may have it.
            ConfigError: The brokers refuse it: a setting or a permission is wrong.
        """
        await self.create(topic)
        producer = await self._open_producer()
        try:
            # A producer that cannot reach the brokers waits for the metadata of the topic without end.
            async with self.answering(2 * self.config.timeout):
                partitions = among or sorted(await producer.partitions_for(topic))
                partition = partitions[next(self._turns) % len(partitions)]
                headers = envelope.headers() if envelope else []
                await producer.send_and_wait(topic, body, partition=partition, headers=headers)
        except UnavailableError as exc:
            if isinstance(exc.__cause__, driver.UnknownTopicOrPartitionError):
                self._known.pop(topic, None)  # somebody has deleted it
            raise
        return partition

    async def partitions(self, topic: str) -> list[int]:
        """Return the numbers of a topic's partitions.

        Raises:
            UnavailableError: No broker answers.
        """
        producer = await self._open_producer()
        async with self.answering(self.config.timeout):
            return sorted(await producer.partitions_for(topic))

    async def create(self, topic: str, *, expires_after: float | None = None) -> None:
        """Create a topic if it does not exist.

        Args:
            topic: The topic.
            expires_after: Seconds for which it keeps messages, in one partition. None: as the settings say.

        Raises:
            InvalidRequestError: Not a topic's name.
            UnavailableError: No broker answers.
            ConfigError: They refuse it.
        """
        if topic in self._known:
            return
        check_name(topic)
        async with self._creating:
            if topic in self._known:
                return
            new = self._new_topic(topic, expires_after)
            async with self.answering(self.config.timeout):
                if self._admin is None:
                    admin = AIOKafkaAdminClient(**self.options())
                    await self.start(admin, admin.close)
                    self._admin = admin
                answer = await self._admin.create_topics([new])
                for error in answer.topic_errors:
                    kind = driver.for_code(error[1])
                    if kind not in (driver.NoError, driver.TopicAlreadyExistsError):
                        raise kind(f"topic {topic!r}: {error[2]}")
            remember(self._known, topic, None)

    async def close(self) -> None:
        """Close the clients. Idempotent."""
        self._closed = True
        async with self._opening, self._creating:
            producer, admin = self._producer, self._admin
            self._producer = self._admin = None
            for client in (producer and producer.stop, admin and admin.close):
                if client is not None:
                    await self.finish(client)

    async def start(self, client: Any, close: Callable[[], Awaitable[None]]) -> None:
        """Start a client of the driver; close it if that fails.

        Raises:
            UnavailableError: The brokers do not answer.
            ConfigError: They refuse it.
        """
        try:
            async with self.answering(self.config.timeout):
                await client.start()
        except BaseException:
            await self.finish(close)
            raise

    async def finish(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close a client of the driver, whether or not the brokers answer."""
        with suppress(LlamaDeployError):
            async with self.answering(_CLOSE_SECONDS):
                await close()

    @asynccontextmanager
    async def answering(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise the errors of the driver as ours, and one when this takes longer. None: it may take long."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except _TOO_LARGE as exc:
            limit = self.config.max_message_bytes
            raise PayloadTooLargeError(
                f"a message is larger than the {limit} bytes that Kafka takes: {exc}", limit_bytes=limit
            ) from exc
        except _PERMANENT as exc:
            raise ConfigError(f"Kafka at {self.address} refuses what the settings ask for: {exc}") from exc
        except (driver.KafkaError, driver.ConsumerStoppedError, OSError, TimeoutError) as exc:
            text = str(exc) or type(exc).__name__
            raise UnavailableError(f"Kafka at {self.address} does not answer: {text}") from exc

    async def _open_producer(self) -> Any:
        if self._closed:
            raise ClosedError(f"the connections to Kafka at {self.address} are closed; connect another queue")
        if self._producer is None:
            async with self._opening:
                if self._producer is None:
                    producer = AIOKafkaProducer(
                        **self.options(), acks="all", max_request_size=self.config.max_message_bytes
                    )
                    await self.start(producer, producer.stop)
                    self._producer = producer
        return self._producer

    def _new_topic(self, topic: str, expires_after: float | None) -> Any:
        config = self.config
        retention = config.retention if expires_after is None else max(expires_after, 1.0)
        new = NewTopic(
            topic,
            1 if expires_after is not None else config.partitions,
            config.replication_factor or 1,
            topic_configs={
                "retention.ms": str(int(retention * 1000)),
                "max.message.bytes": str(config.max_message_bytes),
            },
        )
        if config.replication_factor is None:
            new.replication_factor = -1  # the brokers' default, which the driver's constructor does not know
        return new


def check_name(name: str) -> None:
    """Check the name of a topic or a group.

    Raises:
        InvalidRequestError: It is empty, too long, or has other characters.
    """
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        raise InvalidRequestError(
            f"{name!r:.300} is not a name for Kafka; use 1 to 235 letters, digits or ._-"
        )
