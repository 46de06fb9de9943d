"""Fans out by a list that a step returns, and joins by a list that a step takes."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Page(Event):
    number: int
    text: str


class Count(Event):
    number: int
    words: int


class CountWords(Workflow):
    """Counts the words of pages beside each other."""

    @step
    async def split(self, ev: StartEvent) -> list[Page]:
        return [Page(number=number, text=text) for number, text in enumerate(ev.pages)]

    @step(num_workers=2)
    async def count(self, ctx: Context, ev: Page) -> Count:
        await call(f"fan_out/page-{ev.number}")
        return Count(number=ev.number, words=len(ev.text.split()))

    @step
    async def join(self, evs: list[Count]) -> StopEvent:
        return StopEvent(
            result={str(each.number): each.words for each in sorted(evs, key=lambda e: e.number)}
        )
