"""The event with which a run tells its progress."""

from __future__ import annotations

from workflows.events import Event


class TaskProgress(Event):
    """Says in words how far a run is. Its last text is shown at the task, in lists and in details.

    Example:
        ```python
        ctx.write_event_to_stream(TaskProgress(text=f"{done} of {total} pages read"))
        ```

    Clients that read the stream get it as any other event. `TaskInfo.set_status` does the same without an
    event.
    """

    text: str
