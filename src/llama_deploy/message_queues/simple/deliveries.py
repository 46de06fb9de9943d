"""What the broker has handed out: to which subscription, and until when."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from llama_deploy.message_queues.simple.limits import MAX_HANDOUT_BYTES
from llama_deploy.message_queues.simple.timetable import Alarm, Timetable
from llama_deploy.message_queues.simple.topic import Entry, Group, Handout, Waiter


@dataclass(slots=True, eq=False)
class _Delivery:
    """A message that was handed out and is not settled."""

    entry: Entry
    subscription: str
    alarm: Alarm


@dataclass(slots=True, eq=False)
class _Member:
    """What a subscription holds or waits for."""

    deliveries: set[str] = field(default_factory=set)
    waiters: set[Waiter] = field(default_factory=set)


class Deliveries:
    """Hands out the messages of groups, and takes them back.

    Args:
        timetable: For visibility timeouts.
        on_unsettled: Called with a message whose visibility timeout is over.
    """

    def __init__(self, timetable: Timetable, *, on_unsettled: Callable[[Entry], None]) -> None:
        self._timetable = timetable
        self._on_unsettled = on_unsettled
        self._deliveries: dict[str, _Delivery] = {}
        self._members: dict[str, _Member] = {}
        # Delivery ids from before a restart must not match new ones.
        self._epoch = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    def hand_out(self, group: Group, waiter: Waiter) -> list[Handout]:
        """Give a member the next messages of its group, as many as one answer may hold."""
        deadline = self._timetable.now() + waiter.visibility
        handouts: list[Handout] = []
        for entry in group.take(waiter.max_messages, max_bytes=MAX_HANDOUT_BYTES):
            entry.deliveries += 1
            delivery_id = f"{self._epoch}-{next(self._numbers)}"
            alarm = self._timetable.add(deadline, partial(self._expire, delivery_id))
            self._deliveries[delivery_id] = _Delivery(entry, waiter.subscription, alarm)
            handouts.append(Handout(delivery_id, entry.deliveries, entry.message.body))
        if handouts:
            group.in_flight += len(handouts)
            self._member(waiter.subscription).deliveries.update(handout.delivery_id for handout in handouts)
        return handouts

    def end(self, delivery_id: str) -> Entry | None:
        """End a delivery and return its message; None if it has ended already."""
        delivery = self._deliveries.pop(delivery_id, None)
        if delivery is None:
            return None
        self._timetable.cancel(delivery.alarm)
        delivery.entry.group.in_flight -= 1
        self._member(delivery.subscription).deliveries.discard(delivery_id)
        self._forget_idle(delivery.subscription)
        return delivery.entry

    def extend(self, delivery_id: str, seconds: float) -> None:
        """Set the visibility timeout of a delivery to so many seconds from now."""
        delivery = self._deliveries.get(delivery_id)
        if delivery is not None:
            self._timetable.cancel(delivery.alarm)
            delivery.alarm = self._timetable.add(
                self._timetable.now() + seconds, partial(self._expire, delivery_id)
            )

    async def wait(self, group: Group, waiter: Waiter, *, seconds: float) -> list[Handout]:
        """Wait until there are messages for a member; none after so many seconds."""
        timeout = self._timetable.add(self._timetable.now() + seconds, partial(waiter.finish, []))
        group.waiters.append(waiter)
        self._member(waiter.subscription).waiters.add(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                self.give_back(waiter.future.result())
            raise
        finally:
            self._timetable.cancel(timeout)
            if waiter in group.waiters:
                group.waiters.remove(waiter)
            self._member(waiter.subscription).waiters.discard(waiter)
            self._forget_idle(waiter.subscription)

    def dispatch(self, group: Group) -> None:
        """Hand ready messages to waiting members."""
        while group.waiters and group.ready:
            waiter = group.waiters.popleft()
            if not waiter.future.done():
                waiter.finish(self.hand_out(group, waiter))

    def put_back(self, entry: Entry, *, delay: float = 0.0) -> None:
        """Make a message ready again after a delay, unless it is gone by then."""
        if delay > 0:
            entry.group.delayed += 1
            self._timetable.add(self._timetable.now() + delay, partial(self._on_delay_over, entry))
        elif entry.message.open_groups:
            entry.group.put_back(entry)
            self.dispatch(entry.group)

    def give_back(self, handouts: Iterable[Handout]) -> None:
        """Take back what did not reach its consumer, as if it had never been handed out."""
        for handout in handouts:
            entry = self.end(handout.delivery_id)
            if entry is not None:
                entry.deliveries -= 1
                self.put_back(entry)

    def release(self, subscription: str) -> None:
        """End the waiting and all deliveries of a subscription; their messages are ready again."""
        member = self._members.get(subscription, _Member())
        for waiter in list(member.waiters):
            waiter.finish([])
        ended = [self.end(delivery_id) for delivery_id in list(member.deliveries)]
        for entry in ended:
            if entry is not None:
                self.put_back(entry)

    def _member(self, subscription: str) -> _Member:
        return self._members.setdefault(subscription, _Member())

    def _forget_idle(self, subscription: str) -> None:
        member = self._members.get(subscription)
        if member is not None and not member.deliveries and not member.waiters:
            del self._members[subscription]

    def _on_delay_over(self, entry: Entry) -> None:
        entry.group.delayed -= 1
        self.put_back(entry)

    def _expire(self, delivery_id: str) -> None:
        entry = self.end(delivery_id)
        if entry is not None:
            self._on_unsettled(entry)
