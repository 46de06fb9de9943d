"""A task as the client without `await` holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, overload

from pydantic import BaseModel

from llama_deploy.client import task_operations as tasks
from llama_deploy.client.event_streams import EventStream
from llama_deploy.client.operation import Deadline
from llama_deploy.client.payload_encoding import encode_event
from llama_deploy.client.sync.driver import Driver
from llama_deploy.types import TaskEvent, TaskStatus, TaskView

T = TypeVar("T")


class SyncTaskHandle:
    """A task that the control plane has accepted. Got from `SyncClient.submit` and `SyncClient.task`."""

    def __init__(
        self, driver: Driver, *, task_id: str, session_id: str | None = None, view: TaskView | None = None
    ) -> None:
        self._driver = driver
        self._view = view
        self.task_id = task_id
        """The task's id."""
        self.session_id = session_id
        """The id of its session. None: got by `SyncClient.task`, see `info`."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id}>"

    @overload
    def result(self, *, timeout: float | None = None) -> Any: ...

    @overload
    def result(self, *, timeout: float | None = None, as_type: type[T]) -> T: ...

    def result(self, *, timeout: float | None = None, as_type: type[T] | None = None) -> Any:
        """Wait for the task's end and return its value.

        Args:
            timeout: Seconds to wait; 0 asks once, `math.inf` waits for ever, None is the client's `timeout`.
            as_type: A pydantic model, an event class or any type that pydantic validates, to return the value
                as. None: decoded JSON.

        Raises:
            TaskFailedError, TaskCancelledError: It ended otherwise than by success.
            TaskTimeoutError: It has not ended in time; it goes on.
            TaskNotFoundError: There is no such task.
            SerializationError: The value is not of `as_type`.
        """
        deadline = Deadline(self._driver.settings.timeout if timeout is None else timeout)
        self._view = self._driver.run(tasks.wait_for_end(self.task_id, deadline, self._ended()))
        return tasks.value_of(tasks.success(self._view), as_type)

    def _ended(self) -> TaskView | None:
        """Return what is known of the task if that can change no more."""
        return self._view if self._view is not None and self._view.result is not None else None

    def info(self) -> TaskView:
        """Return the task as it stands.

        Raises:
            TaskNotFoundError: There is no such task.
        """
        self._view = self._driver.run(tasks.read(self.task_id))
        self.session_id = self._view.session_id
        return self._view

    def status(self) -> TaskStatus:
        """Return where the task stands.

        Raises:
            TaskNotFoundError: There is no such task.
        """
        return (self.info()).status

    def events(self, *, after: int = -1) -> Iterator[TaskEvent]:
        """Yield the task's events from its start, as they come, to the terminal one.

        A connection that breaks is made again where it broke; each event comes once and in order.

        Args:
            after: Begin behind the event of this index.

        Raises:
            TaskNotFoundError: There is no such task.
            UnavailableError: The control plane was away for the client's `timeout`.
        """
        stream = EventStream(self.task_id, after=after, patience=self._driver.settings.timeout)
        return self._driver.read(stream)

    def send(self, event: BaseModel, *, idempotency_key: str | None = None) -> None:
        """Send a workflow event to the task. It is stored when this returns.

        It is sent again while the control plane does not answer, and counts once.

        Args:
            event: The event.
            idempotency_key: Names the event within the task: under the same key, however many callers send
                it, the task gets it once. None: this call's own.

        Raises:
            TaskNotFoundError: There is no such task.
            TaskFinishedError: The task has ended.
            InvalidRequestError: The workflow does not take such an event, or it cannot have that key.
            SerializationError: The event cannot be carried as JSON.
            UnavailableError: No answer for the client's `timeout`; whether the event was stored is not known.
        """
        definition = encode_event(event, idempotency_key=idempotency_key)
        deadline = Deadline(self._driver.settings.timeout)
        self._driver.run(tasks.send(self.task_id, definition, deadline))

    def cancel(self) -> TaskView:
        """Ask for the task's end and return the task as it then stands. Idempotent.

        Raises:
            TaskNotFoundError: There is no such task.
        """
        self._view = self._driver.run(tasks.cancel(self.task_id))
        return self._view
