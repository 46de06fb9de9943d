"""The connections to a Redis server: clients, scripts, and the driver's errors translated."""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from redis import exceptions as driver
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from llama_deploy.errors import ConfigError, QueueFullError, TopicNotFoundError, UnavailableError
from llama_deploy.message_queues.broker_connection import BrokerConnection
from llama_deploy.message_queues.broker_tls import with_tls_reason
from llama_deploy.message_queues.redis.config import RedisMessageQueueConfig

logger = logging.getLogger(__name__)

_SCRIPT: Final = Path(__file__).with_name("actions.lua").read_text(encoding="utf-8")
_SCRIPT_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_MIN_VERSION: Final = (6, 2)
_UNLIMITED: Final = 2**31
"""Connections: each subscription has one or two, and the driver may refuse more than 100."""
_DENIED: Final = (driver.AuthenticationError, driver.AuthorizationError, driver.NoPermissionError)
_PERMANENT_MARKS: Final = (
    "WRONGPASS",
    "NOPERM",
    "no permission",
    "ACL failure",
    "WRONGTYPE",
    "unknown command",
    "DB index",
)
"""Parts of answers that a retry does not change."""


class _TlsConnection(SSLConnection):
    """A connection with a given context; the driver would make one of its own."""

    def __init__(self, *, tls_context: ssl.SSLContext, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ssl_context.context = tls_context


class RedisConnection(BrokerConnection):
    """Connections that open by themselves, and the scripts that run over them. `close` it."""

    def __init__(self, config: RedisMessageQueueConfig) -> None:
        self.config = config
        options = config.connection_options
        self._address = (
            options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        )
        super().__init__(f"Redis at {self._address}", retry_seconds=config.retry_seconds)
        speaks_tls = options.get("connection_class") is SSLConnection
        self._tls = config.tls_context() if speaks_tls and config.tls_files else None
        self._client = self.client()

    def client(self, *, wait: float = 0.0) -> Redis:
        """Return a client; its owner closes it.

        Args:
            wait: Seconds for which its requests wait at the server. More than 0: it has a single connection.
        """
        options = {"max_connections": _UNLIMITED} | self.config.connection_options
        options |= {
            "socket_connect_timeout": self.config.timeout,
            "socket_timeout": self.config.timeout + wait,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),  # `BrokerConnection.retry` retries
            "protocol": 2,
            "decode_responses": False,
        }
        if self._tls is not None:
            options |= {"connection_class": _TlsConnection, "tls_context": self._tls}
        client: Redis = Redis(connection_pool=ConnectionPool(**options), single_connection_client=wait > 0)
        client.auto_close_connection_pool = True
        return client

    async def inspect(self) -> bool:
        """Check the server's settings, warn of those that lose messages, and return whether it is durable.

        Raises:
            ConfigError: It is too old.
        """
        with self.translated():
            try:
                info = await self._client.info()
            except TypeError as exc:  # raised by the driver's connection
                raise ConfigError(
                    f"the query of url holds an argument that redis-py does not know: {exc}"
                ) from exc
            try:
                snapshots = (await self._client.config_get("save")).get("save")
            except driver.ResponseError:  # not every user may ask
                snapshots = None
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < _MIN_VERSION:
            raise ConfigError(f"the server at {self._address} is Redis {version}; 6.2 or later is needed")
        if not info["aof_enabled"] and not snapshots:
            logger.warning(
                "Redis at %s keeps nothing on disk (appendonly no%s): its messages are lost with it",
                self._address,
                "" if snapshots is None else ", no save",
                extra={"action": "queue_not_durable"},
            )
        if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
            logger.warning(
                "Redis at %s drops data when its memory is full (maxmemory-policy %s); set noeviction",
                self._address,
                info.get("maxmemory_policy"),
                extra={"action": "queue_evicts"},
            )
        return bool(info["aof_enabled"])

    async def run(self, action: str, keys: Sequence[str], *arguments: str | bytes | int) -> Any:
        """Run one action of the script, once.

        Raises:
            TopicNotFoundError: The topic or the group is not there.
            QueueFullError: The server has no memory left.
            UnavailableError: No connection, no answer in time, or a server that cannot write now.
            ConfigError: The server refuses it: the credentials or a permission are wrong.
        """
        rest: Any = (*keys, action, *arguments)
        with self.translated():
            try:
                return await self._client.evalsha(_SCRIPT_SHA, len(keys), *rest)
            except driver.NoScriptError:
                return await self._client.eval(_SCRIPT, len(keys), *rest)

    async def ping(self) -> None:
        """Ask for an answer, which a server that cannot write to its disk refuses. Raises as `run` does."""
        with self.translated():
            await self._client.ping()

    async def unblock(self, client_id: int | None) -> None:
        """End the wait of another connection, if it waits."""
        if client_id is not None:
            with self.translated():
                await self._client.client_unblock(client_id)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._client.aclose()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise what the driver raises as an error of ours; `run` names them."""
        try:
            yield
        except (driver.RedisError, OSError) as exc:
            text = with_tls_reason(f"Redis at {self._address}: {exc}", exc)
            answer = str(exc) if isinstance(exc, driver.ResponseError) else ""
            if isinstance(exc, _DENIED) or any(mark in answer for mark in _PERMANENT_MARKS):
                raise ConfigError(text) from exc
            if "NOGROUP" in answer or "UNBLOCKED" in answer:
                raise TopicNotFoundError(text) from exc
            if isinstance(exc, driver.OutOfMemoryError) or "OOM" in answer:
                raise QueueFullError(text) from exc
            raise UnavailableError(text) from exc
