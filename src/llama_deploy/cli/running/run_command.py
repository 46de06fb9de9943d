"""`llamactl run`: run a task, print its events as they arrive, then its result."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import typer

from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.error_messages import print_error, print_hint
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.inbox.terminal_answers import TerminalAnswers
from llama_deploy.cli.output import note
from llama_deploy.cli.running.send_command import answer_command
from llama_deploy.cli.schemas import summarize
from llama_deploy.client import Client, Service, TaskHandle
from llama_deploy.client.task_results import describe_status
from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.errors import InvalidRequestError, LlamaDeployError, ServiceNotFoundError, TaskEndedError
from llama_deploy.printable import printable, printable_lines, printable_traceback
from llama_deploy.types import NewAttempt, TaskEvent, TaskFailure, TaskStatus
from llama_deploy.types.instance_protocol import INPUT_REJECTED

_STATUS_PACE: Final = Backoff(first=0.1, longest=2.0)
"""When to look whether the task is waiting, after its last event."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of `llamactl run`."""

    service_name: str
    arguments: Sequence[str]
    session_id: str | None = None
    task_id: str | None = None
    """The id of the task. None: a random one."""
    detach: bool = False
    """Return when the task is stored."""
    quiet: bool = False
    """Print the result only."""
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a task ended."""

    task_id: str
    session_id: str | None
    status: TaskStatus
    value: Any = None
    """The result as JSON. None: the task did not succeed."""
    failure: TaskFailure | None = None


class Output(Protocol):
    """Prints the task, its events and the result."""

    def accepted(self, handle: TaskHandle) -> None:
        """Print that the task is stored."""

    def event(self, event: TaskEvent) -> None:
        """Print an event."""

    def new_attempt(self, new: NewAttempt) -> None:
        """Print that a new attempt takes over, and which events may come again."""

    def end(self, end: TaskEnd) -> None:
        """Print how the task ended."""


class Answers(Protocol):
    """Helps to answer the questions of the task."""

    async def on_event(self, event: TaskEvent) -> None:
        """Learn that the task has streamed an event."""

    async def watch_status(self) -> None:
        """Learn when the task waits, until cancelled."""


class ReadableOutput:
    """Readable lines: one per event, then the result."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def accepted(self, handle: TaskHandle) -> None:
        """Print nothing: people read the events and the result."""

    def event(self, event: TaskEvent) -> None:
        """Print the event's type and data."""
        data = json.dumps(event.data, ensure_ascii=False)
        typer.echo(f"{typer.style(printable(event.type), fg='cyan')}  {printable(data)}")

    def new_attempt(self, new: NewAttempt) -> None:
        """Print it to stderr, because it is not an event."""
        note(f"attempt {new.attempt} ({_REASONS.get(new.reason, new.reason)}): {_repeated(new)}")

    def end(self, end: TaskEnd) -> None:
        """Print the result; for a failure, print its reason and traceback to stderr."""
        if end.status is TaskStatus.SUCCEEDED:
            text = end.value if isinstance(end.value, str) else _pretty(end.value)
            typer.echo(printable_lines(text))
        else:
            _print_failure(end, self._service)


class JsonOutput:
    """One JSON object per line: the ids of task and session, the events, then the result."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def accepted(self, handle: TaskHandle) -> None:
        """Print the ids."""
        typer.echo(json.dumps({"task_id": handle.task_id, "session_id": handle.session_id}))

    def event(self, event: TaskEvent) -> None:
        """Print the event."""
        # In ASCII, which every terminal and every program can read.
        typer.echo(json.dumps(event.model_dump(mode="json", include={"index", "type", "data", "attempt"})))

    def new_attempt(self, new: NewAttempt) -> None:
        """Print it as an object with the one field `new_attempt`."""
        typer.echo(json.dumps({"new_attempt": new.model_dump(mode="json")}))

    def end(self, end: TaskEnd) -> None:
        """Print result, status and error; for a failure, also print its reason to stderr."""
        facts: dict[str, Any] = {
            "task_id": end.task_id,
            "session_id": end.session_id,
            "status": end.status.value,
            "result": end.value,
        }
        if end.failure is not None:
            facts["error"] = end.failure.model_dump(mode="json")
        typer.echo(json.dumps(facts))
        if end.status is not TaskStatus.SUCCEEDED:
            _print_failure(end, self._service)


class QuietOutput:
    """The result only."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def accepted(self, handle: TaskHandle) -> None:
        """Print nothing."""

    def event(self, event: TaskEvent) -> None:
        """Print nothing."""

    def new_attempt(self, new: NewAttempt) -> None:
        """Print nothing."""

    def end(self, end: TaskEnd) -> None:
        """Print how the task ended."""
        self._output.end(end)


_REASONS: Final = {
    "lost": "the instance before was lost",
    "handed_back": "the instance before has stopped",
    "reports_lost": "the queue has lost events of the attempt before",
    "deregistered": "the service was removed and is back",
    "moved": "the task was moved to another version of the workflow",
}
"""The values of `NewAttempt.reason` in words."""


def _repeated(new: NewAttempt) -> str:
    count = new.position - new.repeats_from
    if not count:
        return "no event comes again"
    last = "the last event" if count == 1 else f"the last {count} events"
    return f"{last}, from event {new.repeats_from} on, may come again"


def _pretty(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _print_failure(end: TaskEnd, service: Service) -> None:
    failure = end.failure
    what = f"task {end.task_id} {describe_status(end.status)}"
    if failure is None or end.status is TaskStatus.CANCELLED:
        print_error(what)
        return
    invalid = failure.type == _INVALID
    hint = f"{service.service_name} accepts: {summarize(service.input_schema)}" if invalid else None
    print_error(f"{what}: {failure.type.rpartition('.')[2]}: {failure.message}", hint=hint)
    if failure.traceback and not invalid:
        note(printable_traceback(failure.traceback.rstrip()))


_INVALID: Final = f"{InvalidRequestError.__module__}.{InvalidRequestError.__qualname__}"
"""The failure of a task with invalid arguments. No step has run, so its traceback does not help."""


async def run_task(client: Client, options: RunOptions) -> int:
    """Run a task and return the exit code.

    The first Ctrl-C cancels the task and waits for its end. A second one stops waiting.

    Raises:
        CommandError: An argument is malformed.
        LlamaDeployError: As `Client.submit`.
    """
    service = await _find_service(client, options.service_name)
    arguments = parse_arguments(options.arguments, service.input_schema)
    handle = await client.submit(
        service.service_name, session=options.session_id, task_id=options.task_id, arguments=arguments
    )
    output: Output = JsonOutput(service) if options.as_json else ReadableOutput(service)
    if options.detach:
        output.accepted(handle)
        if not options.as_json:
            typer.echo(handle.task_id)
        return 0
    if options.quiet:
        output = QuietOutput(output)
    output.accepted(handle)
    answers: Answers = AnswerHints(client, handle, service)
    if sys.stdin.isatty() and not options.quiet and not options.as_json:
        answers = TerminalAnswers(client, handle)
    return await _follow(handle, output, answers)


async def _find_service(client: Client, name: str) -> Service:
    await client.core.services.list()
    known = client.core.services.items
    if name not in known:
        raise ServiceNotFoundError.among(known, name)
    service = known[name]
    if not any(instance.alive for instance in service.instances):
        note(f"no instance of {printable(name)} is alive; the task waits until one starts")
    return service


async def _follow(handle: TaskHandle, output: Output, answers: Answers) -> int:
    interrupts = _Interrupts(handle)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupts.on_signal)
    # Requested from the start: a control plane that shuts down may not accept a later request.
    ending = asyncio.create_task(end_of(handle))
    watching = asyncio.create_task(answers.watch_status())
    try:
        async for item in handle.events(attempts=True):
            if isinstance(item, NewAttempt):
                output.new_attempt(item)
            elif not item.terminal:  # the terminal event is the result, which is printed differently
                output.event(item)
                await answers.on_event(item)
        end = await ending
    except asyncio.CancelledError:
        if not interrupts.received:
            note(f"Task {handle.task_id} is still running.")
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        await interrupts.close()
        ending.cancel()
        watching.cancel()
        await asyncio.gather(ending, watching, return_exceptions=True)
    output.end(end)
    if end.status is TaskStatus.SUCCEEDED:
        return 0
    return ExitCode.INTERRUPTED if interrupts.received else ExitCode.FAILED


class AnswerHints:
    """Prints, to stderr, the command that answers a task, when the task asks.

    A question that is streamed shows it at once. A run may also wait without a question: then it shows when
    the run is parked, which is looked for soon after each event, then less and less often.
    """

    def __init__(self, client: Client, handle: TaskHandle, service: Service) -> None:
        self._client = client
        self._handle = handle
        self._service = service
        self._checks = 0
        """How often the status was looked at since the last event."""
        self._has_happened = asyncio.Event()
        self._is_shown = False
        self._has_looked = False
        """Whether what the service asks was looked up after the submission."""

    async def on_event(self, event: TaskEvent) -> None:
        """Print the command if the event is a question, or tells that an answer was rejected."""
        self._checks = 0
        self._has_happened.set()
        if self._is_shown:
            return
        service = await self._known_service()
        if event.type in (service.question_events or ()) or event.type == INPUT_REJECTED:
            await self._print()

    async def watch_status(self) -> None:
        """Print the command when the run is parked, unless it was printed before."""
        while not self._is_shown:
            self._checks += 1
            self._has_happened.clear()
            with suppress(TimeoutError):
                # `wait_for` of Python 3.11 loses a cancellation that comes together with the event.
                async with asyncio.timeout(_STATUS_PACE.delay(self._checks)):
                    await self._has_happened.wait()
                continue
            try:
                status = await self._handle.status()
            except LlamaDeployError:
                continue  # the call that waits for the result retries, or reports the error
            if status is TaskStatus.WAITING:
                await self._print()

    async def _known_service(self, *, again: bool = False) -> Service:
        """Return the service with what it asks, also if its first instance came after the submission.

        Args:
            again: Look, though this was done before: not every instance says what it asks.
        """
        if self._service.question_events is None and (again or not self._has_looked):
            self._has_looked = True
            with suppress(LlamaDeployError):
                await self._client.core.services.list()
                services = self._client.core.services.items
                self._service = services.get(self._service.service_name, self._service)
        return self._service

    async def _print(self) -> None:
        if not self._is_shown:
            self._is_shown = True
            service = await self._known_service(again=True)
            command = answer_command(service, self._handle.task_id, url=self._client.control_plane_url)
            print_hint(f"answer from another terminal: {command}")


async def end_of(handle: TaskHandle) -> TaskEnd:
    """Wait for a task's end without a time limit."""
    try:
        value = await handle.result(timeout=math.inf)
    except TaskEndedError as exc:
        failure = TaskFailure(
            type=exc.error_type or "", message=exc.error_message or "", traceback=exc.traceback
        )
        return TaskEnd(
            handle.task_id, handle.session_id, TaskStatus(exc.status or TaskStatus.FAILED), failure=failure
        )
    return TaskEnd(handle.task_id, handle.session_id, TaskStatus.SUCCEEDED, value)


class _Interrupts:
    """Handles Ctrl-C while a task runs."""

    def __init__(self, handle: TaskHandle) -> None:
        self.received = False
        self._handle = handle
        self._waiter = asyncio.current_task()
        self._cancelling: asyncio.Task[None] | None = None

    def on_signal(self) -> None:
        """Cancel the task; the second time, stop waiting."""
        if not self.received:
            self.received = True
            note("Cancelling the task. Press Ctrl-C again to exit without waiting for it.")
            self._cancelling = asyncio.create_task(self._cancel())
        elif self._waiter is not None:
            self._waiter.cancel()

    async def _cancel(self) -> None:
        try:
            await self._handle.cancel()
        except LlamaDeployError as exc:
            print_error(f"cancelling the task failed: {exc}")

    async def close(self) -> None:
        """Abort a cancellation that is in progress."""
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait({self._cancelling})
