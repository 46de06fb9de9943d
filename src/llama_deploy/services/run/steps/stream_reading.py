"""Reads the streams that a step returns in its stop event: into the task's stream, and into the event.

The step is under way until they are read. So they are read again if its process dies, a cancellation or the
time limit interrupts them, and what they raise is the failure of the step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from workflows.events import StopEvent

from llama_deploy.codec import text_of, valid_text
from llama_deploy.codec.plain_json import measured
from llama_deploy.errors import PayloadTooLargeError, SerializationError
from llama_deploy.portability.live_objects import check_portable
from llama_deploy.services.values.live_streams import LiveStream, TextDeltas, holds_stream, replace_streams
from llama_deploy.services.values.payloads import StreamedEvent
from llama_deploy.services.values.streamed_item import StreamedItem
from llama_deploy.types.instance_protocol import EventPayload
from llama_deploy.workflow_library import parts_of, set_parts

MAX_ITEMS: Final = 10_000
"""How many items the streams of one stop event may have."""
MAX_BYTES: Final = 4 * 1024 * 1024
"""How long their items may be together, as JSON."""
_OVERHEAD: Final = 64
"""The approximate length of a streamed item without its content."""

Emit: TypeAlias = Callable[[StreamedEvent], Awaitable[None]]
"""Streams an event. Returns when there is room for the next one."""


async def read_streams(returned: object, emit: Emit) -> None:
    """Replace the streams in a stop event by what they contain; other objects stay as they are.

    Raises:
        PayloadTooLargeError: They contain too much.
        SerializationError: They contain an object with connections or secrets.
        Exception: What a stream raises.
    """
    if not isinstance(returned, StopEvent):
        return
    streams = {name: part for name, part in parts_of(returned) if holds_stream(part)}
    if streams:
        reader = _Reader(emit)
        set_parts(
            returned, {name: await replace_streams(part, name, reader.read) for name, part in streams.items()}
        )


@dataclass(slots=True)
class _Reader:
    """Reads the streams of one stop event."""

    emit: Emit
    _items: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)

    async def read(self, stream: LiveStream) -> Any:
        """Return the content of a stream: a text, or a list if one of its items is not text."""
        deltas, index = TextDeltas(), 0
        content: list[Any] = []
        is_text = True
        async for item in stream.items:
            await asyncio.sleep(0)  # what the step, or the stream itself, has streamed before comes first
            delta = deltas.of(item)
            if delta is None:
                is_text = False
                kept, size = _as_json(item, f"{stream.place}[{index}]")
                data = {"item": kept}
            else:
                kept, delta = delta, valid_text(delta)
                size = len(delta) if delta.isascii() else len(delta.encode())
                data = {"delta": delta}
            self._count(size, stream.place)
            content.append(kept)
            await self.emit(_streamed(stream.place, index, data, size))
            index += 1
        return valid_text("".join(content)) if is_text and (content or stream.is_text) else content

    def _count(self, size: int, place: str) -> None:
        self._items += 1
        self._bytes += size
        if self._items > MAX_ITEMS or self._bytes > MAX_BYTES:
            limit = f"{MAX_ITEMS:,} items" if self._items > MAX_ITEMS else f"{MAX_BYTES >> 20} MiB"
            raise PayloadTooLargeError(
                f"the stream in {place!r} of the stop event has more than {limit}, which is what a result may"
                " have: stream the items with ctx.write_event_to_stream, and return a summary, or a reference"
                " to where they are stored",
                limit_bytes=MAX_BYTES,
            )


def _as_json(item: object, place: str) -> tuple[Any, int]:
    """Return an item as JSON, or its text if it does not have that form, and its length.

    Raises:
        SerializationError: It holds keys and secrets, which its text may show.
    """
    try:
        return measured(item, path=place)
    except SerializationError:
        check_portable(item, path=place, as_text=True)
        text = text_of(item)
        return text, len(text.encode())


def _streamed(place: str, index: int, data: dict[str, Any], size: int) -> StreamedEvent:
    payload = EventPayload(type=StreamedItem.__name__, data={"field": place, "index": index, **data})
    return StreamedEvent(payload, size + _OVERHEAD)
