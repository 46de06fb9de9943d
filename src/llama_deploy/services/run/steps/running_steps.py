"""Which steps run in this process, in the event loop or in threads, to say what keeps it from ending."""

from __future__ import annotations

from typing import Final

from llama_deploy.running_task import TaskInfo, running_task

_running: Final[dict[object, tuple[str, TaskInfo | None]]] = {}


def begin(step_name: str) -> object:
    """Note that a step runs in this context; return the key for `end`. Thread-safe."""
    key = object()
    _running[key] = (step_name, running_task.get())
    return key


def end(key: object) -> None:
    """Note that a step has ended. Thread-safe."""
    _running.pop(key, None)


def described() -> list[str]:
    """Return the steps that run now, with their tasks, in words. Thread-safe."""
    return [f"the step {name!r}{_of(task)}" for name, task in list(_running.values())]


def _of(task: TaskInfo | None) -> str:
    return "" if task is None else f" of task {task.task_id} of service {task.service_name}"
