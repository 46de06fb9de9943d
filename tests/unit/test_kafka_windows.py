"""What the queue over Kafka knows of a partition, and what it writes into headers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from llama_deploy.message_queues import KafkaMessageQueueConfig
from llama_deploy.message_queues.base import Delivery
from llama_deploy.message_queues.kafka.backlog import Backlog
from llama_deploy.message_queues.kafka.connection import KafkaConnection
from llama_deploy.message_queues.kafka.envelope import DONE, Envelope
from llama_deploy.message_queues.kafka.intake import Intake
from llama_deploy.message_queues.kafka.pass_on_timer import PassOnTimer
from llama_deploy.message_queues.kafka.window import Assignment, Entry, Window
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually

MESSAGE = QueueMessage()


def entry_at(offset: int, name: str = "") -> Entry:
    return Entry(0, offset, b"", MESSAGE, Envelope(id=name))


@given(st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.permutations(range(size)))))
def test_what_is_committed_is_settled(case: tuple[int, list[int]]) -> None:
    size, order = case
    window = Window()
    entries = [entry_at(offset) for offset in range(size)]
    for entry in entries:
        window.add(entry)
    settled: set[int] = set()
    for offset in order:
        unsettled = [number for number in range(size) if number not in settled]
        assert window.settled_to() == unsettled[0]
        window.settle(entries[offset])
        window.settle(entries[offset])
        settled.add(offset)
    assert window.settled_to() == size


def test_what_has_nothing_to_deliver_is_committed_with_the_rest() -> None:
    window = Window()
    first = entry_at(3)
    window.add(first)
    window.next_offset = 5
    assert window.settled_to() == 3
    window.settle(first)
    assert window.settled_to() == 5


def test_what_nobody_had_in_hand_can_be_left() -> None:
    window = Window()
    entries = [entry_at(offset) for offset in range(6)]
    for entry in entries:
        window.add(entry)
    assert not list(window.stranded())
    window.touch(entries[1])
    window.settle(entries[3])
    assert [entry.offset for entry in window.stranded()] == [0, 1, 2]


def test_a_copy_is_found_by_its_id_until_it_is_settled() -> None:
    window = Window()
    copy = entry_at(0, "name")
    window.add(copy)
    assert window.copies["name"] is copy
    window.settle(copy)
    assert not window.copies


@given(
    st.builds(
        Envelope,
        group=st.text(),
        attempts=st.integers(0, 10**9),
        due=st.floats(0, 1e12) | st.just(DONE),
        id=st.text(),
    )
)
def test_headers_say_what_was_said(envelope: Envelope) -> None:
    assert Envelope.read(envelope.headers()) == envelope


def test_a_message_as_it_was_published_has_no_headers() -> None:
    assert Envelope().headers() == []
    assert Envelope.read([("of another", b"any")]) == Envelope()


@given(
    st.lists(
        st.tuples(st.sampled_from([name for name, _ in Envelope("g", 1, 1.0, "i").headers()]), st.binary())
    )
)
def test_any_headers_can_be_read(headers: list[tuple[str, bytes]]) -> None:
    envelope = Envelope.read(headers)
    assert not math.isnan(envelope.due)


@dataclass
class Record:
    """What the driver gives."""

    partition: int
    offset: int
    value: bytes
    headers: list[tuple[str, bytes]]


def test_records_for_other_groups_are_skipped_and_notes_tell_of_copies() -> None:
    assignment = Assignment()
    intake = Intake(assignment, topic="t", group="mine", max_deliveries=3)
    body = MESSAGE.encode()
    copy, note = Envelope("mine", 1, 7.0, "copy"), Envelope("mine", 2, 9.0, "copy")
    assert list(intake.take(Record(0, 0, body, Envelope("other").headers()))) == []
    ((plain, due),) = intake.take(Record(0, 1, body, []))
    assert (plain.message, due) == (MESSAGE, 0.0)
    ((copied, due),) = intake.take(Record(0, 2, body, copy.headers()))
    assert (copied.envelope.attempts, due) == (1, 7.0)
    assert list(intake.take(Record(0, 3, b"", note.headers()))) == [(copied, 9.0)]
    # A note may come before the copy that it is about.
    assert list(intake.take(Record(1, 0, b"", note.headers()))) == []
    assert [due for _, due in intake.take(Record(1, 1, body, copy.headers()))] == [9.0]
    assert assignment.unsettled() == 3


def test_what_cannot_be_decoded_is_exhausted_at_once_unless_it_is_a_dead_letter() -> None:
    for topic, attempts in (("t", [3]), ("t.dead_letters", [])):
        assignment = Assignment()
        intake = Intake(assignment, topic=topic, group="mine", max_deliveries=3)
        taken = list(intake.take(Record(0, 0, b"no message", [])))
        assert [entry.envelope.attempts for entry, _ in taken] == attempts
        assert assignment.window(0, 0).next_offset == 1


async def test_messages_are_passed_on_while_no_caller_asks() -> None:
    waiting = [1, 2, 3]
    timer = PassOnTimer(is_due=lambda: bool(waiting), pass_on=waiting.clear)
    with timer.asking():
        timer.start()
        await asyncio.sleep(0)
    assert waiting == [1, 2, 3]
    timer.start()
    await eventually(lambda: not waiting)
    waiting += [4, 5]
    with timer.asking():
        left = len(waiting)
        assert not await happens_within(lambda: len(waiting) < left, seconds=0.6)
    timer.start()
    await eventually(lambda: not waiting)
    timer.stop()


async def happens_within(check: Callable[[], bool], *, seconds: float) -> bool:
    try:
        return await eventually(check, seconds=seconds)
    except TimeoutError:
        return False


class OneDelivery(Delivery):
    async def _ack(self) -> None:
        pass

    async def _nack(self, delay: float) -> None:
        pass

    async def _extend(self, seconds: float) -> None:
        pass


def test_an_assignment_commits_what_is_new_in_each_partition() -> None:
    assignment = Assignment()
    for partition in (0, 1):
        window = assignment.window(partition, 7)
        window.add(Entry(partition, 7, b"", MESSAGE, Envelope()))
        assert assignment.window(partition, 99) is window
    assert assignment.offsets_to_commit() == {}
    assignment.settle(assignment.windows[1].entries[7])
    assert assignment.offsets_to_commit() == {1: 8}
    assert assignment.unsettled() == 1
    assignment.note_committed({1: 8, 5: 3})
    assert assignment.offsets_to_commit() == {}


def test_a_released_assignment_takes_deliveries_back_unless_their_copies_are_written() -> None:
    assignment = Assignment()
    window = assignment.window(0, 0)
    entries = [entry_at(offset) for offset in range(2)]
    for entry in entries:
        window.add(entry)
        entry.delivery = OneDelivery(MESSAGE, attempt=1)
        assignment.touch(entry)
    entries[1].is_leaving = True
    assert assignment.stranded() == entries
    assignment.release()
    assert [entry.delivery and entry.delivery.is_settled for entry in entries] == [True, False]
    assert assignment.is_moving
    assert not assignment.holds(entries[0])
    assignment.settle(entries[0])
    assignment.rebalanced([1, 2])
    assert (assignment.foreign, assignment.is_moving) == ([1, 2], False)


async def test_messages_of_a_forgotten_partition_are_not_handed_out() -> None:
    body = MESSAGE.encode()
    backlog = Backlog(KafkaConnection(KafkaMessageQueueConfig()), topic="topic", group="group")
    delayed = Record(0, 3, body, Envelope(due=time.time() + 0.05).headers())
    backlog.take([*(Record(0, offset, body, []) for offset in range(3)), delayed, Record(1, 0, body, [])])
    (in_hand,) = backlog.hand_out(1)
    backlog.forget(0)
    await in_hand.extend(0.0)
    await in_hand.ack()
    assert not await happens_within(lambda: len(backlog.ready) > 1, seconds=0.2)
    assert len(backlog.hand_out(10)) == 1, "that of the other partition"
    backlog.take([Record(0, 0, body, [])])
    assert len(backlog.hand_out(10)) == 1
    assert backlog.assignment.offsets_to_commit() == {}
    backlog.release()
