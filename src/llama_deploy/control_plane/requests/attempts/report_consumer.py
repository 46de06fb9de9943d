"""Consuming the reports of instances from the queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.control_plane.requests.attempts.attempt_requests import Attempts
from llama_deploy.control_plane.requests.attempts.report_barrier import ReportBarrier, is_mark
from llama_deploy.control_plane.requests.attempts.report_gaps import ReportGaps
from llama_deploy.errors import EventsMissingError, LlamaDeployError, OverloadedError, UnavailableError
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.consumer_loop import nack_delay
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

_MAX_BATCH: Final = 256
_OUT_OF_ORDER: Final = Backoff(first=0.1, longest=10.0)
"""How long a report waits for an earlier one. Nine deliveries take longer than `LATE_SECONDS`."""
_UNAVAILABLE: Final = Backoff(first=0.1, longest=1.0)
"""How long reports wait for the store, well below the visibility timeout of any queue."""
LOST_AFTER_SECONDS: Final = 10.0
"""Seconds after which missing reports count as lost, with a queue that may lose messages."""
LATE_SECONDS: Final = 30.0
"""The same for a durable queue, which loses nothing but may be slow after an outage."""


class Reports:
    """Stores reports until cancelled. Reports that arrive together share a transaction.

    Args:
        subscription: Delivers the reports.
        attempts: Stores them.
        barrier: Told of the marks that it has sent.
        lost_after: Seconds after which missing reports count as lost.
        on_stored: Called with each report that is stored.
    """

    def __init__(
        self,
        subscription: Subscription,
        attempts: Attempts,
        *,
        barrier: ReportBarrier,
        lost_after: float,
        on_stored: Callable[[QueueMessage], None] | None = None,
    ) -> None:
        self._subscription = subscription
        self._attempts = attempts
        self._barrier = barrier
        self._gaps = ReportGaps(lost_after=lost_after)
        self._on_stored = on_stored
        self._outage = Outage(on_start=_log_start, on_end=_log_end)

    async def consume(self) -> None:
        """Consume reports until cancelled."""
        while True:
            deliveries = await self._subscription.receive(_MAX_BATCH)
            await self._take([each for each in deliveries if not is_mark(each.message)])
            for mark in [each for each in deliveries if is_mark(each.message)]:
                self._barrier.passed(mark.message)
                await mark.ack()

    async def _take(self, deliveries: Sequence[Delivery]) -> None:
        """Store reports. Keep them while the store is not available: returning one counts as a delivery."""
        waiting = list(deliveries)

        async def store() -> None:
            answers = await self._answers(waiting)
            pairs = list(zip(waiting, answers, strict=True))
            await asyncio.gather(*(self._settle(*pair) for pair in pairs if not _is_unavailable(pair[1])))
            waiting[:] = [delivery for delivery, answer in pairs if _is_unavailable(answer)]
            for _, answer in pairs:
                if answer is not None and _is_unavailable(answer):
                    raise answer

        async def pause(seconds: float) -> None:
            await asyncio.sleep(seconds)
            timeout = self._subscription.visibility_timeout
            await asyncio.gather(*(delivery.extend(timeout) for delivery in waiting))

        await retry(store, backoff=_UNAVAILABLE, retry_on=_is_unavailable, outage=self._outage, pause=pause)

    async def _answers(self, deliveries: Sequence[Delivery]) -> Sequence[LlamaDeployError | None]:
        try:
            return await self._attempts.take([delivery.message for delivery in deliveries])
        except LlamaDeployError as exc:
            return [exc] * len(deliveries)

    async def _settle(self, delivery: Delivery, answer: LlamaDeployError | None) -> None:
        if answer is None:
            self._gaps.close(delivery.message)
            if self._on_stored is not None:
                self._on_stored(delivery.message)
            await delivery.ack()
        elif isinstance(answer, EventsMissingError):
            if self._gaps.is_lost(delivery.message, answer):
                await self._attempts.take_back(delivery.message)
            await delivery.nack(delay=_OUT_OF_ORDER.delay(delivery.attempt))
        else:
            await delivery.nack(delay=nack_delay(delivery.attempt))


def _is_unavailable(error: LlamaDeployError | None) -> bool:
    """Whether the store does not answer, or takes no more writes at the moment."""
    return isinstance(error, UnavailableError | OverloadedError)


def _log_start(error: LlamaDeployError) -> None:
    logger.warning(
        "reports wait, because the store does not accept them; retrying: %s",
        error,
        extra={"action": "reports_wait"},
    )


def _log_end() -> None:
    logger.info("the store accepts reports again", extra={"action": "reports_accepted"})
