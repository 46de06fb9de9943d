"""The connections to Amazon SQS: requests, batches of them, and the SDK's errors translated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any, Final

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import exceptions as driver
from botocore.parsers import ResponseParserError

from llama_deploy.concurrency.batching import split
from llama_deploy.errors import (
    ConfigError,
    InvalidRequestError,
    LlamaDeployError,
    PayloadTooLargeError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.aws.config import AWSMessageQueueConfig
from llama_deploy.message_queues.broker_connection import BrokerConnection

Outcome = LlamaDeployError | None

MAX_ENTRIES: Final = 10
"""How many messages one request may hold ("Amazon SQS message quotas")."""
MAX_BYTES: Final = 1024 * 1024
"""How large a message may be, and all messages of a request together."""
_CONNECTIONS: Final = 1000
"""How many requests may be in flight; each subscription has one that waits."""
_MISSING: Final = ("NonExistentQueue", "QueueDoesNotExist")
_TRANSIENT: Final = (
    "Throttl",
    "OverLimit",
    "TooManyRequests",
    "RequestLimitExceeded",
    "SlowDown",
    "RequestTimeout",
    "QueueDeletedRecently",
)
"""Parts of the codes of errors that a retry may change."""
_TOO_LARGE: Final = ("BatchRequestTooLong", "must be shorter than")
_MISCONFIGURED: Final = (
    driver.NoCredentialsError,
    driver.PartialCredentialsError,
    driver.NoRegionError,
    driver.InvalidRegionError,
    driver.ProfileNotFound,
    driver.EndpointProviderError,
    driver.ParamValidationError,
    driver.ConfigParseError,
)


class SqsConnection(BrokerConnection):
    """Two clients of the SDK, one of them for requests that wait for messages. `open` and `close` it."""

    def __init__(self, config: AWSMessageQueueConfig) -> None:
        self.config = config
        self._address = config.endpoint_url or config.aws_region
        super().__init__(f"Amazon SQS at {self._address}", retry_seconds=config.retry_seconds)
        self._clients = AsyncExitStack()
        self._client: Any = None
        self._poller: Any = None

    async def open(self) -> None:
        """Create the clients; no request is sent yet.

        Raises:
            ConfigError: The SDK cannot work with the settings.
        """
        self._client = await self._create_client(wait=0)
        self._poller = await self._create_client(wait=self.config.wait_seconds)

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Send one request, once.

        Args:
            operation: Its name in the SDK, such as `create_queue`.
            **arguments: Its parameters.

        Raises:
            TopicNotFoundError: There is no such queue.
            PayloadTooLargeError: The service takes no message, or batch, of this size.
            InvalidRequestError: A message holds what the service does not carry.
            UnavailableError: No connection, no answer in time, a failure at the service, or throttling.
            ConfigError: The service refuses it, as for a wrong permission; or there are no credentials.
        """
        return await self._call(self._client, operation, arguments)

    async def receive(self, *, wait: bool, **arguments: Any) -> list[dict[str, Any]]:
        """Receive messages, and wait `wait_seconds` for them or not at all. Raises as `call` does."""
        client, seconds = (self._poller, self.config.wait_seconds) if wait else (self._client, 0)
        answer = await self._call(client, "receive_message", arguments | {"WaitTimeSeconds": seconds})
        return list(answer.get("Messages", ()))

    async def call_batch(
        self,
        operation: str,
        entries: Sequence[Mapping[str, Any]],
        *,
        url: Callable[[], Awaitable[str]],
        give_up_at: float,
        forget: Callable[[], None] | None = None,
    ) -> list[Outcome]:
        """Send entries in as few requests as possible, concurrently; retry those with transient errors.

        Args:
            operation: The name of a batch operation.
            entries: Without their `Id`.
            url: Gives the URL of the queue.
            give_up_at: Until when, by the loop's clock, to retry.
            forget: Called when there is no such queue, before `url` is asked again. None: that is the
                outcome.

        Returns:
            For each entry None, or its error. Never raises.
        """
        send = partial(self._send, operation, url=url, give_up_at=give_up_at, forget=forget)
        parts = split(entries, size=_size, max_size=MAX_BYTES, max_items=MAX_ENTRIES)
        outcomes = await asyncio.gather(*(send(part) for part in parts))
        return [outcome for part in outcomes for outcome in part]

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._clients.aclose()

    async def _send(
        self,
        operation: str,
        part: Sequence[Mapping[str, Any]],
        *,
        url: Callable[[], Awaitable[str]],
        give_up_at: float,
        forget: Callable[[], None] | None,
    ) -> list[Outcome]:
        """Send one request, and retry those of its entries that failed with a transient error."""
        outcomes: list[Outcome] = [None] * len(part)
        left = list(range(len(part)))

        async def attempt() -> None:
            nonlocal left
            try:
                verdicts = await self._send_once(
                    operation, await url(), [(each, part[each]) for each in left]
                )
            except TopicNotFoundError as exc:
                if forget is None:
                    raise
                forget()
                raise UnavailableError(str(exc)) from exc
            for number in left:
                outcomes[number] = verdicts.get(number)
            left = [number for number, exc in verdicts.items() if isinstance(exc, UnavailableError)]
            if left:
                raise verdicts[left[0]]

        try:
            await self.retry(attempt, give_up_at=give_up_at)
        except LlamaDeployError as exc:
            for number in left:
                outcomes[number] = outcomes[number] or exc
        return outcomes

    async def _send_once(
        self, operation: str, url: str, part: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> dict[int, LlamaDeployError]:
        """Send one request; return the errors of the entries that were not taken."""
        entries = [{"Id": str(number), **entry} for number, entry in part]
        try:
            answer = await self.call(operation, QueueUrl=url, Entries=entries)
        except (InvalidRequestError, ConfigError) as exc:
            if len(part) == 1:
                return {part[0][0]: exc}
            # The request was refused as a whole; alone, each entry gets its own verdict.
            verdicts = await asyncio.gather(*(self._send_once(operation, url, [entry]) for entry in part))
            return {number: error for verdict in verdicts for number, error in verdict.items()}
        return {
            int(failed["Id"]): self._meaning(
                failed["Code"], failed.get("Message", ""), status=400 if failed["SenderFault"] else 500
            )
            for failed in answer.get("Failed", ())
        }

    async def _create_client(self, *, wait: int) -> Any:
        options = AioConfig(
            connect_timeout=self.config.timeout,
            read_timeout=self.config.timeout + wait,
            max_pool_connections=_CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # `BrokerConnection.retry` retries
        )
        with self._translated():
            client = get_session().create_client("sqs", config=options, **self.config.client_options)
            return await self._clients.enter_async_context(client)

    async def _call(self, client: Any, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._translated():
            answer: dict[str, Any] = await getattr(client, operation)(**arguments)
            return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise the errors of the SDK as ours; `call` names them."""
        try:
            yield
        except driver.ClientError as exc:
            error = exc.response.get("Error", {})
            status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
            raise self._meaning(error.get("Code", ""), error.get("Message", ""), status=status) from exc
        except (*_MISCONFIGURED, ValueError) as exc:
            raise ConfigError(f"Amazon SQS at {self._address}: {exc}") from exc
        except (driver.BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError) as exc:
            reason = str(exc) or type(exc).__name__
            raise UnavailableError(f"Amazon SQS at {self._address} does not answer: {reason}") from exc

    def _meaning(self, code: str, message: str, *, status: int) -> LlamaDeployError:
        """Return the error that an answer means."""
        text = f"Amazon SQS at {self._address} answers {code}: {message}"
        if any(mark in code for mark in _MISSING):
            return TopicNotFoundError(text)
        if status >= 500 or any(mark in code for mark in _TRANSIENT):  # noqa: PLR2004 - the server's fault
            return UnavailableError(text)
        if any(mark in code or mark in message for mark in _TOO_LARGE):
            return PayloadTooLargeError(text, limit_bytes=MAX_BYTES)
        if "InvalidMessageContents" in code:
            return InvalidRequestError(text)
        return ConfigError(text)


def _size(entry: Mapping[str, Any]) -> int:
    return len(entry.get("MessageBody", "").encode())
