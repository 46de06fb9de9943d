"""A task as a client holds it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, overload

from pydantic import BaseModel
from typing_extensions import TypeVar

from llama_deploy.client.aio.server_api import ServerApi
from llama_deploy.client.aio.task_calls import send_event, wait_for_end
from llama_deploy.client.aio.task_changes import retry
from llama_deploy.client.event_classes import EventClasses, EventTypes, ObjectsOfEvents, names_of
from llama_deploy.client.event_streams import AttemptStream, EventStream, LineStream
from llama_deploy.client.paths import task_path
from llama_deploy.client.payload_encoding import encode_event
from llama_deploy.client.task_results import result_of, value_of
from llama_deploy.types import NewAttempt, TaskEvent, TaskStatus, TaskView
from llama_deploy.types.questions import Question, QuestionPage

T = TypeVar("T", default=Any)


class TaskHandle:
    """A task that the control plane has accepted. You get one from `Client.submit` or `Client.task`.

    Example:
        ```python
        task = await client.submit("report", topic="tides")
        async for event in task.events():
            print(event.type, event.data)
        print(await task.result())
        ```
    """

    def __init__(
        self, api: ServerApi, *, task_id: str, session_id: str | None = None, view: TaskView | None = None
    ) -> None:
        self._api = api
        self._view = view
        self.task_id = task_id
        """The task's id."""
        self.session_id = session_id
        """The id of its session. None after `Client.task`, until you call `info`."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id}>"

    async def result(self, *, timeout: float | None = None, as_type: type[T] | None = None) -> T:
        """Wait until the task ends and return its value.

        Args:
            timeout: Seconds to wait; 0 asks once, `math.inf` waits forever, None is the client's `timeout`.
            as_type: The type of the value: a pydantic model, an event class or any other type that pydantic
                validates. None: decoded JSON.

        Raises:
            TaskFailedError: The task failed or exceeded its time limit.
            TaskCancelledError: The task was cancelled.
            TaskTimeoutError: The task did not end in time. It is still running.
            TaskNotFoundError: The task does not exist.
            SerializationError: The value does not match `as_type`.
        """
        # A task that has ended does not change, so it is not requested again.
        known = self._view if self._view is not None and self._view.result is not None else None
        self._view = await wait_for_end(self._api, self.task_id, self._api.deadline(timeout), known)
        return value_of(result_of(self._view), as_type)

    async def info(self) -> TaskView:
        """Return the current state of the task.

        Raises:
            TaskNotFoundError: The task does not exist.
        """
        self._view = await self._api.get(task_path(self.task_id), TaskView.model_validate)
        self.session_id = self._view.session_id
        return self._view

    async def status(self) -> TaskStatus:
        """Return the current status of the task.

        Raises:
            TaskNotFoundError: The task does not exist.
        """
        view = await self.info()
        return view.status

    @overload
    def events(
        self,
        *,
        after: int = -1,
        attempts: Literal[False] = False,
        types: EventTypes | None = None,
        internal: bool = False,
        as_classes: Literal[False] = False,
    ) -> AsyncGenerator[TaskEvent]: ...
    @overload
    def events(
        self,
        *,
        after: int = -1,
        attempts: Literal[True],
        types: EventTypes | None = None,
        internal: bool = False,
        as_classes: Literal[False] = False,
    ) -> AsyncGenerator[TaskEvent | NewAttempt]: ...
    @overload
    def events(
        self,
        *,
        after: int = -1,
        attempts: bool = False,
        types: EventTypes | None = None,
        internal: bool = False,
        as_classes: Literal[True],
    ) -> AsyncGenerator[Any]: ...
    def events(
        self,
        *,
        after: int = -1,
        attempts: bool = False,
        types: EventTypes | None = None,
        internal: bool = False,
        as_classes: bool = False,
    ) -> AsyncGenerator[Any]:
        """Yield the task's events from the first to the terminal one, as they arrive.

        If the connection breaks, the stream resumes where it stopped, at any of the control planes: each
        event comes once and in order.

        If an instance dies, the steps that it was running run again and stream again. With `attempts`, a
        `NewAttempt` then says which of the events so far may come again, so that a page can discard them.

        Example:
            ```python
            async for event in task.events(types=[ProgressEvent], as_classes=True):
                if isinstance(event, ProgressEvent):
                    print(event.percent)
            ```

        Args:
            after: Start after the event with this index.
            attempts: Also yield a `NewAttempt` wherever a new attempt takes over.
            types: Yield only events of these classes, and the terminal one. Classes or their names; None:
                all.
            internal: Also yield internal events of the workflow library, such as `StepStateChanged`. There
                are none unless the service has the setting `stream_internal_events`.
            as_classes: Yield objects of the classes of the events. An event whose class is neither in `types`
                nor imported in this process comes as a `TaskEvent`.

        Raises:
            TaskNotFoundError: The task does not exist.
            InvalidRequestError: A name in `types` is no name of a class.
            SerializationError: An event does not match its class in `types`.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        events = EventStream(
            self.task_id,
            after=after,
            timeout=self._api.settings.timeout,
            types=names_of(types),
            internal=internal,
        )
        stream: LineStream[Any] = AttemptStream(events) if attempts else events
        return self._api.read(ObjectsOfEvents(stream, EventClasses(types)) if as_classes else stream)

    async def send(self, event: BaseModel, *, idempotency_key: str | None = None) -> None:
        """Send a workflow event to the task. The event is stored when this returns.

        The call retries while the control plane does not respond; the event still counts once.

        Args:
            event: The event.
            idempotency_key: Identifies the event within the task: the task gets one event per key, even if
                several callers send it. None: a new key for this call.

        Raises:
            TaskNotFoundError: The task does not exist.
            TaskFinishedError: The task has ended.
            InvalidRequestError: The workflow does not accept this event, or the key is empty or too long.
            SerializationError: The event cannot be converted to JSON.
            UnavailableError: The control plane did not respond for the client's `timeout`. The event may or
                may not be stored.
        """
        definition = encode_event(event, idempotency_key=idempotency_key)
        await send_event(self._api, task_path(self.task_id) + "/events", definition, self._api.deadline())

    async def questions(self) -> list[Question]:
        """Return the open questions of the task, the oldest first. Answer them with `Client.inbox`.

        Raises:
            TaskNotFoundError: The task does not exist.
        """
        page = await self._api.get(task_path(self.task_id) + "/questions", QuestionPage.model_validate)
        return page.items

    async def cancel(self) -> TaskView:
        """Cancel the task and return its state. Idempotent; a task that has ended stays as it is.

        Raises:
            TaskNotFoundError: The task does not exist.
        """
        self._view = await self._api.post_again(task_path(self.task_id) + "/cancel", TaskView.model_validate)
        return self._view

    async def move(self, to: str, *, origin: Literal["journal", "start"] = "journal") -> TaskView:
        """Move a queued or waiting task to a version of its service, and return its state. Idempotent.

        Args:
            to: The version of a living instance, or the characters with which it begins, at least 4.
            origin: `journal`: the run continues with this version, if it fits. `start`: the run begins again,
                and is offered all events that were sent to the task.

        Raises:
            TaskNotFoundError: The task does not exist.
            VersionNotFoundError: No living instance has this version.
            TaskFinishedError: The task has ended.
            ConflictError: The task is running or waits for its turn, or its run does not fit: the text names
                the step, the class or the field.
            InvalidRequestError: Several living versions begin with `to`, or it is too short.
        """
        body = {"to": to, "from": origin}
        path = task_path(self.task_id) + "/move"
        self._view = await self._api.post_again(path, TaskView.model_validate, json=body)
        return self._view

    async def retry(
        self,
        *,
        from_: str = "last_step",
        arguments: Mapping[str, Any] | None = None,
        task_id: str | None = None,
    ) -> TaskHandle:
        """Try the task again after it has ended, as a new task in the same session. Return the new one.

        Args:
            from_: `last_step`: steps that have finished do not run again. `start`: all steps run again. The
                `step_id` of a step that has ended: it and what followed run again.
            arguments: Other run arguments, only from `start`. None: the same ones.
            task_id: The id of the new task. The same retry again returns the same task. None: a random id.

        Raises:
            TaskNotFoundError: The task does not exist.
            StepNotFoundError: The task has no step with this id that has ended.
            RetryRefusedError: The task has not ended, or cannot be retried in this way: the text says why.
            InvalidRequestError: `from_` is malformed, there are arguments for a retry that is not from the
                start, or the service does not accept them.
            ServiceNotFoundError: The service is not registered any more.
            SessionBusyError: The session's policy is `reject` and another task is open.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        view = await retry(self._api, self.task_id, from_=from_, arguments=arguments, task_id=task_id)
        return TaskHandle(self._api, task_id=view.task_id, session_id=view.session_id, view=view)
