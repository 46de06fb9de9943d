"""Runs with many steps at a time: how often they are written, and what waits for a write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.run.journal import journal_backlog
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import JournalReply, JournalWrite
from tests.fan_outs import Answer, Done, Go, Item, Splits
from tests.integration.in_process import Stack, result_of, running_stack, until


class Listed(Splits):
    """Fans out with a list, and joins with one."""

    @step(num_workers=50)
    async def work(self, ev: Item) -> Done:
        return Done(number=ev.number)

    @step
    async def join(self, ev: list[Done]) -> StopEvent:
        return StopEvent(result=sum(each.number for each in ev))


class Collected(Workflow):
    """Sends events, and collects them."""

    joins: list[int]

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.joins = []

    @step
    async def split(self, ctx: Context, ev: Go) -> Item | None:
        await ctx.store.set("count", ev.count)
        for number in range(ev.count):
            ctx.send_event(Item(number=number))
        return None

    @step(num_workers=50)
    async def work(self, ev: Item) -> Done:
        await asyncio.sleep(0.001)
        return Done(number=ev.number)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        self.joins.append(ev.number)
        done = ctx.collect_events(ev, [Done] * await ctx.store.get("count"))
        return None if done is None else StopEvent(result=sum(each.number for each in done))


class Staged(Splits):
    """Each item ends when it may; a second step follows it."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.may_end = [asyncio.Event() for _ in range(3)]
        self.begun: list[str] = []
        self.ended: list[int] = []

    @step(num_workers=3)
    async def work(self, ev: Item) -> Done:
        self.begun.append(f"work {ev.number}")
        await self.may_end[ev.number].wait()
        self.ended.append(ev.number)
        return Done(number=ev.number)

    @step
    async def follow(self, ev: Done) -> Answer:
        self.begun.append(f"follow {ev.number}")
        return Answer(number=ev.number)

    @step
    async def join(self, ev: list[Answer]) -> StopEvent:
        return StopEvent(result=len(ev))


class CountingGateway(DirectGateway):
    """Counts what is written of runs, and stores nothing while it is closed."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane)
        self.writes = 0
        self.waiting = 0
        self.characters = 0
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def journal(self, write: JournalWrite) -> JournalReply:
        self.waiting += 1
        await self.is_open.wait()
        self.waiting -= 1
        self.writes += 1
        self.characters += sum(len(text or "") for text in (write.entry, write.snapshot, write.state))
        return await super().journal(write)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@asynccontextmanager
async def serving(stack: Stack, workflow: Workflow) -> AsyncIterator[CountingGateway]:
    gateway = CountingGateway(stack.plane)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service", durability="step")
    async with stack.serving(WorkflowService(workflow, stack.queue, config, gateway=gateway)):
        yield gateway


async def test_one_write_serves_all_steps_that_end_together(stack: Stack) -> None:
    async with serving(stack, Listed(timeout=None)) as gateway:
        assert result_of(await stack.run(count=200)) == sum(range(200))
    assert gateway.writes < 20


async def test_what_is_written_grows_with_the_fan_out_and_not_with_its_square(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_backlog, "COMPACT_AFTER_TICKS", 20)
    written: dict[int, int] = {}
    for count in (100, 400):
        async with serving(stack, Collected()) as gateway:
            assert result_of(await stack.run(count=count)) == sum(range(count))
        written[count] = gateway.characters
    assert written[400] / written[100] < 5


async def test_a_collecting_step_seldom_runs_twice(stack: Stack) -> None:
    workflow = Collected()
    async with serving(stack, workflow):
        assert result_of(await stack.run(count=200)) == sum(range(200))
    assert len(workflow.joins) < 220


async def test_steps_that_end_during_a_write_wait_for_the_next_one(stack: Stack) -> None:
    workflow = Staged()
    async with serving(stack, workflow) as gateway:
        task_id = await stack.submit(count=3)
        await until(lambda: len(workflow.begun) == 3)
        gateway.is_open.clear()
        workflow.may_end[0].set()
        await until(lambda: gateway.waiting == 1)
        workflow.may_end[1].set()
        workflow.may_end[2].set()
        await until(lambda: len(workflow.ended) == 3)
        assert workflow.begun == ["work 0", "work 1", "work 2"], "what follows is not stored yet"
        before = gateway.writes
        gateway.is_open.set()
        assert result_of(await stack.end(task_id)) == 3
    assert sorted(workflow.begun[3:]) == ["follow 0", "follow 1", "follow 2"]
    assert gateway.writes - before <= 4, "one of the first step, one of the two others, and what follows"


class Turn(Event):
    """Goes round."""


class Endless(Workflow):
    """Steps that end at once, again and again."""

    @step
    async def begin(self, ev: StartEvent, ctx: Context) -> Turn | Done:
        for _ in range(ev.get("chains", default=1)):
            ctx.send_event(Turn())
        ctx.send_event(Done(number=ev.get("sent", default=0)))
        return Turn()

    @step
    async def go_round(self, ev: Turn) -> Turn | StopEvent:
        return Turn(number=ev.get("number", default=0) + 1)

    @step
    async def collect(self, ctx: Context, ev: Done) -> Done | StopEvent:
        ctx.collect_events(ev, [Done])
        return StopEvent(result="sent") if ev.number == 1 else Done(number=ev.number)

    @step
    async def take(self, ev: Answer) -> StopEvent:
        return StopEvent(result=ev.number)


@pytest.mark.parametrize("chains", [0, 1, 4])
async def test_steps_that_end_again_and_again_delay_nothing(stack: Stack, chains: int) -> None:
    service = stack.service(Endless(timeout=1.0))
    async with stack.serving(service):
        # The time in which it waits for its journal does not count, and is most of its time.
        view = await stack.end(await stack.submit(chains=chains))
        assert view.status is TaskStatus.TIMED_OUT, "the time limit"
        assert result_of(await stack.end(await stack.submit(chains=chains, sent=1), wait=5)) == "sent"
        task_id = await stack.submit(chains=chains)
        await stack.send(task_id, Answer(number=7, response=""))
        assert result_of(await stack.end(task_id, wait=5)) == 7
