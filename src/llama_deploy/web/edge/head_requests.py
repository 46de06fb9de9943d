"""The layer that answers HEAD requests: like GET, without the body ("HEAD", RFC 9110)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Passes HEAD requests on as GET, and drops the bodies of the answers.

    Args:
        app: The next layer.
        excluded: The beginnings of paths whose GET changes something. They stay HEAD, which has no route.
    """

    def __init__(self, app: ASGIApp, *, excluded: Collection[str] = ()) -> None:
        self._app = app
        self._excluded = tuple(excluded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] != "HEAD" or (self._excluded and scope["path"].startswith(self._excluded)):
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        answering = asyncio.ensure_future(self._app({**scope, "method": "GET"}, receive, send_head))
        waiting = asyncio.ensure_future(answered.wait())
        try:
            await asyncio.wait({answering, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if answered.is_set() or not answering.done():
                # What is left is a body, perhaps that of a stream without an end.
                answering.cancel()
                with suppress(asyncio.CancelledError):
                    await answering
        if answering.done() and not answering.cancelled():
            answering.result()
