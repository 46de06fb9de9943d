"""The way to Amazon SQS: requests, their batches, calls that outlast an outage, what the SDK raises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any, Final, Self, TypeVar

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import exceptions as driver
from botocore.parsers import ResponseParserError

from llama_deploy.errors import (
    ConfigError,
    InvalidRequestError,
    LlamaDeployError,
    PayloadTooLargeError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.aws.config import AWSMessageQueueConfig
from llama_deploy.message_queues.broker_connection import BrokerLink

logger = logging.getLogger(__name__)

T = TypeVar("T")
Outcome = LlamaDeployError | None

MOST_ENTRIES: Final = 10
"""How much one request of a batch may hold (quotas of "Amazon SQS message quotas")."""
MOST_BYTES: Final = 1024 * 1024
"""How large a message may be, and all messages of a request together."""
_CONNECTIONS: Final = 1000
"""How many requests may be under way; each subscription has one that waits."""
_MISSING: Final = ("NonExistentQueue", "QueueDoesNotExist")
_PASSING: Final = (
    "Throttl",
    "OverLimit",
    "TooManyRequests",
    "RequestLimitExceeded",
    "SlowDown",
    "RequestTimeout",
    "QueueDeletedRecently",
)
"""What is in the code of an answer that may be another one soon."""
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


class SqsLink(BrokerLink):
    """The way to the service: connections that open by themselves, and the SDK's errors translated."""

    def __init__(self, config: AWSMessageQueueConfig) -> None:
        self.config = config
        self._address = config.endpoint_url or config.aws_region
        super().__init__(f"Amazon SQS at {self._address}", retry_seconds=config.retry_seconds)
        self._clients = AsyncExitStack()
        self._client: Any = None
        self._poller: Any = None

    @classmethod
    async def open(cls, config: AWSMessageQueueConfig) -> Self:
        """Return a link; nothing was asked of the service yet.

        Raises:
            ConfigError: The SDK cannot work with the settings.
        """
        link = cls(config)
        session = get_session()
        try:
            for name, patience in (("_client", 0), ("_poller", config.wait_seconds)):
                options = AioConfig(
                    connect_timeout=config.timeout,
                    read_timeout=config.timeout + patience,
                    max_pool_connections=_CONNECTIONS,
                    # `persist` tries again, and knows until when.
                    retries={"total_max_attempts": 1, "mode": "standard"},
                )
                client = session.create_client("sqs", config=options, **config.client_options)
                with link._translated():
                    setattr(link, name, await link._clients.enter_async_context(client))
        except BaseException:
            await link.close()
            raise
        return link

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
        """Send entries in as few requests, side by side; again, as long as they fail in passing.

        Args:
            operation: The name of a batch operation.
            entries: Without their `Id`.
            url: Gives the URL of the queue.
            give_up_at: Until when, by the loop's clock, to try again.
            forget: Called when there is no such queue, before `url` is asked again. None: that is the
                outcome.

        Returns:
            For each entry None, or why it was not taken. Never raises.
        """
        send = partial(self._send, operation, url=url, give_up_at=give_up_at, forget=forget)
        outcomes = await asyncio.gather(*(send(part) for part in _parts(entries)))
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
        """Send one request, and again those of its entries that failed in passing."""
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
            passing = {number: exc for number, exc in verdicts.items() if isinstance(exc, UnavailableError)}
            left = list(passing)
            if passing:
                raise passing[left[0]]

        try:
            await self.persist(attempt, give_up_at=give_up_at)
        except LlamaDeployError as exc:
            for number in left:
                outcomes[number] = outcomes[number] or exc
        return outcomes

    async def _send_once(
        self, operation: str, url: str, part: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> dict[int, LlamaDeployError]:
        """Send one request; return the entries that were not taken."""
        entries = [{"Id": str(number), **entry} for number, entry in part]
        try:
            answer = await self.call(operation, QueueUrl=url, Entries=entries)
        except (InvalidRequestError, ConfigError) as exc:
            if len(part) == 1:
                return {part[0][0]: exc}
            # It was refused as a whole; alone, each entry gets its own verdict.
            verdicts = await asyncio.gather(*(self._send_once(operation, url, [entry]) for entry in part))
            return {number: error for verdict in verdicts for number, error in verdict.items()}
        return {
            int(failed["Id"]): self._meaning(
                failed["Code"], failed.get("Message", ""), status=400 if failed["SenderFault"] else 500
            )
            for failed in answer.get("Failed", ())
        }

    async def _call(self, client: Any, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._translated():
            answer: dict[str, Any] = await getattr(client, operation)(**arguments)
            return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise what the SDK raises as an error of ours; `call` names them."""
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
        """Return what an answer means that is an error."""
        text = f"Amazon SQS at {self._address} answers {code}: {message}"
        if any(mark in code for mark in _MISSING):
            return TopicNotFoundError(text)
        if status >= 500 or any(mark in code for mark in _PASSING):  # noqa: PLR2004 - the server's fault
            return UnavailableError(text)
        if any(mark in code or mark in message for mark in _TOO_LARGE):
            return PayloadTooLargeError(text, limit_bytes=MOST_BYTES)
        if "InvalidMessageContents" in code:
            return InvalidRequestError(text)
        return ConfigError(text)


def _parts(entries: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Cut entries into requests of a size that the service takes."""
    part: list[Mapping[str, Any]] = []
    size = 0
    for entry in entries:
        bytes_ = len(entry.get("MessageBody", "").encode())
        if part and (len(part) == MOST_ENTRIES or size + bytes_ > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(entry)
        size += bytes_
    if part:
        yield part
