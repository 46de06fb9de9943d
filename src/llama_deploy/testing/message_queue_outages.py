"""Outages of a broker, and of the connection to it, as tests.

A backend shows that it loses no message by inheriting them:

```python
class TestOutages(MessageQueueOutages):
    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[Broker]:
        with MyBroker(tmp_path) as broker:
            yield broker

    def settings(self, port: int, **fields: Any) -> MessageQueueConfig:
        return MyMessageQueueConfig(url=f"my://127.0.0.1:{port}", **fields)
```

The tests need `pytest-asyncio`, in any of its modes.
"""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Protocol

import pytest
import pytest_asyncio

from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues.base import AbstractMessageQueue, MessageQueueConfig
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.numbered_messages import (
    DEADLINE,
    number_of,
    numbered,
    publish,
    receive,
    receive_one,
)
from llama_deploy.testing.processes import free_port
from llama_deploy.testing.queue_load import TOPIC, USUAL, Pace, load_over
from llama_deploy.testing.tcp_proxy import TcpProxy


class Broker(Protocol):
    """A real broker on a port of 127.0.0.1, which is the same for all its starts."""

    port: int

    def start(self) -> None:
        """Start it and wait until it answers, also after it was killed."""

    def kill(self) -> None:
        """End it as a power cut would. Idempotent."""

    def pause(self) -> None:
        """Stop its process; connections stay open."""

    def resume(self) -> None:
        """Continue after `pause`."""


@pytest.mark.asyncio
class MessageQueueOutages:
    """Inherit it, override `broker` and `settings`, and set the flags to what the broker does."""

    keeps_messages: ClassVar[bool] = True
    """Whether `broker` keeps what it has accepted when it is killed."""
    kills: ClassVar[int] = 3
    """How often it is killed under load."""
    cuts: ClassVar[int] = 20
    """How often the connections are cut under load."""
    delay: ClassVar[float] = 0.05
    """Seconds by which a slow connection delays each piece of data."""
    pace: ClassVar[Pace] = USUAL
    max_repeats: ClassVar[int | None] = None
    """How often a message may come while the broker is killed. None: any number of times."""
    silence_seconds: ClassVar[float] = 1.0
    """The `retry_seconds` with which a publication to a silent broker is to fail."""

    @pytest.fixture
    def broker(self) -> Broker:
        """Return a running broker that holds nothing yet. To be overridden."""
        raise NotImplementedError("override the fixture `broker`")

    @pytest.fixture
    def forgetful_broker(self, broker: Broker) -> Broker:
        """Return a broker that loses everything when it is killed; override it, or it is skipped."""
        if self.keeps_messages:
            pytest.skip("no broker without durable storage")
        return broker

    @pytest_asyncio.fixture
    async def proxy(self, broker: Broker) -> AsyncIterator[TcpProxy]:
        """A proxy in front of the broker."""
        async with TcpProxy() as proxy:
            await proxy.start(broker.port)
            yield proxy

    def settings(self, port: int, **fields: Any) -> MessageQueueConfig:
        """Return settings for the broker, or a proxy in front of it, on a port. To be overridden."""
        raise NotImplementedError(f"override `settings`: {port}, {fields}")

    async def test_a_killed_broker_loses_nothing_that_it_accepted(self, broker: Broker) -> None:
        if not self.keeps_messages:
            pytest.skip("the broker keeps nothing")
        config = self.settings(broker.port)
        async with load_over(config, config, self.pace) as load:
            await self.ready_to_be_killed(broker)
            for _ in range(self.kills):
                broker.kill()
                await asyncio.to_thread(broker.start)
                await load.progress()
        assert self.max_repeats is None or max(load.came.values()) <= self.max_repeats

    async def test_cut_connections_lose_nothing(self, proxy: TcpProxy) -> None:
        config = self.settings(proxy.port)
        async with load_over(config, config, self.pace) as load:
            for _ in range(self.cuts):
                proxy.cut()
                await eventually(lambda: proxy.connections >= 2)
                proxy.cut()
                await load.progress()

    async def test_a_slow_connection_works(self, proxy: TcpProxy) -> None:
        config = self.settings(proxy.port)
        async with load_over(config, config, self.pace) as load:
            proxy.delay = self.delay
            await load.progress()

    async def test_a_check_tells_whether_the_broker_answers(self, proxy: TcpProxy) -> None:
        async with await self.settings(proxy.port, retry_seconds=1.0).connect() as queue:
            await publish(queue, TOPIC, 0)
            await queue.check()
            proxy.hold()  # it is silent
            await self._until_check(queue, passes=False)
            proxy.resume()
            await self._until_check(queue, passes=True)
            targets, proxy.target_ports = proxy.target_ports, [1]  # it is gone
            proxy.cut()
            await self._until_check(queue, passes=False)
            proxy.target_ports = targets
            await self._until_check(queue, passes=True)

    async def test_a_reader_knows_that_the_broker_is_away(self, proxy: TcpProxy) -> None:
        async with (
            await self.settings(proxy.port, retry_seconds=1.0).connect() as queue,
            await queue.subscribe(TOPIC) as subscription,
        ):
            receiving = asyncio.create_task(subscription.receive(1))
            targets, proxy.target_ports = proxy.target_ports, [1]
            proxy.cut()
            await eventually(lambda: queue.problem is not None)
            assert queue.problem is not None
            assert "does not answer" in queue.problem
            proxy.target_ports = targets
            await eventually(lambda: queue.problem is None)
            await publish(queue, TOPIC, 0)
            async with asyncio.timeout(DEADLINE):
                (delivery,) = await receiving
            await delivery.ack()

    async def _until_check(self, queue: AbstractMessageQueue, *, passes: bool) -> None:
        async def is_so() -> bool:
            try:
                async with asyncio.timeout(DEADLINE):  # it must not hang
                    await queue.check()
            except UnavailableError:
                return not passes
            return passes

        await eventually(is_so)

    @pytest.mark.parametrize("of", ["publisher", "reader"])
    async def test_a_half_open_connection_is_replaced(
        self, broker: Broker, proxy: TcpProxy, caplog: pytest.LogCaptureFixture, of: str
    ) -> None:
        near, far = self.settings(broker.port), self.settings(proxy.port)
        publisher, reader = (far, near) if of == "publisher" else (near, far)
        with caplog.at_level(logging.INFO):
            async with load_over(publisher, reader, self.pace) as load:
                proxy.hold()
                await eventually(lambda: "is lost" in caplog.text, seconds=DEADLINE)
                proxy.resume()
                await load.progress()
                await eventually(lambda: "is back" in caplog.text, seconds=DEADLINE)

    async def test_a_broker_that_does_not_answer_is_an_error_in_time(self, broker: Broker) -> None:
        config = self.settings(broker.port, retry_seconds=self.silence_seconds)
        async with await config.connect() as queue:
            await queue.publish(numbered(0), TOPIC)
            broker.pause()
            try:
                async with asyncio.timeout(DEADLINE):
                    with pytest.raises(UnavailableError, match=str(broker.port)):
                        await queue.publish(numbered(1), TOPIC)
            finally:
                broker.resume()

            async def is_accepted() -> bool:
                try:
                    await queue.publish(numbered(2), TOPIC)
                except UnavailableError:
                    return False
                return True

            await eventually(is_accepted, seconds=DEADLINE)

    async def test_a_broker_that_is_not_there_is_an_error_in_time(self) -> None:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
            await self.settings(free_port(), retry_seconds=0.2).connect()

    async def test_what_a_broker_forgets_is_created_again(self, forgetful_broker: Broker) -> None:
        config = self.settings_of_forgetful(forgetful_broker.port)
        async with (
            await config.connect() as queue,
            await queue.subscribe(TOPIC) as subscription,
            await queue.subscribe(TOPIC, group="second") as second,
        ):
            await publish(queue, TOPIC, 0)
            lost = await receive_one(subscription)
            await (await receive_one(second)).ack()
            forgetful_broker.kill()
            await asyncio.to_thread(forgetful_broker.start)
            waiting = [asyncio.create_task(receive(each)) for each in (subscription, second)]

            async def have_come() -> bool:
                # What is published before its group exists again does not come to it, as with a new group.
                await publish(queue, TOPIC, 1)
                return all(task.done() for task in waiting)

            await eventually(have_come, seconds=DEADLINE)
            await lost.nack()
            for (delivery,) in await asyncio.gather(*waiting):
                assert number_of(delivery) == 1
                await delivery.ack()

    def settings_of_forgetful(self, port: int) -> MessageQueueConfig:
        """Return settings for the forgetful broker."""
        return self.settings(port)

    async def ready_to_be_killed(self, broker: Broker) -> None:
        """Wait until the broker keeps what it has accepted; override it where that takes a while."""
