"""The control plane that serves the present context: the one that has sent the task for which code runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from llama_deploy.web.connection_settings import ConnectionSettings


class _Closable(Protocol):
    async def close(self) -> None:
        """Release what it holds."""


C = TypeVar("C", bound=_Closable)


@dataclass(slots=True, eq=False)
class ServingControlPlane:
    """The control plane of an instance, with what its steps have opened to reach it. `close` it."""

    settings: ConnectionSettings
    """How to reach it."""
    _opened: dict[Callable[..., Any], Any] = field(default_factory=dict, init=False)
    _resources: AsyncExitStack = field(default_factory=AsyncExitStack, init=False)

    def open(self, make: Callable[[ConnectionSettings], C]) -> C:
        """Return what `make` returns for this control plane, the same in each call."""
        if make not in self._opened:
            self._opened[make] = opened = make(self.settings)
            self._resources.push_async_callback(opened.close)
        found: C = self._opened[make]
        return found

    async def close(self) -> None:
        """Close what was opened. Idempotent."""
        self._opened.clear()
        await self._resources.aclose()


serving_control_plane: ContextVar[ServingControlPlane | None] = ContextVar(
    "serving_control_plane", default=None
)
"""The control plane of the attempt for which the present context runs. None: outside of an attempt."""
