"""Wait for the parts that a part needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from llama_deploy.backoff import Backoff
from llama_deploy.errors import ConfigError, InternalServerError, NotFoundError, UnavailableError
from llama_deploy.message_queues.base import AbstractMessageQueue, MessageQueueConfig
from llama_deploy.message_queues.queue_registry import config_from_settings
from llama_deploy.web.http_connection import HttpConnection, HttpRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound


async def until_available(attempt: Callable[[], Awaitable[T]], *, action: str) -> T:
    """Return what `attempt` returns, trying again while the other side does not answer.

    Pauses between tries grow from 0.05 s to 1 s. One line of the log tells that it waits.

    Args:
        attempt: Raises `UnavailableError` as long as the other side does not answer.
        action: What the attempt is for, for the log, such as `reaching the control plane`.
    """
    failures = 0
    while True:
        try:
            return await attempt()
        except UnavailableError as exc:
            failures += 1
            if failures == 1:
                logger.warning("%s: %s; waiting for it", action, exc, extra={"action": "wait"})
        await asyncio.sleep(_BACKOFF.delay(failures))


async def connect_queue(
    control_plane_url: str, config: MessageQueueConfig | None = None
) -> AbstractMessageQueue:
    """Return a client of the message queue that a control plane uses; close it.

    Waits until the control plane answers, and the queue too.

    Args:
        control_plane_url: Such as `http://127.0.0.1:8000`.
        config: Settings of that queue. None: the control plane is asked for them.

    Raises:
        ConfigError: What answers is no control plane, or its queue cannot be used here.
    """

    async def attempt() -> AbstractMessageQueue:
        settings = await _queue_settings(control_plane_url)
        if config is not None:
            _check_same_type(config, settings)
        return await (config or config_from_settings(settings)).connect()

    return await until_available(attempt, action=f"joining {control_plane_url}")


def _check_same_type(config: MessageQueueConfig, settings: Mapping[str, Any]) -> None:
    own, told = config.public_settings().get("type"), settings.get("type")
    if own != told:
        raise ConfigError(
            f"the control plane works with a message queue of type {told!r}, and {config.address} is one of"
            f" type {own!r}; give the address of the control plane's queue"
        )


async def _queue_settings(control_plane_url: str) -> dict[str, Any]:
    connection = HttpConnection(control_plane_url)
    try:
        settings = await connection.request(HttpRequest("GET", "/queue_config"))
    except (InternalServerError, NotFoundError) as exc:
        raise ConfigError(
            f"{control_plane_url} does not answer as a control plane does: {exc}; give the URL of one"
        ) from exc
    finally:
        await connection.close()
    if not isinstance(settings, dict):
        raise ConfigError(f"{control_plane_url} does not answer as a control plane does; give the URL of one")
    return with_real_host(settings, control_plane_url)


def with_real_host(settings: Mapping[str, Any], control_plane_url: str) -> dict[str, Any]:
    """Return queue settings with a host that can be connected to.

    A queue that listens on all addresses of its machine is found on that of its control plane.
    """
    if settings.get("host") not in _ANY_ADDRESS:
        return dict(settings)
    return {**settings, "host": urlsplit(control_plane_url).hostname}
