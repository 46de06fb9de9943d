"""A member of a consumer group: what of aiokafka's consumer a subscription needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition

from llama_deploy.message_queues.base import DEFAULT_GROUP
from llama_deploy.message_queues.kafka.backlog import Backlog
from llama_deploy.message_queues.kafka.connection import KafkaConnection

_NEVER_MS: Final = 2**31 - 1


class GroupMember(ConsumerRebalanceListener):  # type: ignore[misc]  # the driver has no types
    """Joins the group when it first reads, and again after it was closed.

    Args:
        connection: The connection to the brokers.
        topic: The topic.
        group: The group.
        backlog: Holds what is read.
        before_rebalance: Called when a rebalance begins: all partitions have to be released.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        topic: str,
        group: str,
        backlog: Backlog,
        before_rebalance: Callable[[], Awaitable[None]],
    ) -> None:
        self.group_id = topic if group == DEFAULT_GROUP else f"{topic}:{group}"
        self._connection = connection
        self._topic = topic
        self._backlog = backlog
        self._before_rebalance = before_rebalance
        self._poll_ms = max(int(connection.config.poll_seconds * 1000), 1)
        self._consumer: Any = None

    async def begin_at_the_end(self) -> None:
        """Commit the ends of all partitions, if the group has committed nothing yet.

        Raises:
            UnavailableError: The brokers do not answer.
            ConfigError: They refuse it.
        """
        numbers = await self._connection.partitions(self._topic)
        partitions = [TopicPartition(self._topic, number) for number in numbers]
        consumer = AIOKafkaConsumer(
            **self._connection.options(), group_id=self.group_id, enable_auto_commit=False
        )
        try:
            async with self._connection.answering(self._connection.config.timeout):
                await consumer.start()
                consumer.assign(partitions)
                committed = await asyncio.gather(*map(consumer.committed, partitions))
                if all(offset is None for offset in committed):
                    await consumer.commit(await consumer.end_offsets(partitions))
        finally:
            await self._connection.finish(consumer.stop)

    async def read(self, max_records: int) -> list[Any]:
        """Return the next records, the oldest first; none when there are none for a while.

        Raises:
            UnavailableError: The brokers do not answer. Close the member before it reads again.
            ConfigError: They refuse it.
        """
        if self._consumer is None:
            await self._join()
        async with self._connection.answering(self._connection.config.timeout):
            await self._start_over()
        async with self._connection.answering(None):
            # Last, because a rebalance or a new start during an await would make the records outdated.
            found = await self._consumer.getmany(timeout_ms=self._poll_ms, max_records=max_records)
        # Sorting keeps the order within a partition where two have the same time.
        return sorted(chain.from_iterable(found.values()), key=lambda record: int(record.timestamp))

    async def _start_over(self) -> None:
        """Read a partition from its beginning if it ends before the position in it.

        Its broker has forgotten records. Kafka answers with an error then, and the driver does the same; a
        broker that only speaks its protocol may answer with nothing.
        """
        for place in self._consumer.assignment():
            end = self._consumer.highwater(place)
            if end is not None and await self._consumer.position(place) > end:
                await self._consumer.seek_to_beginning(place)
                self._backlog.forget(place.partition)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit an offset for each partition.

        Raises:
            UnavailableError: The brokers do not answer, or the partitions are no longer the member's.
            ConfigError: They refuse it.
        """
        consumer = self._consumer
        if consumer is None or not offsets:
            return
        async with self._connection.answering(self._connection.config.timeout):
            await consumer.commit(
                {TopicPartition(self._topic, number): offset for number, offset in offsets.items()}
            )

    async def close(self) -> None:
        """Leave the group. Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self._connection.finish(consumer.stop)

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Release the partitions. Called by the driver when a rebalance begins."""
        del revoked  # always all of them
        await self._before_rebalance()

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Start over with other partitions. Called by the driver at the end of a rebalance."""
        if self._consumer is None:  # it is being closed
            return
        own = {place.partition for place in assigned}
        everywhere: set[int] = self._consumer.partitions_for_topic(self._topic) or own
        self._backlog.assignment.rebalanced(sorted(everywhere - own))

    async def _join(self) -> None:
        session_ms = int(self._connection.config.session_timeout * 1000)
        consumer = AIOKafkaConsumer(
            **self._connection.options(wait=self._connection.config.session_timeout),
            group_id=self.group_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=session_ms,
            rebalance_timeout_ms=session_ms,
            heartbeat_interval_ms=max(session_ms // 6, 1),
            # A member that does not ask for more is only busy.
            max_poll_interval_ms=_NEVER_MS,
            fetch_max_wait_ms=self._poll_ms,
        )
        await self._connection.start(consumer, consumer.stop)
        self._consumer = consumer
        consumer.subscribe([self._topic], listener=self)
