"""A class or a factory is called for each run; an instance is shared, and warns about state on it."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property, partial
from types import MethodType
from typing import Annotated, Any, ClassVar

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.handler import WorkflowHandler
from workflows.resource import Resource

from llama_deploy.errors import ConfigError
from llama_deploy.types import TaskStatus
from tests.integration.in_process import Stack, failure_of, result_of, running_stack, until

CONFIG_ERROR = "llama_deploy.errors.ConfigError"
USERS = [f"user {number}" for number in range(8)]


class Collected(Event):
    pass


class Report(Workflow):
    """Keeps what it works with in its attributes, as a program for one user may."""

    meeting: asyncio.Barrier | None = None

    def __init__(self, timeout: float | None = 45.0) -> None:
        super().__init__(timeout=timeout)
        self.user = ""
        self.notes: list[str] = []

    @step
    async def collect(self, ev: StartEvent) -> Collected:
        self.user = ev.user
        self.notes.append(ev.user)
        if self.meeting is not None:
            await self.meeting.wait()
        return Collected()

    @step
    async def write(self, ev: Collected) -> StopEvent:
        return StopEvent(result=[self.user, self.notes])


class Ask(InputRequiredEvent):
    pass


class Asks(Workflow):
    """Two steps with an answer between them."""

    made: int = 0

    def __init__(self) -> None:
        super().__init__(timeout=None)
        type(self).made += 1
        self.number = self.made
        self.seen = "nothing"

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Ask:
        self.seen = "the question"
        await ctx.store.set("asked_by", self.number)
        return Ask()

    @step
    async def hear(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=[await ctx.store.get("asked_by"), self.number, self.seen])


class Naps(Workflow):
    """Notes how many of it run at a time."""

    running = 0
    most = 0

    def __init__(self) -> None:
        super().__init__(num_concurrent_runs=2)

    @step
    async def nap(self, ev: StartEvent) -> StopEvent:
        cls = type(self)
        cls.running += 1
        cls.most = max(cls.most, cls.running)
        await asyncio.sleep(0.01)
        cls.running -= 1
        return StopEvent(result="rested")


class Hangs(Workflow):
    @step
    async def hang(self, ev: StartEvent) -> StopEvent:
        await asyncio.Event().wait()
        return StopEvent()


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    Report.meeting, Asks.made, Naps.most = None, 0, 0


def make_report() -> Workflow:
    return Report()


MAKERS = pytest.mark.parametrize(
    "make", [Report, make_report, partial(Report, timeout=5)], ids=["class", "function", "partial"]
)


def then(*makes: Callable[[], Any]) -> Callable[[], Any]:
    """Return a factory that calls one of these after the other, and the last one from then on."""
    left = list(makes)

    def make() -> Any:
        return (left.pop(0) if len(left) > 1 else left[0])()

    return make


def fails() -> Any:
    raise OSError("the model is not there")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [each for each in caplog.records if getattr(each, "action", "") == "shared_state"]
    assert {each.levelno for each in records} <= {logging.WARNING}
    return [each.getMessage() for each in records]


class TestOneObjectForEachRun:
    @MAKERS
    async def test_users_do_not_see_each_other(
        self, stack: Stack, make: Callable[[], Workflow], caplog: pytest.LogCaptureFixture
    ) -> None:
        Report.meeting = asyncio.Barrier(len(USERS))
        service = stack.service(make, max_concurrent_tasks=len(USERS))
        async with stack.serving(service):
            views = await asyncio.gather(*(stack.run(user=user) for user in USERS))
        assert [result_of(view) for view in views] == [[user, [user]] for user in USERS]
        assert warnings_in(caplog) == []

    async def test_one_run_after_the_other(self, stack: Stack) -> None:
        async with stack.serving(stack.service(Report)):
            assert [result_of(await stack.run(user=user)) for user in "ab"] == [["a", ["a"]], ["b", ["b"]]]

    async def test_a_run_that_was_parked_continues_with_a_new_object(self, stack: Stack) -> None:
        # With durability `auto` the run would be volatile, and stay in memory.
        async with stack.serving(stack.service(Asks, idle_timeout=0.0, durability="step")):
            task_id = await stack.submit()
            await until(lambda: is_waiting(stack, task_id))
            await stack.send(task_id, HumanResponseEvent(response="yes"))
            asked_by, heard_by, seen = result_of(await stack.end(task_id))
        assert heard_by > asked_by
        assert seen == "nothing"

    async def test_the_object_is_released_when_its_run_has_ended(self, stack: Stack) -> None:
        made: list[weakref.ref[Workflow]] = []

        def make() -> Workflow:
            workflow = Report()
            made.append(weakref.ref(workflow))
            return workflow

        async with stack.serving(stack.service(make)):
            gc.collect()
            gc.disable()
            try:
                for user in USERS:
                    await stack.run(user=user)
                await until(lambda: not [each for each in made[1:] if each() is not None])
            finally:
                gc.enable()
        assert len(made) == 1 + len(USERS)

    async def test_the_time_limit_is_that_of_each_object(self, stack: Stack) -> None:
        make = then(lambda: Hangs(timeout=None), lambda: Hangs(timeout=0.05))
        async with stack.serving(stack.service(make)):
            assert (await stack.run()).status is TaskStatus.TIMED_OUT

    async def test_the_limit_of_concurrent_runs_counts_over_all_objects(self, stack: Stack) -> None:
        async with stack.serving(stack.service(Naps)):
            for view in await asyncio.gather(*(stack.run() for _ in USERS)):
                result_of(view)
        assert Naps.most == 2

    async def test_a_session_keeps_its_state(self, stack: Stack) -> None:
        class Counts(Workflow):
            @step
            async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
                number = await ctx.store.get("count", default=0) + 1
                await ctx.store.set("count", number)
                return StopEvent(result=number)

        async with stack.serving(stack.service(Counts)):
            session = await stack.session()
            assert [result_of(await stack.run("service", session)) for _ in range(3)] == [1, 2, 3]

    async def test_a_run_method_of_its_own(self, stack: Stack) -> None:
        class Own(Report):
            def run(self, who: str) -> WorkflowHandler:  # type: ignore[override]
                self.notes.append("from run")
                return super().run(user=who)

        async with stack.serving(stack.service(Own)):
            for user in "ab":
                assert result_of(await stack.run(who=user)) == [user, ["from run", user]]

    async def test_a_step_outside_of_the_class_and_one_added_later(self, stack: Stack) -> None:
        class Grows(Report):
            pass

        async with stack.serving(stack.service(Grows)):
            assert result_of(await stack.run(user="a")) == ["a", ["a"]]
            added: list[str] = []

            @step(workflow=Grows)
            async def note(ev: Collected) -> None:
                added.append("noted")

            assert result_of(await stack.run(user="b")) == ["b", ["b"]]
            assert added == ["noted"]

    async def test_a_class_makes_its_objects_in_its_own_way(self, stack: Stack) -> None:
        class Pool(Report):
            pool: ClassVar[list[Workflow]] = []

            def __new__(cls) -> Workflow:  # type: ignore[misc]
                made = super().__new__(cls)
                cls.pool.append(made)
                return made

        async with stack.serving(stack.service(Pool)):
            for user in "ab":
                assert result_of(await stack.run(user=user)) == [user, [user]]
        assert len(Pool.pool) == 3

    async def test_a_step_that_only_some_objects_replace(self, stack: Stack) -> None:
        class Other:
            @step
            async def begin(self, ev: StartEvent) -> StopEvent:
                return StopEvent(result="differently")

        class Changes(Workflow):
            made = 0

            def __init__(self) -> None:
                super().__init__()
                Changes.made += 1
                if Changes.made % 2 == 0:
                    vars(self)["begin"] = MethodType(Other.begin, self)

            @step
            async def begin(self, ev: StartEvent) -> StopEvent:
                return StopEvent(result="as usual")

        async with stack.serving(stack.service(Changes)):
            results = [result_of(await stack.run()) for _ in range(4)]
        assert results == ["differently", "as usual", "differently", "as usual"]

    async def test_a_step_that_ends_the_process_fails_its_run_only(self, stack: Stack) -> None:
        class Exits(Workflow):
            @step
            async def leave(self, ev: StartEvent) -> StopEvent:
                raise SystemExit(3)

        async with stack.serving(stack.service(Exits)):
            for _ in range(2):
                assert "'leave' raised SystemExit" in failure_of(await stack.run())[1]


async def is_waiting(stack: Stack, task_id: str) -> bool:
    return (await stack.end(task_id, wait=0)).status is TaskStatus.WAITING


class WithOwnStep(Workflow):
    """Its objects may have a step more."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, MethodType(Steps.note, self))

    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="begun")


class Steps:
    @step
    async def note(self, ev: HumanResponseEvent) -> None:
        """Do nothing."""


class Needs(Report):
    def __init__(self, something: str) -> None:
        super().__init__()


def define() -> Workflow:
    class Defined(Report):
        """Another class after each call."""

    return Defined()


class TestFaultyFactories:
    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (fails, r"calling .*fails without arguments failed: OSError: the model is not there"),
            (lambda: 3, r"returned an object of the class int, which is not a Workflow"),
            (partial(int), r"returned an object of the class int, which is not a Workflow"),
            (partial(asyncio.sleep, 0), r"returned a coroutine; .* must not be `async`"),
            (partial(sys.exit, 3), r"without arguments failed: SystemExit: 3"),
            (Needs, r"Needs without arguments failed"),
            (
                define,
                r"define\.<locals>\.Defined anew in each call; define it in the module, or name an instance",
            ),
        ],
        ids=[
            "raises",
            "no workflow",
            "no workflow of a partial",
            "async",
            "exits",
            "class with arguments",
            "defines a class",
        ],
    )
    async def test_the_service_refuses_to_start(self, stack: Stack, make: Any, text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            stack.service(make)

    async def test_what_is_no_factory_is_refused(self, stack: Stack) -> None:
        given: Any = 3
        with pytest.raises(ConfigError, match="int is neither a workflow nor a class or function"):
            stack.service(given)

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (fails, "without arguments failed: OSError: the model is not there"),
            (lambda: None, "returned an object of the class NoneType, which is not a Workflow"),
            (
                Hangs,
                "made a Hangs, and the service hosts the class Report; it must always make objects of one",
            ),
            (partial(sys.exit, 3), "failed: SystemExit: 3"),
        ],
        ids=["raises", "no workflow", "another class", "exits"],
    )
    async def test_a_later_fault_fails_its_task(self, stack: Stack, make: Any, text: str) -> None:
        makes = then(Report, make, Report)
        async with stack.serving(stack.service(makes)):
            name, message = failure_of(await stack.run(user="a"))
            assert (name, text in message) == (CONFIG_ERROR, True), message
            assert result_of(await stack.run(user="b")) == ["b", ["b"]]

    @pytest.mark.parametrize("names", [[("a",), ("b",)], [(), ("a",)], [("a",), ()]])
    async def test_objects_with_other_steps_are_refused(self, stack: Stack, names: Any) -> None:
        makes = then(*(partial(WithOwnStep, *each) for each in names))
        async with stack.serving(stack.service(makes)):
            name, message = failure_of(await stack.run())
            assert name == CONFIG_ERROR
            assert "made a WithOwnStep with other steps than the first one" in message

    async def test_objects_with_the_same_steps_of_their_own(self, stack: Stack) -> None:
        async with stack.serving(stack.service(lambda: WithOwnStep("a"))):
            assert [result_of(await stack.run()) for _ in range(2)] == ["begun"] * 2


def connect() -> list[str]:
    return ["a connection"]


class Caches(Workflow):
    """Keeps nothing of its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = asyncio.Event()

    def run(self, **arguments: Any) -> WorkflowHandler:  # type: ignore[override]
        # The library sets attributes when a run begins.
        return super().run(**arguments)

    @cached_property
    def model(self) -> object:
        if not self.is_open.is_set():
            raise AttributeError  # the library looks at all attributes when it searches for steps
        return object()

    @step
    async def use(self, ev: StartEvent, client: Annotated[list[str], Resource(connect)]) -> Collected:
        self.is_open.set()
        assert self.model is self.model
        return Collected()

    @step
    def end(self, ev: Collected) -> StopEvent:
        return StopEvent(result="done")


class TestSharedInstances:
    async def test_a_step_that_sets_an_attribute_is_named_once(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with stack.serving(stack.service(Report(), "reports")):
            for user in "ab":
                await stack.run("reports", user=user)
        [text] = warnings_in(caplog)
        assert "service reports: the step 'collect' has changed `self.user`" in text
        assert "all runs share" in text
        assert "Serve the class Report, or a function that returns a new workflow" in text

    async def test_each_service_is_told(self, stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
        workflow = Report()
        one, two = (stack.service(workflow, name) for name in ("one", "two"))
        async with stack.serving(one), stack.serving(two):
            for name in ("one", "two", "one"):
                await stack.run(name, user=name)
        assert [text.partition(":")[0] for text in warnings_in(caplog)] == ["service one", "service two"]

    @pytest.mark.parametrize("what", ["new", "removed"])
    async def test_a_new_and_a_removed_attribute(
        self, stack: Stack, caplog: pytest.LogCaptureFixture, what: str
    ) -> None:
        class Changes(Workflow):
            def __init__(self) -> None:
                super().__init__()
                self.removed = 1

            @step
            def change(self, ev: StartEvent) -> StopEvent:  # in a thread
                if what == "new":
                    self.new = threading.get_ident()
                else:
                    del self.removed
                return StopEvent()

        async with stack.serving(stack.service(Changes())):
            await stack.run()
        [text] = warnings_in(caplog)
        assert f"the step 'change' has changed `self.{what}`" in text

    @pytest.mark.parametrize("change", [dict.popitem, lambda held: held["lines"].append("b")])
    async def test_what_changes_inside_of_an_attribute(
        self, stack: Stack, caplog: pytest.LogCaptureFixture, change: Callable[[dict[str, Any]], object]
    ) -> None:
        class Changes(Workflow):
            def __init__(self) -> None:
                super().__init__()
                self.held = {"lines": ["a"], "more": ["b"]}

            @step
            async def change(self, ev: StartEvent) -> StopEvent:
                change(self.held)
                return StopEvent()

        async with stack.serving(stack.service(Changes())):
            for _ in range(2):
                task_id = await stack.submit()
                await stack.end(task_id)
        [text] = warnings_in(caplog)
        assert "the step 'change' has changed `self.held`" in text

    async def test_a_step_that_fails(self, stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
        class Fails(Workflow):
            @step
            async def fall(self, ev: StartEvent) -> StopEvent:
                self.fallen = True
                raise ValueError("down")

        async with stack.serving(stack.service(Fails())):
            await stack.run()
        assert len(warnings_in(caplog)) == 1

    async def test_steps_at_the_same_time_are_not_blamed_alone(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Two(Workflow):
            def __init__(self) -> None:
                super().__init__()
                self.begun, self.changed, self.may_end = (asyncio.Event() for _ in range(3))

            @step
            async def watches(self, ev: StartEvent) -> StopEvent | Collected:
                if ev.role == "changes":
                    return Collected()
                self.begun.set()
                await self.changed.wait()
                return StopEvent()

            @step
            async def changes(self, ev: Collected) -> StopEvent:
                self.last = ev
                self.changed.set()
                await self.may_end.wait()
                return StopEvent()

        workflow = Two()
        async with stack.serving(stack.service(workflow)):
            watching = await stack.submit(role="watches")
            await workflow.begun.wait()
            changing = await stack.submit(role="changes")
            await stack.end(watching)
            workflow.may_end.set()
            await stack.end(changing)
        [text] = warnings_in(caplog)
        assert "the step 'changes' or 'watches' has changed `self.last`" in text

    async def test_a_run_method_that_sets_an_attribute(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Own(Workflow):
            def run(self, who: str) -> WorkflowHandler:  # type: ignore[override]
                self.who = who
                return super().run()

            @step
            async def end(self, ev: StartEvent) -> StopEvent:
                return StopEvent(result=self.who)

        async with stack.serving(stack.service(Own())):
            await stack.run(who="me")
        [text] = warnings_in(caplog)
        assert "the method 'run' has changed `self.who`" in text

    async def test_caches_and_the_library_are_not_reported(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        workflow = Caches()
        async with stack.serving(stack.service(workflow)):
            assert "model" not in vars(workflow)
            assert [result_of(await stack.run()) for _ in range(3)] == ["done"] * 3
        assert "model" in vars(workflow)
        assert warnings_in(caplog) == []

    async def test_a_factory_that_returns_one_object_shares_it(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        Report.meeting = asyncio.Barrier(2)
        workflow = Report()
        async with stack.serving(stack.service(lambda: workflow)):
            for _ in range(2):
                await asyncio.gather(*(stack.run(user=user) for user in "ab"))
        assert len(warnings_in(caplog)) == 1
        assert sorted(workflow.notes) == ["a", "a", "b", "b"]

    async def test_a_factory_that_returns_objects_again(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = [Report(), Report()]
        turns = iter([*pool, pool[1], pool[0], pool[1], pool[0]])
        async with stack.serving(stack.service(lambda: next(turns))):
            for user in "abcde":
                assert result_of(await stack.run(user=user))[0] == user
        assert len(warnings_in(caplog)) == 1
