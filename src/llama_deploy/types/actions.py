"""What the messages on the queue ask for."""

from __future__ import annotations

from enum import StrEnum


class ActionTypes(StrEnum):
    """What the receiver of a message is to do."""

    NEW_TASK = "new_task"
    """To a service: claim and run an attempt. Data: `TaskDispatch`."""
    COMPLETED_TASK = "completed_task"
    """To the control plane: an attempt has ended. Data: `AttemptOutcome`."""
    REQUEST_FOR_HELP = "request_for_help"
    """Kept for the 0.6 API; unused."""
    NEW_TOOL_CALL = "new_tool_call"
    """Kept for the 0.6 API; unused."""
    COMPLETED_TOOL_CALL = "completed_tool_call"
    """Kept for the 0.6 API; unused."""
    TASK_STREAM = "task_stream"
    """To the control plane: events that an attempt streamed. Data: `AttemptEvents`."""
    SEND_EVENT = "send_event"
    """To an instance: an event for a running workflow. Data: `InboxEntry`."""
    CANCEL_TASK = "cancel_task"
    """To an instance: stop an attempt. Data: `TaskCancellation`."""
