"""What the asyncio client does differently from the client without `await`: it does not block."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

from llama_deploy.types import TaskEvent

EventData: TypeAlias = AsyncGenerator[dict[str, Any]]
Sleep: TypeAlias = Callable[[float], Awaitable[None]]


async def data_of(events: AsyncGenerator[TaskEvent]) -> EventData:
    """Yield the data of the events as they arrive."""
    async with aclosing(events):
        async for event in events:
            yield event.data


__all__ = ["EventData", "Sleep", "data_of", "sleep"]
