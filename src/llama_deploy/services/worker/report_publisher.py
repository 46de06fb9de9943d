"""Handing reports to a queue that may be away, be full, or refuse the credentials for a while."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ClosedError, LlamaDeployError
from llama_deploy.message_queues.base import is_refused_for_good
from llama_deploy.messages import QueueMessage
from llama_deploy.retrying import Retrying

logger = logging.getLogger(__name__)

_RETRY: Final = Backoff(first=0.1, longest=5.0)


class Outlet:
    """Hands reports to the queue, again and again while it takes none, and tells of that once.

    Args:
        publish: Hands a message to the queue, once.
    """

    def __init__(self, publish: Callable[[QueueMessage], Awaitable[None]]) -> None:
        self._publish = publish
        self._retrying = Retrying(_RETRY, on_failure=_tell_shut, on_end=_tell_open)

    async def publish(self, message: QueueMessage) -> None:
        """Return when the queue has the message.

        Raises:
            LlamaDeployError: The queue refuses the message for good, or is closed.
        """
        await self._retrying.run(partial(self._publish, message), passes=_passes)


def _passes(error: LlamaDeployError) -> bool:
    return not (is_refused_for_good(error) or isinstance(error, ClosedError))


def _tell_shut(error: LlamaDeployError, is_news: bool) -> None:  # noqa: FBT001 - called by `Retrying`
    level = logging.WARNING if is_news else logging.DEBUG
    logger.log(
        level, "the queue takes no report, it is tried again: %s", error, extra={"action": "publish_retry"}
    )


def _tell_open() -> None:
    logger.info("the queue takes reports again", extra={"action": "queue_back"})
