"""The client for asyncio."""

# ruff: noqa: ASYNC109 - a timeout of ours tells TaskTimeoutError; `asyncio.timeout` works too
from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from pydantic import PrivateAttr

from llama_deploy.client import task_operations as tasks
from llama_deploy.client.aio.apiserver import ApiServer
from llama_deploy.client.aio.core import Core, Session
from llama_deploy.client.aio.driver import Driver
from llama_deploy.client.aio.task import TaskHandle
from llama_deploy.client.operation import Deadline
from llama_deploy.client.payload_encoding import encode_arguments
from llama_deploy.client.settings import ClientSettings
from llama_deploy.client.sync.client import SyncClient
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection

T = TypeVar("T")


class Client(ClientSettings):
    """The client of a llama_deploy system, for asyncio; `sync` is the same without `await`.

    It may be created anywhere, even outside of an event loop, and be used in several loops, one after the
    other; it connects when it is first used. `close` it, or use it with `async with`, to give its connections
    back early.

    The settings are keyword arguments, or come from the environment: see `ClientSettings`.
    """

    _control_plane: Driver = PrivateAttr()
    _api_server: Driver = PrivateAttr()
    _core: Core = PrivateAttr()
    _apiserver: ApiServer = PrivateAttr()
    _sync: SyncClient | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Set up what the settings lead to. Does no I/O."""
        super().model_post_init(context)
        self._control_plane = self._driver(self.control_plane_url)
        self._api_server = self._driver(self.api_server_url)
        self._core = Core(self._control_plane)
        self._apiserver = ApiServer(self._api_server)

    def _driver(self, url: str) -> Driver:
        settings = ConnectionSettings(urls=[url], verify_tls=not self.disable_ssl)
        return Driver(HttpConnection(settings), self)

    @property
    def core(self) -> Core:
        """The control plane's services and sessions, as 0.6 programs use them."""
        return self._core

    @property
    def apiserver(self) -> ApiServer:
        """The API server."""
        return self._apiserver

    @property
    def sync(self) -> SyncClient:
        """The same client without `await`, for scripts, threads and notebooks.

        It has connections of its own, and blocks the thread that calls it.
        """
        if self._sync is None:
            self._sync = SyncClient(**self.model_dump())
        return self._sync

    async def submit(
        self,
        service_name: str,
        /,
        *,
        session: Session | str | None = None,
        task_id: str | None = None,
        max_attempts: int | None = None,
        arguments: Mapping[str, Any] | None = None,
        **run_kwargs: Any,
    ) -> TaskHandle:
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
        view = await self._control_plane.run(tasks.submit(submission, Deadline(self.timeout)))
        return TaskHandle(self._control_plane, task_id=view.task_id, session_id=view.session_id, view=view)

    @overload
    async def run(
        self,
        service_name: str,
        /,
        *,
        session: Session | str | None = None,
        timeout: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        as_type: type[T],
        **run_kwargs: Any,
    ) -> T: ...

    @overload
    async def run(
        self,
        service_name: str,
        /,
        *,
        session: Session | str | None = None,
        timeout: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        as_type: None = None,
        **run_kwargs: Any,
    ) -> Any: ...

    async def run(
        self,
        service_name: str,
        /,
        *,
        session: Session | str | None = None,
        timeout: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        as_type: type[T] | None = None,
        **run_kwargs: Any,
    ) -> Any:
        """Run a task to its end and return its value: `submit` and `TaskHandle.result` in one request.

        Args:
            service_name: The service to run it.
            session: A session or its id. None: the task gets a session of its own.
            timeout: Seconds to wait; None is the client's `timeout`.
            arguments: Run arguments, for those that are called like a parameter of this method.
            as_type: What to return the value as; see `TaskHandle.result`.
            **run_kwargs: The other run arguments of the workflow.

        Raises:
            TaskFailedError, TaskCancelledError: It ended otherwise than by success.
            TaskTimeoutError: It has not ended in time; it goes on.
            LlamaDeployError: As `submit` and `TaskHandle.result`.
        """
        submission = tasks.describe(
            service_name, encode_arguments(arguments, run_kwargs), session_id=tasks.id_of(session)
        )
        deadline = Deadline(self.timeout if timeout is None else timeout)
        return tasks.value_of(await self._control_plane.run(tasks.run(submission, deadline)), as_type)

    def task(self, task_id: str) -> TaskHandle:
        """Return a handle for a task that was submitted before. Does no I/O."""
        return TaskHandle(self._control_plane, task_id=task_id)

    async def close(self) -> None:
        """Close all connections, those of `sync` too. Idempotent; a later call opens new ones."""
        await self._control_plane.close()
        await self._api_server.close()
        if self._sync is not None:
            self._sync.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
