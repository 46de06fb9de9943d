"""Steps that end in unusual ways: what would end the process, or let the run wait for ever, fails the run."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pytest
from pydantic import model_validator
from workflows import Context, Workflow, catch_error, step
from workflows.events import StartEvent, StepFailedEvent, StopEvent
from workflows.resource import Resource
from workflows.retry_policy import retry_if_exception_type, retry_policy, stop_after_attempt, wait_fixed

from llama_deploy.errors import FencedOutError
from llama_deploy.services import AnyWorkflow
from llama_deploy.types import TaskFailure
from tests.integration.in_process import Stack, failure_of, result_of, running_stack

SOON = 4.0
"""Seconds after which a run counts as hanging; none of them has a time limit."""


class UnprintableError(Exception):
    """Its text cannot be had."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__


class EvasiveError(Exception):
    """Looks like nothing, and has no cause to look at."""

    def __bool__(self) -> bool:
        raise RuntimeError("not even a truth value")

    @property
    def __cause__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("no cause")


class NeedsArgumentsError(Exception):
    """Cannot be built again from what it keeps, nor pickled."""

    def __init__(self, first: int, *, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


def going_round() -> ValueError:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__ = first.__context__ = second
    second.__cause__ = second.__context__ = first
    return first


def noted() -> ValueError:
    error = ValueError("plain")
    error.add_note("see the handbook")
    error.add_note("n" * 3_000_000)
    return error


def do_raise(error: BaseException) -> NoReturn:
    raise error


def cancel_and_wait() -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return asyncio.sleep(0)


async def wait_for_another_that_is_cancelled() -> None:
    other = asyncio.ensure_future(asyncio.sleep(60))
    other.cancel()
    await other


async def be_cancelled_later() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(0.05, task.cancel)
    await asyncio.sleep(60)


async def swallow_and_wait_for_another() -> None:
    try:
        await cancel_and_wait()
    except asyncio.CancelledError:
        await wait_for_another_that_is_cancelled()


async def cancel_and_raise() -> None:
    cancel_and_wait().close()
    raise ValueError("after the cancellation")


class Async(Workflow):
    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(timeout=None)
        self.act = act

    @step
    async def leave(self, ev: StartEvent) -> StopEvent:
        result = self.act()
        return StopEvent(result=await result if asyncio.iscoroutine(result) else result)


class Sync(Workflow):
    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(timeout=None)
        self.act = act

    @step
    def leave(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.act())


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def error_of(stack: Stack, workflow: AnyWorkflow) -> TaskFailure:
    async with stack.serving(stack.service(workflow)):
        view = await stack.end(await stack.submit(), wait=SOON)
        assert view.result is not None, f"the run hangs: {view.status}"
        assert view.result.error is not None
        return view.result.error


@pytest.mark.parametrize("workflow", [Async, Sync])
@pytest.mark.parametrize(
    ("act", "name", "text"),
    [
        (lambda: next(iter([])), "StopIteration", "StopIteration"),
        (lambda: do_raise(StopAsyncIteration("over")), "StopAsyncIteration", "over"),
        (lambda: do_raise(GeneratorExit("over")), "GeneratorExit", "over"),
        (lambda: sys.exit("bye"), "SystemExit", "bye"),
        (lambda: do_raise(KeyboardInterrupt()), "KeyboardInterrupt", "KeyboardInterrupt"),
        (lambda: do_raise(asyncio.CancelledError("why")), "CancelledError", "why"),
        (lambda: do_raise(TimeoutError("late")), "TimeoutError", "late"),
        (lambda: do_raise(ExceptionGroup("two", [ValueError(), KeyError()])), "ExceptionGroup", "two"),
        (lambda: do_raise(BaseExceptionGroup("two", [SystemExit()])), "BaseExceptionGroup", "two"),
        (
            lambda: do_raise(UnprintableError(ValueError())),
            "UnprintableError",
            "(its text failed with ValueError)",
        ),
        (
            lambda: do_raise(UnprintableError(SystemExit(3))),
            "UnprintableError",
            "(its text failed with SystemExit)",
        ),
        (lambda: do_raise(EvasiveError("here")), "EvasiveError", "here"),
        (lambda: do_raise(NeedsArgumentsError(1, second=2)), "NeedsArgumentsError", "1 and 2"),
        pytest.param(
            lambda: do_raise(ValueError("a\udc80b\0")), "ValueError", "a\\udc80b\0", id="half a character"
        ),
        (lambda: do_raise(going_round()), "ValueError", "first"),
        (lambda: do_raise(FencedOutError("of another task")), "FencedOutError", "of another task"),
    ],
)
async def test_a_step_may_raise_anything(
    stack: Stack,
    workflow: Callable[[Callable[[], Any]], Workflow],
    act: Callable[[], Any],
    name: str,
    text: str,
) -> None:
    error = await error_of(stack, workflow(act))
    # Python itself replaces the StopIteration of a coroutine.
    replaced = workflow is Async and name == "StopIteration"
    assert error.type.rpartition(".")[2] == ("RuntimeError" if replaced else name)
    assert text in error.message


@pytest.mark.parametrize(
    "act",
    [
        cancel_and_wait,
        wait_for_another_that_is_cancelled,
        be_cancelled_later,
        swallow_and_wait_for_another,
    ],
)
async def test_a_cancellation_that_nobody_has_asked_for_fails_the_run(
    stack: Stack, act: Callable[[], Any]
) -> None:
    error = await error_of(stack, Async(act))
    assert error.type == "asyncio.exceptions.CancelledError"
    assert "'leave' raised CancelledError" in error.message


async def test_what_a_step_does_after_it_has_cancelled_itself_counts(stack: Stack) -> None:
    def cancel_and_return() -> str:
        cancel_and_wait().close()
        return "done"

    async with stack.serving(stack.service(Async(cancel_and_return), "returns")):
        assert result_of(await stack.end(await stack.submit("returns"), wait=SOON)) == "done"
    error = await error_of(stack, Async(cancel_and_raise))
    assert (error.type, error.message) == ("builtins.ValueError", "after the cancellation")


class Busy(Workflow):
    """Has a step that ends late when the run is over, and one that ends it."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.cancelled = 0

    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(0.05)
        return StopEvent(result="ended")

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return StopEvent()


async def test_a_step_that_is_cancelled_because_the_run_ends_is_no_failure(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = Busy()
    async with stack.serving(stack.service(workflow)):
        assert result_of(await stack.run()) == "ended"
    assert workflow.cancelled == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_long_texts_are_cut_and_say_so(stack: Stack) -> None:
    def act() -> NoReturn:
        raise ValueError("x" * 3_000_000) from noted()

    error = await error_of(stack, Sync(act))
    assert error.message.startswith("xxx")
    assert "3000000" in error.message
    assert error.traceback is not None
    assert len(error.message) + len(error.traceback) < 200_000
    assert "see the handbook" in error.traceback


async def test_a_traceback_does_not_show_how_the_library_is_used(stack: Stack) -> None:
    error = await error_of(stack, Sync(lambda: do_raise(ValueError("down"))))
    assert error.traceback is not None
    assert "do_raise" in error.traceback
    assert "workflow_library" not in error.traceback


async def test_a_text_of_many_lines_leaves_room_for_the_traceback(stack: Stack) -> None:
    error = await error_of(stack, Sync(lambda: do_raise(ValueError("line\n" * 100_000))))
    assert error.traceback is not None
    assert "do_raise" in error.traceback
    assert "ValueError: line" in error.traceback


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_resource_may_raise_anything(stack: Stack, raised: BaseException) -> None:
    def make() -> int:
        raise raised

    class Needs(Workflow):
        @step
        async def use(self, ev: StartEvent, resource: Annotated[int, Resource(make)]) -> StopEvent:
            return StopEvent()

    error = await error_of(stack, Needs(timeout=None))
    assert error.type.endswith(type(raised).__name__)
    assert "'use' raised" in error.message


@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
async def test_what_runs_before_the_first_step_may_raise_anything(
    stack: Stack, raised: BaseException
) -> None:
    class Checked(StartEvent):
        @model_validator(mode="after")
        def check(self) -> NoReturn:
            raise raised

    class Checks(Workflow):
        @step
        async def work(self, ev: Checked) -> StopEvent:
            return StopEvent()

    class Made(Workflow):
        made = 0

        def __init__(self) -> None:
            super().__init__(timeout=None)
            Made.made += 1
            if Made.made > 1:
                raise raised

        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    for workflow in (Checks(timeout=None), Made):
        error = await error_of(stack, workflow)
        assert type(raised).__name__ in error.type + error.message


class Refusing:
    """A retry policy that ends in an unusual way."""

    def next(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise asyncio.CancelledError


async def test_a_retry_policy_cannot_make_its_run_wait_for_ever(stack: Stack) -> None:
    class Tries(Workflow):
        @step(retry_policy=Refusing())
        async def attempt(self, ev: StartEvent) -> StopEvent:
            raise ValueError("first")

    error = await error_of(stack, Tries(timeout=None))
    assert error.type.endswith("CancelledError")
    assert "'attempt'" in error.message


class SpecialError(Exception):
    pass


class Again(Workflow):
    """Its step fails twice; a third time it cancels itself, and another step takes the failure."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.tried = 0

    @step(
        retry_policy=retry_policy(
            retry=retry_if_exception_type(SpecialError), wait=wait_fixed(0), stop=stop_after_attempt(5)
        )
    )
    async def attempt(self, ev: StartEvent) -> StopEvent:
        self.tried += 1
        if self.tried == 3:
            await cancel_and_wait()
        raise SpecialError

    @catch_error(for_steps=["attempt"])
    async def recover(self, ctx: Context, ev: StepFailedEvent) -> StopEvent:
        cause = ev.exception.__cause__
        return StopEvent(result=[self.tried, type(cause or ev.exception).__name__])


async def test_retries_and_error_steps_see_what_a_step_has_raised(stack: Stack) -> None:
    async with stack.serving(stack.service(Again())):
        assert result_of(await stack.end(await stack.submit(), wait=SOON)) == [3, "CancelledError"]


def fork(act: Callable[[], Any]) -> int:
    """Run `act` in a child process that leaves the step in the same way; return its exit code."""
    child = os.fork()
    if child == 0:
        return act()  # type: ignore[no-any-return]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def fork_and_await() -> int:
    child = os.fork()
    if child == 0:
        await asyncio.sleep(0.01)
        os._exit(99)
    return os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1])


def in_pool() -> Any:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(abs, (-7,))


@pytest.mark.parametrize("workflow", [Async, Sync])
@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda: fork(lambda: 5), 0),
        (lambda: fork(lambda: sys.exit(3)), 3),
        (lambda: fork(lambda: sys.exit("why")), 1),
        (lambda: fork(lambda: do_raise(ValueError("in the child"))), 1),
        (lambda: fork(lambda: os._exit(4)), 4),
        (in_pool, 7),
    ],
)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_ends_as_the_child(
    stack: Stack, workflow: Callable[[Callable[[], Any]], Workflow], act: Callable[[], Any], code: int
) -> None:
    async with stack.serving(stack.service(workflow(act))):
        assert result_of(await stack.end(await stack.submit(), wait=SOON)) == code
        assert result_of(await stack.end(await stack.submit(), wait=SOON)) == code


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_does_not_run_the_loop_of_the_server(stack: Stack, tmp_path: Path) -> None:
    async with stack.serving(stack.service(Async(fork_and_await))):
        assert result_of(await stack.end(await stack.submit(), wait=SOON)) == 1


async def test_the_type_of_a_failure_is_that_of_the_exception(stack: Stack) -> None:
    async with stack.serving(stack.service(Sync(lambda: do_raise(SpecialError("why"))))):
        assert failure_of(await stack.run()) == (f"{__name__}.SpecialError", "why")
