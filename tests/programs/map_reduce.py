"""Summarizes a long text: chunks are summarized beside each other, and the summaries again, as a tree."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Chunk(Event):
    level: int
    number: int
    of: int
    text: str


class Summary(Event):
    level: int
    number: int
    of: int
    text: str


class Summarize(Workflow):
    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Chunk | None:
        words = ev.text.split()
        chunks = [" ".join(words[n : n + 2]) for n in range(0, len(words), 2)]
        for number, text in enumerate(chunks):
            ctx.send_event(Chunk(level=1, number=number, of=len(chunks), text=text))
        return None

    @step(num_workers=3)
    async def map(self, ctx: Context, ev: Chunk) -> Summary:
        await call(f"map_reduce/{ev.level}-{ev.number}")
        return Summary(level=ev.level, number=ev.number, of=ev.of, text=ev.text.split()[-1])

    @step
    async def reduce(self, ctx: Context, ev: Summary) -> Chunk | StopEvent | None:
        summaries = ctx.collect_events(ev, [Summary] * ev.of, buffer_id=f"level-{ev.level}")
        if summaries is None:
            return None
        texts = [each.text for each in sorted(summaries, key=lambda each: each.number)]
        ctx.write_event_to_stream(Event(level=ev.level, summaries=len(texts)))
        if len(texts) == 1:
            return StopEvent(result=texts[0])
        pairs = [" ".join(texts[n : n + 2]) for n in range(0, len(texts), 2)]
        for number, text in enumerate(pairs):
            ctx.send_event(Chunk(level=ev.level + 1, number=number, of=len(pairs), text=text))
        return None
