"""The way from a client to its simple queue's server: requests that outlast an outage, and settlements."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

from llama_deploy.batching import Batcher
from llama_deploy.errors import ClosedError, LlamaDeployError
from llama_deploy.message_queues.broker_connection import BrokerLink
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.settlement import SettleAction, Settlement
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import JSON_HEADERS, HttpConnection, HttpRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ACK_SECONDS: Final = 0.05
"""How long acknowledgements gather: nobody waits for them, and each request costs both sides."""


class ServerLink(BrokerLink):
    """Kept-alive connections to one server; opens them when they are first used. `close` it."""

    def __init__(self, config: SimpleMessageQueueConfig) -> None:
        super().__init__(f"the message queue {config.base_url}", retry_seconds=config.retry_seconds)
        settings, options = ConnectionSettings.from_client_kwargs(config.base_url, config.client_kwargs)
        self._http = HttpConnection(settings, options=options)
        self._base_url = config.base_url
        self._closed = False
        self._settling: Batcher[Settlement, None] = Batcher(
            self._settle_batch, max_batch=1024, name="queue settler"
        )
        self._acking: Batcher[Settlement, None] = Batcher(
            self._settle_batch, max_batch=1024, gather_seconds=_ACK_SECONDS, name="queue acker"
        )
        self._last: dict[Batcher[Settlement, None], asyncio.Future[None]] = {}

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: dict[str, str | int | float] | None = None,
        wait: float = 0.0,
    ) -> Any:
        """Send one request, once.

        Args:
            method: The method.
            path: The path.
            json: The body, as JSON values.
            content: The body, as JSON bytes.
            params: The query.
            wait: Seconds that the server is asked to wait, beyond the usual time for an answer.

        Raises:
            LlamaDeployError: What the answer's problem details name.
            UnavailableError: No connection, or no answer in time.
            ClosedError: The link is closed.
        """
        if self._closed:
            raise ClosedError(
                f"the connections to the message queue {self._base_url} are closed; open a new queue"
            )
        return await self._http.request(
            HttpRequest(
                method,
                path,
                params=params or {},
                json=json,
                content=content,
                headers=JSON_HEADERS if content is not None else {},
                timeout=self._http.settings.timeout + wait,
            )
        )

    async def settle(self, settlement: Settlement) -> None:
        """Send a settlement with the next ones that leave, without waiting for the answer. Never raises."""
        batcher = self._acking if settlement.action is SettleAction.ACK else self._settling
        try:
            sent = batcher.submit_nowait(settlement)
        except LlamaDeployError as exc:
            logger.warning("a settlement is lost, its message comes back: %s", exc)
        else:
            self._last[batcher] = sent
            sent.add_done_callback(_log_loss)

    async def wait_settled(self) -> None:
        """Wait until all settlements so far have reached the server, or are lost. Never raises."""
        if self._last:
            await asyncio.wait(self._last.values())

    async def close(self) -> None:
        """Send the settlements that wait, and close. Idempotent."""
        await self._settling.close()
        await self._acking.close()
        self._closed = True
        await self._http.close()

    async def _settle_batch(self, batch: Sequence[Settlement]) -> list[None]:
        await self.persist(
            partial(self.request, "POST", "/deliveries/settle", json=list(batch)),
            give_up_at=self.give_up_at(),
        )
        return [None] * len(batch)


def path_of(*segments: str) -> str:
    """Return the quoted path of these segments."""
    return "/" + "/".join(quote(segment, safe="") for segment in segments)


def _log_loss(sent: asyncio.Future[None]) -> None:
    if not sent.cancelled() and sent.exception() is not None:
        logger.warning("settlements are lost, their messages come back: %s", sent.exception())
