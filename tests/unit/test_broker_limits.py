"""Topics and groups that nobody reads do not stop those that somebody reads."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.unit.test_broker import VirtualClock, bodies, clock, publish, settle, take, until_waiting

from llama_deploy.errors import QueueFullError, TopicNotFoundError
from llama_deploy.message_queues.settlement import SettleAction
from llama_deploy.message_queues.simple.broker import SimpleBroker
from llama_deploy.message_queues.simple.limits import MAX_HANDOUT_BYTES, BrokerLimits

__all__ = ["clock"]

IDLE = 600.0


def a_broker(clock: VirtualClock, **limits: float) -> SimpleBroker:
    given = {"max_topics": 4, "max_messages_per_topic": 5, "idle_after": IDLE, **limits}
    return SimpleBroker(clock=clock, limits=BrokerLimits(**given))  # type: ignore[arg-type]


def names(broker: SimpleBroker) -> list[str]:
    return sorted(broker.depths())


# -- topics


async def test_an_empty_topic_makes_room_for_a_new_one(clock: VirtualClock) -> None:
    broker = a_broker(clock)
    for name in "abcd":
        broker.create(name)
        clock.advance(1)
    broker.create("a")  # it is in use
    broker.create("new")
    assert names(broker) == ["a", "c", "d", "new"]


async def test_a_topic_that_was_used_since_they_were_ranked_stays(clock: VirtualClock) -> None:
    broker = a_broker(clock)
    for name in "abcd":
        broker.create(name)
        clock.advance(1)
    broker.create("e")  # in place of "a"
    broker.create("b")
    await publish(broker, "work", topic="c")
    broker.create("f")
    assert names(broker) == ["b", "c", "e", "f"]


async def test_topics_that_nobody_has_ever_read_make_room_the_oldest_first(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    broker = a_broker(clock)
    await publish(broker, "work", topic="read")
    await take(broker, topic="read")
    for number in range(1000):
        clock.advance(0.001)
        await publish(broker, "made up", topic=str(number))
    assert names(broker) == ["997", "998", "999", "read"]
    with caplog.at_level(logging.WARNING):
        broker.create("subscribed")
    assert "topic 997 is dropped with 1 message" in caplog.text


async def test_topics_that_are_read_are_not_dropped(clock: VirtualClock) -> None:
    broker = a_broker(clock)
    for name in "abcd":
        await publish(broker, "work", topic=name)
        await take(broker, topic=name)
    with pytest.raises(QueueFullError, match="4 topics") as refused:
        broker.create("new")
    assert refused.value.topic == "new"
    clock.advance(IDLE + 1)
    await take(broker, topic="b")
    broker.create("new")
    assert names(broker) == ["b", "c", "d", "new"], "nobody has read the others for long"


async def test_dead_letters_are_dropped_last(clock: VirtualClock) -> None:
    broker = a_broker(clock)
    await publish(broker, "poison")
    settle(broker, SettleAction.REJECT, *(await take(broker)))
    for number in range(10):
        clock.advance(1)
        await publish(broker, "made up", topic=str(number))
    assert "t.dead_letters" in names(broker)


# -- groups


async def test_a_group_that_nobody_reads_does_not_fill_the_topic(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    broker = a_broker(clock)
    broker.create("t", "audit")
    for number in range(5):
        await publish(broker, f"early {number}")
        settle(broker, SettleAction.ACK, *(await take(broker)))
    with pytest.raises(QueueFullError):
        await publish(broker, "too soon")
    clock.advance(IDLE + 1)
    await take(broker)
    for number in range(20):
        assert await publish(broker, f"late {number}") == 1
        handouts = await take(broker)
        assert bodies(handouts) == [f"late {number}"]
        settle(broker, SettleAction.ACK, *handouts)
    assert "group audit of topic t has lost 5 messages" in caplog.text
    with pytest.raises(TopicNotFoundError):  # who comes back joins again
        await take(broker, group="audit")
    broker.create("t", "audit")
    await publish(broker, "again")
    assert bodies(await take(broker, group="audit")) == ["again"]


async def test_a_group_that_is_alone_keeps_its_messages(clock: VirtualClock) -> None:
    broker = a_broker(clock)
    await publish(broker, *"abcde")
    clock.advance(10 * IDLE)
    with pytest.raises(QueueFullError):
        await publish(broker, "f")
    assert bodies(await take(broker)) == [*"abcde"]


# -- memory


async def test_all_topics_together_are_bounded_and_each_has_its_share(clock: VirtualClock) -> None:
    broker = a_broker(clock, max_bytes=1000, max_bytes_per_topic=900, max_messages_per_topic=100)
    for number in range(9):
        await broker.publish("large", [(str(number), b"x" * 100)])
    assert await broker.publish("small", [("1", b"x" * 100)]) == 1
    with pytest.raises(QueueFullError, match="large"):
        await broker.publish("large", [("more", b"x")])
    for number in range(2, 6):
        assert await broker.publish("small", [(str(number), b"x" * 100)]) == 1
    with pytest.raises(QueueFullError, match="small"):
        await broker.publish("small", [("more", b"x" * 100)])
    settle(broker, SettleAction.ACK, *(await take(broker, 6, topic="large")))
    assert await broker.publish("large", [("more", b"x" * 100)]) == 1


# -- bytes


async def test_an_answer_holds_few_large_messages(clock: VirtualClock) -> None:
    broker = a_broker(clock)
    large = bytes(MAX_HANDOUT_BYTES // 2 + 1)
    await broker.publish("t", [(str(number), large) for number in range(5)])
    first = await take(broker)
    rest = [await take(broker), await take(broker)]
    assert [len(handouts) for handouts in [first, *rest]] == [2, 2, 1]
    settle(broker, SettleAction.NACK, *first)
    assert [len(await take(broker)), len(await take(broker))] == [2, 0]


async def test_what_is_too_large_for_one_answer_goes_to_other_waiting_members(clock: VirtualClock) -> None:
    broker = a_broker(clock)
    broker.create("t")
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        members = [
            group.create_task(broker.receive("t", group="default", max_messages=10, wait=5)) for _ in range(2)
        ]
        await until_waiting(broker, 2)
        await broker.publish("t", [(str(number), bytes(MAX_HANDOUT_BYTES)) for number in range(2)])
    assert [len(member.result()) for member in members] == [1, 1]
