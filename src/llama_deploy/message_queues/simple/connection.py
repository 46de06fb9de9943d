"""The connection from a client to the server of its simple queue: requests and settlements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from llama_deploy.errors import ClosedError, PayloadTooLargeError
from llama_deploy.message_queues.broker_connection import BrokerConnection
from llama_deploy.message_queues.settlement import SettleAction
from llama_deploy.message_queues.settlement_batcher import SettlementBatcher
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.settlement import Settlement
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import JSON_HEADERS, HttpRequest

_ACK_SECONDS: Final = 0.05


class QueueServerConnection(BrokerConnection):
    """Kept-alive connections to one server; opens them when they are first used. `close` it."""

    def __init__(self, config: SimpleMessageQueueConfig) -> None:
        super().__init__(f"the message queue {config.base_url}", retry_seconds=config.retry_seconds)
        settings, options = ConnectionSettings.from_client_kwargs(config.base_url, config.client_kwargs)
        settings = settings.with_api_key(config.api_key)
        self._http = HttpConnection(settings, options=options)
        self._base_url = config.base_url
        self._closed = False
        self._settlements: SettlementBatcher[Settlement] = SettlementBatcher(
            self._send, name="queue settler", ack_delay=_ACK_SECONDS
        )

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
            ClosedError: The connection is closed.
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

    def settle(self, delivery_id: str, action: SettleAction, seconds: float = 0.0) -> None:
        """Send a settlement with the next batch, without waiting for the answer. Never raises."""
        settlement = Settlement(delivery_id, action, seconds)
        self._settlements.submit(settlement, is_ack=action is SettleAction.ACK)

    async def wait_settled(self) -> None:
        """Wait until all settlements so far have reached the server, or are lost. Never raises."""
        await self._settlements.wait_sent()

    async def close(self) -> None:
        """Send the settlements that wait, and close. Idempotent."""
        await self._settlements.close()
        self._closed = True
        await self._http.close()

    async def _send(self, batch: Sequence[Settlement]) -> list[bool]:
        """Send settlements in one request or, if that is too large for the server, in several."""
        try:
            await self.retry(partial(self.request, "POST", "/deliveries/settle", json=list(batch)))
        except PayloadTooLargeError:
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            return await self._send(batch[:half]) + await self._send(batch[half:])
        return [True] * len(batch)


def path_of(*segments: str) -> str:
    """Return the quoted path of these segments."""
    return "/" + "/".join(quote(segment, safe="") for segment in segments)
