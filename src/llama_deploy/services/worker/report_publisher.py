"""Sending reports to the control plane: over the queue, and large ones through the gateway."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ClosedError, EventsMissingError, LlamaDeployError, PayloadTooLargeError
from llama_deploy.message_queues.base import is_refused_for_good
from llama_deploy.messages import QueueMessage
from llama_deploy.retrying import Outage, retry
from llama_deploy.types.instance_protocol import MAX_REPORT_BYTES

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=5.0)
_IN_ORDER: Final = Backoff(first=0.02, longest=1.0)
"""How often an upload is tried while earlier reports are on their way through the queue."""


class ReportPublisher:
    """Sends reports, and retries while their receiver does not accept them.

    A report of more than `MAX_REPORT_BYTES`, or one that is too large for the queue, is uploaded to the
    control plane. So no report depends on the size of a message that the broker takes.

    Args:
        publish: Publishes a message, once.
        upload: Hands a message to the control plane, once.
    """

    def __init__(
        self,
        publish: Callable[[QueueMessage], Awaitable[None]],
        *,
        upload: Callable[[QueueMessage], Awaitable[None]],
    ) -> None:
        self._publish = publish
        self._upload = upload
        self._queue_outage = Outage(
            on_start=partial(_log_start, "the queue"), on_end=partial(_log_end, "the queue")
        )
        self._upload_outage = Outage(
            on_start=partial(_log_start, "the control plane"), on_end=partial(_log_end, "the control plane")
        )

    async def publish(self, message: QueueMessage) -> None:
        """Return when the queue or the control plane has the message.

        Raises:
            LlamaDeployError: The message is rejected permanently, or the queue or the gateway is closed.
        """
        if len(message.encode()) <= MAX_REPORT_BYTES:
            try:
                await retry(
                    partial(self._publish, message),
                    backoff=_BACKOFF,
                    retry_on=_is_transient,
                    outage=self._queue_outage,
                )
            except PayloadTooLargeError as exc:
                logger.debug("uploading a report: %s", exc, extra={"action": "upload_report"})
            else:
                return
        await retry(partial(self._upload_in_order, message), backoff=_BACKOFF, outage=self._upload_outage)

    async def _upload_in_order(self, message: QueueMessage) -> None:
        """Upload a message, and wait until the reports before it have come over the queue."""
        await retry(
            partial(self._upload, message),
            backoff=_IN_ORDER,
            retry_on=lambda error: isinstance(error, EventsMissingError),
        )


def _is_transient(error: LlamaDeployError) -> bool:
    return not (is_refused_for_good(error) or isinstance(error, ClosedError))


def _log_start(where: str, error: LlamaDeployError) -> None:
    logger.warning(
        "%s does not accept reports; retrying: %s", where, error, extra={"action": "publish_retry"}
    )


def _log_end(where: str) -> None:
    logger.info("%s accepts reports again", where, extra={"action": "reports_accepted"})
