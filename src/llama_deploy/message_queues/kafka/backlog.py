"""The messages of a member: taken from records, ready when due, handed out, settled or moved."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from llama_deploy.message_queues.base import Delivery
from llama_deploy.message_queues.kafka.connection import KafkaConnection
from llama_deploy.message_queues.kafka.copies import CopyWriter
from llama_deploy.message_queues.kafka.envelope import DONE, Envelope
from llama_deploy.message_queues.kafka.intake import Intake
from llama_deploy.message_queues.kafka.window import Assignment, Entry
from llama_deploy.message_queues.settlement import SettleAction, SettledDelivery
from llama_deploy.types import generate_id

_MAX_READY: Final = 64
_MAX_UNSETTLED: Final = 10_000


class Backlog:
    """What was read of the member's partitions and is not settled.

    Args:
        connection: The connection to the brokers.
        topic: The topic.
        group: The group.
    """

    def __init__(self, connection: KafkaConnection, *, topic: str, group: str) -> None:
        self.assignment = Assignment()
        self.copies = CopyWriter(
            connection, topic=topic, group=group, on_moved=self._settle_here, on_refused=self._on_refused
        )
        self.ready: deque[Entry] = deque()
        self.arrived = asyncio.Event()
        """Set when a message is ready."""
        self.has_room = asyncio.Event()
        """Set while more may be read."""
        self.has_room.set()
        self.dirty = asyncio.Event()
        """Set when there may be more to commit."""
        self._group = group
        self._intake = Intake(
            self.assignment, topic=topic, group=group, max_deliveries=connection.config.max_deliveries
        )
        self._visibility_timeout = connection.config.visibility_timeout
        self._loop = asyncio.get_running_loop()

    def take(self, records: Iterable[Any]) -> None:
        """Take records of the member's present partitions."""
        for record in records:
            if not self.assignment.is_moving:
                self.dirty.set()
                for entry, due in self._intake.take(record):
                    if entry in self.ready:
                        self.ready.remove(entry)
                    entry.envelope = replace(entry.envelope, due=due)
                    if due == DONE:
                        self._settle_here(entry)
                    elif (delay := due - time.time()) > 0:
                        entry.timer = self._loop.call_later(delay, self._make_ready, entry)
                    else:
                        self._make_ready(entry)
        self.look_for_room()

    def hand_out(self, max_messages: int) -> list[Delivery]:
        """Return deliveries of messages that are ready."""
        taken: list[Delivery] = []
        while self.ready and len(taken) < max_messages:
            entry = self.ready.popleft()
            attempt = entry.envelope.attempts + 1
            entry.delivery = SettledDelivery(entry.message, attempt=attempt, key=entry, settle=self.settle)
            self.assignment.touch(entry)
            self._keep(entry, self._visibility_timeout)
            taken.append(entry.delivery)
        self.look_for_room()
        return taken

    def settle(self, entry: Entry, action: SettleAction, seconds: float = 0.0) -> None:
        """Settle a delivery for good, let it come back after a delay, or keep it for some seconds."""
        if action is SettleAction.EXTEND:
            self._keep(entry, seconds)
        elif action is SettleAction.NACK:
            self._give_back(entry, seconds)
        elif not self.copies.decide(entry, DONE):
            self._settle_here(entry)

    def pass_on(self, count: int) -> None:
        """Move messages that wait here to partitions of other members."""
        for _ in range(min(len(self.ready), count)):
            entry = self.ready.popleft()
            envelope = Envelope(self._group, entry.envelope.attempts)
            self.copies.move(entry, envelope, among=self.assignment.foreign)
        self.look_for_room()

    async def hand_over(self, *, keeping: bool, seconds: float) -> None:
        """Write copies of what others would get together with what is settled.

        Args:
            keeping: Whether what is handed out stays so until it is due.
            seconds: How long this may take.
        """
        self.ready.clear()
        for entry in self.assignment.stranded():
            if entry.is_leaving:
                continue
            if entry.delivery is None:
                # The notes about a copy go on coming to its partition.
                among = [entry.partition] if entry.envelope.id else []
                self.copies.move(entry, replace(entry.envelope, group=self._group), among=among)
            elif keeping and entry.timer is not None:
                due = time.time() + entry.timer.when() - self._loop.time()
                attempts = entry.envelope.attempts + 1
                self.copies.move(entry, Envelope(self._group, attempts, due, generate_id()))
            else:
                self._expire(entry)
        self.assignment.stop_timers()
        if not keeping:
            for entry in list(self.copies.in_use):
                self._expire(entry)
        await self.copies.wait(seconds)

    def release(self) -> None:
        """Leave what is not settled to the next members of the partitions."""
        self.ready.clear()
        self.assignment.release()
        self.look_for_room()

    def forget(self, partition: int) -> None:
        """Drop what was read of a partition whose records the broker has forgotten."""
        self.ready = deque(entry for entry in self.ready if entry.partition != partition)
        self.assignment.forget(partition)
        self.look_for_room()

    def look_for_room(self) -> None:
        """Note whether more may be read."""
        if len(self.ready) < _MAX_READY and self.assignment.unsettled() < _MAX_UNSETTLED:
            self.has_room.set()
        else:
            self.has_room.clear()

    def _give_back(self, entry: Entry, delay: float = 0.0) -> None:
        """Let a delivery come back after `delay` seconds."""
        due = time.time() + delay if delay > 0 else 0.0
        if not self.copies.decide(entry, due):
            self.copies.move(entry, Envelope(self._group, entry.envelope.attempts + 1, due))

    def _keep(self, entry: Entry, seconds: float) -> None:
        """Let a delivery come back in so many seconds, unless it is settled or extended before."""
        if not self.copies.decide(entry, time.time() + seconds) and self.assignment.holds(entry):
            entry.stop_timer()
            entry.timer = self._loop.call_later(seconds, self._expire, entry)

    def _make_ready(self, entry: Entry) -> None:
        entry.stop_timer()
        if self.copies.is_exhausted(entry.envelope):
            self.copies.move(entry, entry.envelope)
            return
        self.ready.append(entry)
        self.arrived.set()

    def _expire(self, entry: Entry) -> None:
        if entry.delivery is not None:
            entry.delivery.is_settled = True
        self._give_back(entry)

    def _settle_here(self, entry: Entry) -> None:
        self.assignment.settle(entry)
        self.dirty.set()
        self.look_for_room()

    def _on_refused(self, entry: Entry, attempts: int) -> None:
        """Let a message whose copy was refused come back here, as after its visibility timeout."""
        entry.is_leaving = False
        if not self.assignment.holds(entry):
            return
        if entry.verdict == DONE:
            self._settle_here(entry)
            return
        entry.verdict = entry.delivery = None
        entry.envelope = replace(entry.envelope, attempts=attempts)
        entry.timer = self._loop.call_later(self._visibility_timeout, self._make_ready, entry)
