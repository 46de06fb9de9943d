"""A broker that refuses credentials or a permission for a while costs time, never a task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.errors import ConfigError
from llama_deploy.message_queues.base import AbstractMessageQueue, Delivery
from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueueConfig
from llama_deploy.messages import QueueMessage
from llama_deploy.types import TaskStatus
from tests.integration.in_process import Stack, result_of, running_stack, stop, until
from tests.integration.numbered import TOPIC, number_of, numbered, publish, receive, take
from tests.integration.on_redis import settings
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import DURABLE, RedisServer

Change = Callable[[], Coroutine[Any, Any, object]]

MOST_TASKS = 4


class Held(Workflow):
    """The first task ends when the test lets it."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun: list[int] = []
        self.may_end = asyncio.Event()

    @step
    async def run_it(self, ev: StartEvent) -> StopEvent:
        number = ev.get("number")
        self.begun.append(number)
        if number == 0:
            await self.may_end.wait()
        return StopEvent(result=number)


def told(caplog: pytest.LogCaptureFixture, level: int, text: str) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.levelno == level]
    return [each for each in texts if text in each]


async def outlast(stack: Stack, refuse: Change, grant: Change, caplog: pytest.LogCaptureFixture) -> None:
    """Have tasks submitted, and one end, while the broker refuses."""
    caplog.set_level(logging.DEBUG, logger="llama_deploy")
    workflow = Held()
    plane = asyncio.create_task(stack.plane.run())
    async with stack.serving(stack.service(workflow)) as worker:
        tasks = [await stack.submit(number=0)]
        await until(lambda: workflow.begun == [0])
        await refuse()
        workflow.may_end.set()
        tasks += [await stack.submit(number=number) for number in range(1, MOST_TASKS)]
        await until(lambda: bool(told(caplog, logging.WARNING, "does not accept messages")))
        # The fourth time it is tried more than half a second after the first.
        await until(lambda: len(told(caplog, logging.DEBUG, "next try in")) >= 3)
        states = [(await stack.end(task, wait=0)).status for task in tasks]
        assert states == [TaskStatus.RUNNING] + [TaskStatus.QUEUED] * (MOST_TASKS - 1)
        assert not any(part.done() for part in (plane, worker))
        await grant()
        views = [await stack.end(task) for task in tasks]
        assert [(result_of(view), view.attempt) for view in views] == [(n, 1) for n in range(MOST_TASKS)]
        assert sorted(workflow.begun) == [0, 1, 2, 3]
        await until(lambda: bool(told(caplog, logging.INFO, "the queue accepts reports again")))
        await until(
            lambda: bool(told(caplog, logging.INFO, "topic llama_deploy.service accepts messages again"))
        )
        assert not any(part.done() for part in (plane, worker))
    await stop(plane)
    for text in ("does not accept reports", "topic llama_deploy.service does not accept messages"):
        assert len(told(caplog, logging.WARNING, text)) == 1
    assert len(told(caplog, logging.WARNING, "denies access that it has granted before")) <= 1


class OnRedis:
    """An operator of a Redis server, and how clients of it are told who they are."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.client = Redis.from_url(server.url)

    async def set_user(self, *rules: str) -> None:
        await self.client.execute_command("ACL", "SETUSER", "app", *rules)  # type: ignore[no-untyped-call]

    async def change_password(self, old: str, new: str) -> None:
        await self.set_user(f"<{old}", f">{new}")
        await self.client.client_kill_filter(_type="normal", skipme=True)

    async def has_settled(self) -> bool:
        return not (await self.client.xpending(f"llama_deploy:topic:{TOPIC}", "default"))["pending"]

    async def connect(self) -> AbstractMessageQueue:
        return await settings(self.server.url.replace("//", "//app:right@")).connect()


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[OnRedis]:
    with RedisServer(tmp_path, *DURABLE) as server:
        on_redis = OnRedis(server)
        try:
            await on_redis.set_user("on", ">right", "~*", "+@all")
            yield on_redis
        finally:
            await on_redis.client.aclose()


async def test_redis_refuses_the_password_for_a_while(
    redis: OnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse() -> None:
        await redis.change_password("right", "wrong")
        with pytest.raises(ConfigError, match=str(redis.server.port)):
            await redis.connect()

    async with running_stack(redis.connect) as stack:
        await outlast(stack, refuse, lambda: redis.change_password("wrong", "right"), caplog)
    (warning,) = told(caplog, logging.WARNING, "does not accept reports")
    assert f"127.0.0.1:{redis.server.port}" in warning
    assert "invalid username-password pair" in warning


async def test_redis_refuses_a_permission_for_a_while(
    redis: OnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_stack(redis.connect) as stack:
        await outlast(stack, lambda: redis.set_user("-@all"), lambda: redis.set_user("+@all"), caplog)


async def test_who_may_not_publish_on_redis_learns_it_at_once(redis: OnRedis) -> None:
    async with await redis.connect() as queue:
        await redis.set_user("-xadd")
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
            await queue.publish(QueueMessage(), TOPIC)


async def test_a_topic_that_redis_refuses_harms_no_other(redis: OnRedis) -> None:
    await redis.set_user("resetkeys", "~llama_deploy:topic:good")
    async with await redis.connect() as queue:
        topics = ["good", "bad", "good", "bad"]
        outcomes = await asyncio.gather(
            *(queue.publish(numbered(number), topic) for number, topic in enumerate(topics)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), ConfigError] * 2
        await redis.set_user("allkeys")
        async with await queue.subscribe("good") as subscription:
            numbers: list[int] = []
            while len(numbers) < 2:
                numbers += [number_of(delivery) for delivery in await receive(subscription, 2)]
        assert numbers == [0, 2]


async def test_a_reader_of_redis_outlasts_a_refused_password(
    redis: OnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        await settings(redis.server.url).connect() as publisher,
        await redis.connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        await publish(publisher, 0)
        assert await take(subscription, 1) == [0]
        await until(redis.has_settled)
        receiving = asyncio.create_task(receive(subscription))
        await redis.change_password("right", "wrong")
        await publish(publisher, 1)
        await is_refused(receiving, caplog)
        await redis.change_password("wrong", "right")
        (delivery,) = await receiving
        assert (number_of(delivery), delivery.attempt) == (1, 1)
        assert len(told(caplog, logging.INFO, "grants access again")) == 1


async def test_a_reader_of_redis_outlasts_a_refused_permission(
    redis: OnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with await redis.connect() as queue, await queue.subscribe(TOPIC) as subscription:
        await redis.set_user("-xreadgroup")
        receiving = asyncio.create_task(receive(subscription))
        await publish(queue, 1)
        await is_refused(receiving, caplog)
        await redis.set_user("+xreadgroup")
        (delivery,) = await receiving
        assert (number_of(delivery), delivery.attempt) == (1, 1)
        assert len(told(caplog, logging.INFO, "grants access again")) == 1


async def is_refused(receiving: asyncio.Task[list[Delivery]], caplog: pytest.LogCaptureFixture) -> None:
    """Wait until a reader has told that it is refused; it has told once, and reads on."""
    await until(lambda: bool(told(caplog, logging.WARNING, "granted before")))
    assert len(told(caplog, logging.WARNING, "granted before")) == 1
    assert not receiving.done()


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    with RabbitMQServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


async def test_rabbitmq_refuses_the_password_for_a_while(
    rabbitmq: RabbitMQServer, caplog: pytest.LogCaptureFixture
) -> None:
    config = RabbitMQMessageQueueConfig(url=rabbitmq.url, exchange_name="password")

    async def refuse() -> None:
        await asyncio.to_thread(rabbitmq.control, "change_password", "guest", "wrong")
        await asyncio.to_thread(rabbitmq.control, "close_all_connections", "rotated")

    async def grant() -> None:
        await asyncio.to_thread(rabbitmq.control, "change_password", "guest", "guest")

    async with running_stack(config.connect) as stack:
        await outlast(stack, refuse, grant, caplog)


async def test_rabbitmq_refuses_a_permission_for_a_while(
    rabbitmq: RabbitMQServer, caplog: pytest.LogCaptureFixture
) -> None:
    config = RabbitMQMessageQueueConfig(url=rabbitmq.url, exchange_name="permission")

    async def permit(pattern: str) -> None:
        await asyncio.to_thread(rabbitmq.control, "set_permissions", "guest", pattern, pattern, pattern)
        # A channel goes on with what it was granted for a while.
        await asyncio.to_thread(rabbitmq.control, "close_all_connections", "changed")

    async with running_stack(config.connect) as stack:
        await outlast(stack, lambda: permit("^$"), lambda: permit(".*"), caplog)
