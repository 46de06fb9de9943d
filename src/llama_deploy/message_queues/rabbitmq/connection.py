"""A connection to RabbitMQ that is reopened when it was lost, and the driver's errors translated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused, ConnectionNotAllowed

from llama_deploy.errors import ConfigError, LlamaDeployError, UnavailableError
from llama_deploy.message_queues.broker_connection import BrokerConnection
from llama_deploy.message_queues.broker_tls import with_tls_reason
from llama_deploy.message_queues.rabbitmq.config import RabbitMQMessageQueueConfig

T = TypeVar("T")

_CONNECT_SECONDS: Final = 5.0


class RabbitMQConnection(BrokerConnection):
    """At most one connection, opened when it is needed. `close` it.

    Args:
        config: The settings.
        purpose: Names the connection in the broker's tools.
    """

    def __init__(self, config: RabbitMQMessageQueueConfig, purpose: str) -> None:
        self._url = config.driver_url(f"llama_deploy {purpose}")
        self.address = config.address
        self._tls = config.tls_context() if config.tls_files else None
        super().__init__(f"RabbitMQ at {config.address}", retry_seconds=config.retry_seconds)
        self._connection: AbstractConnection | None = None
        self._connecting = asyncio.Lock()

    @property
    def present(self) -> AbstractConnection | None:
        """The connection, if there is one; the broker may have stopped answering."""
        connection = self._connection
        return connection if connection is not None and connection.connected.is_set() else None

    async def connection(self) -> AbstractConnection:
        """Return the connection; open one if there is none.

        Raises:
            UnavailableError: The broker does not answer.
            ConfigError: It refuses the credentials or the vhost.
        """
        async with self._connecting:
            connection = self.present
            if connection is None:
                await self.drop(self._connection)
                with translated(self.address):
                    connection = await aio_pika.connect(
                        self._url, timeout=_CONNECT_SECONDS, ssl_context=self._tls
                    )
                self._connection = connection
            return connection

    async def ping(self) -> None:
        """Open a channel and close it, which needs two answers. Raises as `connection` does."""
        connection = await self.connection()
        with translated(self.address):
            channel = await connection.channel()
            await channel.close()

    async def drop(self, connection: AbstractConnection | None) -> None:
        """Close a connection that is no longer usable, so that the next call opens another."""
        if connection is None:
            return
        if self._connection is connection:
            self._connection = None
        await close_quietly(connection, self.address)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        async with self._connecting:
            await self.drop(self._connection)

    async def _attempt(self, call: Callable[[], Awaitable[T]], give_up_at: float) -> T:
        """Make a call once, for half of its time at most: a silent connection is then replaced."""
        connection = self.present
        until = min(give_up_at, asyncio.get_running_loop().time() + self._call_seconds / 2)
        try:
            with translated(self.address):
                async with asyncio.timeout_at(until):
                    return await call()
        except UnavailableError as exc:
            if isinstance(exc.__cause__, TimeoutError):
                await self.drop(connection)
            raise


async def close_quietly(
    resource: AbstractConnection | AbstractChannel, address: str, *, seconds: float = 2.0
) -> None:
    """Close a connection or a channel, whether or not the broker at `address` answers."""
    with suppress(LlamaDeployError), translated(address):
        async with asyncio.timeout(seconds):
            await resource.close()


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Raise the errors of the driver as ours.

    Args:
        address: The broker, for the text of the error.

    Raises:
        ConfigError: The broker refuses the credentials or a permission.
        UnavailableError: Any other.
    """
    try:
        yield
    except LlamaDeployError:
        raise
    except (AuthenticationError, ProbableAuthenticationError, ChannelAccessRefused) as exc:
        raise ConfigError(f"RabbitMQ at {address} refuses what the settings ask for: {exc}") from exc
    except (InvalidFrameError, ConnectionNotAllowed) as exc:
        # How the driver says that the broker closes the connection at the end of the handshake.
        raise UnavailableError(
            f"the vhost of {address} is not there, not ready, or not for this user: {exc}"
        ) from exc
    except (*CONNECTION_EXCEPTIONS, TimeoutError) as exc:
        text = with_tls_reason(str(exc) or type(exc).__name__, exc)
        raise UnavailableError(f"RabbitMQ at {address} does not answer: {text}") from exc
    except asyncio.CancelledError as exc:
        # The driver raises this in a call over a connection that it gives up; the task is not cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UnavailableError(f"the connection to RabbitMQ at {address} was given up") from exc
