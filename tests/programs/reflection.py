"""Extracts structured output, and shows the model its errors until the output is valid."""

import json

from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel, ValidationError
from tests.programs.outside import call


class Car(BaseModel):
    brand: str
    power: int


class CarCollection(BaseModel):
    cars: list[Car]


class ExtractionDone(Event):
    output: str
    passage: str


class ValidationErrorEvent(Event):
    error: str
    wrong_output: str
    passage: str


class FakeLLM:
    """Makes a mistake in its first two answers."""

    async def acomplete(self, prompt: str) -> str:
        attempts = prompt.count("wrong:")
        await call(f"reflection/llm-{attempts}")
        return [
            "Sure! Here are the cars: Fiat",
            '{"cars": [{"brand": "Fiat", "power": "a lot"}]}',
            '{"cars": [{"brand": "Fiat", "power": 69}, {"brand": "Volvo", "power": 250}]}',
        ][attempts]


class ReflectionWorkflow(Workflow):
    max_retries: int = 3
    llm = FakeLLM()

    @step
    async def extract(
        self, ctx: Context, ev: StartEvent | ValidationErrorEvent
    ) -> StopEvent | ExtractionDone:
        current_retries = await ctx.store.get("retries", default=0)
        if current_retries >= self.max_retries:
            return StopEvent(result="Max retries reached")
        await ctx.store.set("retries", current_retries + 1)
        if isinstance(ev, StartEvent):
            await ctx.store.set("prompt", ev.passage)
            passage = ev.passage
        else:
            passage = ev.passage
            prompt = await ctx.store.get("prompt")
            await ctx.store.set("prompt", f"{prompt}\nwrong: {ev.wrong_output}\nbecause: {ev.error}")
        output = await self.llm.acomplete(await ctx.store.get("prompt"))
        return ExtractionDone(output=output, passage=passage)

    @step
    async def validate_output(self, ctx: Context, ev: ExtractionDone) -> StopEvent | ValidationErrorEvent:
        await call(f"reflection/validate-{await ctx.store.get('retries')}")
        try:
            return StopEvent(result=CarCollection.model_validate(json.loads(ev.output)))
        except (ValidationError, json.JSONDecodeError) as e:
            reason = type(e).__name__
            ctx.write_event_to_stream(
                ValidationErrorEvent(error=reason, wrong_output=ev.output, passage=ev.passage)
            )
            return ValidationErrorEvent(error=reason, wrong_output=ev.output, passage=ev.passage)


reflection = ReflectionWorkflow(timeout=60, verbose=False)
