"""What a client sees of a result that is a stream."""

from __future__ import annotations

from typing import Any

from workflows.events import Event


class StreamedItem(Event):
    """An item of a stream that a workflow has returned in its stop event. The service streams it.

    In the task's stream it has either a `delta` or an `item`.

    Example:
        ```python
        async for event in task.events():
            if event.type == "StreamedItem":
                print(StreamedItem(**event.data).delta, end="")
        ```
    """

    field: str = "result"
    """Where the stream is: a field of the stop event, or a place in it, such as `result.answer`."""
    index: int = 0
    """The position of the item in its stream. It begins again with 0 if the step runs again."""
    delta: str = ""
    """The text of the item: a string, or the delta of a `CompletionResponse` or `ChatResponse`."""
    item: Any = None
    """An item that is not text, as JSON."""
