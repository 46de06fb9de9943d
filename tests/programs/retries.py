"""Retries a step whose service fails at first, with a delay."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed


class Fetched(Event):
    tries: int


class RetryFlow(Workflow):
    @step(retry_policy=retry_policy(wait=wait_fixed(0.05), stop=stop_after_attempt(5)))
    async def flaky_step(self, ctx: Context, ev: StartEvent) -> Fetched:
        tries = ctx.retry_info().retry_number + 1
        if tries < 3:
            raise ConnectionError(f"try {tries} of {ev.url} failed")
        return Fetched(tries=tries)

    @step
    async def use(self, ev: Fetched) -> StopEvent:
        await call("retries/use")
        return StopEvent(result=f"fetched at try {ev.tries}")
