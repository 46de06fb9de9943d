"""Which values are streams that are read, by their class, and how each of them is read and closed.

These are: generators, asynchronous and synchronous ones, and the streaming responses of llama_index. No other
iterator is read: a file or a socket is not a result, and an iterator may have no end.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from types import AsyncGeneratorType, GeneratorType, MappingProxyType
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, TypeAdapter

from llama_deploy.codec.agents import named_base
from llama_deploy.concurrency.daemon_threads import DaemonExecutor
from llama_deploy.portability.json_parts import step_to

_END: Final = object()
_LEVELS: Final = 3
"""How deep a result is searched for streams."""
_CONTAINERS: Final = frozenset({dict, list, tuple})
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})

_Items: TypeAlias = AsyncGenerator[Any]
_Read: TypeAlias = Callable[[Any], _Items]


@dataclass(frozen=True, slots=True)
class LiveStream:
    """A stream in a value."""

    place: str
    """Where it is, such as `result.answer`."""
    items: _Items
    """Reads it. Closing this closes the stream."""
    is_text: bool
    """Whether its items are text by its class."""


def holds_stream(value: Any, *, levels: int = _LEVELS) -> bool:
    """Return whether a value is a stream, or a dict, list or tuple that holds one.

    Args:
        value: The value.
        levels: How deep it is searched.
    """
    cls: type = type(value)
    if cls in _PLAIN:
        return False
    if cls not in _CONTAINERS:
        return _reader_of(cls) is not None
    items = value.values() if cls is dict else value
    # Long lists usually have items of one class; this looks at them in C.
    if not levels or _PLAIN.issuperset(map(type, items)):
        return False
    return any(holds_stream(item, levels=levels - 1) for item in items)


async def replace_streams(
    value: Any, place: str, read: Callable[[LiveStream], Any], *, levels: int = _LEVELS
) -> Any:
    """Return a value with what `read` has made of each of its streams; the value itself if it has none.

    Args:
        value: The value, see `holds_stream`. It is not changed.
        place: The place of the value.
        read: An asynchronous function that reads a stream.
        levels: How deep it is searched.
    """
    cls: type = type(value)
    if not holds_stream(value, levels=levels):
        return value
    if (source := _reader_of(cls)) is not None:
        how, is_text = source
        async with aclosing(how(value)) as items:
            return await read(LiveStream(place, items, is_text))
    held: dict[Any, Any] = value if cls is dict else dict(enumerate(value))
    replaced = {
        key: await replace_streams(
            item, place + (step_to(key) if cls is dict else f"[{key}]"), read, levels=levels - 1
        )
        for key, item in held.items()
    }
    return replaced if cls is dict else cls(replaced.values())


@functools.lru_cache(maxsize=1024)
def _reader_of(cls: type) -> tuple[_Read, bool] | None:
    """Return how streams of a class are read, and whether they are text. None: it is not a stream."""
    if issubclass(cls, AsyncGeneratorType):
        return _closing, False
    if issubclass(cls, GeneratorType | _DeclaredGenerator):
        return _in_thread, False
    read = named_base(cls, _RESPONSES)
    return None if read is None else (read, True)


_DeclaredGenerator: Final[type] = type(TypeAdapter(Generator[Any, None, None]).validate_python(iter(())))
"""What pydantic puts into a field of a model that is declared as a generator."""


async def _closing(source: AsyncIterator[Any]) -> _Items:
    try:
        async for item in source:
            yield item
    finally:
        if isinstance(source, AsyncGeneratorType):
            await source.aclose()


async def _in_thread(source: Iterator[Any]) -> _Items:
    """Read an iterator that may block, in a thread of its own.

    It may hold a lock or a connection of the thread between two items, and must not wait for other work.
    """
    loop, context = asyncio.get_running_loop(), copy_context()
    thread = DaemonExecutor("result-stream", limit=1)

    def read() -> Any:
        return context.run(next, source, _END)

    def close() -> None:
        if isinstance(source, GeneratorType):
            context.run(source.close)

    reading: asyncio.Future[Any] = loop.create_future()
    reading.set_result(None)
    try:
        while True:
            reading = loop.run_in_executor(thread, read)
            item = await asyncio.shield(reading)
            if item is _END:
                return
            yield item
    finally:
        closing = thread.submit(close)
        thread.shutdown()
        # A thread cannot be interrupted: an item that is being read is left alone.
        if reading.done():
            await asyncio.shield(asyncio.wrap_future(closing))


async def _of_response(response: Any) -> _Items:
    """Read a streaming response of a query engine, which may have been read already."""
    if response.response_txt is not None or response.response_gen is None:
        yield response.response_txt or ""
        return
    source = response.response_gen
    async with aclosing(_closing(source) if hasattr(source, "__anext__") else _in_thread(source)) as items:
        async for item in items:
            yield item


async def _of_chat(response: Any) -> _Items:
    """Read the streaming response of a chat engine."""
    is_async = response.achat_stream is not None or response.awrite_response_to_history_task is not None
    items = _closing(response.async_response_gen()) if is_async else _in_thread(response.response_gen)
    async with aclosing(items):
        async for item in items:
            yield item


_RESPONSES: Final[Mapping[str, _Read]] = MappingProxyType(
    {
        "llama_index.core.base.response.schema.StreamingResponse": _of_response,
        "llama_index.core.base.response.schema.AsyncStreamingResponse": _of_response,
        "llama_index.core.chat_engine.types.StreamingAgentChatResponse": _of_chat,
    }
)
"""The streaming responses of llama_index, by name."""


class TextDeltas:
    """Finds the text in the items of one stream, if they have any."""

    def __init__(self) -> None:
        self._text = ""

    def of(self, item: Any) -> str | None:
        """Return the text of an item that continues the text of those before it. None: it is not text."""
        if isinstance(item, str):
            return str(item)
        if not isinstance(item, BaseModel) or (text_of := named_base(type(item), _TEXTS)) is None:
            return None
        delta: str | None = vars(item).get("delta")
        if delta is None:
            # Without deltas, each response has the text from the beginning.
            text = text_of(item) or ""
            delta = text.removeprefix(self._text)
            self._text = text
        return delta


_TEXTS: Final[Mapping[str, Callable[[Any], str | None]]] = MappingProxyType(
    {
        "llama_index.core.base.llms.types.ChatResponse": lambda item: item.message.content,
        "llama_index.core.base.llms.types.CompletionResponse": lambda item: item.text,
    }
)
"""The whole text of the responses of llama_index's models so far, by their class."""
