"""Streams the tokens of a model as they come, then returns the whole text."""

from collections.abc import AsyncIterator

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class FirstEvent(Event):
    first_output: str


class TokenEvent(Event):
    delta: str


class ProgressEvent(Event):
    msg: str


class FakeLLM:
    async def astream_complete(self, prompt: str) -> AsyncIterator[str]:
        for number, word in enumerate(prompt.split()):
            if number == 2:
                await call("streaming/third-token")
            yield word + " "


class StreamingWorkflow(Workflow):
    @step
    async def step_one(self, ctx: Context, ev: StartEvent) -> FirstEvent:
        ctx.write_event_to_stream(ProgressEvent(msg="Step one is happening"))
        return FirstEvent(first_output=ev.first_input)

    @step
    async def step_two(self, ctx: Context, ev: FirstEvent) -> StopEvent:
        text = ""
        async for token in FakeLLM().astream_complete(ev.first_output):
            ctx.write_event_to_stream(TokenEvent(delta=token))
            text += token
        return StopEvent(result=text.strip())


workflow = StreamingWorkflow(timeout=30, verbose=True)
