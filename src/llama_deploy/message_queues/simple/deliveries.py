"""What the broker has handed out: to which subscription, and until when."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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
        """Give a member the next messages of its group."""
        deadline = self._timetable.now() + waiter.visibility
        handouts: list[Handout] = []
        for entry in group.take(waiter.max_messages):
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

    def wait(self, waiter: Waiter) -> None:
        """Note that a subscription waits."""
        self._member(waiter.subscription).waiters.add(waiter)

    def stop_waiting(self, waiter: Waiter) -> None:
        """Note that it waits no longer."""
        self._member(waiter.subscription).waiters.discard(waiter)
        self._forget_idle(waiter.subscription)

    def release(self, subscription: str) -> list[Entry]:
        """End the waiting and all deliveries of a subscription; return the messages."""
        member = self._members.get(subscription, _Member())
        for waiter in list(member.waiters):
            waiter.finish([])
        ended = (self.end(delivery_id) for delivery_id in list(member.deliveries))
        return [entry for entry in ended if entry is not None]

    def _member(self, subscription: str) -> _Member:
        return self._members.setdefault(subscription, _Member())

    def _forget_idle(self, subscription: str) -> None:
        member = self._members.get(subscription)
        if member is not None and not member.deliveries and not member.waiters:
            del self._members[subscription]

    def _expire(self, delivery_id: str) -> None:
        entry = self.end(delivery_id)
        if entry is not None:
            self._on_unsettled(entry)
