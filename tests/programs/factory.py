"""Functions that make a workflow from settings; one is served with its defaults."""

from typing import Any

from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class FakeLLM:
    def __init__(self, model: str, temperature: float) -> None:
        self.name = f"{model} at {temperature}"

    async def acomplete(self, prompt: str) -> str:
        await call("factory/complete")
        return f"{self.name}: {prompt}"


class JokeEvent(Event):
    joke: str


class JokeFlow(Workflow):
    def __init__(self, llm: FakeLLM, prompts: dict[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.llm = llm
        self.prompts = prompts

    @step
    async def generate_joke(self, ev: StartEvent) -> JokeEvent:
        return JokeEvent(joke=self.prompts["write"].format(topic=ev.topic))

    @step
    async def critique_joke(self, ev: JokeEvent) -> StopEvent:
        return StopEvent(result=await self.llm.acomplete(self.prompts["critique"].format(joke=ev.joke)))


def create_workflow(model: str = "fast", temperature: float = 0.1) -> JokeFlow:
    prompts = {"write": "a joke about {topic}", "critique": "analyse {joke}"}
    return JokeFlow(FakeLLM(model, temperature), prompts, timeout=60, verbose=False)
