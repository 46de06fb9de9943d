"""The attempts that this instance works on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.types.instance_protocol import HeldAttempt, InboxEntry, TaskCancellation

A = TypeVar("A", bound=Attempt)


class HeldAttempts(Generic[A]):
    """Finds attempts by task and number, and passes on what arrives for them."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[str, int], A] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[A]:
        return iter(list(self._attempts.values()))

    def find(self, task_id: str | None, attempt: int) -> A:
        """Return an attempt that is under way.

        Raises:
            InvalidRequestError: There is no such attempt.
        """
        found = self._attempts.get((task_id or "", attempt))
        if found is None:
            raise InvalidRequestError(
                f"attempt {attempt} of task {task_id!r} was not claimed by this instance"
            )
        return found

    def of_task(self, task_id: str, number: int | None = None) -> A | None:
        """Return the attempt at a task that this instance owns; with a number, only this attempt."""
        for attempt in self._attempts.values():
            if attempt.key.task_id == task_id and not attempt.is_abandoned:
                return attempt if number in (None, attempt.key.attempt) else None
        return None

    def add(self, attempt: A) -> None:
        """Add an attempt, and abandon earlier attempts at the same task."""
        for earlier in self._attempts.values():
            if earlier.key.task_id == attempt.key.task_id:
                earlier.abandon()
        self._attempts[attempt.key.task_id, attempt.key.attempt] = attempt

    def remove(self, attempt: A) -> None:
        """Remove an attempt that is over."""
        self._attempts.pop((attempt.key.task_id, attempt.key.attempt), None)

    async def deliver(self, entries: Iterable[InboxEntry]) -> None:
        """Pass on inbox entries."""
        for entry in entries:
            for attempt in self:
                if attempt.key.task_id == entry.task_id:
                    await attempt.deliver(entry)

    def cancel(self, cancellation: TaskCancellation) -> None:
        """Cancel an attempt, if it is under way."""
        attempt = self._attempts.get((cancellation.task_id, cancellation.attempt))
        if attempt is not None:
            attempt.cancel()

    def abandon(self, held: HeldAttempt) -> None:
        """Abandon an attempt that belongs to another instance, if it is under way."""
        attempt = self._attempts.get((held.task_id, held.attempt))
        if attempt is not None:
            attempt.abandon()

    def park_idle(self) -> None:
        """Let runs leave memory that only wait: others need their slots."""
        for attempt in self._attempts.values():
            attempt.park()
