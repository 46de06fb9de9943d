"""Reading a queue of Amazon SQS: subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from llama_deploy.backoff import Backoff
from llama_deploy.batching import Batcher
from llama_deploy.errors import (
    ClosedError,
    LlamaDeployError,
    MessageDecodeError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.aws.connection import MOST_ENTRIES, SqsLink
from llama_deploy.message_queues.aws.sqs_topics import Topics
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, Delivery, Subscription
from llama_deploy.message_queues.holdings import Holdings, ours_until
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

_GATHER_SECONDS: Final = 0.01
"""How long settlements gather: nobody waits for them, and each request costs money."""
_BACKOFF: Final = Backoff(first=0.1, longest=5.0)
_SOON_SECONDS: Final = 0.5
"""A request that was to wait and ends without messages so soon is followed by a pause."""
_MOST_AT_ONCE: Final = 10 * MOST_ENTRIES
"""How many messages one `receive` brings, by requests of ten."""
_MOST_SECONDS: Final = 43_200
"""For how long a message may be kept from others after it was received ("Visibility timeout")."""
_RECEIVE_COUNT: Final = "ApproximateReceiveCount"


class Spawn(Protocol):
    """Does something beside, to its end; or, if it may have none, until the queue is closed."""

    def __call__(self, work: Any, *, name: str, endless: bool = False) -> asyncio.Task[Any]:
        """Begin the work."""
        ...


@dataclass(frozen=True, slots=True)
class _Received:
    """A message as it was handed over."""

    body: str
    receipt: str
    attempt: int
    since: float
    """About when the service handed it over, not later, by the loop's clock."""


@dataclass(frozen=True, slots=True)
class _Settlement:
    """What becomes of one delivery."""

    receipt: str
    seconds: int | None
    """For how long it is kept from all members, from now. None: for ever, it is done."""
    until: float = math.inf
    """When it is too late for it, by the loop's clock."""


class SqsSubscription(Subscription):
    """Reads one queue. A `receive` that is cancelled leaves its request to the next one.

    To break off a request could lose what is on its way, until its visibility timeout. What a request brings
    when nobody waits for it any more goes back at once.
    """

    def __init__(
        self,
        link: SqsLink,
        topics: Topics,
        *,
        topic: str,
        group: str,
        lifetime: float | None,
        put: Callable[[str, str], Awaitable[None]],
        spawn: Spawn,
    ) -> None:
        self.visibility_timeout = float(link.config.visibility_timeout)
        self.closed = False
        self._link = link
        self._topics = topics
        self._topic = topic
        self._group = group
        self._lifetime = lifetime
        self._tell_at = 0.0
        """When to tell that the topic is read, if it may expire."""
        self._put = put
        self._spawn = spawn
        self.held = Holdings[str]()
        """Unsettled deliveries, by their receipts."""
        self._poll: asyncio.Task[list[_Received]] | None = None
        self._waiting = 0
        """How many wait for the request that is under way."""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early = 0
        """How many requests in a row have brought nothing, and ended too soon."""
        self._has_read = False
        """Whether the service has ever let it read; if not, its role lacks a permission."""
        self._settling: Batcher[_Settlement, bool] = Batcher(
            self._settle_batch,
            max_batch=10 * MOST_ENTRIES,
            gather_seconds=_GATHER_SECONDS,
            name=f"SQS settler of {topic}",
        )

    async def join(self) -> None:
        """Make topic and group where they do not exist."""
        with self._missing_for_now():
            await self._topics.join(self._topic, self._group)
            await self._tell_it_is_read()

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Returns:
            At most a hundred.

        Raises:
            ClosedError: The subscription is closed.
            ConfigError: The service has never let it read, and refuses to.
        """
        while not self.closed:
            if self._poll is None:
                work = self._receive(max_messages)
                self._poll = self._spawn(work, name=f"receive {self._topic}", endless=True)
                self._poll.add_done_callback(self._reclaim)
            poll = self._poll
            await self._wait_for(poll)
            if self._poll is poll and poll.done() and not self.closed:
                self._poll = None
                received = poll.result()
                self._give_back(received[max_messages:])
                if deliveries := self._opened(received[:max_messages]):
                    return deliveries
        raise ClosedError(f"the subscription to {self._topic!r} is closed; subscribe again to read on")

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group at once. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._ended.set_result(None)
        self._reclaim()
        for receipt, until in self.held.let_all_go().items():
            self.settle(_Settlement(receipt, 0, until))
        await self._settling.close()

    def settle(self, settlement: _Settlement) -> asyncio.Future[bool]:
        """Send a settlement with the next ones. The future tells whether it was taken; never fails."""
        try:
            return self._settling.submit_nowait(settlement)
        except LlamaDeployError as exc:
            logger.warning("a settlement is lost, its message comes back: %s", exc)
            lost: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            lost.set_result(False)
            return lost

    def is_spent(self, attempt: int) -> bool:
        """Whether a message was delivered as often as it may be. Dead letters never are."""
        return attempt >= self._link.config.max_deliveries and not self._topic.endswith(DEAD_LETTERS_SUFFIX)

    def bury(self, received: _Received) -> asyncio.Task[None]:
        """Move a message to the dead letters; one that cannot be moved comes back."""
        return self._spawn(self._bury(received), name=f"dead letter of {self._topic}")

    async def _wait_for(self, poll: asyncio.Task[list[_Received]]) -> None:
        """Wait for the end of a request, or of the subscription."""
        either: set[asyncio.Future[Any]] = {poll, self._ended}
        self._waiting += 1
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._waiting -= 1
            self._reclaim()
            raise
        self._waiting -= 1

    def _reclaim(self, _poll: object = None) -> None:
        """Give back what a request has brought, if nobody waits for it."""
        poll = self._poll
        if poll is None or not poll.done() or (self._waiting and not self.closed):
            return
        self._poll = None
        if poll.cancelled():
            return
        if (error := poll.exception()) is not None:
            logger.warning("a request for messages of %s has failed: %s", self._topic, error)
        else:
            self._give_back(poll.result())

    def _give_back(self, received: Sequence[_Received]) -> None:
        """Let others have what was not handed to anybody here."""
        if received:
            settlements = [_Settlement(each.receipt, 0, self._ours_until(each)) for each in received]
            self._spawn(self._settle_batch(settlements), name=f"give back to {self._topic}")

    async def _receive(self, max_messages: int) -> list[_Received]:
        received: list[_Received] = []
        while not (received or self.closed):
            received = await self._link.outlast(
                partial(self._receive_once, max_messages), was_granted=lambda: self._has_read
            )
        return received

    async def _receive_once(self, max_messages: int) -> list[_Received]:
        if self.closed:
            return []
        loop = asyncio.get_running_loop()
        with self._missing_for_now():
            await self._tell_it_is_read()
            url = await self._topics.url(self._topic, self._group)
            asked = loop.time()
            ask = partial(
                self._link.receive,
                QueueUrl=url,
                VisibilityTimeout=self._link.config.visibility_timeout,
                MessageSystemAttributeNames=[_RECEIVE_COUNT],
            )
            messages = await ask(wait=True, MaxNumberOfMessages=min(max_messages, MOST_ENTRIES))
            self._has_read = True
            received = _received(messages, since=loop.time())
            if len(messages) == MOST_ENTRIES:
                more = await _receive_more(ask, min(max_messages, _MOST_AT_ONCE) - MOST_ENTRIES)
                received += _received(more, since=received[0].since)
        if received or loop.time() - asked > _SOON_SECONDS:
            self._early = 0
        else:
            self._early += 1
            await asyncio.sleep(_BACKOFF.delay(self._early))
        return received

    @contextmanager
    def _missing_for_now(self) -> Iterator[None]:
        """Have the queue looked for, or made, anew when it is not there.

        It has expired, somebody has removed it, or it is so new that not every server knows it.
        """
        try:
            yield
        except TopicNotFoundError as exc:
            self._topics.forget(self._topic, self._group)
            self._tell_at = 0.0
            raise UnavailableError(str(exc)) from exc

    async def _tell_it_is_read(self) -> None:
        """Put off the end of a topic that expires when nobody reads it."""
        now = asyncio.get_running_loop().time()
        if self._lifetime is not None and now >= self._tell_at:
            await self._topics.keep(self._topic, self._group, self._lifetime)
            self._tell_at = now + self._lifetime / 3

    def _opened(self, received: Sequence[_Received]) -> list[Delivery]:
        """Return the deliveries of messages, and put aside those that are spent or no messages."""
        self.held.forget_the_late()
        now = asyncio.get_running_loop().time()
        deliveries: list[Delivery] = []
        for each in received:
            if self._ours_until(each) <= now:
                continue  # others may have it
            if self.is_spent(each.attempt - 1):
                self.bury(each)
                continue
            try:
                message = QueueMessage.decode(each.body)
            except MessageDecodeError as exc:
                logger.error("a message of %s: %s", self._topic, exc)  # noqa: TRY400 - it is the message's
                self.bury(each)
                continue
            self.held.keep(each.receipt, self._ours_until(each))
            deliveries.append(_SqsDelivery(self, each, message))
        return deliveries

    def _ours_until(self, received: _Received) -> float:
        return ours_until(self.visibility_timeout, since=received.since)

    async def _bury(self, received: _Received) -> None:
        try:
            await self._put(self._topic + DEAD_LETTERS_SUFFIX, received.body)
        except LlamaDeployError as exc:
            logger.warning("a dead letter of %s could not be put aside and comes back: %s", self._topic, exc)
            return
        logger.error("a message of %s became a dead letter", self._topic, extra={"action": "dead_letter"})
        await self._settle_batch([_Settlement(received.receipt, None)])

    async def _settle_batch(self, batch: Sequence[_Settlement]) -> list[bool]:
        now = asyncio.get_running_loop().time()
        latest = {each.receipt: each for each in batch if each.until > now}.values()
        done = [each for each in latest if each.seconds is None]
        kept = [each for each in latest if each.seconds is not None]
        send = partial(self._link.call_batch, url=partial(self._topics.url, self._topic, self._group))
        give_up_at = self._link.give_up_at()
        outcomes = await asyncio.gather(
            send(
                "delete_message_batch",
                [{"ReceiptHandle": each.receipt} for each in done],
                give_up_at=give_up_at,
            ),
            send(
                "change_message_visibility_batch",
                [{"ReceiptHandle": each.receipt, "VisibilityTimeout": each.seconds} for each in kept],
                give_up_at=min([give_up_at, *(each.until for each in kept)]),
            ),
        )
        taken: set[str] = set()
        for each, outcome in zip(done + kept, outcomes[0] + outcomes[1], strict=True):
            if outcome is None:
                taken.add(each.receipt)
            else:
                # Most often it was settled too late: it is another member's by now, or gone.
                level = logging.WARNING if isinstance(outcome, UnavailableError) else logging.DEBUG
                logger.log(level, "a settlement is lost, its message comes back: %s", outcome)
        return [each.receipt in taken for each in batch]


def _received(messages: Sequence[dict[str, Any]], *, since: float) -> list[_Received]:
    return [
        _Received(
            body=message["Body"],
            receipt=message["ReceiptHandle"],
            attempt=int(message["Attributes"][_RECEIVE_COUNT]),
            since=since,
        )
        for message in messages
    ]


async def _receive_more(
    ask: Callable[..., Awaitable[list[dict[str, Any]]]], most: int
) -> list[dict[str, Any]]:
    """Receive what is there beyond one request, by as many at a time as it takes."""
    sizes = [min(MOST_ENTRIES, most - taken) for taken in range(0, most, MOST_ENTRIES)]
    answers = await asyncio.gather(
        *(ask(wait=False, MaxNumberOfMessages=size) for size in sizes), return_exceptions=True
    )
    # What one of them fails with, the next request that waits tells.
    return [message for answer in answers if isinstance(answer, list) for message in answer]


class _SqsDelivery(Delivery):
    """A message that the service keeps from others until it hears of it, or hears nothing for long."""

    def __init__(self, subscription: SqsSubscription, received: _Received, message: QueueMessage) -> None:
        self.message = message
        self.attempt = received.attempt
        self._received = received
        self._subscription = subscription
        self._settled = False

    async def ack(self) -> None:
        """The work is done; the message will not come back. Harmless when settled before."""
        self._subscription.held.let_go(self._received.receipt)
        if self._settle_once():
            self._subscription.settle(_Settlement(self._received.receipt, None))

    async def nack(self, delay: float = 0.0) -> None:
        """The work failed; the message comes back, not before `delay` seconds, rounded up to whole ones.

        One that was held for too long has come back already, or is about to.
        """
        until = self._subscription.held.let_go(self._received.receipt)
        if not self._settle_once() or not until:
            return
        if self._subscription.is_spent(self.attempt):
            await asyncio.wait([self._subscription.bury(self._received)])
        else:
            self._subscription.settle(_Settlement(self._received.receipt, self._possible(delay), until))

    async def extend(self, seconds: float) -> None:
        """Keep the message `seconds` from now, rounded up, before it counts as unsettled.

        It cannot be kept for more than 12 hours after it was received.
        """
        held, receipt = self._subscription.held, self._received.receipt
        if until := held.until(receipt):
            kept = self._possible(seconds)
            longer = ours_until(kept, since=asyncio.get_running_loop().time())
            held.keep_if(self._subscription.settle(_Settlement(receipt, kept, until)), receipt, longer)

    def _settle_once(self) -> bool:
        settled, self._settled = self._settled, True
        return not settled

    def _possible(self, seconds: float) -> int:
        """Return whole seconds that the service accepts."""
        left = self._received.since + _MOST_SECONDS - asyncio.get_running_loop().time()
        return math.ceil(max(0.0, min(seconds, left - 1)))
