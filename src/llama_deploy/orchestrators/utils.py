"""Keys of the session's state that orchestrators written for 0.6 use."""

from __future__ import annotations


def get_result_key(task_id: str) -> str:
    """Return the key under which an orchestrator leaves the result of a task."""
    return f"result_{task_id}"


def get_stream_key(task_id: str) -> str:
    """Return the key under which 0.6 kept the stream of a task. Streams are stored elsewhere now."""
    return f"stream_{task_id}"
