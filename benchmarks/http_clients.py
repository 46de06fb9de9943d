"""What an HTTP call costs in each client library, alone and with 64 calls in flight.

The server is ours, in a process of its own; each client posts a small JSON body and reads the answer. The
figure that decides is the client's CPU time a call: control plane, queue and services are all clients of each
other, so this is paid several times for each task.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import aiohttp
import httpx
import urllib3
import uvloop
from fastapi import Request, Response

from llama_deploy.web.application import create_app
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.http_server import HttpServer

IN_FLIGHT: Final = (1, 64)
BODY: Final = b'{"task_id": "0192f7c4", "attempt": 1, "instance_id": "a1b2c3", "text": "' + b"x" * 200 + b'"}'
HEADERS: Final = {"Content-Type": "application/json"}
START_SECONDS: Final = 30.0

Call = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of the table; times in milliseconds."""

    client: str
    in_flight: int
    calls_per_second: float
    cpu_ms: float
    p50_ms: float


def serve(ready: Connection) -> None:
    """Serve the echo application until the process is ended, after sending the port."""

    async def main() -> None:
        app = create_app(title="echo")

        @app.post("/echo")
        async def echo(request: Request) -> Response:
            return Response(await request.body(), media_type="application/json")

        async with await HttpServer.start(app, host="127.0.0.1", port=0) as server:
            ready.send(server.port)
            await server.wait_closed()

    uvloop.run(main())


@contextmanager
def echo_server() -> Iterator[str]:
    """Run the server and yield its URL."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(sender,), daemon=True)
    process.start()
    try:
        if not receiver.poll(START_SECONDS):
            raise TimeoutError(f"the server was not ready after {START_SECONDS:.0f} s")
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        process.kill()
        process.join()


async def drive(name: str, call: Call, *, in_flight: int, seconds: float) -> Figures:
    """Keep `in_flight` calls under way for `seconds`."""
    latencies: list[float] = []

    async def caller(until: float) -> None:
        while (started := time.perf_counter()) < until:
            await call()
            latencies.append(time.perf_counter() - started)

    async def run(duration: float) -> None:
        until = time.perf_counter() + duration
        await asyncio.gather(*(caller(until) for _ in range(in_flight)))

    await run(seconds / 5)  # connections are open and code is warm before the clock counts
    latencies.clear()
    cpu, wall = time.process_time(), time.perf_counter()
    await run(seconds)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return figures(name, in_flight, latencies=latencies, cpu=cpu, wall=wall)


def figures(name: str, in_flight: int, *, latencies: list[float], cpu: float, wall: float) -> Figures:
    """Turn what was measured, in seconds, into a row."""
    calls = len(latencies)
    return Figures(
        client=name,
        in_flight=in_flight,
        calls_per_second=calls / wall,
        cpu_ms=1000 * cpu / calls,
        p50_ms=1000 * statistics.median(latencies),
    )


async def measure_aiohttp(url: str, *, in_flight: int, seconds: float) -> Figures:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call() -> None:
            async with session.post(f"{url}/echo", data=BODY, headers=HEADERS) as response:
                assert await response.read() == BODY

        return await drive("aiohttp", call, in_flight=in_flight, seconds=seconds)


async def measure_ours(url: str, *, in_flight: int, seconds: float) -> Figures:
    connection = HttpConnection(url)
    request = HttpRequest("POST", "/echo", json={"text": "x" * 280})

    async def call() -> None:
        await connection.request(request)

    try:
        return await drive("aiohttp in HttpConnection", call, in_flight=in_flight, seconds=seconds)
    finally:
        await connection.close()


async def measure_httpx(url: str, *, in_flight: int, seconds: float) -> Figures:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def call() -> None:
            response = await client.post(f"{url}/echo", content=BODY, headers=HEADERS)
            assert response.content == BODY

        return await drive("httpx", call, in_flight=in_flight, seconds=seconds)


def measure_urllib3(url: str, *, in_flight: int, seconds: float) -> Figures:
    pool = urllib3.PoolManager(maxsize=in_flight, retries=False)
    latencies: list[float] = []

    def caller(until: float) -> None:
        while (started := time.perf_counter()) < until:
            response = pool.request("POST", f"{url}/echo", body=BODY, headers=HEADERS)
            assert response.data == BODY
            latencies.append(time.perf_counter() - started)

    def run(duration: float) -> None:
        until = time.perf_counter() + duration
        with ThreadPoolExecutor(in_flight) as threads:
            for outcome in [threads.submit(caller, until) for _ in range(in_flight)]:
                outcome.result()

    run(seconds / 5)
    latencies.clear()
    cpu, wall = time.process_time(), time.perf_counter()
    run(seconds)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    pool.clear()
    return figures("urllib3 in threads", in_flight, latencies=latencies, cpu=cpu, wall=wall)


def measure(url: str, *, seconds: float) -> Iterator[Figures]:
    """Measure each client at each number of calls in flight, `seconds` each."""
    for in_flight in IN_FLIGHT:
        for client in (measure_aiohttp, measure_ours, measure_httpx):
            yield asyncio.run(client(url, in_flight=in_flight, seconds=seconds))
        yield measure_urllib3(url, in_flight=in_flight, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="duration of each of the eight measurements"
    )
    seconds = parser.parse_args().seconds
    print("| client | in flight | calls/s | CPU ms/call | p50 ms |\n|---|---|---|---|---|")
    with echo_server() as url:
        for row in measure(url, seconds=seconds):
            print(
                f"| {row.client} | {row.in_flight} | {row.calls_per_second:,.0f} "
                f"| {row.cpu_ms:.2f} | {row.p50_ms:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
