"""Services that only process messages complete tasks, with the guarantees of workflow services."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from workflows.events import Event

from llama_deploy import QueueMessage
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.errors import UnavailableError
from llama_deploy.message_consumers import BaseMessageQueueConsumer, RemoteMessageConsumer
from llama_deploy.messages import ActionTypes
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import ServiceDefinition, TaskDefinition, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import Heartbeat, HeartbeatReply
from llama_deploy.types.services import Registration
from llama_deploy.web.http_server import HttpServer
from tests.integration.custom_services import Custom, consuming, custom
from tests.integration.in_process import PATIENCE, Stack, failure_of, result_of, running_stack, stop, until


class Note(Event):
    text: str


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


def arguments_of(message: QueueMessage) -> Any:
    return json.loads(message.data["input"])


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of reports that were not sent."""
    return [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "action", "") == "report_refused" and record.levelno == logging.WARNING
    ]


async def shout(service: Custom, message: QueueMessage) -> str:
    return str(arguments_of(message)["text"]).upper()


async def publish_only(service: Custom, message: QueueMessage) -> None:
    await service.publish_result(message.data["task_id"], arguments_of(message)["text"].upper())


async def never(service: Custom, message: QueueMessage) -> None:
    await asyncio.Event().wait()


class TestResults:
    async def test_a_returned_value_ends_the_task(self, stack: Stack) -> None:
        async def count(service: Custom, message: QueueMessage) -> dict[str, int]:
            return {"length": len(arguments_of(message)["text"])}

        async with consuming(custom(stack, count)):
            view = await stack.run("custom", text="four")
        assert result_of(view) == {"length": 4}
        assert view.result is not None
        assert view.result.result == "{'length': 4}"
        assert view.attempt == 1
        (last,) = await stack.events(view.task_id)
        assert (last.type, last.data, last.terminal) == ("StopEvent", {"result": {"length": 4}}, True)

    async def test_a_published_result_ends_the_task(self, stack: Stack) -> None:
        service = custom(stack, publish_only)
        async with consuming(service):
            view = await stack.run("custom", text="hey")
        assert result_of(view) == "HEY"
        assert view.result is not None
        assert view.result.result == "HEY"
        assert [message.action for message in service.taken] == [ActionTypes.NEW_TASK]

    async def test_the_client_gets_the_history_and_the_data_of_a_result(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            history: list[Any] = [{"role": "user", "content": "hi"}]
            await service.publish_result(
                message.data["task_id"], "done", history=history, data={"tokens": 12}
            )

        async with consuming(custom(stack, work)):
            view = await stack.run("custom")
        assert view.result is not None
        assert view.result.result == "done"
        assert view.result.history == [{"role": "user", "content": "hi"}]
        assert view.result.data == {"tokens": 12}

    async def test_a_result_needs_no_message_type(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            data = {"task_id": message.data["task_id"], "history": [], "result": "done", "data": {}}
            await service.publish(QueueMessage(action=ActionTypes.COMPLETED_TASK, data=data))

        async with consuming(custom(stack, work)):
            assert result_of(await stack.run("custom")) == "done"

    async def test_the_first_of_two_results_counts(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def work(service: Custom, message: QueueMessage) -> str:
            await service.publish_result(message.data["task_id"], "first")
            await service.publish_result(message.data["task_id"], "second")
            return "third"

        async with consuming(custom(stack, work)):
            assert result_of(await stack.run("custom")) == "first"
            await until(lambda: len(refusals(caplog)) == 2)
        assert all("has ended already" in text for text in refusals(caplog))

    async def test_a_failure_after_the_result_is_logged_and_changes_nothing(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            await service.publish_result(message.data["task_id"], "done")
            raise ValueError("too late")

        async with consuming(custom(stack, work)):
            assert result_of(await stack.run("custom")) == "done"
            await until(lambda: len(refusals(caplog)) == 1)
        assert "too late" in refusals(caplog)[0]

    async def test_a_result_for_a_task_of_somebody_else_is_refused_once(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        service = custom(stack, shout)
        async with consuming(service):
            await asyncio.wait_for(service.publish_result("unknown", "mine"), PATIENCE)
            assert result_of(await stack.run("custom", text="a")) == "A"
        assert len(refusals(caplog)) == 1
        assert "unknown" in refusals(caplog)[0]

    async def test_a_published_failure_fails_the_task(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            await service.publish_result(message.data["task_id"], "no luck", status=TaskStatus.FAILED)

        async with consuming(custom(stack, work)):
            view = await stack.run("custom")
        assert view.status is TaskStatus.FAILED
        assert failure_of(view)[1] == "no luck"

    async def test_a_result_may_be_returned(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> TaskResult:
            return TaskResult(task_id=message.data["task_id"], result="text", value={"n": 1})

        async with consuming(custom(stack, work)):
            view = await stack.run("custom")
        assert result_of(view) == {"n": 1}
        assert view.result is not None
        assert view.result.result == "text"

    async def test_a_status_that_ends_nothing_is_refused(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            await service.publish_result(message.data["task_id"], "half", status=TaskStatus.RUNNING)

        async with consuming(custom(stack, work)):
            kind, text = failure_of(await stack.run("custom"))
        assert kind == "llama_deploy.errors.InvalidRequestError"
        assert "terminal" in text

    async def test_a_result_beside_the_service_is_refused_with_advice(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def work(service: Custom, message: QueueMessage) -> str:
            report = QueueMessage(
                type="control_plane",
                action=ActionTypes.COMPLETED_TASK,
                data=TaskResult(task_id=message.data["task_id"], result="beside").model_dump(),
            )
            await service.message_queue.publish(report, service.get_topic("control_plane"))
            await until(lambda: "publish it with `BaseService.publish`" in caplog.text)
            return "in order"

        async with consuming(custom(stack, work)):
            assert result_of(await stack.run("custom")) == "in order"

    async def test_a_malformed_result_fails_its_task_and_says_what_is_missing(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            await service.publish(
                QueueMessage(type="control_plane", action=ActionTypes.COMPLETED_TASK, data={"result": "done"})
            )

        async with consuming(custom(stack, work)):
            kind, text = failure_of(await stack.run("custom"))
        assert kind == "llama_deploy.errors.InvalidRequestError"
        assert "task_id" in text

    async def test_a_large_result_reaches_the_client(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> str:
            return "r" * 1_000_000

        async with consuming(custom(stack, work)):
            assert len(result_of(await stack.run("custom"))) == 1_000_000


class TestFailures:
    async def test_an_exception_fails_the_task(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            raise KeyError("missing")

        service = custom(stack, work)
        async with consuming(service):
            view = await stack.run("custom")
        assert view.status is TaskStatus.FAILED
        assert failure_of(view) == ("builtins.KeyError", "'missing'")
        assert view.result is not None
        assert view.result.error is not None
        assert view.result.error.traceback is not None
        assert 'raise KeyError("missing")' in view.result.error.traceback
        assert len(service.taken) == 1

    @pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
    async def test_what_would_end_the_process_only_fails_the_task(
        self, stack: Stack, raised: BaseException
    ) -> None:
        async def work(service: Custom, message: QueueMessage) -> str:
            if arguments_of(message).get("leave"):
                raise raised
            return "here"

        async with consuming(custom(stack, work)):
            kind, text = failure_of(await stack.run("custom", leave=True))
            assert kind == f"{type(raised).__module__}.{type(raised).__name__}"
            assert "process_message" in text
            assert result_of(await stack.run("custom")) == "here"

    async def test_a_result_that_is_not_json_fails_the_task(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> object:
            return object()

        async with consuming(custom(stack, work)):
            kind, _ = failure_of(await stack.run("custom"))
        assert kind == "llama_deploy.errors.SerializationError"


class TestMessages:
    async def test_it_has_what_a_task_of_0_6_has(self, stack: Stack) -> None:
        service = custom(stack, shout)
        session_id = await stack.session()
        async with consuming(service):
            view = await stack.run("custom", session_id, text="hey")
        (message,) = service.taken
        assert message.type == "custom"
        assert TaskDefinition(**message.data) == TaskDefinition(
            input='{"text": "hey"}', task_id=view.task_id, session_id=session_id, agent_id="custom"
        )

    async def test_a_large_input_is_complete(self, stack: Stack) -> None:
        async def measure(service: Custom, message: QueueMessage) -> int:
            return len(arguments_of(message)["text"])

        async with consuming(custom(stack, measure)):
            # Larger than what the answer to a claim carries.
            assert result_of(await stack.run("custom", text="i" * 10_000_000)) == 10_000_000

    async def test_another_message_than_a_task_is_processed_too(self, stack: Stack) -> None:
        failures = 2

        async def work(service: Custom, message: QueueMessage) -> str | None:
            nonlocal failures
            if message.action is ActionTypes.NEW_TOOL_CALL:
                failures -= 1
                if failures >= 0:
                    raise ValueError("again, please")
            return None

        service = custom(stack, work)
        async with consuming(service):
            call = QueueMessage(type="custom", action=ActionTypes.NEW_TOOL_CALL, data={"tool": "hammer"})
            await stack.queue.publish(call, service.get_topic("custom"))
            # An error returns it to the queue.
            await until(lambda: len(service.taken) == 3)
        assert {message.data["tool"] for message in service.taken} == {"hammer"}

    async def test_other_messages_are_published_as_they_are(self, stack: Stack) -> None:
        service = custom(stack, shout)
        async with await stack.queue.subscribe(service.get_topic("tools")) as tools:
            call = QueueMessage(type="tools", action=ActionTypes.COMPLETED_TASK, data={"task_id": "t"})
            await service.publish(call)
            (delivery,) = await tools.receive(1)
            await delivery.ack()
        assert delivery.message.data == {"task_id": "t"}
        assert delivery.message.publisher_id == "custom-publisher"

    async def test_events_for_a_task_are_messages_of_their_own(self, stack: Stack) -> None:
        notes: list[str] = []

        async def work(service: Custom, message: QueueMessage) -> None:
            if message.action is ActionTypes.NEW_TASK:
                return
            definition = TaskDefinition(**message.data)
            notes.append(json.loads(definition.input)["value"]["text"])
            if notes[-1] == "end":
                await service.publish_result(definition.task_id, " ".join(notes))
            if notes[-1] == "bad":
                raise ValueError("an event that cannot be read is dropped")

        service = custom(stack, work)
        async with consuming(service):
            task_id = await stack.submit("custom")
            for text in ("one", "bad", "two", "end"):
                await stack.send(task_id, Note(text=text))
            assert result_of(await stack.end(task_id)) == "one bad two end"
        actions = [message.action for message in service.taken]
        assert actions == [ActionTypes.NEW_TASK, *[ActionTypes.SEND_EVENT] * 4]
        assert {message.data["session_id"] for message in service.taken} == {
            service.taken[0].data["session_id"]
        }

    async def test_events_behind_the_result_are_not_processed(self, stack: Stack) -> None:
        release, notes = asyncio.Event(), list[str]()

        async def work(service: Custom, message: QueueMessage) -> str | None:
            if message.action is ActionTypes.NEW_TASK:
                return None
            notes.append(arguments_of(message)["value"]["text"])
            await release.wait()
            return notes[-1]

        service = custom(stack, work)
        async with consuming(service):
            task_id = await stack.submit("custom")
            await until(lambda: len(service.taken) == 1)
            for text in ("end", "late"):
                await stack.send(task_id, Note(text=text))
            await until(lambda: notes == ["end"])
            release.set()
            assert result_of(await stack.end(task_id)) == "end"
        assert notes == ["end"]

    async def test_a_consumer_that_posts_to_the_service_works_too(self, stack: Stack) -> None:
        """As a service does whose messages arrive at its HTTP server."""

        class Remote(Custom):
            url = ""

            def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002, ARG002
                return RemoteMessageConsumer(url=self.url, message_type=self.service_name)

        service = Remote(stack.queue, publish_only, gateway=stack.server.gateway())
        app = FastAPI()

        @app.post("/process_message")
        async def process_message(message: QueueMessage) -> None:
            await service.process_message(message)

        async with await HttpServer.start(app, host="127.0.0.1", port=0) as server:
            service.url = f"http://127.0.0.1:{server.port}/process_message"
            async with consuming(service):
                assert result_of(await stack.run("custom", text="over http")) == "OVER HTTP"


class TestStreams:
    async def test_streamed_events_come_before_the_result_in_order(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            for n in range(50):
                await service.publish_event(message, n, n=n)
            await service.publish_result(message.data["task_id"], "done")

        async with consuming(custom(stack, work)):
            view = await stack.run("custom")
        events = await stack.events(view.task_id)
        assert [event.data for event in events[:-1]] == [{"n": n} for n in range(50)]
        assert {event.type for event in events[:-1]} == {"Event"}
        assert [event.terminal for event in events] == [False] * 50 + [True]

    async def test_streamed_events_reach_the_client_while_the_task_runs(self, stack: Stack) -> None:
        seen = asyncio.Event()

        async def work(service: Custom, message: QueueMessage) -> str:
            await service.publish_event(message, 0, n=0)
            await seen.wait()
            return "done"

        async with consuming(custom(stack, work)):
            task_id = await stack.submit("custom")
            async for page in await stack.plane.tasks.events(task_id):
                if not page[-1].terminal:
                    assert json.loads(page[0].data) == {"n": 0}
                    seen.set()
            assert result_of(await stack.end(task_id)) == "done"

    async def test_an_event_after_the_result_is_refused(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def work(service: Custom, message: QueueMessage) -> None:
            await service.publish_result(message.data["task_id"], "done")
            await service.publish_event(message, 0, n=0)

        async with consuming(custom(stack, work)):
            view = await stack.run("custom")
            await until(lambda: len(refusals(caplog)) == 1)
        assert len(await stack.events(view.task_id)) == 1


class Deferring(Custom):
    """Only puts messages into a list; its processing loop does the work."""

    def __init__(self, stack: Stack, **options: Any) -> None:
        options = {"gateway": stack.server.gateway(), **options}
        super().__init__(stack.queue, self._keep, **options)
        self.waiting: asyncio.Queue[QueueMessage] = asyncio.Queue()
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def _keep(self, _service: Custom, message: QueueMessage) -> None:
        self.waiting.put_nowait(message)

    async def processing_loop(self) -> None:
        while True:
            message = await self.waiting.get()
            await self.is_open.wait()
            await self.publish_event(message, 0, began=True)
            await self.publish_result(message.data["task_id"], arguments_of(message)["text"].upper())


class TestProcessingLoops:
    async def test_a_result_may_come_later_from_the_processing_loop(self, stack: Stack) -> None:
        async with consuming(Deferring(stack)):
            views = await asyncio.gather(*(stack.run("custom", text=f"task {n}") for n in range(20)))
        assert [result_of(view) for view in views] == [f"TASK {n}" for n in range(20)]
        assert all(view.attempt == 1 for view in views)
        assert (await stack.events(views[0].task_id))[0].data == {"began": True}

    async def test_it_waits_longer_than_the_lease(self, stack: Stack) -> None:
        service = Deferring(stack)
        service.is_open.clear()
        async with consuming(service):
            task_id = await stack.submit("custom", text="slow")
            with pytest.raises(TimeoutError):
                await eventually(lambda: len(service.taken) > 1, seconds=2 * stack.plane.config.lease_seconds)
            service.is_open.set()
            view = await stack.end(task_id)
        assert (result_of(view), view.attempt) == ("SLOW", 1)

    async def test_a_cancelled_task_ends_and_its_result_is_refused(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        service = Deferring(stack)
        service.is_open.clear()
        async with consuming(service):
            task_id = await stack.submit("custom", text="unwanted")
            await until(lambda: len(service.taken) == 1)
            await stack.plane.tasks.cancel(task_id)
            assert (await stack.end(task_id)).status is TaskStatus.CANCELLED
            service.is_open.set()
            await until(lambda: len(refusals(caplog)) == 2)
            assert result_of(await stack.run("custom", text="next")) == "NEXT"


class TestSharingWork:
    async def test_tasks_run_side_by_side_up_to_the_limit(self, stack: Stack) -> None:
        together, most, running = asyncio.Event(), 0, 0

        async def work(service: Custom, message: QueueMessage) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 3:
                together.set()
            await together.wait()
            running -= 1
            return "done"

        async with consuming(custom(stack, work, max_concurrent_tasks=3)):
            views = await asyncio.gather(*(stack.run("custom") for _ in range(9)))
        assert [result_of(view) for view in views] == ["done"] * 9
        assert most == 3

    async def test_two_instances_share_the_work(self, stack: Stack) -> None:
        both = asyncio.Barrier(2)

        async def meet(service: Custom, message: QueueMessage) -> str:
            async with asyncio.timeout(PATIENCE):
                await both.wait()
            return "met"

        services = [custom(stack, meet, max_concurrent_tasks=1) for _ in range(2)]
        async with consuming(services[0]), consuming(services[1]):
            assert len((await stack.plane.services.get("custom")).instances) == 2
            views = await asyncio.gather(*(stack.run("custom") for _ in range(2)))
        assert [result_of(view) for view in views] == ["met", "met"]

    async def test_an_instance_may_name_itself(self, stack: Stack) -> None:
        class Named(Custom):
            @property
            def service_definition(self) -> ServiceDefinition:
                return super().service_definition.model_copy(update={"instance_id": "the-only-one"})

        async with consuming(Named(stack.queue, shout, gateway=stack.server.gateway())):
            (instance,) = (await stack.plane.services.get("custom")).instances
            assert instance.instance_id == "the-only-one"
            assert result_of(await stack.run("custom", text="a")) == "A"

    async def test_an_instance_that_was_cut_off_loses_its_task_and_changes_nothing(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Quiet(DirectGateway):
            is_cut_off = False

            def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
                if self.is_cut_off:
                    raise UnavailableError("nobody answers")
                return super().beat(heartbeat)

        release = asyncio.Event()

        async def slow(service: Custom, message: QueueMessage) -> None:
            await release.wait()
            await service.publish_event(message, 0, by="first")
            await service.publish_result(message.data["task_id"], "first")

        async def quick(service: Custom, message: QueueMessage) -> str:
            return "second"

        gateway = Quiet(stack.plane)
        first = Custom(stack.queue, slow, gateway=gateway, max_concurrent_tasks=1)
        async with consuming(first):
            task_id = await stack.submit("custom")
            await until(lambda: len(first.taken) == 1)
            gateway.is_cut_off = True
            async with consuming(custom(stack, quick)):
                view = await stack.end(task_id)
                assert (result_of(view), view.attempt) == ("second", 2)
                release.set()
                await until(lambda: any("rejected" in record.getMessage() for record in caplog.records))
            assert (await stack.end(task_id)) == view
            assert [event.data for event in await stack.events(task_id)] == [{"result": "second"}]
            gateway.is_cut_off = False

    async def test_what_an_older_attempt_publishes_does_not_count_for_a_newer_one(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = asyncio.Event()

        async def work(service: Custom, message: QueueMessage) -> str:
            attempt = message.data["attempt"]
            try:
                await release.wait()
            except asyncio.CancelledError:
                await service.publish_event(message, 0, by=attempt)
                await service.publish_result(message.data["task_id"], f"by {attempt}")
                raise
            return f"by {attempt}"

        service = custom(stack, work)
        async with consuming(service):
            task_id = await stack.submit("custom")
            await until(lambda: len(service.taken) == 1)
            # The running tasks of a removed service get their next attempts. Its instance registers again.
            await stack.plane.services.deregister("custom")
            await until(lambda: len(refusals(caplog)) == 2)
            await until(lambda: len(service.taken) == 2)
            release.set()
            view = await stack.end(task_id)
        assert (result_of(view), view.attempt) == ("by 2", 2)
        assert [event.data for event in await stack.events(task_id)] == [{"result": "by 2"}]

    async def test_a_processing_loop_may_say_which_attempt_it_means(
        self, stack: Stack, caplog: pytest.LogCaptureFixture
    ) -> None:
        service = Deferring(stack)
        service.is_open.clear()
        async with consuming(service):
            task_id = await stack.submit("custom", text="now")
            await until(lambda: len(service.taken) == 1)
            for attempt in (2, 1):
                data = {"task_id": task_id, "result": f"by {attempt}", "attempt": attempt}
                await service.publish(QueueMessage(action=ActionTypes.COMPLETED_TASK, data=data))
            assert result_of(await stack.end(task_id)) == "by 1"
        assert len(refusals(caplog)) == 1


class TestCancelling:
    async def test_processing_is_cancelled(self, stack: Stack) -> None:
        ended = asyncio.Event()

        async def work(service: Custom, message: QueueMessage) -> None:
            try:
                await never(service, message)
            finally:
                ended.set()

        service = custom(stack, work)
        async with consuming(service):
            task_id = await stack.submit("custom")
            await until(lambda: len(service.taken) == 1)
            await stack.plane.tasks.cancel(task_id)
            assert (await stack.end(task_id)).status is TaskStatus.CANCELLED
            await asyncio.wait_for(ended.wait(), PATIENCE)


class TestStopping:
    async def test_running_tasks_may_end(self, stack: Stack) -> None:
        release = asyncio.Event()

        async def work(service: Custom, message: QueueMessage) -> str:
            await release.wait()
            return "done"

        service = custom(stack, work, drain_timeout=PATIENCE)
        async with consuming(service) as working:
            task_id = await stack.submit("custom")
            await until(lambda: len(service.taken) == 1)
            working.cancel()
            release.set()
            await asyncio.wait({working})
        view = await stack.end(task_id)
        assert (result_of(view), view.attempt) == ("done", 1)
        assert (await stack.plane.services.get("custom")).instances == []

    async def test_a_task_that_cannot_end_runs_elsewhere_at_once(self, stack: Stack) -> None:
        service = custom(stack, never, drain_timeout=0.05)
        async with consuming(service):
            task_id = await stack.submit("custom", text="hand back")
            await until(lambda: len(service.taken) == 1)
        assert (await stack.plane.tasks.get(task_id)).status is TaskStatus.QUEUED
        async with consuming(custom(stack, shout)):
            assert result_of(await stack.end(task_id)) == "HAND BACK"

    async def test_deregistering_ends_consuming_and_it_can_begin_again(self, stack: Stack) -> None:
        service = custom(stack, shout)
        async with consuming(service) as working:
            assert result_of(await stack.run("custom", text="a")) == "A"
            for _ in range(2):
                await service.deregister_from_message_queue()
            await asyncio.wait_for(working, PATIENCE)
            again = asyncio.create_task((await service.register_to_message_queue())())
            assert result_of(await stack.run("custom", text="b")) == "B"
            await stop(again)
            await service.deregister_from_control_plane()


class Served(Deferring):
    """Takes its messages at its own HTTP server, which also runs the processing loop, as in 0.6."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack, gateway=None)
        self.port = asyncio.get_running_loop().create_future()

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002, ARG002
        url = f"http://127.0.0.1:{self.port.result()}/process_message"
        return RemoteMessageConsumer(url=url, message_type=self.service_name)

    async def launch_server(self) -> None:
        app = FastAPI()

        @app.post("/process_message")
        async def process_message(message: QueueMessage) -> None:
            await self.process_message(message)

        async with await HttpServer.start(app, host="127.0.0.1", port=0) as server:
            self.port.set_result(server.port)
            await self.processing_loop()


async def test_a_program_of_0_6_launches_and_registers_by_hand(stack: Stack) -> None:
    service = Served(stack)
    serving = asyncio.create_task(service.launch_server())
    await service.port
    await service.register_to_control_plane(stack.server.config.url)
    consuming_callable = await service.register_to_message_queue()
    consumer = asyncio.create_task(consuming_callable())
    try:
        views = await asyncio.gather(*(stack.run("custom", text=f"task {n}") for n in range(10)))
        assert [result_of(view) for view in views] == [f"TASK {n}" for n in range(10)]
    finally:
        await stop(consumer)
        await service.deregister_from_control_plane()
        await stop(serving)


class TestRegistering:
    async def test_the_url_may_come_with_the_settings_of_the_control_plane(self, stack: Stack) -> None:
        service = Custom(stack.queue, shout, control_plane_config=stack.server.config)
        assert service.control_plane_url == stack.server.config.url
        async with consuming(service):
            assert result_of(await stack.run("custom", text="by url")) == "BY URL"

    async def test_a_url_goes_before_the_settings(self, stack: Stack) -> None:
        service = Custom(
            stack.queue,
            shout,
            control_plane_url="http://127.0.0.1:1",
            control_plane_config=stack.server.config,
        )
        assert service.control_plane_url == "http://127.0.0.1:1"

    async def test_the_queue_may_come_before_the_control_plane(self, stack: Stack) -> None:
        service = Custom(stack.queue, shout)
        working = asyncio.create_task((await service.register_to_message_queue())())
        try:
            await service.register_to_control_plane(stack.server.config.url)
            assert result_of(await stack.run("custom", text="late")) == "LATE"
        finally:
            await stop(working)

    async def test_consuming_registers_a_service_that_knows_its_control_plane(self, stack: Stack) -> None:
        service = Custom(stack.queue, shout, control_plane_url=stack.server.config.url)
        working = asyncio.create_task((await service.register_to_message_queue())())
        try:
            await until(lambda: _is_registered(stack))
            assert result_of(await stack.run("custom", text="self")) == "SELF"
        finally:
            await stop(working)

    async def test_it_waits_for_a_control_plane_that_does_not_answer_yet(self, stack: Stack) -> None:
        class Starting(DirectGateway):
            refusals = 2

            async def register(self, definition: ServiceDefinition) -> Registration:
                self.refusals -= 1
                if self.refusals >= 0:
                    raise UnavailableError("not yet")
                return await super().register(definition)

        service = Custom(stack.queue, shout, gateway=Starting(stack.plane))
        working = asyncio.create_task((await service.register_to_message_queue())())
        try:
            await until(lambda: _is_registered(stack))
            assert result_of(await stack.run("custom", text="early")) == "EARLY"
        finally:
            await stop(working)

    async def test_session_state_can_be_read_and_merged(self, stack: Stack) -> None:
        async def work(service: Custom, message: QueueMessage) -> str:
            session_id = message.data["session_id"]
            state = await service.get_session_state(session_id) or {}
            await service.update_session_state(session_id, {"count": state.get("count", 0) + 1})
            return "counted"

        session_id = await stack.session()
        async with consuming(custom(stack, work)):
            for _ in range(2):
                assert result_of(await stack.run("custom", session_id)) == "counted"
        assert (await stack.plane.sessions.state(session_id)).state == {"count": 2}


async def _is_registered(stack: Stack) -> bool:
    return "custom" in await stack.plane.services.all()
