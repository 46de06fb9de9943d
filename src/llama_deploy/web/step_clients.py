"""For whom the requests of a client act, if steps make them with the key of the instance that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from llama_deploy.errors import ConfigError
from llama_deploy.running_task import TaskInfo, running_task
from llama_deploy.types.owners import Owner, headers_for
from llama_deploy.web.serving_control_plane import ServingControlPlane, serving_control_plane

if TYPE_CHECKING:
    from llama_deploy.web.connection_settings import ConnectionSettings

T = TypeVar("T")

_NO_TASK: Final = (
    "no task is known here, and this client acts for the task whose step uses it. A new thread does not have"
    " the context of the step: start it with `asyncio.to_thread(...)` or"
    " `contextvars.copy_context().run(...)`, or create a `Client()` in the step and pass it to the thread"
)
_OTHER_OWNER: Final = (
    "this client was created in a step of a task of another owner, for which it acts; create a client in each"
    " step, or give the step a parameter of the type `ServiceClient`"
)


@dataclass(frozen=True, slots=True)
class ClientOrigin:
    """Where a client was created.

    A client with the key of the instance acts for the task whose step makes the request. Where no task is
    known, as in a new thread, it acts for the task in whose step it was created. Without one it fails: the
    key alone would act in the default tenant.
    """

    serving: ServingControlPlane | None
    """The control plane of the instance. None: not in an attempt."""
    task: TaskInfo | None
    """None: for no task in particular, so all steps of the instance may share it."""

    @classmethod
    def here(cls) -> ClientOrigin:
        """Return the present origin."""
        return cls(serving_control_plane.get(), running_task.get())

    def create(self, make: Callable[[], T]) -> T:
        """Return what `make` creates, as if it were called there."""
        context = Context()
        context.run(serving_control_plane.set, self.serving)
        context.run(running_task.set, self.task)
        return context.run(make)

    def connected(self, settings: ConnectionSettings) -> ConnectionSettings:
        """Return the settings of a connection of the client, with the headers that say for whom it acts."""
        is_own = self.serving is not None and settings.has_key_of(self.serving.settings)
        if self.serving is not None:
            settings = settings.trusting_like(self.serving.settings)

        def owner_headers() -> Mapping[str, str]:
            task = running_task.get()
            if is_own:
                return headers_for(self._owner(task))
            if task is None or (serving := serving_control_plane.get()) is None:
                return {}
            return headers_for(_owner_of(task)) if settings.has_key_of(serving.settings) else {}

        return replace(settings, owner_headers=owner_headers)

    def parent(self) -> TaskInfo | None:
        """Return the task that is the parent of those that the client submits."""
        return running_task.get() or self.task

    def _owner(self, task: TaskInfo | None) -> Owner:
        if task is None:
            if self.task is None:
                raise ConfigError(_NO_TASK)
            return _owner_of(self.task)
        owner = _owner_of(task)
        if self.task is not None and owner != _owner_of(self.task):
            raise ConfigError(_OTHER_OWNER)
        return owner


def _owner_of(task: TaskInfo) -> Owner:
    return Owner(task.tenant, task.subject)
