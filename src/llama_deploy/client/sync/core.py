"""The control plane's services and sessions, as 0.6 programs use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from llama_deploy.client import service_operations as services
from llama_deploy.client import session_operations as sessions
from llama_deploy.client import task_operations as tasks
from llama_deploy.client.event_streams import EventStream
from llama_deploy.client.operation import Deadline
from llama_deploy.client.payload_encoding import encode_arguments, encode_event
from llama_deploy.client.service_operations import Service
from llama_deploy.client.sync.driver import Driver
from llama_deploy.types import (
    EventDefinition,
    ServiceDefinition,
    SessionPolicy,
    SessionState,
    TaskDefinition,
    TaskResult,
)


class Core:
    """What the control plane offers: `services` and `sessions`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        """Carries out the operations."""
        self.services = ServiceCollection(driver)
        self.sessions = SessionCollection(driver)


class ServiceCollection:
    """The registered services."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.items: dict[str, Service] = {}
        """The services by name as `list` returned them last; empty before that."""

    def list(self) -> list[Service]:
        """Return the registered services, ordered by name."""
        self.items = self._driver.run(services.list_all())
        return [self.items[name] for name in sorted(self.items)]

    def register(self, service_def: ServiceDefinition) -> Service:
        """Make a service known, or replace its definition.

        Raises:
            InvalidRequestError: The definition is not accepted.
        """
        return self._driver.run(services.register(service_def))

    def deregister(self, name: str) -> None:
        """Remove a service with all its instances.

        Raises:
            ServiceNotFoundError: Nobody has registered it.
        """
        self._driver.run(services.deregister(name))


class SessionCollection:
    """The sessions."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def list(self) -> list[SyncSession]:
        """Return the sessions, ordered by id."""
        found = self._driver.run(sessions.list_all())
        return [SyncSession(self._driver, definition.session_id) for definition in found]

    def create(self, *, policy: SessionPolicy | str = SessionPolicy.ENQUEUE) -> SyncSession:
        """Create a session.

        Args:
            policy: What happens to a task that arrives while an earlier one is open: `enqueue`, `parallel`,
                `reject` or `interrupt`.

        Raises:
            InvalidRequestError: There is no such policy.
        """
        return self._create(None, policy)

    def _create(self, session_id: str | None, policy: SessionPolicy | str) -> SyncSession:
        operation = sessions.create(session_id=session_id, policy=policy)
        return SyncSession(self._driver, self._driver.run(operation))

    def get(self, id: str) -> SyncSession:  # noqa: A002 - 0.6 API
        """Return a session that exists.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        definition = self._driver.run(sessions.read(id))
        return SyncSession(self._driver, definition.session_id)

    def get_or_create(
        self,
        id: str,  # noqa: A002 - 0.6 API
        *,
        policy: SessionPolicy | str = SessionPolicy.ENQUEUE,
    ) -> SyncSession:
        """Return the session of this id, after creating it if there is none.

        Args:
            id: The id.
            policy: For a session that is created, as in `create`. An existing one keeps its own.

        Raises:
            InvalidRequestError: No session can have this id or policy.
        """
        return self._create(id, policy)

    def delete(self, id: str) -> None:  # noqa: A002 - 0.6 API
        """Delete a session with its tasks.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        self._driver.run(sessions.delete(id))


class SyncSession:
    """A conversation: tasks that follow one another and share a state."""

    def __init__(self, driver: Driver, session_id: str) -> None:
        self._driver = driver
        self.id = session_id
        """The session's id."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def _deadline(self) -> Deadline:
        return Deadline(self._driver.settings.timeout)

    def run(self, service_name: str, **run_kwargs: Any) -> str:
        """Run a task to its end and return its result as text.

        Args:
            service_name: The service to run it.
            **run_kwargs: The run arguments of the workflow.

        Raises:
            TaskFailedError, TaskCancelledError: It ended otherwise than by success.
            TaskTimeoutError: It has not ended within the client's `timeout`; it goes on.
            ServiceNotFoundError: Nobody has registered the service.
            SessionNotFoundError: The session was deleted.
            UnavailableError: No answer for the client's `timeout`.
        """
        submission = tasks.describe(service_name, encode_arguments(None, run_kwargs), session_id=self.id)
        result = self._driver.run(tasks.run(submission, self._deadline()))
        return result.result

    def run_nowait(self, service_name: str, **run_kwargs: Any) -> str:
        """Have a task accepted and return its id. Arguments and errors as in `run`, before the task runs."""
        submission = tasks.describe(service_name, encode_arguments(None, run_kwargs), session_id=self.id)
        view = self._driver.run(tasks.submit(submission, self._deadline()))
        return view.task_id

    def create_task(self, task_def: TaskDefinition) -> str:
        """Have a task accepted and return its id. The same definition twice makes one task.

        Raises:
            ServiceNotFoundError: Nobody has registered the service that `agent_id` names.
            SessionNotFoundError: The session was deleted.
            SessionBusyError: The session takes one task at a time.
            ConflictError: There is another task of this id: of another service or session, or with other
                input.
            InvalidRequestError: The definition is not accepted.
            UnavailableError: No answer for the client's `timeout`; until then it is tried again.
        """
        return self._driver.run(tasks.create_in_session(self.id, task_def, self._deadline()))

    def get_tasks(self) -> list[TaskDefinition]:
        """Return the session's tasks, in the order in which they were accepted."""
        return self._driver.run(tasks.list_in_session(self.id))

    def get_task_result(self, task_id: str) -> TaskResult | None:
        """Return how a task ended, None while it has not. A failure is returned, not raised.

        Raises:
            TaskNotFoundError: There is no such task in the session.
        """
        return self._driver.run(tasks.result_in_session(self.id, task_id))

    def get_task_result_stream(self, task_id: str) -> list[dict[str, Any]]:
        """Return the data of all events of the task, once it has ended; the terminal one is the last.

        Raises:
            TaskNotFoundError: There is no such task.
            UnavailableError: The control plane was away for the client's `timeout`.
        """
        stream = EventStream(task_id, patience=self._driver.settings.timeout)
        return [event.data for event in self._driver.read(stream)]

    def send_event(self, service_name: str, task_id: str, ev: BaseModel) -> None:
        """Send a workflow event to a task of the session. It is stored when this returns.

        It is sent again while the control plane does not answer, and counts once.

        Raises:
            TaskNotFoundError: There is no such task in the session.
            TaskFinishedError: The task has ended.
            InvalidRequestError: The task is of another service, or its workflow takes no such event.
            SerializationError: The event cannot be carried as JSON.
        """
        self.send_event_def(task_id, encode_event(ev, service_name=service_name))

    def send_event_def(self, task_id: str, ev_def: EventDefinition) -> None:
        """Like `send_event`, with an event that is encoded already.

        One without an idempotency key is not sent again.
        """
        self._driver.run(tasks.send_in_session(self.id, task_id, ev_def, self._deadline()))

    def get_state(self) -> SessionState:
        """Return the session's state and its version.

        Raises:
            SessionNotFoundError: The session was deleted.
        """
        return self._driver.run(sessions.get_state(self.id))

    def update_state(self, changes: Mapping[str, Any]) -> SessionState:
        """Merge the keys of `changes` into the state, whatever its version, and return it with its new one.

        Raises:
            SessionNotFoundError: The session was deleted.
            SerializationError: A value cannot be carried as JSON.
        """
        return self._driver.run(sessions.update_state(self.id, changes))

    def set_state(self, state: Mapping[str, Any], *, version: int) -> SessionState:
        """Replace the state if it still has the version that was read, and return it with its new one.

        Raises:
            StateConflictError: Somebody else wrote first; read and try again.
            SessionNotFoundError: The session was deleted.
            SerializationError: A value cannot be carried as JSON.
        """
        return self._driver.run(sessions.set_state(self.id, state, version=version))
