"""Publishes reports to a queue that may be unavailable, full, or reject the credentials for a while."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ClosedError, LlamaDeployError
from llama_deploy.message_queues.base import is_refused_for_good
from llama_deploy.messages import QueueMessage
from llama_deploy.retrying import Outage, retry

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=5.0)


class ReportPublisher:
    """Publishes reports, and retries while the queue does not accept them.

    Args:
        publish: Publishes a message, once.
    """

    def __init__(self, publish: Callable[[QueueMessage], Awaitable[None]]) -> None:
        self._publish = publish
        self._outage = Outage(on_start=_log_start, on_end=_log_end)

    async def publish(self, message: QueueMessage) -> None:
        """Return when the queue has the message.

        Raises:
            LlamaDeployError: The queue rejects the message permanently, or is closed.
        """
        await retry(
            partial(self._publish, message), backoff=_BACKOFF, retry_on=_is_transient, outage=self._outage
        )


def _is_transient(error: LlamaDeployError) -> bool:
    return not (is_refused_for_good(error) or isinstance(error, ClosedError))


def _log_start(error: LlamaDeployError) -> None:
    logger.warning(
        "the queue does not accept reports; retrying: %s", error, extra={"action": "publish_retry"}
    )


def _log_end() -> None:
    logger.info("the queue accepts reports again", extra={"action": "queue_back"})
