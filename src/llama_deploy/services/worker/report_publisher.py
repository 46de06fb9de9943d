"""Sending reports to the control plane: over the queue, and large ones through the gateway."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.errors import ClosedError, EventsMissingError, LlamaDeployError, PayloadTooLargeError
from llama_deploy.interceptors import Hooks, PublishCall, surround
from llama_deploy.message_queues.base import is_refused_for_good
from llama_deploy.messages import QueueMessage
from llama_deploy.types.instance_protocol import MAX_REPORT_BYTES

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=5.0)
_IN_ORDER: Final = Backoff(first=0.02, longest=1.0)
"""How often an upload is tried while earlier reports are on their way through the queue."""


class ReportPublisher:
    """Sends reports, and retries while their receiver does not accept them.

    A report of more than `MAX_REPORT_BYTES` is uploaded to the control plane, a smaller one goes over the
    queue. One that is too large for its way goes the other way.

    Args:
        publish: Publishes a message, once.
        upload: Hands a message to the control plane, once.
        hooks: The hooks around a report.
    """

    def __init__(
        self,
        publish: Callable[[QueueMessage], Awaitable[None]],
        *,
        upload: Callable[[QueueMessage], Awaitable[None]],
        hooks: Hooks[PublishCall] = (),
    ) -> None:
        self._publish = publish
        self._upload = upload
        self._hooks = hooks
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
        if not self._hooks:
            await self._report(message)
            return
        await surround(self._hooks, PublishCall(message), partial(self._report, message))

    async def _report(self, message: QueueMessage) -> None:
        ways = [self._send, self._upload_in_order]
        if len(message.encode()) > MAX_REPORT_BYTES:
            ways.reverse()
        first, second = ways
        try:
            await first(message)
        except PayloadTooLargeError as exc:
            logger.debug("sending a report the other way: %s", exc, extra={"action": "report_too_large"})
            try:
                await second(message)
            except PayloadTooLargeError as last:
                raise PayloadTooLargeError(f"{exc}; {last}", limit_bytes=last.limit_bytes) from last

    async def _send(self, message: QueueMessage) -> None:
        await retry(
            partial(self._publish, message),
            backoff=_BACKOFF,
            retry_on=_is_transient,
            outage=self._queue_outage,
        )

    async def _upload_in_order(self, message: QueueMessage) -> None:
        """Upload a message, and wait until the reports before it have come over the queue."""
        in_order = partial(
            retry,
            partial(self._upload, message),
            backoff=_IN_ORDER,
            retry_on=lambda error: isinstance(error, EventsMissingError),
        )
        await retry(in_order, backoff=_BACKOFF, retry_on=_is_transient, outage=self._upload_outage)


def _is_transient(error: LlamaDeployError) -> bool:
    return not (is_refused_for_good(error) or isinstance(error, ClosedError))


def _log_start(where: str, error: LlamaDeployError) -> None:
    logger.warning(
        "%s does not accept reports; retrying: %s", where, error, extra={"action": "publish_retry"}
    )


def _log_end(where: str) -> None:
    logger.info("%s accepts reports again", where, extra={"action": "reports_accepted"})
