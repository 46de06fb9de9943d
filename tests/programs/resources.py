"""Takes a model and a store from resources, made when a step first needs them."""

from typing import Annotated

from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from workflows.resource import Resource


class FakeLLM:
    async def acomplete(self, prompt: str) -> str:
        await call(f"resources/{prompt.partition(' ')[0]}")
        return prompt[::-1]


class Notebook:
    """Where notes are looked up."""

    def __init__(self) -> None:
        self.notes = {"sea": "salty"}


def get_llm() -> FakeLLM:
    return FakeLLM()


async def get_notebook() -> Notebook:
    return Notebook()


class Looked(Event):
    note: str


class WithResources(Workflow):
    @step
    async def look(self, ev: StartEvent, notebook: Annotated[Notebook, Resource(get_notebook)]) -> Looked:
        return Looked(note=notebook.notes[ev.word])

    @step
    async def say(self, ev: Looked, llm: Annotated[FakeLLM, Resource(get_llm, cache=False)]) -> StopEvent:
        return StopEvent(result=await llm.acomplete(f"say {ev.note}"))
