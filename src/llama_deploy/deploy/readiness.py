"""Wait until other servers are available."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, is_transient, retry
from llama_deploy.errors import (
    ConfigError,
    InternalServerError,
    NotFoundError,
    WrongServerError,
)
from llama_deploy.message_queues.base import AbstractMessageQueue, MessageQueueConfig
from llama_deploy.message_queues.queue_registry import config_from_settings
from llama_deploy.message_queues.simple import SimpleMessageQueueConfig
from llama_deploy.renamed import see
from llama_deploy.web.answers import as_object, read_answer
from llama_deploy.web.connection_settings import Address
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound


async def until_available(attempt: Callable[[], Awaitable[T]], *, action: str) -> T:
    """Return the result of `attempt`, which is called again while the other side is unavailable.

    The pauses grow from 0.05 s to 1 s. The log says once what is waited for, and once that it is available.

    Args:
        attempt: Raises `UnavailableError` or `OverloadedError` while the other side is unavailable.
        action: What the attempt does, for the log, such as `registering service echo`.
    """
    outage = Outage(
        on_start=lambda exc: logger.warning("%s: %s; retrying", action, exc, extra={"action": "wait"}),
        on_end=lambda: logger.info("%s: succeeded", action, extra={"action": "wait_over"}),
    )
    return await retry(attempt, backoff=_BACKOFF, retry_on=is_transient, outage=outage)


async def connect_queue(
    control_plane: Address, config: MessageQueueConfig | None = None
) -> AbstractMessageQueue:
    """Return a client of the message queue that a control plane uses; close it.

    Waits until the control plane answers, and the queue too.

    Args:
        control_plane: Its URL, such as `http://127.0.0.1:8000`, the URLs of its replicas, or settings.
        config: Settings of that queue. None: the control plane is asked for them.

    Raises:
        ConfigError: The server is not a control plane, or its queue cannot be used here.
    """
    connection = HttpConnection(control_plane)

    async def attempt() -> AbstractMessageQueue:
        settings = await _queue_settings(connection)
        if config is not None:
            _check_same_type(config, settings)
        if config is not None:
            return await _with_access_of(connection, config).connect()
        try:
            return await _with_access_of(connection, config_from_settings(settings)).connect()
        except ConfigError as exc:
            raise ConfigError(
                f"{exc}. The control plane sends the settings of the queue without credentials: set them in"
                " the environment of this process, or pass message_queue_config;"
                f" {see('Credentials of a broker')}"
            ) from exc

    try:
        return await until_available(attempt, action=f"connecting to the queue of {connection.base_url}")
    finally:
        await connection.close()


def _with_access_of(connection: HttpConnection, config: MessageQueueConfig) -> MessageQueueConfig:
    """Return settings of a queue with the key and the certificates for the control plane.

    It must be a simple queue for which none are given: the one beside a control plane accepts the keys of
    that control plane, and has a certificate of the same authority.
    """
    if not isinstance(config, SimpleMessageQueueConfig):
        return config
    update: dict[str, Any] = {}
    if config.api_key is None and (key := _key_of(connection)) is not None:
        update["api_key"] = SecretStr(key)
    if config.base_url.startswith("https:") and not {"verify", "cert"} & config.client_kwargs.keys():
        update["client_kwargs"] = {**config.client_kwargs, **connection.settings.tls_kwargs}
    return config.model_copy(update=update)


def _key_of(connection: HttpConnection) -> str | None:
    sent = connection.settings.headers_for(connection.base_url)
    given = {name.lower(): value for name, value in sent.items()}.get("authorization", "")
    scheme, _, key = given.partition(" ")
    return key if scheme.lower() == "bearer" and key else None


def _check_same_type(config: MessageQueueConfig, settings: Mapping[str, Any]) -> None:
    own, expected = config.public_settings().get("type"), settings.get("type")
    if own != expected:
        raise ConfigError(
            f"the control plane works with a message queue of type {expected!r}, and {config.address} has the"
            f" type {own!r}; give the address of the control plane's queue"
        )


async def _queue_settings(connection: HttpConnection) -> dict[str, Any]:
    url = connection.base_url
    try:
        answer = await connection.request(HttpRequest("GET", "/queue_config"))
        settings = read_answer(answer, as_object, source=url)
    except (InternalServerError, NotFoundError, WrongServerError) as exc:
        raise ConfigError(
            f"{url} does not answer as a control plane does: {exc}; give the URL of one"
        ) from exc
    return with_real_host(settings, connection.base_url)


def with_real_host(settings: Mapping[str, Any], control_plane_url: str) -> dict[str, Any]:
    """Return queue settings with a host that can be connected to.

    A queue that listens on all addresses of its machine is reached under the host of its control plane.
    """
    if settings.get("host") not in _ANY_ADDRESS:
        return dict(settings)
    return {**settings, "host": urlsplit(control_plane_url).hostname}
