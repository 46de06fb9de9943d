"""What is sent to a workflow is refused before it is accepted, or its task shows what is wrong with it."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import field_validator
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import ConflictError, InvalidRequestError
from llama_deploy.services import WorkflowService
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import EventDefinition, SessionDefinition, TaskDefinition, TaskSubmission
from llama_deploy.types.owners import THE_DEFAULT_TENANT
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import post
from tests.integration.in_process import Stack, result_of, running_stack


class Answer(HumanResponseEvent):
    text: str
    days: int = 1

    @field_validator("text")
    @classmethod
    def is_known(cls, text: str) -> str:
        if text not in ("yes", "no"):
            raise ValueError("say yes or no")
        return text


class Trip(StartEvent):
    city: str
    days: int = 1


class Book(Workflow):
    @step
    async def ask(self, ev: Trip) -> InputRequiredEvent:
        return InputRequiredEvent(prefix=ev.city)

    @step
    async def book(self, ev: Answer) -> StopEvent:
        return StopEvent(result=[ev.text, ev.days])


class First:
    class Choice(HumanResponseEvent):
        number: int


class Second:
    class Choice(HumanResponseEvent):
        number: int


class Choose(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent()

    @step
    async def first(self, ev: First.Choice) -> StopEvent:
        return StopEvent(result="first")

    @step
    async def second(self, ev: Second.Choice) -> StopEvent:
        return StopEvent(result="second")


class NewTrip(StartEvent):
    place: str


class NewBook(Workflow):
    @step
    async def book(self, ev: NewTrip) -> StopEvent:
        return StopEvent(result=ev.place)


class Noting(WorkflowService):
    """Takes arguments of its own."""

    async def process_call(self, current_call: Any) -> None:
        current_call.run_kwargs = {}
        await super().process_call(current_call)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


def event(name: str, **fields: Any) -> EventDefinition:
    return EventDefinition(event_obj_str=json.dumps({"qualified_name": name, "value": fields}))


async def send(stack: Stack, task_id: str, name: str, /, **fields: Any) -> None:
    await stack.plane.tasks.send_event(task_id, event(name, **fields))


async def rejections(stack: Stack, task_id: str) -> list[dict[str, Any]]:
    return [each.data for each in await stack.events(task_id) if each.type == "InputRejectedEvent"]


async def asked(stack: Stack, *arguments: Any, **fields: Any) -> str:
    """Submit a task and wait until its run waits."""
    task_id = await stack.submit(*arguments, **fields)

    async def has_asked() -> bool:
        stored = await stack.store.read(lambda tx: tx.events.load(task_id))
        return any(each.type == "InputRequiredEvent" for each in stored)

    await eventually(has_asked)
    return task_id


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "city: missing, expected a string. It takes: city, days"),
        ({"city": "Oslo", "days": "many"}, "days: expected an integer, not 'many'"),
        ({"city": "Oslo", "dayss": 3}, "dayss: unknown; did you mean 'days'"),
        ({"start_event": {"city": 1}}, "city: expected a string, not 1"),
    ],
)
async def test_wrong_arguments_are_refused_before_a_task_is_stored(
    stack: Stack, arguments: dict[str, Any], match: str
) -> None:
    async with stack.serving(stack.service(Book())):
        with pytest.raises(InvalidRequestError, match=match):
            await stack.plane.tasks.submit(TaskSubmission(service_name="service", arguments=arguments))
        session = await stack.session()
        definition = TaskDefinition(agent_id="service", input=json.dumps(arguments), session_id=session)
        with pytest.raises(InvalidRequestError, match=match):
            await stack.plane.tasks.submit_definition(definition)
        assert await stack.plane.sessions.tasks(session) == []
        assert len(await stack.plane.sessions.all(THE_DEFAULT_TENANT)) == 1


async def test_a_task_that_exists_is_returned_whatever_the_service_accepts_now(stack: Stack) -> None:
    submission = TaskSubmission(service_name="service", task_id="t", arguments={"city": "Oslo"})
    async with stack.serving(stack.service(Book())):
        await stack.plane.tasks.submit(submission)
    async with stack.serving(stack.service(NewBook())):
        assert (await stack.plane.tasks.submit(submission)).task_id == "t"
        with pytest.raises(ConflictError):
            await stack.plane.tasks.submit(submission.model_copy(update={"arguments": {}}))


async def test_arguments_are_valid_if_any_living_version_accepts_them(stack: Stack) -> None:
    async with AsyncExitStack() as old:
        await old.enter_async_context(stack.serving(stack.service(Book())))
        async with stack.serving(stack.service(NewBook())):
            await stack.submit(city="Oslo")
            await stack.submit(place="Oslo")
            with pytest.raises(InvalidRequestError, match="place: missing"):
                await stack.submit(other="Oslo")
            await old.aclose()
            with pytest.raises(InvalidRequestError, match="place: missing"):
                await stack.submit(city="Oslo")


async def test_a_service_that_processes_calls_itself_takes_any_arguments(stack: Stack) -> None:
    template = stack.service(Book())
    service = Noting(Book(), stack.queue, template.config, gateway=template.gateway)
    async with stack.serving(service):
        await stack.submit(anything=1)


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        ("app.Answer", {}, "text: missing, expected a string; it accepts: .*Answer"),
        ("app.Answer", {"text": 1}, "Answer is not valid: text: expected a string, not 1"),
        ("app.Answer", {"text": "yes", "days": "few"}, "days: expected an integer, not 'few'"),
        ("app.Answer", {"text": "yes", "dayss": 1}, "did you mean 'days'"),
        ("app.Other", {}, "does not accept events of the class 'app.Other'; it accepts: "),
    ],
)
async def test_a_wrong_event_is_refused_and_the_task_still_waits(
    stack: Stack, name: str, fields: dict[str, Any], match: str
) -> None:
    async with stack.serving(stack.service(Book())):
        task_id = await asked(stack, city="Oslo")
        with pytest.raises(InvalidRequestError, match=match):
            await send(stack, task_id, name, **fields)
        await send(stack, task_id, "app.Answer", text="yes", days="2")
        assert result_of(await stack.end(task_id)) == ["yes", 2]
        assert await rejections(stack, task_id) == []


async def test_the_routes_refuse_with_422(stack: Stack) -> None:
    async with stack.serving(stack.service(Book())):
        task_id = await asked(stack, city="Oslo")
        session = (await stack.plane.tasks.get(task_id)).session_id
        http = HttpConnection(stack.server.config.url)
        wrong = event("Answer", days=1).model_dump()
        task = {"agent_id": "service", "input": "{}"}
        for path, body in (
            ("/tasks", {"service_name": "service"}),
            (f"/sessions/{session}/tasks", task),
            (f"/tasks/{task_id}/events", wrong),
            (f"/sessions/{session}/tasks/{task_id}/send_event", wrong),
        ):
            status, answer = await http.send(HttpRequest("POST", path, json=body))
            assert status == 422, path
            assert b"missing, expected a string" in answer
        await post(http, f"/tasks/{task_id}/events", event("Answer", text="no").model_dump())
        assert result_of(await stack.end(task_id)) == ["no", 1]
        found = SessionDefinition.model_validate(
            await http.request(HttpRequest("GET", f"/sessions/{session}"))
        )
        assert found.task_ids == [task_id]
        await http.close()


async def test_an_ambiguous_class_is_refused_and_its_full_name_is_accepted(stack: Stack) -> None:
    async with stack.serving(stack.service(Choose())):
        task_id = await asked(stack)
        for name in ("Choice", f"{__name__}.Choice", "__main__.Choice"):
            with pytest.raises(InvalidRequestError, match=r"ambiguous: name one of .*First.Choice, .*Second"):
                await send(stack, task_id, name, number=1)
        await send(stack, task_id, f"{__name__}.Second.Choice", number=1)
        assert result_of(await stack.end(task_id)) == "second"


@pytest.mark.parametrize("settings", [{}, {"idle_timeout": 0.05}, {"durability": "task"}], ids=str)
async def test_what_only_the_worker_can_judge_is_shown_and_can_be_answered_again(
    stack: Stack, settings: dict[str, Any]
) -> None:
    async with stack.serving(stack.service(Book(), **settings)):
        task_id = await asked(stack, city="Oslo")
        if "idle_timeout" in settings:

            async def parked() -> bool:
                return await stack.is_parked(task_id)

            await eventually(parked)
        await send(stack, task_id, "app.Answer", text="perhaps")

        async def shown() -> bool:
            stored = await stack.store.read(lambda tx: tx.events.load(task_id))
            return any(each.type == "InputRejectedEvent" for each in stored)

        await eventually(shown)
        await send(stack, task_id, "app.Answer", text="yes")
        assert result_of(await stack.end(task_id)) == ["yes", 1]
        (rejected,) = await rejections(stack, task_id)
        assert rejected["event"] == "app.Answer"
        assert "text: Value error, say yes or no" in rejected["reason"]


class Wide(StartEvent):
    topic: str


class Reads(Workflow):
    @step
    async def read(self, ctx: Context, ev: Wide) -> StopEvent:
        return StopEvent(result=[ev.topic, ev.get("note")])


async def test_a_workflow_may_read_arguments_that_it_does_not_declare(stack: Stack) -> None:
    async with stack.serving(stack.service(Reads())):
        assert result_of(await stack.run(topic="a", note="b")) == ["a", "b"]
