"""The connection from a client to its NATS server, which is replaced when it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.js import api
from nats.js import errors as js_errors
from pydantic import SecretStr

from llama_deploy.errors import ClosedError, ConfigError, LlamaDeployError, UnavailableError
from llama_deploy.message_queues.broker_connection import BrokerConnection
from llama_deploy.message_queues.broker_tls import with_tls_reason
from llama_deploy.message_queues.nats.config import NatsMessageQueueConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_SECONDS: Final = 5.0
"""How long one request waits for its answer."""
_CONNECT_SECONDS: Final = 5.0
_PING_SECONDS: Final = 2
"""How often a connection is tried, and how long it may take to answer."""
_MISSED_PINGS: Final = 2
_CLOSE_SECONDS: Final = 2.0
_SILENT: Final = "there is no answer"
_NEVER_SECONDS: Final = 10 * 365 * 24 * 3600
_GONE: Final = (js_errors.NotFoundError, js_errors.NoStreamResponseError)
"""Answers when stream or group do not exist any more."""


class LiveConnection:
    """One connection to the server, from its opening to its loss."""

    def __init__(self) -> None:
        self.client = Client()
        self.js = self.client.jetstream(timeout=_ANSWER_SECONDS)
        self.topics: dict[str, None] = {}
        """Topics that exist; a server that starts again may have lost them."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_stream = False
        self._timeouts: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def lasting(self, until: float | None) -> AsyncIterator[None]:
        """Raise `TimeoutError` at `until`, by the loop's clock, or as soon as the connection is lost."""
        async with asyncio.timeout_at(until) as timeout:
            self._timeouts.add(timeout)
            if self.lost.done():
                timeout.reschedule(0.0)
            try:
                yield
            finally:
                self._timeouts.discard(timeout)

    async def ping(self, until: float) -> asyncio.Future[bool]:
        """Send a ping, and return its answer, which comes after the arrival of all that was sent before.

        It must not be cancelled: the driver's reader ends with an error when a cancelled answer arrives. The
        driver's own `rtt` and `flush` cancel one that is late.
        """
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        # A ping that does not get through has no answer.
        with suppress(nats.errors.Error, OSError):
            async with self.lasting(until):
                await self.client._send_ping(pong)  # noqa: SLF001
        return pong

    async def answers(self, pong: asyncio.Future[bool], until: float) -> bool:
        """Wait for the answer to a ping until `until`, by the loop's clock, or the loss of the connection."""
        seconds = until - asyncio.get_running_loop().time()
        either: set[asyncio.Future[Any]] = {pong, self.lost}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return pong.done()

    def forget(self) -> None:
        """Check again whether stream and topics exist."""
        self.has_stream = False
        self.topics.clear()

    def end(self) -> None:
        """End what waits for an answer over this connection."""
        if not self.lost.done():
            self.lost.set_result(None)
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(0.0)


Action = Callable[[LiveConnection], Awaitable[T]]


class NatsConnection(BrokerConnection):
    """One live connection at a time; another one when it is lost. `open` it, and `close` it.

    Args:
        config: The settings.
    """

    def __init__(self, config: NatsMessageQueueConfig) -> None:
        super().__init__(f"NATS at {config.url}", retry_seconds=config.retry_seconds)
        self.config = config
        self._tls = config.tls_context() if config.tls_files else None
        self.durable = False
        self._live: LiveConnection | None = None
        self._changed = asyncio.Event()
        """Set while there is a connection, and when there will be no more."""
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._reason = _SILENT

    async def open(self) -> None:
        """Connect.

        Raises:
            UnavailableError: No server answered for `retry_seconds`.
            ConfigError: The server refuses the credentials or the stream's settings.
        """
        self._use(await self.retry(self._try_to_connect))
        self._keeper = asyncio.create_task(self._keep(), name="connection to NATS")
        self._keeper.add_done_callback(lambda _: self._changed.set())

    async def call(self, action: Action[T]) -> T:
        """Run `action` with the connection; again, with the next one, for `retry_seconds`.

        Args:
            action: May run more than once.

        Raises:
            LlamaDeployError: What `action` raises.
            UnavailableError: No success in time.
            ConfigError: The server refuses.
            ClosedError: The connection is closed.
        """
        give_up_at = self.give_up_at()
        return await self.retry(partial(self._call_once, action, give_up_at), give_up_at=give_up_at)

    async def ping(self) -> None:
        """Ask JetStream about the stream.

        Raises:
            UnavailableError: There is no connection, or no answer in time.
            ConfigError: The server refuses.
        """
        if self._live is None and not self._closed:
            raise UnavailableError(f"{self.broker} is not connected: {self._reason}")
        give_up_at = asyncio.get_running_loop().time() + _CONNECT_SECONDS
        await self._call_once(self._look_at_stream, give_up_at)

    async def _look_at_stream(self, connection: LiveConnection) -> None:
        await connection.js.stream_info(self.config.stream)

    async def call_forever(self, action: Action[T]) -> T:
        """Run `action` as `call` does, but without an end, and also while the server refuses."""
        return await self.retry_forever(partial(self._call_once, action, None))

    async def close(self) -> None:
        """Send what was written, and close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        connection, self._live = self._live, None
        self._changed.set()
        if connection is not None:
            until = asyncio.get_running_loop().time() + _CLOSE_SECONDS
            if not await connection.answers(await connection.ping(until), until):
                reason = self._reason if connection.lost.done() else _SILENT
                logger.warning("what was sent last to NATS may be lost: %s", reason)
            connection.end()
            await _shut(connection.client)

    async def _call_once(self, action: Action[T], give_up_at: float | None) -> T:
        cancellations = _cancellations()
        connection = await self._present()
        try:
            async with connection.lasting(give_up_at):
                await self._ensure_stream(connection)
                result = await action(connection)
        except LlamaDeployError:
            raise
        except (js_errors.BadRequestError, nats.errors.BadSubjectError) as exc:
            raise ConfigError(f"the NATS server at {self.config.url} refuses: {exc}") from exc
        except (nats.errors.Error, OSError) as exc:
            _raise_swallowed_cancellation(cancellations)
            if isinstance(exc, _GONE):
                connection.forget()
            reason = str(exc) or self._reason
            raise UnavailableError(f"NATS at {self.config.url} does not answer: {reason}") from exc
        _raise_swallowed_cancellation(cancellations)
        return result

    async def _present(self) -> LiveConnection:
        """Wait until there is a connection."""
        while self._live is None:
            if self._closed:
                raise ClosedError(f"the connection to NATS at {self.config.url} is closed; open a new queue")
            if self._keeper is not None and self._keeper.done():
                self._keeper.result()  # raises an unexpected error
            await self._changed.wait()
        return self._live

    def _use(self, connection: LiveConnection) -> None:
        self._live = connection
        self._changed.set()

    async def _keep(self) -> None:
        """Open another connection whenever one is lost."""
        while True:
            connection = await self._present()
            await self._watch(connection)
            self._live = None
            self._changed.clear()
            connection.end()
            self.outage.began(UnavailableError(f"the connection to {self.broker} has ended: {self._reason}"))
            try:
                await _shut(connection.client)
                _raise_swallowed_cancellation()
                self._use(await self.retry_forever(self._try_to_connect))
            finally:
                self.outage.ended()
            self.outage.succeeded()

    async def _watch(self, connection: LiveConnection) -> None:
        """Wait until a connection is lost or half-open."""
        loop = asyncio.get_running_loop()
        pong: asyncio.Future[bool] | None = None
        silent = 0
        # One late answer may be the fault of this process: its event loop was blocked.
        while silent < _MISSED_PINGS:
            await asyncio.wait([connection.lost], timeout=_PING_SECONDS)
            if connection.lost.done() or connection.client.is_closed:
                return
            until = loop.time() + _PING_SECONDS
            if pong is None or pong.done():  # one that is late is waited for: no other comes before it
                pong = await connection.ping(until)
                _raise_swallowed_cancellation()
            silent = 0 if await connection.answers(pong, until) else silent + 1
        if not connection.lost.done():
            self._reason = _SILENT

    async def _try_to_connect(self) -> LiveConnection:
        connection, cancellations = LiveConnection(), _cancellations()
        try:
            async with connection.lasting(asyncio.get_running_loop().time() + _CONNECT_SECONDS):
                await self._open_client(connection)
                await self._ensure_stream(connection)
            _raise_swallowed_cancellation(cancellations)
        except BaseException as exc:
            await _shut(connection.client)
            _raise_swallowed_cancellation(cancellations)
            if isinstance(exc, LlamaDeployError) or not isinstance(exc, Exception):
                raise
            raise self._translated(exc) from exc
        return connection

    async def _open_client(self, connection: LiveConnection) -> None:
        """Connect the driver's client. It connects once; reconnecting is the task of `NatsConnection`."""

        async def on_error(exc: Exception) -> None:
            self._reason = str(exc) or type(exc).__name__

        async def on_end() -> None:
            connection.end()

        def on_read_end(reading: asyncio.Task[None]) -> None:
            if not reading.cancelled() and (exc := reading.exception()) is not None:
                self._reason = str(exc)
            connection.end()

        config, text = self.config, _revealed(self.config.credentials)
        urls = config.url if self._tls is None else config.url.replace("nats://", "tls://")
        await connection.client.connect(
            urls.split(","),
            tls=self._tls,
            name="llama_deploy",
            error_cb=on_error,
            closed_cb=on_end,
            disconnected_cb=on_end,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            ping_interval=_NEVER_SECONDS,
            user=config.username,
            password=_revealed(config.password),
            token=_revealed(config.token),
            user_credentials=RawCredentials(text) if text is not None and "\n" in text else text,
        )
        self._check_tls(connection.client)
        # The driver calls no callback when a connection breaks while it holds unsent data.
        reading: asyncio.Task[None] | None = getattr(connection.client, "_reading_task", None)
        if reading is not None:
            reading.add_done_callback(on_read_end)

    def _check_tls(self, client: Client) -> None:
        """Check that a connection that should use TLS does: the driver leaves it to the server.

        Raises:
            ConfigError: It does not.
        """
        wants_tls = self._tls is not None or self.config.url.startswith("tls:")
        if wants_tls and not client._server_info.get("tls_required"):  # noqa: SLF001 - nothing public says it
            raise ConfigError(
                f"the NATS server at {self.config.url} does not use TLS; configure it there, or use nats://"
                " without tls_ca, tls_cert and tls_key"
            )

    def _translated(self, exc: Exception) -> LlamaDeployError:
        """Return what a failure to connect means."""
        if isinstance(exc, ImportError):
            return ConfigError("the field `credentials` needs a package: pip install 'nats-py[nkeys]'")
        if isinstance(exc, FileNotFoundError | nats.errors.InvalidUserCredentialsError):
            return ConfigError(
                "the field `credentials` is neither the path nor the text of a credentials file"
            )
        reason = with_tls_reason(f"{exc or type(exc).__name__}; {self._reason}", exc)
        if "authorization violation" in reason.lower():
            return ConfigError(f"the NATS server at {self.config.url} refuses the credentials: {reason}")
        return UnavailableError(
            f"NATS with JetStream at {self.config.url} does not answer: {reason}; is it started with -js?"
        )

    async def _ensure_stream(self, connection: LiveConnection) -> None:
        """Make the stream unless it exists.

        Raises:
            ConfigError: The server refuses it, or its name is that of another kind of stream.
        """
        if connection.has_stream:
            return
        config, subjects = self.config, [f"{self.config.stream}.>"]
        try:
            info = await connection.js.stream_info(self.config.stream)
        except js_errors.NotFoundError:
            wanted = api.StreamConfig(
                name=self.config.stream,
                subjects=subjects,
                retention=api.RetentionPolicy.INTEREST,
                storage=api.StorageType(config.storage),
                num_replicas=config.replicas,
                discard=api.DiscardPolicy.NEW,
                discard_new_per_subject=True,
                max_msgs_per_subject=config.max_messages_per_topic,
                duplicate_window=config.duplicate_window,
            )
            try:
                info = await connection.js.add_stream(wanted)
            except (js_errors.BadRequestError, js_errors.ServerError) as exc:
                raise ConfigError(
                    f"the NATS server refuses the stream {self.config.stream!r}: {exc}"
                ) from exc
        if info.config.retention != api.RetentionPolicy.INTEREST or info.config.subjects != subjects:
            raise ConfigError(
                f"the stream {self.config.stream!r} exists with other settings; name another as `stream`"
            )
        self.durable = info.config.storage == api.StorageType.FILE
        connection.has_stream = True


def _cancellations() -> int:
    """Return how often the present task was cancelled."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _raise_swallowed_cancellation(known: int = 0) -> None:
    """Raise the cancellation of the present task if it was cancelled more often than `known`.

    The driver swallows a cancellation that comes together with an answer, or while it writes.
    """
    if _cancellations() > known:
        raise asyncio.CancelledError


async def _shut(client: Client) -> None:
    """Close a connection; one that is half-open is left to the system after a while."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()
    except (nats.errors.Error, OSError, AssertionError) as exc:
        logger.debug("closing a connection to NATS: %r", exc)
    # The driver leaves these tasks behind when a connection breaks while it closes it.
    for inbox in client._subs.values():  # noqa: SLF001
        inbox._stop_processing()  # noqa: SLF001


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
