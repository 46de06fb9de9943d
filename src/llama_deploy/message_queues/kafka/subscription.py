"""Reading one topic for one group: what came, who has it, how it is settled and handed over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ClosedError, LlamaDeployError, MessageDecodeError, UnavailableError
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, DEFAULT_GROUP, Delivery, Subscription
from llama_deploy.message_queues.kafka.connection import Link
from llama_deploy.message_queues.kafka.envelope import DONE, Envelope
from llama_deploy.message_queues.kafka.member import Member
from llama_deploy.message_queues.kafka.window import Entry, Window
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

_PASS_ON: Final = Backoff(first=0.25, longest=2.0)
"""How long what waits in the partitions of a member that asks for nothing waits, before some is passed on."""
_PASS_ON_AT_ONCE: Final = 4
_COMMIT_SECONDS: Final = 0.02
"""How long settlements gather: nobody waits for them, and each request costs both sides."""
_CLOSE_SECONDS: Final = 5.0
_MOST_READY: Final = 64
_MOST_UNSETTLED: Final = 10_000
_MOST_NOTED: Final = 1000


class KafkaSubscription(Subscription):
    """A member of a consumer group. A task reads, another commits; copies and notes are written by more.

    Args:
        link: The way to the brokers.
        topic: The topic.
        group: The group.
        on_close: Called when it is closed.
    """

    def __init__(
        self, link: Link, *, topic: str, group: str, on_close: Callable[[KafkaSubscription], None]
    ) -> None:
        config = link.config
        self.visibility_timeout = config.visibility_timeout
        self._link = link
        self._topic = topic
        self._group = group
        self._on_close = on_close
        self._max_deliveries = config.max_deliveries
        self._loop = asyncio.get_running_loop()
        self._member = Member(link, topic=topic, group=group, resident=self)
        self._windows: dict[int, Window] = {}
        self._foreign: list[int] = []
        """The partitions of other members."""
        self._is_moving = False
        """Whether the partitions are being shared out anew."""
        self._ready: deque[Entry] = deque()
        self._asking = 0
        self._passed = 0
        """How often some were passed on since the last call of `receive`."""
        self._passing: asyncio.TimerHandle | None = None
        self._abroad: set[Entry] = set()
        """What is in somebody's hands here while its copy is in some partition."""
        self._writing: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._dirty = asyncio.Event()
        self._closed = False
        self._closing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Join the group, at the end of the topic if it is new and not the default one.

        Raises:
            UnavailableError: The brokers do not answer.
            ConfigError: They refuse it.
        """
        if self._group != DEFAULT_GROUP:
            await self._member.begin_at_the_end()
        name = f"{self._member.group_id} of Kafka"
        self._tasks = [
            asyncio.create_task(self._read(), name=f"read {name}"),
            asyncio.create_task(self._keep_committing(), name=f"commit {name}"),
        ]

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Raises:
            ClosedError: The subscription is closed.
            ConfigError: The brokers have never let it read, and refuse to.
        """
        self._asking += 1
        self._stop_passing()
        self._passed = 0
        try:
            while not self._ready and not self._closed:
                self._check_tasks()
                self._arrived.clear()
                await self._arrived.wait()
        finally:
            self._asking -= 1
        if self._closed:
            raise ClosedError(f"the subscription to {self._topic!r} is closed; subscribe again to read on")
        taken: list[Delivery] = []
        while self._ready and len(taken) < max_messages:
            taken.append(self._hand_out(self._ready.popleft()))
        self._look_for_room()
        self._pass_on_later()
        return taken

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group at once. Idempotent."""
        self._closed = True
        self._arrived.set()
        async with self._closing:
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._hand_over(keeping=False, seconds=_CLOSE_SECONDS)
            for task in self._writing:
                task.cancel()
            await self._let_go()
            self._on_close(self)

    def settle(self, entry: Entry) -> None:
        """Note that a delivery needs to come back no more."""
        if not self._decide(entry, DONE):
            self._settle_here(entry)

    def give_back(self, entry: Entry, delay: float = 0.0) -> None:
        """Let a delivery come back, not before `delay` seconds."""
        due = time.time() + delay if delay > 0 else 0.0
        if not self._decide(entry, due):
            attempts = entry.envelope.attempts + 1
            self._write(self._move(entry, Envelope(self._group, attempts, due)))

    def keep(self, entry: Entry, seconds: float) -> None:
        """Let a delivery come back in so many seconds, unless it is settled or kept again before."""
        if not self._decide(entry, time.time() + seconds):
            entry.stop_timer()
            entry.timer = self._loop.call_later(seconds, self._expire, entry)

    def _decide(self, entry: Entry, due: float) -> bool:
        """Write down when a delivery is due that has left for another partition; return whether it has."""
        if entry.copy is not None:
            self._write(self._note(entry, due))
        elif entry.is_leaving:
            entry.verdict = due
        else:
            return False
        return True

    def _expire(self, entry: Entry) -> None:
        if entry.delivery is not None:
            entry.delivery.forget()
        self.give_back(entry)

    def _check_tasks(self) -> None:
        """Raise what has ended a task, if that was an error."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _read(self) -> None:
        """Take in messages until cancelled."""
        repeat: Callable[..., Awaitable[list[Any]]] = partial(self._link.persist, give_up_at=None)
        try:
            while True:
                await self._has_room.wait()
                records = await repeat(self._read_once)
                # Nothing may come between: the records are of the member's present partitions.
                for record in records:
                    self._take(record)
                repeat = self._link.outlast  # what is refused from now on was granted before
                self._look_for_room()
        finally:
            self._arrived.set()

    async def _read_once(self) -> list[Any]:
        try:
            return await self._member.read(_MOST_READY)
        except LlamaDeployError as exc:
            if isinstance(exc, UnavailableError):
                self._link.note_loss(exc)  # before the time that leaving may take
            await self._let_go()
            raise

    def _take(self, record: Any) -> None:
        """Take in a record."""
        if self._is_moving:
            return
        window = self._windows.get(record.partition)
        if window is None:
            window = self._windows[record.partition] = Window(committed=record.offset)
        envelope = Envelope.read(record.headers)
        self._dirty.set()
        if envelope.group not in ("", self._group):
            window.skip(record.offset)
        elif envelope.id and not record.value:
            window.skip(record.offset)
            self._take_note(window, envelope)
        else:
            self._take_message(window, record, envelope)

    def _take_note(self, window: Window, note: Envelope) -> None:
        entry = window.copies.get(note.id)
        if entry is None:
            if len(window.noted) >= _MOST_NOTED:
                window.noted.clear()
            window.noted[note.id] = note.due
        elif entry.delivery is None and not entry.is_leaving:
            entry.stop_timer()
            if entry in self._ready:
                self._ready.remove(entry)
            self._plan(entry, note.due)

    def _take_message(self, window: Window, record: Any, envelope: Envelope) -> None:
        body = record.value or b""
        try:
            message = QueueMessage.decode(body)
        except MessageDecodeError as exc:
            logger.error(  # noqa: TRY400 - the error is in the message, not in the code that the traceback shows
                "record %d of partition %d of %s cannot be understood: %s",
                record.offset,
                record.partition,
                self._topic,
                exc,
                extra={"action": "reject", "topic": self._topic},
            )
            if self._topic.endswith(DEAD_LETTERS_SUFFIX):
                window.skip(record.offset)
                return
            message = QueueMessage()
            envelope = replace(envelope, attempts=self._max_deliveries, due=0.0)
        entry = Entry(record.partition, record.offset, body, message, envelope)
        window.add(entry)
        self._plan(entry, window.noted.pop(envelope.id, envelope.due))

    def _plan(self, entry: Entry, due: float) -> None:
        """Settle a message that is done, or let it be ready when it is due."""
        entry.envelope = replace(entry.envelope, due=due)
        if due == DONE:
            self._settle_here(entry)
        elif (delay := due - time.time()) > 0:
            entry.timer = self._loop.call_later(delay, self._make_ready, entry)
        else:
            self._make_ready(entry)

    def _make_ready(self, entry: Entry) -> None:
        entry.stop_timer()
        if self._is_spent(entry.envelope):
            self._write(self._move(entry, entry.envelope))
            return
        self._ready.append(entry)
        self._arrived.set()
        self._pass_on_later()

    def _is_spent(self, envelope: Envelope) -> bool:
        """Return whether a message was delivered often enough. Dead letters stay what they are."""
        return envelope.attempts >= self._max_deliveries and not self._topic.endswith(DEAD_LETTERS_SUFFIX)

    def _hand_out(self, entry: Entry) -> Delivery:
        entry.delivery = KafkaDelivery(self, entry)
        self._windows[entry.partition].touch(entry)
        self.keep(entry, self.visibility_timeout)
        return entry.delivery

    def _settle_here(self, entry: Entry) -> None:
        entry.stop_timer()
        window = self._windows.get(entry.partition)
        if window is not None:
            window.settle(entry)
        self._dirty.set()
        self._look_for_room()

    def _look_for_room(self) -> None:
        unsettled = sum(len(window.entries) for window in self._windows.values())
        if len(self._ready) < _MOST_READY and unsettled < _MOST_UNSETTLED:
            self._has_room.set()
        else:
            self._has_room.clear()

    def _pass_on_later(self) -> None:
        if self._ready and self._foreign and not self._asking and self._passing is None:
            self._passing = self._loop.call_later(_PASS_ON.delay(self._passed + 1), self._pass_on)

    def _stop_passing(self) -> None:
        if self._passing is not None:
            self._passing.cancel()
            self._passing = None

    def _pass_on(self) -> None:
        """Write some of what waits to partitions of members that may have time for it."""
        self._passing = None
        if self._asking or self._closed or self._is_moving:
            return
        self._passed += 1
        for _ in range(min(len(self._ready), _PASS_ON_AT_ONCE)):
            entry = self._ready.popleft()
            envelope = Envelope(self._group, entry.envelope.attempts)
            self._write(self._move(entry, envelope, among=self._foreign))
        self._look_for_room()
        self._pass_on_later()

    def _write(self, writing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(writing)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _move(self, entry: Entry, envelope: Envelope, *, among: Sequence[int] = ()) -> None:
        """Write a copy of a message and settle the message."""
        attempts = envelope.attempts
        entry.is_leaving = True
        entry.stop_timer()
        topic = self._topic
        if self._is_spent(envelope):
            topic, envelope, among = topic + DEAD_LETTERS_SUFFIX, Envelope(), ()
            logger.error(
                "message %s of %r was never acknowledged and is a dead letter now",
                entry.message.id_,
                self._topic,
                extra={"action": "dead_letter", "topic": self._topic, "message_id": entry.message.id_},
            )
        try:
            partition = await self._link.persist(
                partial(self._link.send, topic, entry.body, envelope, among=among), give_up_at=None
            )
        except LlamaDeployError as exc:
            logger.warning("message %s of %r comes back late: %r", entry.message.id_, self._topic, exc)
            self._stay(entry, attempts)
            return
        self._settle_here(entry)
        if envelope.id:
            entry.copy = partition, envelope.id
            self._abroad.add(entry)
            if entry.verdict is not None:
                await self._note(entry, entry.verdict)

    def _stay(self, entry: Entry, attempts: int) -> None:
        """The brokers refuse the copy of a message: it comes back here, as after its visibility timeout."""
        entry.is_leaving = False
        window = self._windows.get(entry.partition)
        if self._closed or window is None or window.entries.get(entry.offset) is not entry:
            return
        if entry.verdict == DONE:
            self._settle_here(entry)
            return
        entry.verdict = entry.delivery = None
        entry.envelope = replace(entry.envelope, attempts=attempts)
        entry.timer = self._loop.call_later(self.visibility_timeout, self._make_ready, entry)

    async def _note(self, entry: Entry, due: float) -> None:
        """Write when the copy of a message is due."""
        if entry.copy is None:
            return
        partition, name = entry.copy
        envelope = Envelope(self._group, entry.envelope.attempts + 1, due, name)
        if entry.delivery is None or entry.delivery.is_settled:
            self._abroad.discard(entry)
        with suppress(LlamaDeployError):
            await self._link.persist(
                partial(self._link.send, self._topic, b"", envelope, among=[partition]), give_up_at=None
            )

    async def _keep_committing(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_COMMIT_SECONDS)
            self._dirty.clear()
            if not await self._commit():
                await asyncio.sleep(self._link.config.session_timeout / 6)
                self._dirty.set()

    async def _commit(self) -> bool:
        """Commit what is settled; return whether that succeeded."""
        offsets = {
            number: window.settled_to()
            for number, window in self._windows.items()
            if window.settled_to() > window.committed
        }
        try:
            await self._member.commit(offsets)
        except LlamaDeployError as exc:
            logger.debug("offsets of %s could not be committed: %s", self._member.group_id, exc)
            return False
        for number, offset in offsets.items():
            if number in self._windows:
                self._windows[number].committed = offset
        return True

    async def prepare_to_move(self) -> None:
        """Let go of all partitions: they are about to be shared out anew."""
        self._is_moving = True
        await self._hand_over(keeping=True, seconds=self._link.config.session_timeout / 2)
        self._forget_windows()

    def settle_in(self, foreign: Sequence[int]) -> None:
        """Begin anew, with the partitions of the member; `foreign` are those of others."""
        self._foreign = list(foreign)
        self._is_moving = False

    async def _hand_over(self, *, keeping: bool, seconds: float) -> None:
        """Write copies of what others would get together with what is settled, then commit.

        Args:
            keeping: Whether what is in somebody's hands stays there until it is due.
            seconds: How long this may take.
        """
        self._ready.clear()
        for window in self._windows.values():
            for entry in window.stranded():
                if entry.is_leaving:
                    continue
                if entry.delivery is None:
                    # The notes about a copy go on coming to its partition.
                    among = [entry.partition] if entry.envelope.id else []
                    self._write(self._move(entry, replace(entry.envelope, group=self._group), among=among))
                elif keeping and entry.timer is not None:
                    due = time.time() + entry.timer.when() - self._loop.time()
                    attempts = entry.envelope.attempts + 1
                    self._write(self._move(entry, Envelope(self._group, attempts, due, generate_id())))
                else:
                    self._expire(entry)
            for entry in window.entries.values():
                entry.stop_timer()
        if not keeping:
            for entry in list(self._abroad):
                self._expire(entry)
        if self._writing:
            await asyncio.wait(self._writing, timeout=seconds)
        await self._commit()

    async def _let_go(self) -> None:
        """Leave the group and forget what came of it."""
        self._is_moving = True
        await self._member.close()
        self._ready.clear()
        self._stop_passing()
        self._forget_windows()

    def _forget_windows(self) -> None:
        """Leave what is not settled to the next members of its partitions."""
        for window in self._windows.values():
            for entry in window.entries.values():
                entry.stop_timer()
                if entry.delivery is not None and not entry.is_leaving:
                    entry.delivery.forget()
        self._windows.clear()
        self._look_for_room()


class KafkaDelivery(Delivery):
    """A delivery of the queue over Kafka.

    Args:
        subscription: It settles this.
        entry: What the subscription knows of it.
    """

    def __init__(self, subscription: KafkaSubscription, entry: Entry) -> None:
        self.message = entry.message
        self.attempt = entry.envelope.attempts + 1
        self.is_settled = False
        self._subscription = subscription
        self._entry = entry

    async def ack(self) -> None:
        """The work is done; the message will not come back. Harmless when settled before."""
        if not self.is_settled:
            self.forget()
            self._subscription.settle(self._entry)

    async def nack(self, delay: float = 0.0) -> None:
        """The work failed; the message comes back, not before `delay` seconds."""
        if not self.is_settled:
            self.forget()
            self._subscription.give_back(self._entry, delay)

    async def extend(self, seconds: float) -> None:
        """Keep the message `seconds` from now before it counts as unsettled."""
        if not self.is_settled:
            self._subscription.keep(self._entry, seconds)

    def forget(self) -> None:
        """Settle nothing any more."""
        self.is_settled = True
