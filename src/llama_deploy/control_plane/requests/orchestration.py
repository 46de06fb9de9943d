"""Asking the orchestrator what follows for a task. Changes nothing; `dispatch.router` stores the answer."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pydantic_core
from pydantic import ValidationError

from llama_deploy.concurrency.cancellation import is_being_cancelled
from llama_deploy.control_plane.decisions.routing import Hop, Routing
from llama_deploy.control_plane.requests.sessions.session_requests import check_state
from llama_deploy.errors import ConfigError, LlamaDeployError, SerializationError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.orchestrators.utils import get_result_key
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskDefinition, TaskFailure, TaskResult, TaskStatus
from llama_deploy.types.json_values import decode_object, encode_json
from llama_deploy.types.keys import public_id
from llama_deploy.types.validation import describe_validation_error

logger = logging.getLogger(__name__)

_MAX_TRACEBACK: Final = 4000
_CANCEL_SECONDS: Final = 1.0
"""How long a call that was cancelled may take to end, before it is left alone."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows for a task."""

    state: dict[str, Any] | None
    """The session's state as the orchestrator has left it. None: unchanged."""
    hops: Sequence[Hop] = ()
    """Where the task goes, the next service first. Empty: the task ends."""
    result: TaskResult | TaskFailure | None = None
    """How it ends. None: it goes on."""
    messages: Sequence[QueueMessage] = ()
    """To be published."""


class Orchestration:
    """Asks an orchestrator.

    Args:
        orchestrator: Its errors become failures of tasks.
        timeout: Seconds after which a task that it was asked about fails.
    """

    def __init__(self, orchestrator: BaseOrchestrator, *, timeout: float) -> None:
        self.name = type(orchestrator).__name__
        self._orchestrator = orchestrator
        self._timeout = timeout
        self._calls: set[asyncio.Task[Answer]] = set()
        """Also those that go on although they were cancelled."""

    async def ask(self, task: TaskRecord, state: dict[str, Any]) -> Answer:
        """Ask about a task that waits for it. Never raises for an error of the orchestrator.

        Args:
            task: The task.
            state: A copy of the session's state, which the orchestrator may change.
        """
        question = _Question(self._orchestrator, task, state)
        name = f"orchestrator for task {public_id(task.task_id)}"
        call = asyncio.create_task(self._answer(question), name=name)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            done, _ = await asyncio.wait({call}, timeout=self._timeout)
        finally:
            if not call.done():
                call.cancel()
                # What it does in `finally` is done before its task goes on, if it takes no longer.
                await asyncio.wait({call}, timeout=_CANCEL_SECONDS)
        return call.result() if done else self._failed(question, _late(question, self._timeout))

    async def _answer(self, question: _Question) -> Answer:
        try:
            return await question.answer()
        except BaseException as exc:
            # The boundary of the user's code: whatever it raises fails the task.
            if isinstance(exc, asyncio.CancelledError) and is_being_cancelled():
                raise
            return self._failed(question, exc)

    def _failed(self, question: _Question, error: BaseException) -> Answer:
        task_id = question.task.task_id
        logger.error(
            "%s has failed for task %s",
            question.asking,
            task_id,
            exc_info=error,
            extra={"action": "orchestrator_failed", "task_id": task_id},
        )
        return Answer(None, result=_failure(question.asking, error))


def _late(question: _Question, seconds: float) -> TimeoutError:
    return TimeoutError(
        f"{question.asking} has not returned within {seconds:g} s; make it faster, or raise"
        " orchestrator_timeout of the control plane"
    )


class _Question:
    def __init__(self, orchestrator: BaseOrchestrator, task: TaskRecord, state: dict[str, Any]) -> None:
        self._orchestrator = orchestrator
        self.task = task
        self._task_id = public_id(task.task_id)
        self._state = state
        self._routing = Routing.of(task)
        self._method = "add_result_to_state"

    @property
    def asking(self) -> str:
        """The method that is called, or whose answer is read."""
        return f"{type(self._orchestrator).__name__}.{self._method}"

    async def answer(self) -> Answer:
        ended = self._routing.outcome
        last = None
        if ended is not None:
            last = ended.task_result.model_copy(update={"task_id": self._task_id})
            self._merge(await self._orchestrator.add_result_to_state(last, self._state))
            if last.status is not TaskStatus.SUCCEEDED and not self._orchestrator.continues_after_failure:
                return Answer(self._json_state(), result=last)
        definition = TaskDefinition(
            input=text_of(self.task.input),
            task_id=self._task_id,
            session_id=public_id(self.task.session_id),
            agent_id=self.task.service_name or None,
        )
        self._method = "get_next_messages"
        messages, changes = await self._orchestrator.get_next_messages(definition, self._state)
        self._merge(changes)
        state = self._json_state()
        _check_sendable(messages)
        hops = [*self._routing.waiting, *(self._hop(each) for each in messages if _is_task(each))]
        others = [each for each in messages if not _is_task(each)]
        return Answer(state, hops, None if hops else self._end(state, last), others)

    def _merge(self, changes: dict[str, Any] | None) -> None:
        if changes is not None and changes is not self._state:
            self._state.update(changes)

    def _json_state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = pydantic_core.to_jsonable_python(self._state)
        except ValueError as exc:
            raise SerializationError(f"the state that it leaves is not JSON: {exc}") from exc
        check_state(state)
        return state

    def _hop(self, message: QueueMessage) -> Hop:
        text = message.data.get("input", text_of(self.task.input))
        decode_object(text, what=f"the input of the message for service {message.type!r}")
        return Hop(service_name=message.type, input=text)

    def _end(self, state: dict[str, Any], last: TaskResult | None) -> TaskResult:
        """Return the result that the orchestrator has left, or else that of the last service."""
        left = state.get(get_result_key(self._task_id))
        if left is None:
            if last is None:
                key = get_result_key(self._task_id)
                raise ConfigError(
                    f"it named no service for the task; return a message, or set {key!r} in the state to the"
                    " TaskResult"
                )
            return last
        try:
            read = TaskResult.model_validate_json if isinstance(left, str) else TaskResult.model_validate
            result = read(left)
        except ValidationError as exc:
            raise ConfigError(
                f"it left a result that is not a TaskResult: {describe_validation_error(exc)}"
            ) from exc
        if last is not None and result.result == last.result:
            return last
        value = result.result if result.value is None else result.value
        return result.model_copy(update={"task_id": self._task_id, "value": value})


def _check_sendable(messages: Sequence[QueueMessage]) -> None:
    """Check what would fail later, in the transaction that stores the answer.

    Raises:
        SerializationError: The name of a service or a topic, or the data of a message, cannot be encoded.
    """
    for message in messages:
        encode_json(message.type)
        if not _is_task(message):
            message.encode()


def _is_task(message: QueueMessage) -> bool:
    return message.action in (None, ActionTypes.NEW_TASK)


def _failure(name: str, error: BaseException) -> TaskFailure:
    cls = type(error)
    # Unlike `str`, this never fails, whatever class of the user it is.
    text = "".join(traceback.format_exception_only(error)).strip()
    said = str(error) if isinstance(error, LlamaDeployError) else text
    return TaskFailure(
        type=f"{cls.__module__}.{cls.__qualname__}",
        message=_valid(f"{name} of the orchestrator has failed: {said}"),
        traceback=_valid("".join(traceback.format_exception(error))[-_MAX_TRACEBACK:]),
    )


def _valid(text: str) -> str:
    """Return a text that is valid UTF-8, as the store needs it."""
    return text.encode(errors="backslashreplace").decode()
