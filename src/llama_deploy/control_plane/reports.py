"""Taking what instances report over the queue."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.control_plane.attempts import Attempts
from llama_deploy.errors import EventsMissingError, LlamaDeployError
from llama_deploy.message_queues.base import Delivery, Subscription, nack_delay

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 256
_OUT_OF_ORDER: Final = Backoff(first=0.05, longest=5.0)
"""How long a report waits for one that should have come before it."""
_LAST_DELIVERY: Final = 9
"""At this delivery of a report, about 10 seconds after the first, those before it count as lost."""


async def consume_reports(subscription: Subscription, attempts: Attempts) -> None:
    """Store reports until cancelled; those that come at the same time share a transaction."""
    while True:
        deliveries = await subscription.receive(_AT_ONCE)
        try:
            answers = await attempts.take([delivery.message for delivery in deliveries])
        except LlamaDeployError as exc:
            logger.warning("%d reports wait: %s", len(deliveries), exc, extra={"action": "reports_wait"})
            answers = [exc] * len(deliveries)
        await asyncio.gather(
            *(
                _settle(delivery, answer, attempts)
                for delivery, answer in zip(deliveries, answers, strict=True)
            )
        )


async def _settle(delivery: Delivery, answer: LlamaDeployError | None, attempts: Attempts) -> None:
    if answer is None:
        await delivery.ack()
    elif isinstance(answer, EventsMissingError):
        if delivery.attempt >= _LAST_DELIVERY:
            await attempts.take_back(delivery.message)
        await delivery.nack(delay=_OUT_OF_ORDER.delay(delivery.attempt))
    else:
        await delivery.nack(delay=nack_delay(delivery.attempt))
