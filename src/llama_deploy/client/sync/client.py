# Generated from client/aio/client.py by `make sync-client`; do not edit.
"""The client of a llama_deploy system."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from typing_extensions import TypeVar

from llama_deploy.client.feed_stream import FeedStream
from llama_deploy.client.installed_hooks import submit_hooks
from llama_deploy.client.payload_encoding import build_submission, encode_arguments
from llama_deploy.client.server_outage import ServerOutage
from llama_deploy.client.settings import NOT_GIVEN, ClientSettings
from llama_deploy.client.sync import task_calls
from llama_deploy.client.sync.apiserver import ApiServer
from llama_deploy.client.sync.core import Core, SyncSession
from llama_deploy.client.sync.inbox import SyncInbox
from llama_deploy.client.sync.server_api import ServerApi
from llama_deploy.client.sync.task import SyncTaskHandle
from llama_deploy.client.sync.task_collection import TaskCollection
from llama_deploy.client.task_results import value_of
from llama_deploy.interceptors import ClientInterceptor
from llama_deploy.types import SessionPolicy, TaskStatus
from llama_deploy.types.feeds import FeedItem
from llama_deploy.web.step_clients import ClientOrigin
from llama_deploy.web.sync_http_connection import SyncHttpConnection

T = TypeVar("T", default=Any)


class SyncClient:
    """Submits tasks to a llama_deploy system and reads their results and events.

    Example:
        ```python
        with SyncClient("http://localhost:8000") as client:
            total = client.run("adder", a=3, b=4)

            task = client.submit("report", topic="tides")
            for event in task.events():
                print(event.type, event.data)
            print(task.result())
        ```

    Creating a client does no I/O; it connects on the first call. Close it, or use it with `with`.

    Args:
        control_plane_url: The URL of the control plane, or the URLs of its replicas: if one does not
            respond, the client uses the next. The user and the password in `https://user:password@host` are
            sent as HTTP Basic Authorization, and never shown. None: in a step that a service runs, the
            control plane of the service; elsewhere `LLAMA_DEPLOY_CONTROL_PLANE_URL` from the environment, or
            `http://localhost:8000`.
        api_key: Sent to the servers as `Authorization: Bearer ...`. None: `LLAMA_DEPLOY_API_KEY`, or the key
            in `api_key_file`, or no key.
        api_key_file: A file with the key, which is read once. None: `LLAMA_DEPLOY_API_KEY_FILE`, or no file.
        headers: More headers for every request. They may hold secrets: they are never logged or printed.
            None: `LLAMA_DEPLOY_HEADERS`, a JSON object, or none.
        ca: A PEM file with the certificate authorities to trust. None: `LLAMA_DEPLOY_CA`, or those of the
            system.
        client_certificate: PEM files with the client's certificate and its unencrypted key. None:
            `LLAMA_DEPLOY_CLIENT_CERT` and `LLAMA_DEPLOY_CLIENT_KEY`, or no certificate.
        timeout: Seconds to wait for a result, and to retry while a server does not respond. None: without
            limit. If you do not pass it: `LLAMA_DEPLOY_TIMEOUT`, or 120.
        disable_ssl: Accept any certificate from an `https` server. None: `LLAMA_DEPLOY_DISABLE_SSL`, or
            False.
        api_server_url: The URL of the API server, for `apiserver`. None: `LLAMA_DEPLOY_API_SERVER_URL`, or
            `http://localhost:4501`.
        poll_interval: Deprecated and ignored: the client does not poll.
        interceptors: Hooks around the calls that submit tasks, in addition to those of installed packages;
            see `llama_deploy.interceptors`.

    Raises:
        pydantic.ValidationError: A setting has the wrong type or is out of range.
        ConfigError: A URL or a header is malformed, or two settings contradict each other.

    Attributes:
        core: The control plane's `services` and `sessions`.
        inbox: The open questions of all services.
        tasks: Lists, counts and shows tasks.
        apiserver: The API server's `status` and `deployments`.
        settings: The settings in use.
        poll_interval: Deprecated and ignored.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, and 0.6 has five of them
        self,
        control_plane_url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        api_key_file: Path | str | None = None,
        headers: Mapping[str, str] | None = None,
        ca: Path | str | None = None,
        client_certificate: tuple[Path | str, Path | str] | None = None,
        timeout: float | None = NOT_GIVEN,
        disable_ssl: bool | None = None,
        api_server_url: str | None = None,
        poll_interval: float | None = None,
        interceptors: Sequence[ClientInterceptor] = (),
    ) -> None:
        origin = ClientOrigin.here()
        if control_plane_url is None and origin.serving is not None:
            at = origin.serving.settings
            if api_key is not None or api_key_file is not None:
                at = at.without_key()
            control_plane_url, headers = at.urls, {**at.headers, **(headers or {})}
            ca, client_certificate = ca or at.ca, client_certificate or at.client_certificate
            disable_ssl = not at.verify_tls if disable_ssl is None else disable_ssl
        given: dict[str, Any] = {
            "control_plane_url": control_plane_url,
            "api_key": api_key,
            "api_key_file": api_key_file,
            "headers": headers,
            "ca": ca,
            "disable_ssl": disable_ssl,
            "api_server_url": api_server_url,
            "poll_interval": poll_interval,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        if timeout != NOT_GIVEN:
            chosen["timeout"] = timeout
        self.settings = ClientSettings(**chosen)
        options: dict[str, Any] = {"client_certificate": client_certificate}
        control_plane = self.settings.connect_to(self.settings.control_plane_url, **options)
        self._control_plane = ServerApi(
            SyncHttpConnection(origin.connected(control_plane)),
            self.settings,
            ServerOutage(f"the control plane {' or '.join(control_plane.urls)}"),
            on_submit=submit_hooks(interceptors),
            parent=origin.parent,
        )
        api_server = self.settings.connect_to(self.settings.api_server_url, **options)
        self._api_server = ServerApi(
            SyncHttpConnection(api_server),
            self.settings,
            ServerOutage(f"the API server {' or '.join(api_server.urls)}"),
        )
        self.core = Core(self._control_plane)
        self.inbox = SyncInbox(self._control_plane)
        self.tasks = TaskCollection(self._control_plane)
        self.apiserver = ApiServer(self._api_server)
        self.poll_interval = self.settings.poll_interval

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.control_plane_url}>"

    @property
    def control_plane_url(self) -> str:
        """The URL of the control plane; the first one if there are several."""
        urls = self.settings.control_plane_url
        return urls if isinstance(urls, str) else urls[0]

    @property
    def api_server_url(self) -> str:
        """The URL of the API server."""
        return self.settings.api_server_url

    @property
    def disable_ssl(self) -> bool:
        """Whether any certificate from an `https` server is accepted."""
        return self.settings.disable_ssl

    @property
    def timeout(self) -> float:
        """Seconds to wait for a result, and to retry while a server does not respond; `math.inf` is no limit.

        You may change it.
        """
        return self.settings.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self.settings.timeout = math.inf if seconds is None else seconds

    def submit(
        self,
        service_name: str,
        /,
        *,
        session: SyncSession | str | None = None,
        task_id: str | None = None,
        max_attempts: int | None = None,
        session_policy: SessionPolicy | str | None = None,
        tags: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
        **run_kwargs: Any,
    ) -> SyncTaskHandle:
        """Submit a task. When this returns, the task is stored and survives crashes.

        Example:
            ```python
            task = client.submit("report", topic="tides", task_id="report-tides")
            print(task.result())
            ```

        Args:
            service_name: The service that runs the task.
            session: A session or its id. None: the task gets its own session.
            task_id: The task's id. If you submit the same task again under the same id, you get the first
                one. None: a random id.
            max_attempts: The task fails when it has ended this many processes; see `TaskSubmission` for what
                counts. None: the control plane's default.
            session_policy: Without a `session`, the policy of the new one; None is that of the service. In a
                session, `reject` or `interrupt` for this task alone; None is the session's own policy.
            tags: Words by which the task is found, such as `customer:17`; see `tasks`.
            arguments: Run arguments whose names are parameters of this method.
            **run_kwargs: All other run arguments of the workflow.

        Raises:
            ServiceNotFoundError: The service is not registered.
            SessionNotFoundError: The session does not exist.
            SessionBusyError: The policy is `reject` and another task of the session is open.
            ConflictError: Another task has this `task_id`, with another service, session or arguments.
            InvalidRequestError: The submission is malformed. The worker checks the arguments; wrong ones fail
                the task.
            SerializationError: An argument cannot be converted to JSON, or holds an object with connections,
                code or secrets, such as an LLM. Nothing was sent.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        submission = build_submission(
            service_name,
            encode_arguments(arguments, run_kwargs),
            session_id=_id_of(session),
            task_id=task_id,
            max_attempts=max_attempts,
            session_policy=session_policy,
            tags=tags,
            parent=self._control_plane.parent(),
        )
        api = self._control_plane
        view = task_calls.submit(api, submission, api.deadline())
        return SyncTaskHandle(api, task_id=view.task_id, session_id=view.session_id, view=view)

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
    ) -> T:
        """Run a task and return its value: `submit` and `SyncTaskHandle.result` in one request.

        Example:
            ```python
            total = client.run("adder", a=3, b=4, as_type=int)
            ```

        Args:
            service_name: The service that runs the task.
            session: A session or its id. None: the task gets its own session.
            timeout: Seconds to wait; None is the client's `timeout`.
            arguments: Run arguments whose names are parameters of this method.
            as_type: The type of the value; see `SyncTaskHandle.result`.
            **run_kwargs: All other run arguments of the workflow.

        Raises:
            TaskFailedError: The task failed or exceeded its time limit.
            TaskCancelledError: The task was cancelled.
            TaskTimeoutError: The task did not end in time. It is still running.
            LlamaDeployError: As in `submit` and `SyncTaskHandle.result`.
        """
        submission = build_submission(
            service_name,
            encode_arguments(arguments, run_kwargs),
            session_id=_id_of(session),
            parent=self._control_plane.parent(),
        )
        api = self._control_plane
        return value_of(task_calls.run(api, submission, api.deadline(timeout)), as_type)

    def task(self, task_id: str) -> SyncTaskHandle:
        """Return a handle for a task that was submitted before. Does no I/O."""
        return SyncTaskHandle(self._control_plane, task_id=task_id)

    def events(
        self,
        *,
        service: str | Sequence[str] = (),
        session: SyncSession | str | None = None,
        status: TaskStatus | Sequence[TaskStatus] = (),
        after: str | None = None,
        stream: bool = False,
    ) -> Generator[FeedItem]:
        """Yield changes of tasks from now on, as they occur, until you stop reading.

        The latest status of each task that changes is told. What it was in between may be left out if you
        read slowly. If the connection breaks, the feed resumes where it stopped, at any of the control
        planes; deletions in between are not told.

        Example:
            ```python
            for item in client.events(service="report"):
                if item.task is not None:
                    print(item.task.task_id, item.task.status)
            ```

        Args:
            service: Only tasks of this service, or of these.
            session: Only tasks of this session.
            status: Only changes to this status, or to these.
            after: The `cursor` of an item of an earlier feed with the same arguments: what has changed since
                then is told first. It may be 10 minutes old. None: from now on.
            stream: Also yield the events of these tasks, whatever their status: those that follow, and all
                events of tasks that begin. After a cursor, all events of open tasks.

        Yields:
            Items with a `task`, a `deleted` task, an `event` of a task, or a `cursor`.

        Raises:
            CursorExpiredError: The cursor is too old.
            InvalidRequestError: The cursor belongs to a feed with other arguments, or too many tasks are open
                to stream their events.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        feed = FeedStream(
            services=[service] if isinstance(service, str) else service,
            session_id=_id_of(session),
            statuses=[status] if isinstance(status, str) else status,
            after=after,
            stream=stream,
            timeout=self.settings.timeout,
        )
        return self._control_plane.read(feed)

    def close(self) -> None:
        """Close all connections. Idempotent; a later call opens new ones."""
        self._control_plane.close()
        self._api_server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _id_of(session: SyncSession | str | None) -> str | None:
    return session.id if isinstance(session, SyncSession) else session
