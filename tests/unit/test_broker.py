"""The broker's decisions, under a clock that only the test moves."""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
from collections.abc import Callable

import pytest

from llama_deploy.errors import (
    ConflictError,
    InvalidRequestError,
    PayloadTooLargeError,
    QueueFullError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.settlement import SettleAction
from llama_deploy.message_queues.simple.broker import SimpleBroker
from llama_deploy.message_queues.simple.limits import BrokerLimits
from llama_deploy.message_queues.simple.settlement import Settlement
from llama_deploy.message_queues.simple.timetable import Alarm, Timetable
from llama_deploy.message_queues.simple.topic import Handout


class _Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._calls: list[tuple[float, int, _Timer, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> _Timer:
        timer = _Timer()
        heapq.heappush(self._calls, (when, next(self._numbers), timer, callback))
        return timer

    @property
    def timers(self) -> int:
        return sum(not timer.cancelled for _, _, timer, _ in self._calls)

    def advance(self, seconds: float) -> None:
        end = self._now + seconds
        while self._calls and self._calls[0][0] <= end:
            when, _, timer, callback = heapq.heappop(self._calls)
            self._now = max(self._now, when)
            if not timer.cancelled:
                callback()
        self._now = end


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def broker(clock: VirtualClock) -> SimpleBroker:
    limits = BrokerLimits(
        max_messages_per_topic=5,
        max_bytes_per_topic=1000,
        max_dead_letters=2,
        max_topics=4,
        max_deliveries=3,
        visibility_timeout=30.0,
    )
    return SimpleBroker(clock=clock, limits=limits)


async def publish(broker: SimpleBroker, *names: str, topic: str = "t") -> int:
    return await broker.publish(topic, [(name, name.encode()) for name in names])


async def take(
    broker: SimpleBroker, count: int = 10, *, topic: str = "t", group: str = "default", subscription: str = ""
) -> list[Handout]:
    return await broker.receive(topic, group=group, max_messages=count, subscription=subscription)


def bodies(handouts: list[Handout]) -> list[str]:
    return [handout.body.decode() for handout in handouts]


def settle(broker: SimpleBroker, action: SettleAction, *handouts: Handout, seconds: float = 0.0) -> None:
    broker.settle(Settlement(handout.delivery_id, action, seconds) for handout in handouts)


async def until_waiting(broker: SimpleBroker, members: int, *, topic: str = "t") -> None:
    """Let the tasks run that are about to wait."""
    async with asyncio.timeout(30):
        while broker.depths()[topic].groups["default"].waiting_members < members:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_what_is_acked_is_gone(broker: SimpleBroker, clock: VirtualClock) -> None:
    await publish(broker, "a", "b")
    settle(broker, SettleAction.ACK, *(await take(broker)))
    clock.advance(100)
    assert await take(broker) == []
    assert broker.depths()["t"].messages == broker.depths()["t"].size_bytes == 0
    assert clock.timers == 0


async def test_an_unsettled_delivery_comes_back_when_its_time_is_over(
    broker: SimpleBroker, clock: VirtualClock
) -> None:
    await publish(broker, "a")
    (first,) = await take(broker)
    clock.advance(29.9)
    assert await take(broker) == []
    clock.advance(0.1)
    (again,) = await take(broker)
    assert (first.attempt, again.attempt) == (1, 2)
    settle(broker, SettleAction.ACK, first)
    assert broker.depths()["t"].messages == 1, "the first consumer no longer has it"
    settle(broker, SettleAction.ACK, again)
    assert broker.depths()["t"].messages == 0


async def test_extending_counts_from_now(broker: SimpleBroker, clock: VirtualClock) -> None:
    await publish(broker, "a")
    (held,) = await take(broker)
    clock.advance(20)
    settle(broker, SettleAction.EXTEND, held, seconds=15.0)
    clock.advance(14.9)
    assert await take(broker) == []
    clock.advance(0.1)
    assert bodies(await take(broker)) == ["a"]


async def test_returned_messages_keep_their_order_before_the_rest(broker: SimpleBroker) -> None:
    await publish(broker, "a", "b", "c", "d", "e")
    a, b, c = await take(broker, 3)
    settle(broker, SettleAction.NACK, c, a)
    settle(broker, SettleAction.NACK, b)
    assert bodies(await take(broker)) == ["a", "b", "c", "d", "e"]


async def test_a_delayed_nack_waits(broker: SimpleBroker, clock: VirtualClock) -> None:
    await publish(broker, "a", "b")
    (a,) = await take(broker, 1)
    settle(broker, SettleAction.NACK, a, seconds=5.0)
    assert broker.depths()["t"].groups["default"].delayed == 1
    assert bodies(await take(broker)) == ["b"]
    clock.advance(5)
    assert bodies(await take(broker)) == ["a"]


async def test_those_who_wait_are_served_first_come_first_served(broker: SimpleBroker) -> None:
    broker.create("t")
    waiting = []
    for member in range(3):
        receiving = broker.receive("t", max_messages=2, wait=60.0)
        waiting.append(asyncio.create_task(receiving))
        await until_waiting(broker, member + 1)
    await publish(broker, "a", "b", "c")
    assert bodies(await waiting[0]) == ["a", "b"]
    assert bodies(await waiting[1]) == ["c"]
    assert not waiting[2].done()
    await publish(broker, "d")
    assert bodies(await waiting[2]) == ["d"]


async def test_waiting_ends_with_nothing_when_its_time_is_over(
    broker: SimpleBroker, clock: VirtualClock
) -> None:
    broker.create("t")
    waiting = asyncio.create_task(broker.receive("t", wait=60.0))
    await until_waiting(broker, 1)
    clock.advance(60)
    assert await waiting == []
    assert broker.depths()["t"].groups["default"].waiting_members == 0
    assert clock.timers == 0


async def test_a_member_that_is_cancelled_as_its_messages_come_takes_nothing(broker: SimpleBroker) -> None:
    broker.create("t")
    waiting = asyncio.create_task(broker.receive("t", wait=60.0))
    await until_waiting(broker, 1)
    await publish(broker, "a")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    (handout,) = await take(broker)
    assert handout.attempt == 1


async def test_messages_go_to_dead_letters_after_the_last_delivery(broker: SimpleBroker) -> None:
    await publish(broker, "a")
    for _ in range(3):
        settle(broker, SettleAction.NACK, *(await take(broker)))
    assert await take(broker) == []
    (dead,) = await take(broker, topic="t.dead_letters")
    assert dead.body == b"a"
    for _ in range(5):  # a dead letter has nowhere further to go
        settle(broker, SettleAction.NACK, dead)
        (dead,) = await take(broker, topic="t.dead_letters")
    assert sorted(broker.depths()) == ["t", "t.dead_letters"]


async def test_dead_letters_are_bounded_and_lose_the_oldest(broker: SimpleBroker) -> None:
    await publish(broker, "a", "b", "c", "d")
    handouts = await take(broker)
    settle(broker, SettleAction.REJECT, *handouts[:2])
    (a, b) = await take(broker, topic="t.dead_letters")
    settle(broker, SettleAction.NACK, b)
    settle(broker, SettleAction.REJECT, *handouts[2:])
    settle(broker, SettleAction.NACK, a)  # dropped while it was in flight
    assert bodies(await take(broker, topic="t.dead_letters")) == ["c", "d"]
    assert broker.depths()["t.dead_letters"].messages == 2


async def test_dead_letters_have_a_place_when_there_are_too_many_topics(broker: SimpleBroker) -> None:
    await publish(broker, "a", "b")
    for number in range(3):
        broker.create(str(number))
    settle(broker, SettleAction.REJECT, *(await take(broker)))
    assert bodies(await take(broker, topic="t.dead_letters")) == ["a", "b"]
    assert broker.depths()["t"].messages == 0


async def test_a_full_topic_takes_what_fits_and_refuses_the_rest(broker: SimpleBroker) -> None:
    assert await publish(broker, *"abcdefg") == 5
    with pytest.raises(QueueFullError):
        await publish(broker, "h")
    settle(broker, SettleAction.ACK, *(await take(broker, 2)))
    assert await publish(broker, "h", "i", "j") == 2


async def test_a_topic_is_bounded_in_bytes_too(broker: SimpleBroker) -> None:
    await broker.publish("t", [("a", b"x" * 900)])
    with pytest.raises(QueueFullError):
        await broker.publish("t", [("b", b"x" * 101)])
    assert await broker.publish("t", [("c", b"x" * 100)]) == 1


async def test_a_message_that_fits_into_no_topic_is_refused_for_good(broker: SimpleBroker) -> None:
    await publish(broker, *"abcde")  # whether the topic is full makes no difference
    for batch in ([("large", b"x" * 1001)], [("small", b""), ("large", b"x" * 1001)]):
        with pytest.raises(
            PayloadTooLargeError, match=r"'large' has 1001 bytes.*max_bytes_per_topic"
        ) as raised:
            await broker.publish("t", batch)
        assert raised.value.limit_bytes == 1000
    assert await broker.publish("other", [("large", b"x" * 1000)]) == 1


async def test_dead_letters_are_bounded_in_bytes_too(broker: SimpleBroker) -> None:
    await broker.publish("t", [("a", b"a" * 600)])
    settle(broker, SettleAction.REJECT, *(await take(broker)))
    await broker.publish("t", [("b", b"b" * 600)])
    settle(broker, SettleAction.REJECT, *(await take(broker)))
    assert bodies(await take(broker, topic="t.dead_letters")) == ["b" * 600]
    assert broker.depths()["t.dead_letters"].size_bytes == 600


async def test_the_number_of_topics_is_bounded(broker: SimpleBroker) -> None:
    for number in range(4):
        await publish(broker, "a", topic=str(number))
        await take(broker, topic=str(number))
    with pytest.raises(QueueFullError, match="expires_after") as caught:
        broker.create("one more")
    assert caught.value.topic == "one more"


@pytest.mark.parametrize("name", ["", "a" * 256, "line\nbreak", "\0"])
def test_what_is_no_name_is_refused(broker: SimpleBroker, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        broker.create(name)


async def test_publishing_again_with_the_same_id_stores_once(broker: SimpleBroker) -> None:
    assert await publish(broker, "a", "a") == 2
    assert await publish(broker, "a") == 1
    assert bodies(await take(broker)) == ["a"]


async def test_a_group_gets_what_comes_after_it(broker: SimpleBroker) -> None:
    await publish(broker, "a")
    broker.create("t", "late")
    await publish(broker, "b")
    assert bodies(await take(broker)) == ["a", "b"]
    (late,) = await take(broker, group="late")
    assert late.body == b"b"
    settle(broker, SettleAction.ACK, late)
    assert broker.depths()["t"].messages == 2, "the default group has not settled it"


async def test_release_gives_back_all_that_a_subscription_holds(broker: SimpleBroker) -> None:
    await publish(broker, "a", "b", "c")
    await take(broker, 2, subscription="s")
    await take(broker, 1, subscription="other")
    broker.release("s")
    assert bodies(await take(broker)) == ["a", "b"]


async def test_a_closed_subscription_gets_no_more(broker: SimpleBroker) -> None:
    broker.create("t")
    waiting = asyncio.create_task(broker.receive("t", wait=60.0, subscription="s"))
    await until_waiting(broker, 1)
    broker.release("s", closed=True)
    assert await waiting == []
    with pytest.raises(ConflictError):
        await take(broker, subscription="s")


async def test_a_topic_that_nobody_reads_expires(broker: SimpleBroker, clock: VirtualClock) -> None:
    broker.create("t", expires_after=10.0)
    await publish(broker, "a")
    clock.advance(9)
    (a,) = await take(broker)
    clock.advance(9)
    assert "t" in broker.depths()
    clock.advance(1)
    assert broker.depths() == {}
    settle(broker, SettleAction.NACK, a)
    with pytest.raises(TopicNotFoundError):
        await take(broker)
    await publish(broker, "b")
    clock.advance(10)
    assert broker.depths() == {}, "written to again, but still without a reader"


async def test_a_topic_with_a_waiting_reader_does_not_expire(
    broker: SimpleBroker, clock: VirtualClock
) -> None:
    broker.create("t", expires_after=10.0)
    waiting = asyncio.create_task(broker.receive("t", wait=100.0))
    await until_waiting(broker, 1)
    clock.advance(50)
    await publish(broker, "a")
    assert bodies(await waiting) == ["a"]


async def test_a_closed_broker_ends_all_waiting_and_takes_nothing(broker: SimpleBroker) -> None:
    broker.create("t")
    waiting = asyncio.create_task(broker.receive("t", wait=60.0))
    await until_waiting(broker, 1)
    broker.close()
    assert await waiting == []
    with pytest.raises(UnavailableError):
        await publish(broker, "a")
    with pytest.raises(UnavailableError):
        await take(broker)


async def test_one_timer_serves_all_deadlines(broker: SimpleBroker, clock: VirtualClock) -> None:
    await publish(broker, *"abcde")
    await take(broker)
    assert clock.timers == 1


def test_cancelled_alarms_do_not_fill_the_memory(clock: VirtualClock) -> None:
    timetable = Timetable(clock)
    rung: list[str] = []
    timetable.add(clock.time() + 1, lambda: rung.append("kept"))
    for _ in range(10_000):
        timetable.cancel(timetable.add(clock.time() + 30, lambda: rung.append("cancelled")))
    assert len(timetable) == 1
    assert sum(isinstance(each, Alarm) for each in gc.get_objects()) < 1000
    clock.advance(60)
    assert rung == ["kept"]


def test_an_alarm_may_cancel_one_of_the_same_moment(clock: VirtualClock) -> None:
    timetable = Timetable(clock)
    rung: list[str] = []
    timetable.add(clock.time() + 1, lambda: timetable.cancel(second))
    second = timetable.add(clock.time() + 1, lambda: rung.append("second"))
    clock.advance(1)
    assert rung == []
    assert len(timetable) == 0
