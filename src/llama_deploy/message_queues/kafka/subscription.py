"""Reading one topic for one group: the tasks that read, commit and follow rebalances."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from llama_deploy.errors import LlamaDeployError
from llama_deploy.message_queues.base import DEFAULT_GROUP, Delivery, Subscription
from llama_deploy.message_queues.broker_connection import NEVER
from llama_deploy.message_queues.kafka.backlog import Backlog
from llama_deploy.message_queues.kafka.connection import KafkaConnection
from llama_deploy.message_queues.kafka.member import GroupMember
from llama_deploy.message_queues.kafka.pass_on_timer import PassOnTimer

logger = logging.getLogger(__name__)

_PASS_ON_AT_ONCE: Final = 4
_COMMIT_SECONDS: Final = 0.02
"""How long settlements gather: no caller waits for them, and each request costs both sides."""
_CLOSE_SECONDS: Final = 5.0
_MAX_RECORDS: Final = 64


class KafkaSubscription(Subscription):
    """A member of a consumer group. One task reads, one commits, and a timer passes on what waits too long.

    Args:
        connection: The connection to the brokers.
        topic: The topic.
        group: The group.
    """

    def __init__(self, connection: KafkaConnection, *, topic: str, group: str) -> None:
        super().__init__(topic, visibility_timeout=connection.config.visibility_timeout)
        self._connection = connection
        self._is_default = group == DEFAULT_GROUP
        self._backlog = Backlog(connection, topic=topic, group=group)
        self._member = GroupMember(
            connection,
            topic=topic,
            group=group,
            backlog=self._backlog,
            before_rebalance=self._before_rebalance,
        )
        self._pass_on_timer = PassOnTimer(
            is_due=self._has_to_pass_on, pass_on=partial(self._backlog.pass_on, _PASS_ON_AT_ONCE)
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def shares(self) -> bool:
        """Whether other members of the group have partitions too."""
        return bool(self._backlog.assignment.foreign)

    async def start(self) -> None:
        """Join the group, at the end of the topic if it is new and not the default one.

        Raises:
            UnavailableError: The brokers do not answer.
            ConfigError: They refuse it.
        """
        if not self._is_default:
            await self._member.begin_at_the_end()
        name = f"{self._member.group_id} of Kafka"
        self._tasks = [
            asyncio.create_task(self._read(), name=f"read {name}"),
            asyncio.create_task(self._keep_committing(), name=f"commit {name}"),
        ]

    async def _receive(self, max_messages: int) -> list[Delivery]:
        with self._pass_on_timer.asking():
            while not self._backlog.ready and not self.closed:
                self._raise_failure()
                self._backlog.arrived.clear()
                await self._backlog.arrived.wait()
        taken = [] if self.closed else self._backlog.hand_out(max_messages)
        self._pass_on_timer.start()
        return taken

    async def _close(self) -> None:
        self._backlog.arrived.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hand_over(keeping=False, seconds=_CLOSE_SECONDS)
        self._backlog.copies.cancel()
        await self._leave()

    def _raise_failure(self) -> None:
        """Raise the error that has ended a task."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _read(self) -> None:
        """Read messages until cancelled."""
        repeat: Callable[..., Awaitable[list[Any]]] = partial(self._connection.retry, give_up_at=NEVER)
        try:
            while True:
                await self._backlog.has_room.wait()
                # No await may come between: the records are of the member's present partitions.
                self._backlog.take(await repeat(self._read_once))
                repeat = self._connection.retry_forever  # what is refused from now on was granted before
                self._pass_on_timer.start()
        finally:
            self._backlog.arrived.set()

    async def _read_once(self) -> list[Any]:
        try:
            return await self._member.read(_MAX_RECORDS)
        except LlamaDeployError:
            await self._leave()
            raise

    async def _before_rebalance(self) -> None:
        self._backlog.assignment.is_moving = True
        await self._hand_over(keeping=True, seconds=self._connection.config.session_timeout / 2)
        self._backlog.release()

    def _has_to_pass_on(self) -> bool:
        return bool(self._backlog.ready) and self.shares and not self.closed

    async def _keep_committing(self) -> None:
        while True:
            await self._backlog.dirty.wait()
            await asyncio.sleep(_COMMIT_SECONDS)
            self._backlog.dirty.clear()
            if not await self._commit():
                await asyncio.sleep(self._connection.config.session_timeout / 6)
                self._backlog.dirty.set()

    async def _commit(self) -> bool:
        """Commit what is settled; return whether that succeeded."""
        offsets = self._backlog.assignment.offsets_to_commit()
        try:
            await self._member.commit(offsets)
        except LlamaDeployError as exc:
            logger.debug("offsets of %s could not be committed: %s", self._member.group_id, exc)
            return False
        self._backlog.assignment.note_committed(offsets)
        return True

    async def _hand_over(self, *, keeping: bool, seconds: float) -> None:
        await self._backlog.hand_over(keeping=keeping, seconds=seconds)
        await self._commit()

    async def _leave(self) -> None:
        """Leave the group and forget what came from it."""
        self._backlog.assignment.is_moving = True
        await self._member.close()
        self._pass_on_timer.stop()
        self._backlog.release()
