"""Taking what instances report over the queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.control_plane.requests.attempt_requests import Attempts
from llama_deploy.errors import EventsMissingError, LlamaDeployError, OverloadedError, UnavailableError
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.consumer_loop import nack_delay
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 256
_OUT_OF_ORDER: Final = Backoff(first=0.1, longest=10.0)
"""How long a report waits for an earlier one: nine times in all more than `LATE_SECONDS`."""
_AWAY: Final = Backoff(first=0.1, longest=1.0)
"""How long reports wait for the store, well below the visibility timeout of any queue."""
LOST_AFTER_SECONDS: Final = 10.0
"""After how long reports that are missing count as lost by a queue that may lose them."""
LATE_SECONDS: Final = 30.0
"""The same for a durable queue: it loses nothing, but may be slow after an outage."""
_MOST_GAPS: Final = 10_000


class Reports:
    """Stores reports until cancelled; those that come at the same time share a transaction.

    Args:
        subscription: Where they come from.
        attempts: Who takes them.
        lost_after: Seconds after which reports that are missing count as lost.
    """

    def __init__(self, subscription: Subscription, attempts: Attempts, *, lost_after: float) -> None:
        self._subscription = subscription
        self._attempts = attempts
        self._lost_after = lost_after
        self._gaps: dict[tuple[object, object], _Gap] = {}
        """What is missing of an attempt."""

    async def consume(self) -> None:
        """Take reports until cancelled."""
        while True:
            await self._take(await self._subscription.receive(_AT_ONCE))

    async def _take(self, deliveries: Sequence[Delivery]) -> None:
        """Store reports. While the store does not answer they are kept: giving them back would count."""
        failures = 0
        while deliveries:
            answers = await self._answers(deliveries)
            settled = [pair for pair in zip(deliveries, answers, strict=True) if not _is_away(pair[1])]
            await asyncio.gather(*(self._settle(delivery, answer) for delivery, answer in settled))
            waiting = [pair for pair in zip(deliveries, answers, strict=True) if _is_away(pair[1])]
            deliveries = [delivery for delivery, _ in waiting]
            if waiting:
                failures += 1
                if failures == 1:
                    logger.warning(
                        "%d reports wait: %s", len(waiting), waiting[0][1], extra={"action": "reports_wait"}
                    )
                await asyncio.sleep(_AWAY.delay(failures))
                seconds = self._subscription.visibility_timeout
                await asyncio.gather(*(delivery.extend(seconds) for delivery in deliveries))

    async def _answers(self, deliveries: Sequence[Delivery]) -> Sequence[LlamaDeployError | None]:
        try:
            return await self._attempts.take([delivery.message for delivery in deliveries])
        except LlamaDeployError as exc:
            return [exc] * len(deliveries)

    async def _settle(self, delivery: Delivery, answer: LlamaDeployError | None) -> None:
        if answer is None:
            self._gaps.pop(_attempt_of(delivery.message), None)
            await delivery.ack()
        elif isinstance(answer, EventsMissingError):
            if self._is_lost(delivery.message, answer):
                await self._attempts.take_back(delivery.message)
            await delivery.nack(delay=_OUT_OF_ORDER.delay(delivery.attempt))
        else:
            await delivery.nack(delay=nack_delay(delivery.attempt))

    def _is_lost(self, message: QueueMessage, missing: EventsMissingError) -> bool:
        """Whether what should have come before a report has been missing for long.

        Another control plane may have taken what filled the last gap, so a gap is known by its number.
        """
        attempt, now = _attempt_of(message), time.monotonic()
        gap = self._gaps.get(attempt)
        if gap is None or gap.expected != missing.expected:
            gap = self._gaps[attempt] = _Gap(missing.expected, since=now)
        if len(self._gaps) > _MOST_GAPS:
            del self._gaps[next(iter(self._gaps))]
        return now - gap.since >= self._lost_after


def _is_away(answer: LlamaDeployError | None) -> bool:
    """Whether the store does not answer, or takes no more for the moment."""
    return isinstance(answer, UnavailableError | OverloadedError)


@dataclass(frozen=True, slots=True)
class _Gap:
    """What is missing of an attempt, and since when."""

    expected: int | None
    """The number of the first event that is missing."""
    since: float


def _attempt_of(message: QueueMessage) -> tuple[object, object]:
    return message.data.get("task_id"), message.data.get("attempt")
