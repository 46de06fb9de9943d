"""An attempt that this instance has claimed, whatever runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from llama_deploy.running_task import TaskInfo
from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.types.instance_protocol import ClaimReply, InboxEntry, TaskDispatch
from llama_deploy.types.keys import public_id, tenant_of


@dataclass(slots=True, eq=False)
class Attempt(ABC):
    """An attempt that this instance has claimed. `close` it when it is over."""

    key: AttemptKey
    task: TaskInfo
    """What its code can learn about it."""
    reports: AttemptReports
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Those of the message that has offered it."""
    is_cancelled: bool = field(default=False, init=False)
    """Whether the attempt was asked to end."""
    is_abandoned: bool = field(default=False, init=False)
    """Whether the attempt belongs to another instance, so that nothing is reported."""

    is_handed_back: bool = field(default=False, init=False)
    """Whether this instance has given it back, because it stops."""

    @property
    def is_parked(self) -> bool:
        """Whether its run has left memory, to be resumed when something wakes it."""
        return False

    @property
    def restart_reason(self) -> str | None:
        """Why the next attempt starts from the beginning. None: this one is stored, or has not begun."""
        return None

    def cancel(self) -> None:
        """Let it end as cancelled. Idempotent."""
        self.is_cancelled = True

    def abandon(self) -> None:
        """Let it end, and report nothing. Idempotent."""
        self.is_abandoned = self.is_cancelled = True

    def park(self) -> None:  # noqa: B027 - not every attempt needs it
        """Let its run leave memory if it only waits. Others need its slot."""

    @property
    @abstractmethod
    def is_answered(self) -> bool:
        """Whether it has an outcome already."""

    @abstractmethod
    async def deliver(self, entry: InboxEntry) -> None:
        """Take an event that was sent to the task, unless it was seen before."""

    @abstractmethod
    def answer(self, outcome: RunOutcome) -> bool:
        """Let it end with an outcome that the service has published. False: it has one already."""

    async def wait_answered(self) -> None:  # noqa: B027 - not every attempt needs it
        """Wait until the published outcome is on its way to the control plane."""

    async def write_snapshot(self) -> None:  # noqa: B027 - not every attempt needs it
        """Store what the next attempt needs to resume quickly. Takes a short time at most."""

    async def close(self) -> None:
        """Stop publishing its events. Idempotent."""
        await self.reports.close()


def task_info(dispatch: TaskDispatch, reply: ClaimReply, *, tell: Callable[[str], None]) -> TaskInfo:
    """Return what the code of an attempt can learn about it.

    Args:
        dispatch: What was offered.
        reply: What the claim has brought.
        tell: Takes what the run says of its progress.
    """
    return TaskInfo(
        public_id(dispatch.task_id),
        public_id(dispatch.session_id),
        dispatch.agent_id,
        dispatch.attempt,
        tenant=tenant_of(dispatch.task_id),
        subject=reply.subject,
        key=dispatch.task_id,
        _tell=tell,
    )


processing: ContextVar[Attempt | None] = ContextVar("processing", default=None)
"""The attempt for which a service processes a message in this context."""
