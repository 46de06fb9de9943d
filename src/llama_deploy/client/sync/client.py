"""The client without `await`."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from pydantic import PrivateAttr

from llama_deploy.client import task_operations as tasks
from llama_deploy.client.operation import Deadline
from llama_deploy.client.payload_encoding import encode_arguments
from llama_deploy.client.settings import ClientSettings
from llama_deploy.client.sync.apiserver import ApiServer
from llama_deploy.client.sync.core import Core, SyncSession
from llama_deploy.client.sync.driver import Driver
from llama_deploy.client.sync.task import SyncTaskHandle
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import SyncHttpConnection

T = TypeVar("T")


class SyncClient(ClientSettings):
    """`Client` without `await`: for scripts, and for threads, which may share one.

    Its calls block the thread that makes them. In a running event loop, as in a notebook, they work, but the
    loop stands still meanwhile. It connects when it is first used. `close` it, or use it with `with`, to give
    its connections back early.

    The settings are keyword arguments, or come from the environment: see `ClientSettings`.
    """

    _control_plane: Driver = PrivateAttr()
    _api_server: Driver = PrivateAttr()
    _core: Core = PrivateAttr()
    _apiserver: ApiServer = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Set up what the settings lead to. Does no I/O."""
        super().model_post_init(context)
        self._control_plane = self._driver(self.control_plane_url)
        self._api_server = self._driver(self.api_server_url)
        self._core = Core(self._control_plane)
        self._apiserver = ApiServer(self._api_server)

    def _driver(self, url: str) -> Driver:
        settings = ConnectionSettings(urls=[url], verify_tls=not self.disable_ssl)
        return Driver(SyncHttpConnection(settings), self)

    @property
    def core(self) -> Core:
        """The control plane's services and sessions, as 0.6 programs use them."""
        return self._core

    @property
    def apiserver(self) -> ApiServer:
        """The API server."""
        return self._apiserver

    def submit(
        self,
        service_name: str,
        /,
        *,
        session: SyncSession | str | None = None,
        task_id: str | None = None,
        max_attempts: int | None = None,
        arguments: Mapping[str, Any] | None = None,
        **run_kwargs: Any,
    ) -> SyncTaskHandle:
        """Have a task accepted. When this returns, the task is stored and will end, whatever crashes.

        Args:
            service_name: The service to run it.
            session: A session or its id. None: the task gets a session of its own.
            task_id: The task's id. Submitting the same again under the same id makes no second task and
                returns the first one; something else under it is refused. None: a random id.
            max_attempts: How many instances may die under the task before it fails; see `TaskSubmission` for
                which are forgiven. None: the control plane's default.
            arguments: Run arguments, for those that are called like a parameter of this method.
            **run_kwargs: The other run arguments of the workflow.

        Raises:
            ServiceNotFoundError: Nobody has registered the service.
            SessionNotFoundError: There is no such session.
            SessionBusyError: The session takes one task at a time.
            ConflictError: There is another task of this `task_id`: of another service or session, or with
                other arguments.
            InvalidRequestError: The arguments are not what the service takes.
            SerializationError: An argument cannot be carried as JSON.
            UnavailableError: No answer for the client's `timeout`; until then it is tried again.
        """
        submission = tasks.describe(
            service_name,
            encode_arguments(arguments, run_kwargs),
            session_id=tasks.id_of(session),
            task_id=task_id,
            max_attempts=max_attempts,
        )
        view = self._control_plane.run(tasks.submit(submission, Deadline(self.timeout)))
        return SyncTaskHandle(
            self._control_plane, task_id=view.task_id, session_id=view.session_id, view=view
        )

    @overload
    def run(
        self,
        service_name: str,
        /,
        *,
        session: SyncSession | str | None = None,
        timeout: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        as_type: type[T],
        **run_kwargs: Any,
    ) -> T: ...

    @overload
    def run(
        self,
        service_name: str,
        /,
        *,
        session: SyncSession | str | None = None,
        timeout: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        as_type: None = None,
        **run_kwargs: Any,
    ) -> Any: ...

    def run(
        self,
        service_name: str,
        /,
        *,
        session: SyncSession | str | None = None,
        timeout: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        as_type: type[T] | None = None,
        **run_kwargs: Any,
    ) -> Any:
        """Run a task to its end and return its value: `submit` and `SyncTaskHandle.result` in one request.

        Args:
            service_name: The service to run it.
            session: A session or its id. None: the task gets a session of its own.
            timeout: Seconds to wait; None is the client's `timeout`.
            arguments: Run arguments, for those that are called like a parameter of this method.
            as_type: What to return the value as; see `SyncTaskHandle.result`.
            **run_kwargs: The other run arguments of the workflow.

        Raises:
            TaskFailedError, TaskCancelledError: It ended otherwise than by success.
            TaskTimeoutError: It has not ended in time; it goes on.
            LlamaDeployError: As `submit` and `SyncTaskHandle.result`.
        """
        submission = tasks.describe(
            service_name, encode_arguments(arguments, run_kwargs), session_id=tasks.id_of(session)
        )
        deadline = Deadline(self.timeout if timeout is None else timeout)
        return tasks.value_of(self._control_plane.run(tasks.run(submission, deadline)), as_type)

    def task(self, task_id: str) -> SyncTaskHandle:
        """Return a handle for a task that was submitted before. Does no I/O."""
        return SyncTaskHandle(self._control_plane, task_id=task_id)

    def close(self) -> None:
        """Close all connections. Idempotent; a later call opens new ones."""
        self._control_plane.close()
        self._api_server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
