"""Events and outcomes on their way to the control plane."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
from workflows.handler import WorkflowHandler

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    EventsMissingError,
    LlamaDeployError,
    NotFoundError,
    PayloadTooLargeError,
    ProtocolVersionError,
    UnavailableError,
    UntrustedHostError,
)
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.run import attempt_reports as module
from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.event_shares import MAX_ALL_CHARACTERS, MAX_SHARE, MIN_SHARE, event_share
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.values.payloads import StreamedEvent
from llama_deploy.services.worker import report_publisher
from llama_deploy.services.worker.report_publisher import ReportPublisher
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import (
    MAX_REPORT_BYTES,
    AttemptEvents,
    AttemptOutcome,
    EventPayload,
)

KEY = AttemptKey("task", 2, "secret")


class Wire:
    """Stands for the queue: takes what the test lets pass, and fails when the test says so."""

    def __init__(self) -> None:
        self.messages: list[QueueMessage] = []
        self.uploaded: list[QueueMessage] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: list[Exception] = []
        self.arrived = asyncio.Event()

    async def publish(self, message: QueueMessage) -> None:
        self.arrived.set()
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.messages.append(message)

    async def upload(self, message: QueueMessage) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.uploaded.append(message)

    def events(self) -> list[tuple[int, list[Any]]]:
        sent = [AttemptEvents.model_validate(message.data) for message in self.messages]
        return [(item.first, [event.data["n"] for event in item.events]) for item in sent]


def publisher_of(wire: Wire) -> ReportPublisher:
    return ReportPublisher(wire.publish, upload=wire.upload)


def event(number: int, padding: int = 0) -> StreamedEvent:
    payload = EventPayload(type="E", data={"n": number, "padding": "x" * padding})
    return StreamedEvent(payload, size=20 + padding)


async def test_the_first_leaves_at_once_and_the_rest_gathers() -> None:
    wire = Wire()
    wire.gate.clear()
    sender = AttemptReports(KEY, wire.publish)
    await sender.add(event(0))
    await wire.arrived.wait()
    for number in range(1, 5):
        await sender.add(event(number))
    wire.gate.set()
    first, rest = await sender.settle()
    assert wire.events() == [(0, [0])]
    assert (first, [item.data["n"] for item in rest]) == (1, [1, 2, 3, 4]), "they travel with the outcome"


async def test_large_events_are_not_gathered_beyond_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH_CHARACTERS", 250)
    wire = Wire()
    sender = AttemptReports(KEY, wire.publish)
    for number in range(7):
        await sender.add(event(number, padding=80))
    first, rest = await sender.settle()
    assert wire.events() == [(0, [0, 1]), (2, [2, 3]), (4, [4, 5])]
    assert (first, [item.data["n"] for item in rest]) == (6, [6])


async def test_reading_waits_while_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    wire = Wire()
    wire.gate.clear()
    sender = AttemptReports(KEY, wire.publish)
    await sender.add(event(0))
    await sender.add(event(1))
    third = asyncio.create_task(sender.add(event(2)))
    await wire.arrived.wait()
    assert not third.done()
    wire.gate.set()
    await third
    await sender.settle()
    await sender.close()


async def test_all_attempts_of_an_instance_keep_a_limited_amount_of_text() -> None:
    attempts, padding = 100, 100_000
    wire = Wire()
    wire.gate.clear()
    senders = [
        AttemptReports(KEY, wire.publish, max_characters=event_share(attempts)) for _ in range(attempts)
    ]
    kept = [0] * attempts

    async def stream(place: int) -> None:
        for number in range(100):
            await senders[place].add(event(number, padding))
            kept[place] += padding

    streams = [asyncio.create_task(stream(place)) for place in range(attempts)]
    await eventually(lambda: all(size >= event_share(attempts) for size in kept))
    await asyncio.sleep(0)
    assert not any(each.done() for each in streams)
    assert sum(kept) <= MAX_ALL_CHARACTERS + attempts * padding  # of a billion
    for sender in senders:
        await sender.close()
    await asyncio.gather(*streams, return_exceptions=True)


@pytest.mark.parametrize(
    ("attempts", "share"), [(1, MAX_SHARE), (10, MAX_ALL_CHARACTERS // 10), (10_000, MIN_SHARE)]
)
def test_more_attempts_have_smaller_shares(attempts: int, share: int) -> None:
    assert event_share(attempts) == share


async def test_closing_wakes_who_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    wire = Wire()
    wire.gate.clear()
    sender = AttemptReports(KEY, wire.publish)
    await sender.add(event(0))
    second = asyncio.create_task(sender.add(event(1)))
    await wire.arrived.wait()
    await sender.close()
    with pytest.raises(ClosedError, match="the attempt has ended"):
        await asyncio.wait_for(second, 10)


async def test_events_survive_an_absent_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_publisher, "_BACKOFF", Backoff(first=0.001, longest=0.001))
    wire = Wire()
    wire.errors = [UnavailableError("away"), ConfigError("a wrong password")]
    sender = AttemptReports(KEY, publisher_of(wire).publish)
    await sender.add(event(0))
    await wire.arrived.wait()
    assert await sender.settle() == (1, [])
    assert wire.events() == [(0, [0])]


async def test_what_the_queue_refuses_for_good_fails_the_attempt() -> None:
    wire = Wire()
    wire.errors = [PayloadTooLargeError("too large")]
    ending = RunOutcome(TaskStatus.SUCCEEDED, value="large")
    reports = AttemptReports(KEY, wire.publish)
    outcome = await reports.finish(ending, {"a": 1})
    assert outcome.status is TaskStatus.FAILED
    assert outcome.error is not None
    assert outcome.error.type == "llama_deploy.errors.PayloadTooLargeError"
    assert outcome.session_state is None
    assert [message.action for message in wire.messages] == [ActionTypes.COMPLETED_TASK]


async def test_the_end_of_an_attempt_survives_refused_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_publisher, "_BACKOFF", Backoff(first=0.001, longest=0.001))
    wire = Wire()
    wire.errors = [ConfigError("a wrong password")] * 5
    ending = RunOutcome(TaskStatus.SUCCEEDED, value="costly")
    reports = AttemptReports(KEY, publisher_of(wire).publish)
    outcome = await reports.finish(ending, None)
    assert (outcome.status, outcome.value) == (TaskStatus.SUCCEEDED, "costly")
    assert [message.action for message in wire.messages] == [ActionTypes.COMPLETED_TASK]


async def test_an_event_that_is_refused_for_good_fails_the_attempt() -> None:
    wire = Wire()
    wire.errors = [PayloadTooLargeError("too large")]
    reports = AttemptReports(KEY, wire.publish)
    await reports.add(event(0))
    await wire.arrived.wait()
    ending = RunOutcome(TaskStatus.SUCCEEDED)
    outcome = await reports.finish(ending, None)
    assert (outcome.status, outcome.first, outcome.events) == (TaskStatus.FAILED, 0, [])
    assert AttemptOutcome.model_validate(wire.messages[0].data).token == "secret"  # noqa: S105


def message_of(size: int) -> QueueMessage:
    return QueueMessage(data={"text": "x" * size})


async def test_a_large_report_is_uploaded_and_a_small_one_is_not() -> None:
    wire = Wire()
    publisher = publisher_of(wire)
    small, large = message_of(MAX_REPORT_BYTES - 1000), message_of(MAX_REPORT_BYTES)
    await publisher.publish(small)
    await publisher.publish(large)
    assert (wire.messages, wire.uploaded) == ([small], [large])


async def test_a_report_that_is_too_large_for_the_queue_is_uploaded() -> None:
    wire = Wire()
    wire.errors = [PayloadTooLargeError("more than 1 KiB")]
    message = message_of(2000)
    await publisher_of(wire).publish(message)
    assert (wire.messages, wire.uploaded) == ([], [message])


async def test_an_upload_waits_for_earlier_reports_and_outages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report_publisher, "_BACKOFF", Backoff(first=0.001, longest=0.001))
    wire = Wire()
    wire.errors = [EventsMissingError("0 is next"), UnavailableError("away"), EventsMissingError("1 is next")]
    message = message_of(MAX_REPORT_BYTES)
    await publisher_of(wire).publish(message)
    assert wire.uploaded == [message]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the control plane does not accept reports; retrying: away"
    ]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("the certificate is being replaced"),
        ProtocolVersionError("another release", version=2, supported=1),
        NotFoundError("no such path"),
        UntrustedHostError("unknown host"),
    ],
)
async def test_an_upload_waits_while_the_control_plane_is_deployed_wrongly(
    error: LlamaDeployError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_publisher, "_BACKOFF", Backoff(first=0.001, longest=0.001))
    wire = Wire()
    wire.errors = [error] * 5
    message = message_of(MAX_REPORT_BYTES)
    await publisher_of(wire).publish(message)
    assert (wire.messages, wire.uploaded) == ([], [message])


async def test_a_report_that_is_too_large_for_the_control_plane_goes_over_the_queue() -> None:
    wire = Wire()
    wire.errors = [PayloadTooLargeError("more than 4 MiB")]
    message = message_of(MAX_REPORT_BYTES)
    await publisher_of(wire).publish(message)
    assert (wire.messages, wire.uploaded) == ([message], [])


async def test_a_report_that_is_too_large_for_both_ways_fails() -> None:
    wire = Wire()
    wire.errors = [PayloadTooLargeError("more than 4 MiB"), PayloadTooLargeError("more than 8 MiB")]
    with pytest.raises(PayloadTooLargeError):
        await publisher_of(wire).publish(message_of(MAX_REPORT_BYTES))
    assert (wire.messages, wire.uploaded) == ([], [])


class Nothing(Workflow):
    @step
    async def end(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("value"))


async def publish_end_of(handler: WorkflowHandler, wire: Wire) -> None:
    await handler
    event = handler.get_stop_event()
    assert event is not None
    outcome = RunOutcome.succeeded(event, handler.ctx)
    await AttemptReports(KEY, wire.publish).finish(outcome, None)


@pytest.mark.parametrize("value", ["text", 3, 2.5, True, None, [1, "two"], {"a": {"b": None}}, 1e22, 'a"b'])
async def test_a_result_travels_once_and_comes_out_as_it_was(value: Any) -> None:
    wire = Wire()
    handler = Nothing().run(value=value)
    await publish_end_of(handler, wire)
    outcome = AttemptOutcome.model_validate_json(AttemptOutcome(**wire.messages[0].data).model_dump_json())
    assert (outcome.result, outcome.terminal_event) == (None, EventPayload(type="StopEvent", data={}))
    assert (outcome.text, outcome.stop_event) == (
        str(value),
        EventPayload(type="StopEvent", data={"result": value}),
    )


class Answer(StopEvent):
    text: str
    number: int = 3


class Answering(Workflow):
    @step
    async def end(self, ev: StartEvent) -> Answer:
        return Answer(text=ev.get("text"))


async def test_a_stop_event_of_the_workflow_travels_once() -> None:
    wire = Wire()
    handler = Answering().run(text="42")
    await publish_end_of(handler, wire)
    assert wire.messages[0].encode().count(b'"42"') == 1
    outcome = AttemptOutcome.model_validate(wire.messages[0].data)
    assert json.loads(outcome.text) == {"text": "42", "number": 3}
    assert outcome.stop_event == EventPayload(type="Answer", data={"text": "42", "number": 3})


async def test_a_text_that_differs_from_the_value_is_sent_too() -> None:
    wire = Wire()
    handler = Nothing().run(value=(1, 2))
    await publish_end_of(handler, wire)
    outcome = AttemptOutcome.model_validate(wire.messages[0].data)
    assert (outcome.text, outcome.value) == ("(1, 2)", [1, 2])
