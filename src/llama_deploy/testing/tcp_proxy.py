"""A TCP proxy between clients and their servers that fails as networks do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from llama_deploy.concurrency.closing import AsyncCloseable


class TcpProxy(AsyncCloseable):
    """Passes bytes between its clients and a port, until told otherwise. Use it with `async with`."""

    def __init__(self) -> None:
        self.port = 0
        """The port on which it listens, once it is started."""
        self.delay = 0.0
        """Seconds by which each piece of data is delayed."""
        self.holds = b""
        """Data with these bytes are held, with what comes after them, until this is empty again."""
        self.target_ports: list[int] = []
        """Where new connections go: to the first port that accepts, in rotation."""
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.accepted = 0
        """How many connections it has taken so far."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._held: list[asyncio.Event] = []

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._passing) // 2

    async def start(self, *target_ports: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen for clients of these ports, over TLS if a context is given; return the port."""
        self.target_ports = list(target_ports)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    def cut(self) -> None:
        """Break all connections. New ones are accepted."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self, *, new: bool = True) -> None:
        """Keep the connections open but pass nothing. With `new`, those that come later too."""
        self._flowing.clear()
        self._held.append(self._flowing)
        if not new:
            self._flowing = asyncio.Event()
            self._flowing.set()

    def resume(self) -> None:
        """Pass on what was held, and all that comes."""
        for flowing in self._held:
            flowing.set()
        self._held.clear()

    async def close(self) -> None:
        """Break all connections and accept no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.accepted += 1
        far = await self._connect()
        if far is None:
            writer.transport.abort()
            return
        far_reader, far_writer = far
        self._writers.add(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink, self._flowing))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        self.target_ports = [*self.target_ports[1:], *self.target_ports[:1]]
        for port in self.target_ports:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(65536):
                await asyncio.sleep(self.delay)
                await flowing.wait()
                while self.holds and self.holds in data:  # noqa: ASYNC110 - a test changes what is waited for
                    await asyncio.sleep(0.01)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # its connection is cut, as was asked for
        finally:
            sink.transport.abort()
            self._writers.discard(sink)
