"""A consumer that posts each message to a URL."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, PrivateAttr

from llama_deploy.message_consumers.base import BaseMessageQueueConsumer
from llama_deploy.messages import QueueMessage
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.problems import from_problem
from llama_deploy.web.shown_url import shown_url

if TYPE_CHECKING:
    from pydantic.main import ReprArgs


class RemoteMessageConsumer(BaseMessageQueueConsumer):
    """Posts each message as JSON to `url`, over kept-alive connections. `close` it.

    A 2xx response acknowledges the message. Any other response returns it to the queue.
    """

    url: str
    """Such as `http://127.0.0.1:8002/process_message`. It may have a query, whose values no error, log or
    `repr` shows, and a user and a password, which are sent as HTTP Basic Authorization and not shown."""
    client_kwargs: Annotated[dict[str, Any], BeforeValidator(lambda given: given or {})] = Field(
        default_factory=dict, repr=False
    )
    """`headers` and other arguments of `aiohttp.ClientSession`; `timeout`, the seconds for an answer, or
    None; `verify`, False to accept every certificate, the path of a file with certificate authorities, or an
    `ssl.SSLContext`; `cert`, the path of a client certificate with its key, or the paths of both."""

    _connection: HttpConnection = PrivateAttr()
    _path: str = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Prepare the connection, which opens with the first message."""
        super().model_post_init(context)
        parts = urlsplit(self.url)
        settings, options = ConnectionSettings.from_client_kwargs(
            f"{parts.scheme}://{parts.netloc}", self.client_kwargs
        )
        self._connection = HttpConnection(settings, options=options)
        self._path = urlunsplit(("", "", parts.path or "/", parts.query, ""))

    def __repr_args__(self) -> ReprArgs:
        """Show no secrets of the URL."""
        for name, value in super().__repr_args__():
            yield name, shown_url(value) if name == "url" else value

    async def _process_message(self, message: QueueMessage) -> None:
        """Post the message.

        Raises:
            LlamaDeployError: The error of the response, if it is not 2xx.
            UnavailableError: No connection, or no response in time.
        """
        request = HttpRequest("POST", self._path, json=message.to_wire())
        status, body = await self._connection.send(request)
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise from_problem(status, body, url=self.url)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._connection.close()
