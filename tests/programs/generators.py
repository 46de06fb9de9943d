"""Returns a stream instead of a text: what a model yields, from an async and from a plain generator."""

from collections.abc import AsyncGenerator, Generator

from llama_index.core.llms import ChatMessage, ChatResponse
from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Prepared(Event):
    words: list[str]


class StreamsWords(Workflow):
    """Returns a generator of texts, as a streaming Response of an index has it."""

    @step
    async def prepare(self, ev: StartEvent) -> Prepared:
        return Prepared(words=ev.text.split())

    @step
    async def stream(self, ev: Prepared) -> StopEvent:
        await call("streams_words/stream")

        def words() -> Generator[str, None, None]:
            yield from ev.words

        return StopEvent(result=words())


class StreamsAnswer(StreamsWords):
    """Returns an async generator of answers, as `llm.astream_chat` does."""

    @step
    async def stream(self, ev: Prepared) -> StopEvent:  # type: ignore[override]
        await call("streams_answer/stream")

        async def answers() -> AsyncGenerator[ChatResponse, None]:
            text = ""
            for word in ev.words:
                text += word
                yield ChatResponse(message=ChatMessage(role="assistant", content=text), delta=word)

        return StopEvent(result=answers())
