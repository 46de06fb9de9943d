"""A consumer that posts each message to a URL."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, PrivateAttr

from llama_deploy.message_consumers.base import BaseMessageQueueConsumer
from llama_deploy.messages import QueueMessage
from llama_deploy.web.http_connection import DEFAULT_TIMEOUT, HttpConnection, HttpRequest
from llama_deploy.web.problems import from_problem


class RemoteMessageConsumer(BaseMessageQueueConsumer):
    """Posts each message as JSON to `url`, over kept-alive connections. `close` it.

    A 2xx response acknowledges the message. Any other response returns it to the queue.
    """

    url: str
    """Such as `http://127.0.0.1:8002/process_message`."""
    client_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """`timeout` in seconds, `verify` (False accepts any certificate), and `headers` and other arguments of
    `aiohttp.ClientSession`."""

    _connection: HttpConnection = PrivateAttr()
    _path: str = PrivateAttr()
    _timeout: float = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Prepare the connection, which opens with the first message."""
        super().model_post_init(context)
        parts = urlsplit(self.url)
        options = dict(self.client_kwargs)
        self._timeout = float(options.pop("timeout", DEFAULT_TIMEOUT))
        self._connection = HttpConnection(
            f"{parts.scheme}://{parts.netloc}", verify_tls=options.pop("verify", True), options=options
        )
        self._path = urlunsplit(("", "", parts.path or "/", parts.query, ""))

    async def _process_message(self, message: QueueMessage) -> None:
        """Post the message.

        Raises:
            LlamaDeployError: The error of the response, if it is not 2xx.
            UnavailableError: No connection, or no response in time.
        """
        request = HttpRequest("POST", self._path, json=message.to_wire(), timeout=self._timeout)
        status, body = await self._connection.send(request)
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise from_problem(status, body, url=self.url)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._connection.close()
