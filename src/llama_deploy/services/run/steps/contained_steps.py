"""Keeps what a step ends with from ending the process, or from making its run wait for ever.

The library takes an ordinary exception of a step as its failure, and gives it to the step's retry policy and
to `catch_error` steps. Everything else it expects only when it ends the run itself: it would wait for the
result of a step that was cancelled by somebody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from llama_deploy.concurrency.cancellation import is_being_cancelled
from llama_deploy.services.run.steps.step_guard import StepExitError
from llama_deploy.workflow_library import StepWorkerFailed, StepWorkerFunction


def contained_steps(
    steps: Mapping[str, StepWorkerFunction], *, is_ending: Callable[[], bool], now: Callable[[], float]
) -> dict[str, StepWorkerFunction]:
    """Return the functions that run a workflow's steps, contained.

    Args:
        steps: The functions by the names of the steps.
        is_ending: Whether the run ends, and its steps are being cancelled.
        now: The clock of the run.
    """
    return {name: _contained(name, run, is_ending, now) for name, run in steps.items()}


def _contained(
    step_name: str, run: StepWorkerFunction, is_ending: Callable[[], bool], now: Callable[[], float]
) -> StepWorkerFunction:
    async def contained_step(*args: Any, **kwargs: Any) -> Any:
        try:
            output = await run(*args, **kwargs)
        except (Exception, GeneratorExit):
            raise
        except BaseException as exc:
            if is_ending():
                raise
            raise StepExitError(step_name, exc) from exc
        for place, item in enumerate(output):
            if type(item) is StepWorkerFailed:
                # The library reads the wall clock here, and the clock of the run everywhere else.
                output[place] = item.model_copy(update={"failed_at": now()})
        if is_being_cancelled() and not is_ending():
            await _forget_cancellation()
        return output

    return contained_step


async def _forget_cancellation() -> None:
    """Let a step end whose task was cancelled without effect: asyncio would still end it as cancelled."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        return
