"""Runs that outlive their attempts: journals, parking and events that count once, over the real server."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.decisions.lifecycle import HARMLESS_AFTER
from llama_deploy.control_plane.storage.writer import Command
from llama_deploy.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    SessionBusyError,
    TaskFinishedError,
    TaskNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.services.gateway import HttpGateway
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import EventDefinition, ServiceDefinition
from llama_deploy.types.exact_values import MAX_NUMBER
from llama_deploy.types.instance_protocol import (
    EventPayload,
    JournalReply,
    JournalWrite,
    Parking,
    ReleaseRequest,
    RunHeader,
    TaskDispatch,
)
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, beat, get, post, read_stream, submit

HEADER = RunHeader(fingerprint="steps", library_version="2.26.1")


@pytest.fixture
async def gateway(server: ControlPlaneServer) -> AsyncIterator[HttpGateway]:
    gateway = HttpGateway(server.config.url)
    yield gateway
    await gateway.close()


def a_write(instance: Instance, dispatch: TaskDispatch, seq: int, **fields: Any) -> JournalWrite:
    given = {"entry": f"entry {seq}", "first": 0, "events": [], **fields}
    return JournalWrite(
        task_id=dispatch.task_id,
        attempt=dispatch.attempt,
        token=instance.token,
        seq=seq,
        header=HEADER,
        **given,
    )


async def write(instance: Instance, dispatch: TaskDispatch, seq: int, **fields: Any) -> JournalReply:
    writes = [a_write(instance, dispatch, seq, **fields)]
    (reply,) = await instance.server.plane.attempts.journal(writes)
    return reply


async def park(instance: Instance, dispatch: TaskDispatch, *, seq: int = 0, **parking: Any) -> JournalReply:
    wanted = Parking(**{"inbox_seq": 0, **parking})
    return await write(instance, dispatch, seq, entry=None, snapshot="snapshot", parking=wanted)


async def claimed(http: HttpConnection, instance: Instance, **fields: Any) -> TaskDispatch:
    await submit(http, task_id="t", **fields)
    dispatch = await instance.next_dispatch()
    assert (await instance.claim(dispatch)).granted
    return dispatch


def answer(text: str = "yes", **fields: Any) -> dict[str, Any]:
    event = json.dumps({"qualified_name": "app.Answer", "value": {"text": text}})
    return {"event_obj_str": event, **fields}


async def status(http: HttpConnection) -> str:
    return str((await get(http, "/tasks/t"))["status"])


async def stored_rows(store: StateStore) -> tuple[int, int]:
    """Return how many runs and journal entries are stored for the task."""

    def look(tx: StoreTransaction) -> tuple[int, int]:
        return len(tx.runs.load(["t"])), len(tx.runs.load_journal(["t"]))

    return await store.read(look)


@asynccontextmanager
async def one_transaction(server: ControlPlaneServer, writes: int) -> AsyncIterator[None]:
    """Have the writes that are begun in the block stored together."""
    go_on = threading.Event()
    writer = server.plane._writer
    holding = asyncio.create_task(writer.write(Command(lambda _: go_on.wait(30))))

    async def is_held() -> bool:
        return len(writer._batcher) == 0

    async def all_wait() -> bool:
        return len(writer._batcher) == writes

    try:
        await asyncio.sleep(0)  # let it be handed in
        await eventually(is_held)
        yield
        await eventually(all_wait)
    finally:
        go_on.set()
        await holding


# -- journals


async def test_the_next_attempt_gets_what_was_journalled(http: HttpConnection, instance: Instance) -> None:
    first = await claimed(http, instance)
    assert (await write(instance, first, 0, state="{1}")).stored
    assert (await write(instance, first, 1, running_seconds=2.5)).stored
    await instance.server.plane.attempts.release(
        [ReleaseRequest(task_id="t", attempt=1, token=instance.token)]
    )
    second = await instance.next_dispatch()
    run = (await instance.claim(second)).run
    assert run is not None
    assert (run.header, run.snapshot, run.state) == (HEADER, None, "{1}")
    assert (run.entries, run.next_seq, run.running_seconds) == (["entry 0", "entry 1"], 2, 2.5)
    assert (await write(instance, second, 2, snapshot="so far", state="{2}")).stored
    run = (await instance.claim(second)).run
    assert run is not None
    assert (run.snapshot, run.entries, run.next_seq, run.state) == ("so far", ["entry 2"], 3, "{2}")


async def test_losses_before_the_end_of_a_step_do_not_count(
    http: HttpConnection, instance: Instance, store: StateStore
) -> None:
    async def lose() -> None:
        death = {"instances": [instance.name], "reason": "was killed"}
        await post(http, "/instances/death", death)
        await instance.server.plane.services.register(
            ServiceDefinition(service_name="echo", instance_id=instance.name)
        )

    async def live_long() -> None:
        def change(tx: StoreTransaction) -> None:
            task = tx.tasks.load(["t"])["t"]
            tx.tasks.update([task._replace(claimed_at=datetime.now(UTC) - HARMLESS_AFTER)])

        await store.transact(change)

    dispatch = await claimed(http, instance, max_attempts=2)
    for seq in range(3):
        await live_long()
        assert (await write(instance, dispatch, seq, step_ended=True)).stored
        await lose()
        dispatch = await instance.next_dispatch()
        assert (await instance.claim(dispatch)).granted
    assert (await write(instance, dispatch, 3)).stored
    await lose()
    view = await get(http, "/tasks/t")
    assert view["status"] == "failed"
    assert "2 processes of service echo ended" in view["result"]["result"]


async def test_a_task_that_journalled_nothing_has_no_run(http: HttpConnection, instance: Instance) -> None:
    await submit(http)
    reply = await instance.claim(await instance.next_dispatch())
    assert (reply.granted, reply.run, reply.inbox_seq) == (True, None, 0)


async def test_a_write_that_comes_again_is_stored_once(http: HttpConnection, instance: Instance) -> None:
    dispatch = await claimed(http, instance)
    twice = a_write(instance, dispatch, 0, events=[EventPayload(type="Number", data={"n": 0})])
    writes = [twice, twice, a_write(instance, dispatch, 1, first=1)]
    replies = await instance.server.plane.attempts.journal(writes)
    assert [reply.stored for reply in replies] == [True, True, True]
    run = (await instance.claim(dispatch)).run
    assert run is not None
    assert run.entries == ["entry 0", "entry 1"]
    await instance.finish(dispatch, first=1)
    assert len(await read_stream(http, "/tasks/t/events")) == 2


async def test_a_claim_sees_a_write_of_the_same_transaction(
    http: HttpConnection,
    server: ControlPlaneServer,
    instance: Instance,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dispatch = await claimed(http, instance)
    for text in "ab":
        await post(http, "/tasks/t/events", answer(text))
    token = instance.token
    async with one_transaction(server, 3):
        states = [a_write(instance, dispatch, seq, state=state) for seq, state in enumerate(("{1}", None))]
        states[0] = states[0].model_copy(update={"consumed": [1], "snapshot": "so far"})
        writing = asyncio.create_task(server.plane.attempts.journal(states))
        await asyncio.sleep(0)  # let it be handed in first
        claiming = asyncio.create_task(instance.claim(dispatch))
    assert all(reply.stored for reply in await writing)
    reply = await claiming
    assert (reply.token, [entry.seq for entry in reply.inbox]) == (token, [2])
    assert reply.run is not None
    assert (reply.run.snapshot, reply.run.state, reply.run.next_seq) == ("so far", "{1}", 2)
    assert reply.run.entries == ["entry 0", "entry 1"]
    assert "tried alone" not in caplog.text


async def test_a_write_after_a_gap_is_over_and_one_before_its_events_is_not(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    gap = await write(instance, dispatch, 1)
    assert (gap.stored, gap.retriable) == (False, False)
    assert "has 0 entries" in gap.reason
    early = await write(instance, dispatch, 0, first=1)
    assert (early.stored, early.retriable) == (False, True)
    await instance.stream(dispatch, first=0, numbers=range(1))

    async def fits() -> bool:
        return (await write(instance, dispatch, 0, first=1)).stored

    await eventually(fits)


async def test_readers_of_the_stream_see_what_a_journal_brings(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    await instance.stream(dispatch, first=0, numbers=range(1))
    async with asyncio.timeout(10), http.stream(HttpRequest("GET", "/tasks/t/events")) as lines:
        assert json.loads(await anext(lines))["data"] == {"n": 0}
        await write(instance, dispatch, 0, first=1, events=[EventPayload(type="Number", data={"n": 7})])
        assert json.loads(await anext(lines))["data"] == {"n": 7}
        await instance.finish(dispatch, first=2)
        assert json.loads(await anext(lines))["terminal"]


async def test_what_an_old_owner_still_sends_is_refused_and_told_once(
    http: HttpConnection, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = await claimed(http, instance)
    stale = instance.token
    request = ReleaseRequest(task_id="t", attempt=1, token=stale)
    await instance.server.plane.attempts.release([request])
    second = await instance.next_dispatch()
    await instance.claim(second)
    fresh, instance.token = instance.token, stale
    for seq in range(3):
        reply = await write(instance, first, seq)
        assert (reply.stored, reply.retriable) == (False, False)
        assert "does not own attempt 1" in reply.reason
    await instance.finish(first)
    instance.token = fresh
    await instance.finish(second, result="fresh")
    assert (await get(http, "/tasks/t", wait=10))["result"]["result"] == "fresh"
    refused = [record for record in caplog.records if getattr(record, "action", "") == "reject_report"]
    assert [record.levelname for record in refused] == ["WARNING", "DEBUG", "DEBUG", "DEBUG"]


async def test_a_run_goes_with_the_end_of_its_task(
    http: HttpConnection, store: StateStore, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    await write(instance, dispatch, 0)
    assert await stored_rows(store) == (1, 1)
    await instance.finish(dispatch)
    assert (await get(http, "/tasks/t", wait=10))["status"] == "succeeded"
    assert await stored_rows(store) == (0, 0)


async def test_a_run_goes_with_its_session(
    http: HttpConnection, store: StateStore, instance: Instance
) -> None:
    session = await post(http, "/sessions/create")
    dispatch = await claimed(http, instance, session_id=session)
    assert (await park(instance, dispatch)).stored
    assert await stored_rows(store) == (1, 0)
    await post(http, f"/sessions/{session}/delete?cancel=true")
    assert await stored_rows(store) == (0, 0)
    with pytest.raises(TaskNotFoundError):
        await get(http, "/tasks/t")


# -- the inbox


async def test_an_entry_that_was_consumed_is_not_given_again(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    for text in "abc":
        await post(http, "/tasks/t/events", answer(text))
    assert [entry.seq for entry in (await beat(instance, dispatch)).inbox] == [1, 2, 3]
    assert (await write(instance, dispatch, 0, consumed=[2, 99, 0, MAX_NUMBER])).stored
    assert [entry.seq for entry in (await beat(instance, dispatch)).inbox] == [1, 3]
    assert [entry.seq for entry in (await beat(instance, dispatch, inbox_seq=1)).inbox] == [3]
    reply = await instance.claim(dispatch)
    assert ([entry.seq for entry in reply.inbox], reply.inbox_seq) == ([1, 3], 3)


async def test_an_event_of_the_same_key_counts_once(http: HttpConnection, instance: Instance) -> None:
    dispatch = await claimed(http, instance)
    once = answer(idempotency_key="mine")
    await asyncio.gather(*(post(http, "/tasks/t/events", once) for _ in range(10)))
    await post(http, "/tasks/t/events", answer(idempotency_key="other"))
    await post(http, "/tasks/t/events", answer())
    await post(http, "/tasks/t/events", answer())
    assert [entry.seq for entry in (await beat(instance, dispatch)).inbox] == [1, 2, 3, 4]
    await write(instance, dispatch, 0, consumed=[1, 2, 3, 4])
    await post(http, "/tasks/t/events", once)
    assert (await instance.claim(dispatch)).inbox_seq == 4


async def test_events_of_the_same_key_in_one_transaction_count_once(
    http: HttpConnection,
    server: ControlPlaneServer,
    instance: Instance,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dispatch = await claimed(http, instance)
    event = EventDefinition(**answer(idempotency_key="mine"))
    async with one_transaction(server, 5):
        sending = [asyncio.create_task(server.plane.tasks.send_event("t", event)) for _ in range(5)]
    await asyncio.gather(*sending)
    assert [entry.seq for entry in (await beat(instance, dispatch)).inbox] == [1]
    assert "tried alone" not in caplog.text


async def test_the_same_key_for_another_task_is_another_event(
    http: HttpConnection, instance: Instance
) -> None:
    for task_id in ("a", "b"):
        await submit(http, task_id=task_id)
        await post(http, f"/tasks/{task_id}/events", answer(idempotency_key="mine"))
        await post(http, f"/tasks/{task_id}/events", answer(idempotency_key="mine"))
    replies = [await instance.claim(await instance.next_dispatch()) for _ in "ab"]
    assert [reply.inbox_seq for reply in replies] == [1, 1]


async def test_an_event_that_is_sent_again_after_the_end_it_caused_is_no_error(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    await post(http, "/tasks/t/events", answer(idempotency_key="mine"))
    await instance.finish(dispatch)
    await get(http, "/tasks/t", wait=10)
    await post(http, "/tasks/t/events", answer(idempotency_key="mine"))
    with pytest.raises(TaskFinishedError):
        await post(http, "/tasks/t/events", answer(idempotency_key="another"))


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_a_key_that_cannot_be_is_refused(http: HttpConnection, instance: Instance, key: str) -> None:
    await submit(http, task_id="t")
    with pytest.raises(InvalidRequestError, match="idempotency_key"):
        await post(http, "/tasks/t/events", answer(idempotency_key=key))


# -- parking


async def test_an_event_wakes_a_parked_run(
    http: HttpConnection, store: StateStore, instance: Instance
) -> None:
    dispatch = await claimed(http, instance, max_attempts=1)
    assert (await park(instance, dispatch)).stored
    view = await get(http, "/tasks/t")
    assert (view["status"], view["instance_id"], view["attempt"]) == ("waiting", None, 1)
    assert [item.task_id for item in (await beat(instance, dispatch)).stale] == ["t"]
    assert not (await park(instance, dispatch)).stored
    await post(http, "/tasks/t/events", answer())
    second = await instance.next_dispatch()
    reply = await instance.claim(second)
    assert (second.attempt, [entry.seq for entry in reply.inbox]) == (2, [1])
    assert reply.run is not None
    assert reply.run.snapshot == "snapshot"
    assert not (await park(instance, dispatch)).stored
    await instance.finish(second)
    assert (await get(http, "/tasks/t", wait=10))["status"] == "succeeded"
    assert await stored_rows(store) == (0, 0)


async def test_an_event_that_came_before_the_parking_wakes_at_once(
    http: HttpConnection, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    await post(http, "/tasks/t/events", answer())
    assert (await park(instance, dispatch, inbox_seq=0)).stored
    assert (await instance.next_dispatch()).attempt == 2
    assert await status(http) == "queued"


async def test_a_timer_wakes_a_parked_run(http: HttpConnection, instance: Instance) -> None:
    dispatch = await claimed(http, instance)
    assert (await park(instance, dispatch, wake_in=0.2)).stored
    assert await status(http) == "waiting"
    second = await instance.next_dispatch()
    assert second.attempt == 2
    assert (await instance.claim(second)).granted


async def test_the_nearer_of_two_timers_is_first(http: HttpConnection, instance: Instance) -> None:
    for task_id, wake_in in (("far", 30.0), ("near", 0.2), ("never", None)):
        await submit(http, task_id=task_id)
        dispatch = await instance.next_dispatch()
        await instance.claim(dispatch)
        assert (await park(instance, dispatch, wake_in=wake_in)).stored
    assert (await instance.next_dispatch()).task_id == "near"
    assert (await get(http, "/tasks/far"))["status"] == "waiting"


async def test_a_timer_that_was_due_while_nobody_looked_is_found(
    queue: LocalMessageQueue, config: ControlPlaneConfig
) -> None:
    async with await queue.subscribe("llama_deploy.echo") as work:
        async with ControlPlaneServer(queue, config=config) as server:
            await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
            instance = Instance(server, queue, work, "one")
            http = HttpConnection(server.config.url)
            dispatch = await claimed(http, instance)
            await http.close()
            assert (await park(instance, dispatch, wake_in=60.0)).stored

        def let_it_be_due(tx: StoreTransaction) -> None:
            tx.tasks.update([tx.tasks.load(["t"])["t"]._replace(wake_at=datetime.now(UTC))])

        async with await open_state_store(config.store_uri) as store:
            await store.transact(let_it_be_due)
        async with ControlPlaneServer(queue, config=config) as server:
            assert (await instance.next_dispatch()).attempt == 2


async def test_more_timers_than_a_page_are_all_found(
    http: HttpConnection, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_deploy.control_plane.dispatch.timers._PAGE", 2)
    dispatches = []
    for _ in range(7):
        await submit(http)
        dispatches.append(await instance.next_dispatch())
        await instance.claim(dispatches[-1])
        await park(instance, dispatches[-1], wake_in=0.2)
    woken = {(await instance.next_dispatch()).task_id for _ in dispatches}
    assert woken == {dispatch.task_id for dispatch in dispatches}


async def test_a_parked_task_is_cancelled_at_once(
    http: HttpConnection, store: StateStore, instance: Instance
) -> None:
    dispatch = await claimed(http, instance)
    await park(instance, dispatch)
    assert (await post(http, "/tasks/t/cancel"))["status"] == "cancelled"
    assert await stored_rows(store) == (1, 0)  # kept for a retry
    assert [event["terminal"] for event in await read_stream(http, "/tasks/t/events")] == [True]


async def test_parking_a_run_that_is_to_be_cancelled_is_its_end(
    http: HttpConnection, store: StateStore, instance: Instance
) -> None:
    session = await post(http, "/sessions/create")
    dispatch = await claimed(http, instance, session_id=session)
    await submit(http, task_id="next", session_id=session)
    await post(http, "/tasks/t/cancel")
    assert (await park(instance, dispatch)).stored
    assert await status(http) == "cancelled"
    assert await stored_rows(store) == (1, 0)  # kept for a retry
    assert (await instance.next_dispatch()).task_id == "next"


async def test_a_parked_task_holds_its_turn(http: HttpConnection, instance: Instance) -> None:
    session = await post(http, "/sessions/create")
    dispatch = await claimed(http, instance, session_id=session)
    await park(instance, dispatch)
    assert (await submit(http, task_id="next", session_id=session))["status"] == "pending"
    await post(http, "/tasks/t/events", answer())
    assert (await instance.run_one()).task_id == "t"
    assert (await instance.run_one()).task_id == "next"


async def test_an_interrupting_session_ends_a_parked_task_at_once(
    http: HttpConnection, instance: Instance
) -> None:
    session = await post(http, "/sessions/create", {"policy": "interrupt"})
    await park(instance, await claimed(http, instance, session_id=session))
    assert (await submit(http, task_id="next", session_id=session))["status"] == "queued"
    assert await status(http) == "cancelled"


async def test_a_rejecting_session_is_busy_while_its_task_is_parked(
    http: HttpConnection, instance: Instance
) -> None:
    session = await post(http, "/sessions/create", {"policy": "reject"})
    await park(instance, await claimed(http, instance, session_id=session))
    with pytest.raises(SessionBusyError):
        await submit(http, session_id=session)


# -- the gateways


async def test_writes_over_http_are_stored_in_order(
    http: HttpConnection, instance: Instance, gateway: HttpGateway
) -> None:
    dispatch = await claimed(http, instance)
    writes = [a_write(instance, dispatch, seq) for seq in range(20)]
    replies = await asyncio.gather(*map(gateway.journal, writes))
    assert all(reply.stored for reply in replies)
    run = (await instance.claim(dispatch)).run
    assert run is not None
    assert run.entries == [f"entry {seq}" for seq in range(20)]


async def test_the_direct_gateway_does_the_same(http: HttpConnection, instance: Instance) -> None:
    dispatch = await claimed(http, instance)
    gateway = instance.server.gateway()
    assert (await gateway.journal(a_write(instance, dispatch, 0))).stored
    assert not (await gateway.journal(a_write(instance, dispatch, 5))).stored


async def test_large_writes_travel_in_several_requests(
    http: HttpConnection, instance: Instance, gateway: HttpGateway
) -> None:
    dispatch = await claimed(http, instance)
    # Ten megabytes, where one request may have four.
    writes = [a_write(instance, dispatch, seq, entry="x" * 700_000) for seq in range(15)]
    replies = await asyncio.gather(*map(gateway.journal, writes))
    assert all(reply.stored for reply in replies)


class TestSmallBodies:
    @pytest.fixture
    def config(self, config: ControlPlaneConfig) -> ControlPlaneConfig:
        return config.model_copy(update={"max_body_bytes": 20_000})

    async def test_a_write_that_is_too_large_harms_no_other(
        self, http: HttpConnection, instance: Instance, gateway: HttpGateway
    ) -> None:
        await submit(http, task_id="t")
        await submit(http, task_id="other")
        dispatches = [await instance.next_dispatch(), await instance.next_dispatch()]
        writes = []
        for dispatch, size in zip(dispatches, (30_000, 10_000), strict=True):
            await instance.claim(dispatch)
            writes.append(a_write(instance, dispatch, 0, entry="x" * size))
        # The first one occupies the gateway, so that the others leave together.
        first = asyncio.create_task(gateway.journal(writes[1]))
        outcomes = await asyncio.gather(*map(gateway.journal, [*writes, writes[1]]), return_exceptions=True)
        assert (await first).stored
        assert isinstance(outcomes[0], PayloadTooLargeError)
        assert outcomes[1:] == [JournalReply(stored=True)] * 2


async def test_a_control_plane_that_is_away_is_told(
    http: HttpConnection, server: ControlPlaneServer, instance: Instance, gateway: HttpGateway
) -> None:
    dispatch = await claimed(http, instance)
    await server.close()
    with pytest.raises(UnavailableError):
        await gateway.journal(a_write(instance, dispatch, 0))


async def test_a_definition_carries_its_key_to_the_workflow(http: HttpConnection, instance: Instance) -> None:
    dispatch = await claimed(http, instance)
    event = EventDefinition(**answer(idempotency_key="mine"))
    await instance.server.plane.tasks.send_event("t", event)
    assert [entry.event for entry in (await beat(instance, dispatch)).inbox] == [event]
