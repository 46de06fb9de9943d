"""The parts that the message queues share, and the small values in their subscriptions."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.concurrency.batching import split
from llama_deploy.errors import (
    ClosedError,
    LlamaDeployError,
    OverloadedError,
    QueueFullError,
    UnavailableError,
)
from llama_deploy.message_queues import (
    AWSMessageQueue,
    AWSMessageQueueConfig,
    KafkaMessageQueue,
    KafkaMessageQueueConfig,
    NatsMessageQueue,
    NatsMessageQueueConfig,
    RabbitMQMessageQueue,
    RabbitMQMessageQueueConfig,
    RedisMessageQueue,
    RedisMessageQueueConfig,
    SimpleMessageQueueConfig,
    consumer_subscription,
)
from llama_deploy.message_queues.base import Delivery, MessageQueueConfig
from llama_deploy.message_queues.broker_connection import BrokerConnection
from llama_deploy.message_queues.dead_letters import decode_message, is_exhausted
from llama_deploy.message_queues.held_deliveries import HeldDeliveries, held_until
from llama_deploy.message_queues.holding_subscription import (
    HeldSettlement,
    HoldingSubscription,
    ReceivedMessage,
    still_due,
)
from llama_deploy.message_queues.polling_subscription import PollingSubscription
from llama_deploy.message_queues.rabbitmq.connection import RabbitMQConnection
from llama_deploy.message_queues.rabbitmq.demand import Demand
from llama_deploy.message_queues.remembering import remember
from llama_deploy.message_queues.settlement import MAX_SECONDS, SettleAction, open_deliveries
from llama_deploy.message_queues.settlement_batcher import SettlementBatcher
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually


@given(st.lists(st.integers(0, 12)), st.integers(1, 5))
def test_parts_keep_order_and_limits(sizes: list[int], max_items: int) -> None:
    parts = list(split(sizes, size=lambda each: each, max_size=10, max_items=max_items))
    assert [each for part in parts for each in part] == sizes
    assert all(part and len(part) <= max_items for part in parts)
    assert all(sum(part) <= 10 or len(part) == 1 for part in parts)
    assert all(len(one) == max_items or sum(one) + two[0] > 10 for one, two in itertools.pairwise(parts))


def test_dead_letters_are_never_exhausted() -> None:
    assert [is_exhausted("topic", deliveries, 3) for deliveries in (2, 3, 4)] == [False, True, True]
    assert not is_exhausted("topic.dead_letters", 100, 3)


def test_what_cannot_be_decoded_is_logged_with_its_topic(caplog: pytest.LogCaptureFixture) -> None:
    message = QueueMessage()
    assert decode_message(message.encode(), topic="t") == message
    assert decode_message(b"no message", topic="orders") is None
    assert "'orders'" in caplog.text


class TestHeldDeliveries:
    async def test_a_delivery_is_held_until_its_time(self) -> None:
        held, now = HeldDeliveries[str](), asyncio.get_running_loop().time()
        held.add("held", now + 60)
        held.add("late", now - 1)
        assert (held.until("held"), held.until("late"), held.until("unknown")) == (now + 60, 0.0, 0.0)
        held.remove("held")
        held.remove("held")
        assert held.until("held") == 0.0

    async def test_clearing_returns_what_was_held(self) -> None:
        held, now = HeldDeliveries[str](), asyncio.get_running_loop().time()
        held.add("held", now + 60)
        held.add("late", now - 1)
        assert held.clear() == {"held": now + 60}
        assert held.clear() == {}

    @pytest.mark.parametrize(("was_sent", "is_settled"), [(True, False), (False, False), (True, True)])
    async def test_only_what_the_broker_has_extended_is_held_longer(
        self, *, was_sent: bool, is_settled: bool
    ) -> None:
        held, now = HeldDeliveries[str](), asyncio.get_running_loop().time()
        sent = asyncio.get_running_loop().create_future()
        held.add("one", now + 60)
        held.extend_when(sent, "one", now + 90)
        if is_settled:
            held.remove("one")
        sent.set_result(was_sent)
        await asyncio.sleep(0)
        assert held.until("one") == (0.0 if is_settled else now + 90 if was_sent else now + 60)

    @pytest.mark.parametrize(("seconds", "until"), [(1.0, 0.9), (5.0, 4.5), (60.0, 59.0)])
    def test_a_hold_ends_before_the_visibility_timeout(self, seconds: float, until: float) -> None:
        assert held_until(seconds, since=0.0) == pytest.approx(until)


class TestSettlementBatcher:
    async def test_acknowledgements_wait_for_others_and_the_rest_does_not(self) -> None:
        batches: list[list[str]] = []

        async def send(batch: Sequence[str]) -> list[bool]:
            batches.append(list(batch))
            return [True] * len(batch)

        batcher = SettlementBatcher(send, name="test", ack_delay=3600.0)
        acknowledged = [batcher.submit(f"ack {number}", is_ack=True) for number in range(3)]
        assert await batcher.submit("nack")
        assert batches == [["nack"]]
        assert not any(each.done() for each in acknowledged)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def test_what_is_lost_is_said_and_raises_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        async def send(_batch: Sequence[str]) -> list[bool]:
            raise UnavailableError("the broker is away")

        batcher = SettlementBatcher(send, name="test")
        assert not await batcher.submit("one")
        await batcher.wait_sent()
        await batcher.close()
        assert not await batcher.submit("another")
        assert "the broker is away" in caplog.text
        assert "closed" in caplog.text


class ScriptedSubscription(PollingSubscription):
    """Answers each request when the test lets it."""

    def __init__(self) -> None:
        super().__init__("topic", visibility_timeout=1.0)
        self.requests: list[asyncio.Future[list[Delivery]]] = []

    async def _fetch(self, max_messages: int) -> list[Delivery]:  # noqa: ARG002
        self.requests.append(asyncio.get_running_loop().create_future())
        return await self.requests[-1]

    async def _close(self) -> None:
        await self._end_poll()


class TestSettledDelivery:
    async def test_it_hands_its_key_and_action_to_the_queue_once(self) -> None:
        told: list[tuple[object, ...]] = []
        bodies = [QueueMessage().encode(), b"no message", QueueMessage().encode()]
        received = [(number, number + 1, body) for number, body in enumerate(bodies)]
        first, second = open_deliveries(received, topic="t", settle=lambda *said: told.append(said))
        assert (first.attempt, second.attempt) == (1, 3)
        assert told == [(1, SettleAction.REJECT)]
        await first.extend(1.0)
        await first.extend(1e9)
        await first.ack()
        await first.nack()
        await second.nack(-1.0)
        assert told[1:] == [
            (0, SettleAction.EXTEND, 1.0),
            (0, SettleAction.EXTEND, MAX_SECONDS),
            (0, SettleAction.ACK),
            (2, SettleAction.NACK, 0.0),
        ]


class ScriptedHolder(HoldingSubscription):
    """A member of a broker that takes settlements, and dead letters until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__("topic", NatsMessageQueueConfig(visibility_timeout=60.0, max_deliveries=3))
        self.sent: list[tuple[str, SettleAction]] = []
        self.dead: list[str] = []
        self.stores_dead_letters = True
        self._arrived: list[ReceivedMessage] = []

    def arrive(self, receipt: str, *, attempt: int = 1, age: float = 0.0, body: bytes | None = None) -> None:
        since = asyncio.get_running_loop().time() - age
        message = ReceivedMessage(body or QueueMessage().encode(), receipt, attempt, since)
        self._held.add(message, self._held_until(message))
        self._arrived.append(message)

    async def _receive(self, max_messages: int) -> list[Delivery]:
        arrived, self._arrived = self._arrived[:max_messages], []
        return self._open(arrived)

    async def _send(self, batch: Sequence[HeldSettlement]) -> Sequence[HeldSettlement]:
        due = still_due(batch)
        self.sent += [(each.received.receipt, each.action) for each in due]
        return due

    async def _store_dead_letter(self, received: ReceivedMessage) -> None:
        if not self.stores_dead_letters:
            raise UnavailableError("the broker is away")
        self.dead.append(received.receipt)

    async def _close(self) -> None:
        await self._end_settling()


class TestHoldingSubscription:
    async def test_what_it_holds_is_settled_once_and_the_rest_goes_back(self) -> None:
        async with ScriptedHolder() as member:
            for receipt in ("acked", "nacked", "kept", "forgotten"):
                member.arrive(receipt)
            member.arrive("late", age=61.0)
            acked, nacked, kept, _ = await member.receive(9)
            await acked.ack()
            await nacked.nack()
            await kept.extend(30.0)
            await kept.ack()
        assert sorted(member.sent) == [
            ("acked", SettleAction.ACK),
            ("forgotten", SettleAction.NACK),
            ("kept", SettleAction.ACK),
            ("kept", SettleAction.EXTEND),
            ("nacked", SettleAction.NACK),
        ]

    async def test_what_was_delivered_too_often_or_is_no_message_becomes_a_dead_letter(self) -> None:
        async with ScriptedHolder() as member:
            member.arrive("last try", attempt=3)
            member.arrive("exhausted", attempt=4)
            member.arrive("odd", body=b"no message")
            (last,) = await member.receive(9)
            await last.nack()
            assert "last try" in member.dead, "a consumer that fails must not be faster than its dead letters"
        assert sorted(member.dead) == ["exhausted", "last try", "odd"]
        assert sorted(member.sent) == [(receipt, SettleAction.REJECT) for receipt in sorted(member.dead)]

    async def test_a_dead_letter_that_cannot_be_stored_comes_back(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with ScriptedHolder() as member:
            member.stores_dead_letters = False
            member.arrive("exhausted", attempt=4)
            member.arrive("good")
            assert len(await member.receive(9)) == 1
        assert member.sent == [("good", SettleAction.NACK)]
        assert "could not be stored" in caplog.text


def test_the_oldest_is_forgotten_first() -> None:
    memory: dict[int, str] = {}
    for number in range(10_002):
        remember(memory, number, "value")
    assert len(memory) == 10_000
    assert list(memory)[:1] == [2]


class PlainDelivery(Delivery):
    async def _ack(self) -> None:
        pass

    async def _nack(self, delay: float) -> None:
        pass

    async def _extend(self, seconds: float) -> None:
        pass


class TestPollingSubscription:
    async def test_the_request_of_a_cancelled_receive_is_used_by_the_next(self) -> None:
        subscription = ScriptedSubscription()
        first = asyncio.create_task(subscription.receive(1))
        await eventually(lambda: bool(subscription.requests))
        first.cancel()
        second = asyncio.create_task(subscription.receive(1))
        deliveries: list[Delivery] = [PlainDelivery(QueueMessage(), attempt=n) for n in (1, 2)]
        subscription.requests[0].set_result(deliveries)
        assert await second == deliveries[:1]
        assert await subscription.receive(1) == deliveries[1:]
        assert len(subscription.requests) == 1

    async def test_closing_ends_a_waiting_receive(self) -> None:
        subscription = ScriptedSubscription()
        receiving = asyncio.create_task(subscription.receive(1))
        await eventually(lambda: bool(subscription.requests))
        await asyncio.gather(subscription.close(), subscription.close())
        with pytest.raises(ClosedError, match="topic"):
            await receiving


class TestDemand:
    async def test_what_a_caller_did_not_get_is_wanted_for_a_moment(self) -> None:
        changes: list[int] = []
        demand = Demand(lambda: changes.append(demand.total()))
        demand.ask(5)
        demand.ask(2)
        assert demand.total() == 7
        demand.withdraw(5)
        demand.withdraw(2)
        assert demand.total() == 2
        await eventually(lambda: demand.total() == 0)
        assert changes[-1] == 0

    async def test_a_closed_demand_has_no_timer(self) -> None:
        demand = Demand(lambda: None)
        demand.keep(3)
        demand.close()
        await asyncio.sleep(0)
        assert demand.total() == 3


async def test_an_attempt_ends_with_the_time_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    connection = BrokerConnection("the broker", retry_seconds=0.05)
    with pytest.raises(UnavailableError, match="the broker has not answered in time"):
        await connection.retry(asyncio.Event().wait)
    assert not caplog.records, "its caller has the error"


async def test_a_refusal_for_a_while_is_retried_and_a_full_topic_is_told() -> None:
    connection = BrokerConnection("the broker", retry_seconds=10)
    errors: list[LlamaDeployError] = [OverloadedError("too many wrong keys"), QueueFullError("full")]

    async def fail() -> str:
        if errors:
            raise errors.pop(0)
        return "answer"

    with pytest.raises(QueueFullError):
        await connection.retry(fail)
    errors.append(OverloadedError("too many wrong keys"))
    assert await connection.retry_forever(fail) == "answer"


@pytest.mark.parametrize(
    "connection",
    [
        BrokerConnection("the broker", retry_seconds=0),
        RabbitMQConnection(RabbitMQMessageQueueConfig(retry_seconds=0), "test"),
    ],
)
async def test_without_retries_a_call_has_time_for_one_try(connection: BrokerConnection) -> None:
    tries = 0

    async def answer() -> str:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.01)
        return "answer"

    async def fail() -> None:
        await answer()
        raise UnavailableError("away")

    assert await connection.retry(answer) == "answer"
    assert await connection.retry_forever(answer) == "answer"
    with pytest.raises(UnavailableError, match="away"):
        await connection.retry(fail)
    assert tries == 3


@pytest.mark.parametrize(
    "settings",
    [
        AWSMessageQueueConfig,
        KafkaMessageQueueConfig,
        NatsMessageQueueConfig,
        RabbitMQMessageQueueConfig,
        RedisMessageQueueConfig,
        SimpleMessageQueueConfig,
    ],
)
def test_every_setting_is_described(settings: type[MessageQueueConfig]) -> None:
    fields = settings.model_json_schema()["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize(
    "queue_class",
    [AWSMessageQueue, KafkaMessageQueue, NatsMessageQueue, RabbitMQMessageQueue, RedisMessageQueue],
)
async def test_a_queue_that_is_closed_before_its_first_use_does_not_connect(queue_class: Any) -> None:
    queue = queue_class()
    await queue.cleanup()
    async with asyncio.timeout(30):
        with pytest.raises(ClosedError):
            await queue.publish(QueueMessage(), "topic")
        with pytest.raises(ClosedError):
            await queue.subscribe("topic")


async def test_a_consumer_that_keeps_failing_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer_subscription, "RESTART_SECONDS", 0.001)
    tries = 0

    async def consume() -> None:
        nonlocal tries
        tries += 1
        raise OSError("no broker")

    async def join() -> Any:
        return consume

    async def leave() -> None:
        """There is nothing to leave."""

    subscription = consumer_subscription.ConsumerSubscription("topic")
    subscription.begin(consume, join=join, leave=leave)
    await eventually(lambda: tries > 5)
    assert caplog.text.count("no broker") == 1
    arrived = asyncio.create_task(subscription.process_message(QueueMessage()))
    (delivery,) = await subscription.receive(1)
    await delivery.ack()
    await arrived
    await eventually(lambda: caplog.text.count("no broker") == 2)
    await subscription.close()
