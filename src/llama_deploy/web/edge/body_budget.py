"""How many bytes of request bodies a server holds in memory at the same time.

Bytes count from when they are received until the request is answered, or releases its body. While there is no
room, bodies are not read on, so their clients wait. If all bodies that hold bytes wait for each other, one of
them may exceed the budget, so it ends, and then the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from starlette.types import Message, Receive

from llama_deploy.errors import ServerBusyError

DEFAULT_MAX_TOTAL_BODY_BYTES: Final = 32 * 1024 * 1024
RELEASE_BODY: Final = "llama_deploy.release_body"
"""The key in the scope of a request whose body counts: a function to call when the body is not used any more.
"""
SMALL_BODY_BYTES: Final = 64 * 1024
"""Bodies that declare as little are not counted: the HTTP server buffers as much of each connection."""
WAIT_SECONDS: Final = 30.0
"""How long one body waits for room, in all."""
_RETRY_AFTER_SECONDS: Final = 5.0
_PIECE_BYTES: Final = 256 * 1024
"""How much asyncio reads from a socket at once."""


class BodyBudget:
    """The bytes of all bodies of one server.

    Args:
        max_bytes: How many bodies may take together. A single one that is larger passes, if its size is
            allowed.
        wait_seconds: See `WAIT_SECONDS`.
    """

    def __init__(self, max_bytes: int, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._max_bytes = max_bytes
        self._wait_seconds = wait_seconds
        self._waiting: deque[tuple[asyncio.Future[None], ReceivedBody]] = deque()
        self._exceeding: ReceivedBody | None = None
        """The body that may exceed the budget."""
        self.held_bytes = 0
        """How many bytes are in memory."""

    def body(self, receive: Receive) -> ReceivedBody:
        """Return one more body. Close it when its request is answered."""
        return ReceivedBody(self, receive)

    def count(self, size: int) -> None:
        """A body has received bytes."""
        self.held_bytes += size

    async def wait_for_room(self, body: ReceivedBody, seconds: float) -> None:
        """Wait until a body may receive more.

        Raises:
            TimeoutError: There was no room within so many seconds.
        """
        if not self._waiting and (self.held_bytes < self._max_bytes or self._may_exceed(body)):
            return
        if body is self._exceeding:
            return
        turn = asyncio.get_running_loop().create_future()
        entry = (turn, body)
        self._waiting.append(entry)
        self._wake()
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException:
            if entry in self._waiting:
                self._waiting.remove(entry)
            if not turn.cancelled():
                self._wake()  # its turn is for somebody else
            raise

    def release(self, body: ReceivedBody) -> None:
        """A body is out of memory."""
        self.held_bytes -= body.held_bytes
        body.held_bytes = 0
        if self._exceeding is body:
            self._exceeding = None
        self._wake()

    def seconds_left(self, waited: float) -> float:
        """Return how long a body may still wait."""
        return self._wait_seconds - waited

    def _may_exceed(self, body: ReceivedBody) -> bool:
        if self._exceeding is None:
            self._exceeding = body
        return self._exceeding is body

    def _wake(self) -> None:
        """Let those receive that have waited longest, as far as there is room for a piece of each."""
        room = self._max_bytes - self.held_bytes
        while self._waiting and (room > 0 or self._may_exceed(self._waiting[0][1])):
            turn, _ = self._waiting.popleft()
            room -= _PIECE_BYTES
            if not turn.done():
                turn.set_result(None)


class ReceivedBody:
    """The body of one request.

    Args:
        budget: What it counts for.
        receive: Returns its parts.
    """

    def __init__(self, budget: BodyBudget, receive: Receive) -> None:
        self._budget = budget
        self._receive = receive
        self._waited = 0.0
        self._is_complete = False
        self.held_bytes = 0
        """How many bytes of it are in memory."""

    async def receive(self) -> Message:
        """Return the next part, once there is room for it.

        Raises:
            ServerBusyError: There was no room for a long time.
        """
        if not self._is_complete:
            await self._wait_for_room()
        message = await self._receive()
        size = len(message.get("body", b""))
        self.held_bytes += size
        self._budget.count(size)
        self._is_complete = not message.get("more_body", False)
        return message

    def close(self) -> None:
        """The request is answered, or its body is not used any more. Idempotent."""
        self._budget.release(self)

    async def _wait_for_room(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            await self._budget.wait_for_room(self, self._budget.seconds_left(self._waited))
        except TimeoutError as exc:
            raise ServerBusyError(
                "the server has no room for the request body, because too many large ones arrive at the same"
                " time; send it again later, or raise max_total_body_bytes",
                retry_after=_RETRY_AFTER_SECONDS,
            ) from exc
        finally:
            self._waited += loop.time() - begun
