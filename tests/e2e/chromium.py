"""A headless Chromium that a test drives over its debugging protocol, and an origin for its pages."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from llama_deploy.testing.conditions import eventually

PATIENCE: Final = 60.0
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def chromium() -> str:
    """Return the path of the browser. Without one, the test is skipped, or fails if `CI=true`."""
    path = shutil.which("chromium")
    if path is None:
        message = "chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - of the base class
        """Log nothing."""


@contextmanager
def served_folder(folder: Path) -> Iterator[str]:
    """Serve the files of a folder, and yield their origin."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Page:
    """A page in the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the debugging protocol."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=PATIENCE)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.call("Page.navigate", url=url)

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true in the page."""

        async def holds() -> bool:
            return bool(await self.evaluate(script))

        await eventually(holds, seconds=PATIENCE)


@asynccontextmanager
async def browser_page(folder: Path) -> AsyncIterator[Page]:
    """Start a browser with a profile of its own, and yield an empty page."""
    profile = folder / "profile"
    with (folder / "chromium.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            chromium(), *_FLAGS, f"--user-data-dir={profile}", "about:blank", stdout=log, stderr=log
        )
    try:
        port_file = profile / "DevToolsActivePort"
        text = await eventually(
            lambda: port_file.is_file() and port_file.read_text(encoding="utf-8"), seconds=PATIENCE
        )
        url = f"http://127.0.0.1:{str(text).split()[0]}"
        async with aiohttp.ClientSession() as session:

            async def page_socket() -> str | None:
                async with session.get(f"{url}/json/list") as answer:
                    pages = [each for each in await answer.json() if each["type"] == "page"]
                    return pages[0]["webSocketDebuggerUrl"] if pages else None

            address = await eventually(page_socket, seconds=PATIENCE)
            async with session.ws_connect(str(address), max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.kill()
        await process.wait()
