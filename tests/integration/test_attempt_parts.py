"""What does not fit into the answer to a claim is left out of it, and fetched by the attempt's owner."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.requests.attempts import attempt_parts
from llama_deploy.control_plane.requests.services import service_requests
from llama_deploy.control_plane.storage import read_budget
from llama_deploy.errors import (
    ConfigError,
    FencedOutError,
    LlamaDeployError,
    NotFoundError,
    ProtocolVersionError,
    TaskNotFoundError,
)
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.gateway import ControlPlaneGateway, HttpGateway
from llama_deploy.services.worker import claimed_parts
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import RUN_FORMAT, InboxRecord, RunHeadRecord
from llama_deploy.state_stores.sql.run_repositories import SQLInbox
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.types import EventDefinition, TaskStatus, TaskSubmission, TaskView
from llama_deploy.types.instance_protocol import (
    AttemptPart,
    ClaimReply,
    ClaimRequest,
    PartReply,
    PartRequest,
    TaskDispatch,
)
from llama_deploy.web.http_connection import HttpConnection
from tests.integration.conftest import Instance, beat, post, submit
from tests.integration.in_process import Stack, result_of, running_stack, until

EVENT = '{"qualified_name": "any.Event", "value": {}}'


async def fetch(gateway: ControlPlaneGateway, dispatch: TaskDispatch, token: str, part: AttemptPart) -> str:
    text, size = "", None
    while size is None or len(text) < size:
        reply = await gateway.part(request(dispatch, token, part, offset=len(text)))
        assert reply.text or not reply.size
        text, size = text + reply.text, reply.size
    return text


def request(dispatch: TaskDispatch, token: str, part: AttemptPart, **fields: Any) -> PartRequest:
    return PartRequest(task_id=dispatch.task_id, attempt=dispatch.attempt, token=token, part=part, **fields)


async def claim_with_state(http: HttpConnection, instance: Instance) -> tuple[TaskDispatch, ClaimReply]:
    session_id = await post(http, "/sessions/create")
    await post(http, f"/sessions/{session_id}/state", {"name": "Zoë"})
    view = await submit(http, arguments={"text": "x" * 100}, session_id=session_id)
    await instance.server.plane.tasks.send_event(view["task_id"], EventDefinition(event_obj_str=EVENT))
    dispatch = await instance.next_dispatch()
    return dispatch, await instance.claim(dispatch)


async def test_a_claim_holds_everything_that_is_small(http: HttpConnection, instance: Instance) -> None:
    _, reply = await claim_with_state(http, instance)

    assert (reply.input, reply.session_state, reply.omitted) == (
        json.dumps({"text": "x" * 100}),
        {"name": "Zoë"},
        [],
    )
    assert [entry.event.event_obj_str for entry in reply.inbox] == [EVENT]


async def test_a_run_of_another_release_leaves_its_attempt_unclaimed(
    instance: Instance, store: StateStore
) -> None:
    task = a_task("t", service_name="echo", status=TaskStatus.QUEUED, attempt=2, losses=1, has_run=True)
    head = RunHeadRecord(
        task_id="t", fingerprint="f", library_version="1", snapshot=None, state=None, format=RUN_FORMAT + 1
    )
    await store.transact(
        lambda tx: (tx.sessions.insert([a_session()]), tx.tasks.insert([task]), tx.runs.put([head]))
    )

    reply = await instance.claim(TaskDispatch(task_id="t", session_id="s1", agent_id="echo", attempt=2))

    assert (reply.granted, reply.retriable) == (False, True)
    assert (await store.read(lambda tx: tx.tasks.load(["t"])))["t"] == task


@pytest.mark.parametrize("over", ["http", "calls"])
async def test_the_owner_fetches_in_slices_what_was_omitted(
    http: HttpConnection, instance: Instance, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_parts, "MAX_CLAIM_CHARACTERS", 5)
    monkeypatch.setattr(attempt_parts, "MAX_SLICE_CHARACTERS", 7)
    dispatch, reply = await claim_with_state(http, instance)
    gateway: ControlPlaneGateway = (
        HttpGateway(instance.server.config.url) if over == "http" else instance.server.gateway()
    )

    assert sorted(reply.omitted) == ["inbox", "input", "session_state"]
    assert (reply.input, reply.session_state, reply.inbox) == ("", {}, [])
    got = {part: await fetch(gateway, dispatch, reply.token, part) for part in AttemptPart}
    await gateway.close()

    assert json.loads(got[AttemptPart.INPUT]) == {"text": "x" * 100}
    assert json.loads(got[AttemptPart.SESSION_STATE]) == {"name": "Zoë"}
    assert [entry["seq"] for entry in json.loads(got[AttemptPart.INBOX])] == [1]
    assert json.loads(got[AttemptPart.RUN]) is None


async def test_the_claims_of_one_request_share_the_limit(
    http: HttpConnection, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_parts, "MAX_CLAIM_CHARACTERS", 250)
    for _ in range(3):
        await submit(http, arguments={"text": "x" * 100})
    dispatches = [await instance.next_dispatch() for _ in range(3)]

    replies = await instance.server.plane.attempts.claim(
        [instance.claim_request(dispatch) for dispatch in dispatches]
    )

    assert [reply.omitted for reply in replies] == [[], [], ["input"]]


async def test_inboxes_that_are_too_large_together_are_not_read_for_claims(
    http: HttpConnection, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = EventDefinition(event_obj_str=EVENT)
    monkeypatch.setattr(read_budget, "MAX_READ_BYTES", 2 * len(event.model_dump_json()) + 1)
    dispatches = []
    for _ in range(3):
        task_id = (await submit(http))["task_id"]
        await instance.server.plane.tasks.send_event(task_id, event)
        dispatches.append(await instance.next_dispatch())

    read: list[str] = []
    load = SQLInbox.load

    def loading(self: SQLInbox, task_ids: Collection[str]) -> list[InboxRecord]:
        read.extend(task_ids)
        return load(self, task_ids)

    monkeypatch.setattr(SQLInbox, "load", loading)
    requests = [instance.claim_request(dispatch) for dispatch in dispatches]
    replies = await instance.server.plane.attempts.claim(requests)
    assert [reply.granted for reply in replies] == [True] * 3
    assert [reply.omitted for reply in replies] == [[], [], ["inbox"]]
    assert read == [dispatch.task_id for dispatch in dispatches[:2]]
    text = await fetch(instance.server.gateway(), dispatches[2], replies[2].token, AttemptPart.INBOX)
    assert [entry["seq"] for entry in json.loads(text)] == [1]


async def test_a_part_that_changes_while_it_is_read_begins_again(
    http: HttpConnection, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_parts, "MAX_SLICE_CHARACTERS", 7)
    dispatch, claimed = await claim_with_state(http, instance)
    gateway = instance.server.gateway()
    state = request(dispatch, claimed.token, AttemptPart.SESSION_STATE)
    before = await gateway.part(state)
    await post(http, f"/sessions/{dispatch.session_id}/state", {"name": "Bob"})

    after = await gateway.part(state.model_copy(update={"offset": 7, "digest": before.digest}))

    assert after.digest != before.digest
    assert after.text == '{"name"'


async def test_only_the_owner_may_fetch(http: HttpConnection, instance: Instance) -> None:
    dispatch, claimed = await claim_with_state(http, instance)
    gateway = instance.server.gateway()
    with pytest.raises(FencedOutError):
        await gateway.part(request(dispatch, "guessed", AttemptPart.INPUT))
    await instance.finish(dispatch)
    await post(http, f"/sessions/{dispatch.session_id}/delete?cancel=true")
    with pytest.raises(TaskNotFoundError):
        await gateway.part(request(dispatch, claimed.token, AttemptPart.INPUT))


async def test_the_answer_to_a_heartbeat_holds_a_limited_part_of_the_inbox(
    http: HttpConnection, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_requests, "MAX_INBOX_CHARACTERS", 2 * len(EVENT))
    dispatch, _ = await claim_with_state(http, instance)
    for _ in range(4):
        await instance.server.plane.tasks.send_event(dispatch.task_id, EventDefinition(event_obj_str=EVENT))

    seen = 1
    for expected in ([2, 3], [4, 5], []):
        told = [entry.seq for entry in (await beat(instance, dispatch, inbox_seq=seen)).inbox]
        assert told == expected
        seen = told[-1] if told else seen
    monkeypatch.setattr(service_requests, "MAX_INBOX_CHARACTERS", 1)
    assert [entry.seq for entry in (await beat(instance, dispatch, inbox_seq=2)).inbox] == [3]


class Ask(Workflow):
    """Counts in the session, and asks a person in its middle."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        await ctx.store.set("count", await ctx.store.get("count", default=0) + 1)
        return InputRequiredEvent(prefix=ev.get("question"))

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=f"{ev.response} {await ctx.store.get('count')}")


async def test_a_service_starts_from_parts_as_from_a_whole_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_parts, "MAX_CLAIM_CHARACTERS", 1)
    monkeypatch.setattr(attempt_parts, "MAX_SLICE_CHARACTERS", 100)
    async with running_stack() as stack:
        await stack.service(Ask()).register_to_control_plane()
        session_id = await stack.session()
        for count in (1, 2):
            task_id = await stack.submit("service", session_id, question="why")

            async def is_parked(task_id: str = task_id) -> bool:
                return await stack.is_parked(task_id)

            async with stack.serving(stack.service(Ask(), idle_timeout=0.05)):
                await until(is_parked)
            await stack.send(task_id, HumanResponseEvent(response="because"))
            # Another instance goes on from the journal, the inbox and the session's state.
            async with stack.serving(stack.service(Ask())):
                assert result_of(await stack.end(task_id)) == f"because {count}"


class Length(Workflow):
    @step
    async def measure(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=len(ev.get("text")))


class Faulty(DirectGateway):
    """Fails to fetch parts with some errors first, and names unknown parts in some claims."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack.plane)
        self.errors: list[LlamaDeployError] = []
        self.unknown: list[str] = []

    async def part(self, request: PartRequest) -> PartReply:
        if self.errors:
            raise self.errors.pop(0)
        return await super().part(request)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        omitted = [self.unknown.pop(0), *reply.omitted] if self.unknown else reply.omitted
        return reply.model_copy(update={"omitted": omitted})


@asynccontextmanager
async def faulty(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Stack, Faulty]]:
    """Run a service whose claims omit everything."""
    monkeypatch.setattr(attempt_parts, "MAX_CLAIM_CHARACTERS", 1)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="service")
    async with running_stack() as stack:
        gateway = Faulty(stack)
        async with stack.serving(WorkflowService(Length(), stack.queue, config, gateway=gateway)):
            yield stack, gateway


async def run_uncharged(stack: Stack) -> TaskView:
    """Run a task that would fail if one of its attempts was counted as lost."""
    submission = TaskSubmission(service_name="service", arguments={"text": "x" * 100}, max_attempts=1)
    return await stack.end((await stack.plane.tasks.submit(submission)).task_id)


@pytest.mark.parametrize(
    "error",
    [ConfigError("the certificate is being replaced"), ProtocolVersionError("other"), NotFoundError("none")],
)
async def test_parts_are_fetched_again_while_the_control_plane_is_deployed_wrongly(
    monkeypatch: pytest.MonkeyPatch, error: LlamaDeployError
) -> None:
    async with faulty(monkeypatch) as (stack, gateway):
        gateway.errors = [error] * 3
        view = await run_uncharged(stack)
    assert (result_of(view), view.attempt) == (100, 1)


async def test_an_attempt_whose_parts_cannot_be_fetched_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimed_parts, "_PATIENCE_SECONDS", 0.2)
    async with faulty(monkeypatch) as (stack, gateway):
        gateway.errors = [ConfigError("a wrong certificate")] * 3
        view = await run_uncharged(stack)
    assert result_of(view) == 100
    assert view.attempt > 1


async def test_an_attempt_with_a_part_of_a_newer_release_is_released(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with faulty(monkeypatch) as (stack, gateway):
        gateway.unknown = ["budget"]
        view = await run_uncharged(stack)
    assert (result_of(view), view.attempt) == (100, 2)
    (warning,) = (each for each in caplog.records if each.__dict__.get("action") == "claim_incomplete")
    assert "'budget'" in warning.getMessage()
    assert "upgrade this instance" in warning.getMessage()
