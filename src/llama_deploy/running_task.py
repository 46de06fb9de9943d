"""The task for which code runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """The task for which a step runs, and its attempt. See `llama_deploy.workflow`."""

    task_id: str
    """As clients know it: unique in the tenant."""
    session_id: str
    service_name: str
    attempt: int
    """Number of the attempt, from 1."""
    tenant: str = ""
    """To which tenant the task belongs. Empty: to the default one."""
    subject: str | None = None
    """To which user of the tenant it belongs. None: to nobody in particular."""
    key: str = field(default="", repr=False)
    """Distinguishes it from the tasks of all tenants, between instances and control planes."""
    _tell: Callable[[str], None] | None = field(default=None, repr=False, compare=False)

    def set_status(self, text: str) -> None:
        """Show a text at the task, such as how far it is, until the next one. Returns at once; thread-safe.

        Texts that follow each other quickly may be left out, but not the last one. Of a long text, the first
        500 characters are shown.
        """
        if self._tell is not None:
            self._tell(text)


running_task: ContextVar[TaskInfo | None] = ContextVar("running_task", default=None)
"""The attempt for which the present context runs: a step, a tool, the processing of a message."""
