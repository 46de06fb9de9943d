"""Sending tasks on their routes: ask the orchestrator outside of any transaction, then store its answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.control_plane.decisions import hops
from llama_deploy.control_plane.requests.orchestration import Answer, Orchestration
from llama_deploy.control_plane.requests.sessions.session_requests import visible
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import ConfigError, LlamaDeployError, PayloadTooLargeError, ServiceNotFoundError
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.orchestrators.simple import is_plain
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import SessionRecord, TaskRecord
from llama_deploy.types import TaskFailure

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=2.0)
_PAGE: Final = 10_000
MAX_HOPS: Final = 1000
"""After how many attempts the route of a task ends, because its orchestrator seems to send it in circles."""
_INTERVAL_SECONDS: Final = 5.0
"""Between two looks for tasks that another control plane has left behind."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A task that waits for the orchestrator, and the state that it is asked with."""

    task: TaskRecord
    session: SessionRecord


class Router:
    """Asks the orchestrator about the tasks that wait for it, until cancelled.

    The tasks of a session are asked about one after the other. What has to be asked is stored, so a control
    plane that starts goes on where another has died. A stored answer is the only one: it is compared with the
    task and with the version of the session's state that the orchestrator has seen.

    Args:
        store: Where tasks are read.
        writer: How answers are stored.
        orchestrator: Its methods are called one task at a time per session.
        timeout: Seconds after which a task that it was asked about fails.
        max_calls: How many tasks it is asked about at the same time. The others wait in the order in which
            they came.
        clock: Returns the present time, aware, UTC.
        lease: Another control plane counts as dead if a task has waited for it twice as long.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        writer: Writer,
        orchestrator: BaseOrchestrator,
        timeout: float,
        max_calls: int,
        clock: Callable[[], datetime],
        lease: timedelta,
    ) -> None:
        self._store = store
        self._writer = writer
        self._orchestration = Orchestration(orchestrator, timeout=timeout)
        self._clock = clock
        self._patience = 2 * lease
        self._waiting: dict[str, dict[str, None]] = {}
        """Ids of tasks by session, in the order in which they came."""
        self._busy: set[str] = set()
        self._woken = asyncio.Event()
        self._slots = asyncio.Semaphore(max_calls)
        self._outage = Outage(on_start=_log_start, on_end=_log_end)
        self.is_needed = not is_plain(orchestrator)
        """Whether new tasks have routes. Otherwise only those that an earlier control plane has left."""

    def wake(self, unrouted: Mapping[str, str]) -> None:
        """Tasks wait for the orchestrator.

        Args:
            unrouted: Their ids, each with the id of its session.
        """
        for task_id, session_id in unrouted.items():
            self._waiting.setdefault(session_id, {})[task_id] = None
        self._woken.set()

    async def run(self, *, has_company: bool) -> None:
        """Serve until cancelled.

        Args:
            has_company: Whether other control planes ran on the store at the start.
        """
        looking = asyncio.create_task(self._look(has_company=has_company))
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._woken.wait()
                    self._woken.clear()
                    for session_id in self._waiting.keys() - self._busy:
                        self._busy.add(session_id)
                        group.create_task(self._serve(session_id))
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self, *, has_company: bool) -> None:
        """Look for tasks that an earlier control plane has left behind, and regularly if there are others."""
        until = self._clock() - self._patience if has_company else None
        while True:
            read = partial(self._left_behind, due_before=until)
            found = await retry(read, backoff=_BACKOFF, retry_on=lambda _: True, outage=self._outage)
            self.wake({task.task_id: task.session_id for task in found})
            if len(found) < _PAGE and not (self._store.shared and self.is_needed):
                return
            await asyncio.sleep(_INTERVAL_SECONDS)
            until = self._clock() - self._patience

    async def _left_behind(self, *, due_before: datetime | None) -> list[TaskRecord]:
        return await self._store.read(lambda tx: tx.tasks.unrouted(due_before=due_before, limit=_PAGE))

    async def _serve(self, session_id: str) -> None:
        while tasks := self._waiting.pop(session_id, None):
            for task_id in tasks:
                async with self._slots:
                    route = partial(self._route, task_id)
                    await retry(route, backoff=_BACKOFF, retry_on=_is_temporary, outage=self._outage)
        self._busy.discard(session_id)

    async def _route(self, task_id: str) -> None:
        """Ask about a task until the answer can be stored, or it does not wait any more."""
        while (waiting := await self._store.read(partial(_read, task_id))) is not None:
            answer = await self._orchestration.ask(
                waiting.task, visible(json.loads(text_of(waiting.session.state)))
            )
            if await self._writer.write(_command(waiting, answer, self._orchestration.name)):
                return


def _read(task_id: str, tx: StoreTransaction) -> _Waiting | None:
    task = tx.tasks.load([task_id]).get(task_id)
    if task is None or not hops.is_unrouted(task):
        return None
    session = tx.sessions.load([task.session_id]).get(task.session_id)
    return None if session is None else _Waiting(task, session)


def _command(asked: _Waiting, answer: Answer, orchestrator: str) -> Command[bool]:
    """Return the command that stores an answer. Its value is whether the answer was not outdated."""
    target = answer.hops[0].service_name if answer.hops else None

    def run(unit: Unit) -> bool:
        task = unit.tasks.find(asked.task.task_id)
        if task is None or not hops.is_unrouted(task) or task.routing != asked.task.routing:
            return False
        session = unit.sessions.get(task.session_id)
        if session.version != asked.session.version:
            return False
        failure = None
        if target is not None and task.attempt >= MAX_HOPS:
            failure = _endless(orchestrator)
        elif target is not None and not unit.services.exists(target):
            failure = _unknown(target, orchestrator)
        if answer.state is not None:
            failure = _put_state(unit, session, answer.state, orchestrator) or failure
        if failure is not None:
            unit.apply(hops.conclude(task, failure, at=unit.now))
            return True
        for message in answer.messages:
            unit.publish(message)
        if answer.result is not None:
            unit.apply(hops.conclude(task, answer.result, at=unit.now))
        else:
            first, *waiting = answer.hops
            unit.apply(hops.go_on(task, first, waiting=waiting, at=unit.now))
        return True

    reads = Reads.of_tasks(asked.task.task_id, may_end=True, with_session=True)
    return Command(run, reads | Reads(services=frozenset() if target is None else {target}))


def _put_state(
    unit: Unit, session: SessionRecord, state: dict[str, object], orchestrator: str
) -> TaskFailure | None:
    """Store the state that the orchestrator has returned, or return why that is not possible."""
    stored = json.loads(unit.sessions.state_of(session))
    seen = visible(stored)
    if state != seen:
        reserved = {key: value for key, value in stored.items() if key not in seen}
        try:
            unit.sessions.put_state(session, {**state, **reserved})
        except PayloadTooLargeError as exc:
            return _failure(PayloadTooLargeError, f"{orchestrator} returned too much: {exc}")
    return None


def _unknown(service_name: str, orchestrator: str) -> TaskFailure:
    return _failure(
        ServiceNotFoundError,
        f"{orchestrator} sends the task to service {service_name!r}, which does not exist;"
        " start an instance of it, or correct the name",
    )


def _endless(orchestrator: str) -> TaskFailure:
    return _failure(
        ConfigError,
        f"{orchestrator} has sent the task to {MAX_HOPS} services; return no message from"
        " get_next_messages when the task is done",
    )


def _failure(cls: type[LlamaDeployError], message: str) -> TaskFailure:
    return TaskFailure(type=f"{cls.__module__}.{cls.__qualname__}", message=message)


def _is_temporary(error: LlamaDeployError) -> bool:
    return error.retriable


def _log_start(error: LlamaDeployError) -> None:
    logger.warning(
        "tasks wait for the orchestrator, because the store does not answer; retrying: %s",
        error,
        extra={"action": "routes_wait"},
    )


def _log_end() -> None:
    logger.info("the orchestrator is asked again", extra={"action": "routes_go_on"})
