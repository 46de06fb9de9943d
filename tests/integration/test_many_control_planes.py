"""Three control planes over one PostgreSQL and one queue, instances of a service at any of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.decisions.dispatch_rules import DispatchPace
from llama_deploy.control_plane.dispatch.dispatcher import Dispatcher
from llama_deploy.control_plane.plane import utc_now
from llama_deploy.control_plane.storage.outgoing import Outgoing
from llama_deploy.control_plane.storage.writer import Writer
from llama_deploy.errors import ConflictError, LlamaDeployError, TaskNotFoundError, UnavailableError
from llama_deploy.message_queues import SimpleMessageQueue, SimpleMessageQueueConfig, SimpleMessageQueueServer
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.state_stores.postgresql import PostgreSQLStateStore
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import an_instance
from llama_deploy.types import (
    ServiceDefinition,
    SessionOptions,
    SessionPolicy,
    TaskDefinition,
    TaskStatus,
    TaskSubmission,
)
from llama_deploy.types.instance_protocol import ClaimRequest, ReleaseRequest
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import get, post, read_stream, submit
from tests.integration.test_orchestrators import Chain, State
from tests.servers.postgresql import PostgreSQLServer, running_server

LEASE = 3.0
PLANES = 3
AT_ONCE_SECONDS = 0.5


class Progress(Event):
    n: int


class Counting(Workflow):
    """Notes which runs there were, in this process."""

    ran: Counter[str]

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.ran[ev.get("name", "")] += 1
        for n in range(ev.get("events", 0)):
            ctx.write_event_to_stream(Progress(n=n))
        return StopEvent(result=ev.get("name", ""))


class Asking(Workflow):
    """Waits for an answer, and tells it."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - the library asks for it
        ctx.write_event_to_stream(Progress(n=0))
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=answer.get("text", ""))


class Hop(Workflow):
    """Appends its letter to a text, and notes that it ran."""

    def __init__(self, letter: str, ran: Counter[str]) -> None:
        super().__init__(timeout=None)
        self.letter = letter
        self.ran = ran

    @step
    async def append(self, ev: StartEvent) -> StopEvent:
        self.ran[f"{ev.name} at {self.letter}"] += 1
        return StopEvent(result=ev.get("text", "") + self.letter)


class StuckChain(Chain):
    """Answers nothing about the tasks that its control plane has to ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck: set[str] = set()

    async def get_next_messages(
        self, task_def: TaskDefinition, state: State
    ) -> tuple[list[QueueMessage], State]:
        self.stuck.add(task_def.task_id)
        await asyncio.Event().wait()
        return [], state


@dataclass
class Replica:
    server: ControlPlaneServer
    queue: AbstractMessageQueue
    store: PostgreSQLStateStore
    http: HttpConnection

    async def die(self) -> None:
        """Stop as a killed process does: nothing is finished, nothing is said."""
        plane = self.server.plane
        for task in plane._background:
            task.cancel()
        await asyncio.gather(*plane._background, return_exceptions=True)
        await plane._relay.close()
        await self.store.close()


class Cluster:
    def __init__(self, uri: str, queue: SimpleMessageQueueConfig, stack: AsyncExitStack) -> None:
        self.uri = uri
        self.queue = queue
        self._stack = stack
        self.replicas: list[Replica] = []
        self.ran: Counter[str] = Counter()

    async def add(self, *, orchestrator: BaseOrchestrator | None = None, **settings: Any) -> Replica:
        queue = await self._stack.enter_async_context(await SimpleMessageQueue.connect(self.queue))
        store = await self._stack.enter_async_context(await PostgreSQLStateStore.connect(self.uri))
        config = ControlPlaneConfig(port=0, **{"lease_seconds": LEASE, **settings})
        server = ControlPlaneServer(queue, orchestrator, state_store=store, config=config)
        await server.start()
        self._stack.push_async_callback(_close_quietly, server)
        http = HttpConnection(server.config.url)
        self._stack.push_async_callback(http.close)
        replica = Replica(server, queue, store, http)
        self.replicas.append(replica)
        return replica

    async def serve(self, workflow: Workflow, replica: Replica, name: str = "echo", **settings: Any) -> None:
        """Run an instance that talks to one replica."""
        if isinstance(workflow, Counting):
            workflow.ran = self.ran
        config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=name, **settings)
        queue = await self._stack.enter_async_context(await SimpleMessageQueue.connect(self.queue))
        service = WorkflowService(workflow, queue, config, gateway=replica.server.gateway())
        await service.register_to_control_plane()
        task = await service.launch_local()
        self._stack.push_async_callback(_stop, task)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _close_quietly(server: ControlPlaneServer) -> None:
    with contextlib.suppress(LlamaDeployError):  # one that died has no store to finish its writes in
        await server.close()


@asynccontextmanager
async def running_cluster(uri: str, *, max_deliveries: int = 10, **settings: Any) -> AsyncIterator[Cluster]:
    queue_config = SimpleMessageQueueConfig(port=0, max_deliveries=max_deliveries)
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(SimpleMessageQueueServer(queue_config))
        cluster = Cluster(uri, queue.config, stack)
        for _ in range(PLANES):
            await cluster.add(**settings)
        yield cluster


@pytest.fixture
async def cluster(postgresql_uri: str) -> AsyncIterator[Cluster]:
    async with running_cluster(postgresql_uri) as cluster:
        yield cluster


async def test_any_request_goes_to_any_replica(cluster: Cluster) -> None:
    first, second, third = cluster.replicas
    await cluster.serve(Asking(timeout=None), first, allowed_types=["workflows.events.HumanResponseEvent"])
    session = await post(second.http, "/sessions/create")
    await submit(third.http, task_id="t", session_id=session)
    await eventually(lambda: _has_status(first, "t", TaskStatus.WAITING))
    event = (
        '{"__is_pydantic": true, "value": {"_data": {"text": "fine"}},'
        ' "qualified_name": "workflows.events.HumanResponseEvent"}'
    )
    await post(second.http, f"/sessions/{session}/tasks/t/send_event", {"event_obj_str": event})
    for replica in cluster.replicas:
        assert (await get(replica.http, "/tasks/t", wait=10))["result"]["value"] == "fine"
        assert set(await get(replica.http, "/services")) == {"echo"}
    streams = [await read_stream(replica.http, "/tasks/t/events") for replica in cluster.replicas]
    assert streams[0] == streams[1] == streams[2]
    await post(third.http, f"/sessions/{session}/state", {"a": 1})
    assert await get(first.http, f"/sessions/{session}/state") == {"a": 1}


async def test_a_reader_at_another_replica_is_told_at_once_that_an_attempt_takes_over(
    postgresql_uri: str,
) -> None:
    async with running_cluster(postgresql_uri, lease_seconds=60) as cluster:
        first, second, third = cluster.replicas
        await first.server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
        await submit(first.http, task_id="t")
        claim = ClaimRequest(task_id="t", attempt=1, instance_id="one")
        (granted,) = await first.server.plane.attempts.claim([claim])
        path = "/tasks/t/events?attempts=true"
        async with asyncio.timeout(20), second.http.stream(HttpRequest("GET", path)) as lines:
            release = ReleaseRequest(task_id="t", attempt=1, token=granted.token)
            await first.server.plane.attempts.release([release])
            told = [line async for line in until_first(lines)]
        await post(third.http, "/tasks/t/cancel")
        streams = [await read_stream(replica.http, path) for replica in cluster.replicas]
    facts = {"attempt": 2, "position": 0, "repeats_from": 0, "unfinished": None, "begun": 0}
    new = {"new_attempt": {**facts, "reason": "handed_back"}}
    assert [json.loads(line) for line in told] == [new]
    assert streams[0] == streams[1] == streams[2]
    assert [streams[0][0], streams[0][1]["attempt"]] == [new, 2]


async def until_first(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the first line that is not a keep-alive."""
    async for line in lines:
        if line:
            yield line
            return


async def _has_status(replica: Replica, task_id: str, status: TaskStatus) -> bool:
    return (await replica.server.plane.tasks.get(task_id)).status is status


async def _is_lost(replica: Replica, service_name: str) -> bool:
    (instance,) = (await replica.server.plane.services.get(service_name)).instances
    return not instance.alive


async def test_readers_elsewhere_are_woken_at_once(cluster: Cluster) -> None:
    first, second, third = cluster.replicas
    await cluster.serve(Counting(), first)
    await cluster.serve(Asking(timeout=None), first, "asking")
    # The other two know nothing of these tasks but what the database tells them.
    delays = []
    for n in range(10):
        name = f"result-{n}"
        waiting = asyncio.create_task(_end_seen(second, name))
        await eventually(partial(second.server.plane._hub.is_watched, name))
        view = await submit(first.http, task_id=name, arguments={"name": name}, wait=10)
        ended = time.monotonic()
        assert view["status"] == "succeeded"
        delays.append(await waiting - ended)
    await submit(first.http, task_id="stream", service_name="asking")
    seen = asyncio.Queue[float]()
    reading = asyncio.create_task(_note_events(third, "stream", seen))
    await asyncio.wait_for(seen.get(), 10)
    before = time.monotonic()
    await post(first.http, "/tasks/stream/cancel")
    delays.append(await asyncio.wait_for(seen.get(), 10) - before)
    await reading
    print(f"woken after {[round(delay * 1000, 1) for delay in delays]} ms")  # noqa: T201 - shown with -s
    assert max(delays) < AT_ONCE_SECONDS


async def _end_seen(replica: Replica, task_id: str) -> float:
    with replica.server.plane._hub.watch(task_id) as watch:
        assert await watch.end(10)
        return time.monotonic()


async def _note_events(replica: Replica, task_id: str, seen: asyncio.Queue[float]) -> None:
    async for _ in await replica.server.plane.tasks.events(task_id):
        seen.put_nowait(time.monotonic())


async def test_readers_elsewhere_learn_of_a_deletion(cluster: Cluster) -> None:
    first, second, third = cluster.replicas
    await first.server.plane.services.register(ServiceDefinition(service_name="idle"))
    session = await post(first.http, "/sessions/create")
    await submit(first.http, task_id="t", session_id=session, service_name="idle")
    hubs = [second.server.plane._hub, third.server.plane._hub]
    reading = asyncio.create_task(read_stream(second.http, "/tasks/t/events"))
    waiting = asyncio.create_task(get(third.http, "/tasks/t", wait=60))
    await eventually(lambda: all(hub.is_watched("t") for hub in hubs))
    await post(first.http, f"/sessions/{session}/delete?cancel=true")
    assert await asyncio.wait_for(reading, 30) == []
    with pytest.raises(TaskNotFoundError):
        await asyncio.wait_for(waiting, 30)


async def test_a_death_that_is_reported_to_all_replicas_counts_once(cluster: Cluster) -> None:
    first, second, third = cluster.replicas
    await first.server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
    for task_id in ("guilty", "innocent"):
        await submit(second.http, task_id=task_id)
        claim = ClaimRequest(task_id=task_id, attempt=1, instance_id="one")
        (reply,) = await third.server.plane.attempts.claim([claim])
        assert reply.granted
    death = {"instances": ["one"], "reason": "was killed by SIGKILL", "culprits": ["guilty"]}
    await asyncio.gather(*(post(each.http, "/instances/death", death) for each in cluster.replicas))
    tasks = await first.store.read(lambda tx: tx.tasks.load(["guilty", "innocent"]))
    found = {task.task_id: (task.status, task.attempt, task.losses) for task in tasks.values()}
    assert found == {"guilty": (TaskStatus.QUEUED, 2, 1), "innocent": (TaskStatus.QUEUED, 2, 0)}
    assert (await first.server.plane.services.get("echo")).instances == []


async def test_one_idempotency_key_over_three_replicas_is_one_task(cluster: Cluster) -> None:
    await cluster.serve(Counting(), cluster.replicas[0])
    for name in (f"mine-{n}" for n in range(5)):
        views = await asyncio.gather(
            *(
                submit(cluster.replicas[n % PLANES].http, task_id=name, arguments={"name": name}, wait=20)
                for n in range(50)
            )
        )
        assert len({(view["task_id"], view["session_id"]) for view in views}) == 1
        assert {view["status"] for view in views} == {"succeeded"}
        assert cluster.ran[name] == 1
    # One at each replica: the transaction that comes too late holds nothing else.
    for n in range(30):
        submission = TaskSubmission(service_name="echo", task_id=f"alone-{n}")
        accepted = await asyncio.gather(
            *(each.server.plane.tasks.submit(submission) for each in cluster.replicas)
        )
        assert len({view.session_id for view in accepted}) == 1
    with pytest.raises(ConflictError, match="another service, session or arguments"):
        await submit(cluster.replicas[1].http, task_id="mine-0", arguments={"name": "other"})


async def test_one_session_created_everywhere_at_once_is_one(cluster: Cluster) -> None:
    await cluster.serve(Counting(), cluster.replicas[0])
    options = SessionOptions(session_id="mine")
    await asyncio.gather(*(each.server.plane.sessions.create(options) for each in cluster.replicas * 10))

    async def submit_and_wait(replica: Replica, name: str) -> str:
        view = await submit(replica.http, task_id=name, session_id="mine", arguments={"name": name}, wait=30)
        return str(view["status"])

    tasks = [submit_and_wait(cluster.replicas[n % PLANES], f"t{n}") for n in range(30)]
    assert set(await asyncio.gather(*tasks)) == {"succeeded"}
    assert {cluster.ran[f"t{n}"] for n in range(30)} == {1}


async def test_many_tasks_over_many_instances_run_once_each(cluster: Cluster) -> None:
    for n in range(4):
        await cluster.serve(Counting(), cluster.replicas[n % PLANES], max_concurrent_tasks=4)
    names = [f"t{n}" for n in range(200)]
    views = await asyncio.gather(
        *(
            submit(
                cluster.replicas[n % PLANES].http,
                task_id=name,
                arguments={"name": name, "events": 5},
                wait=60,
            )
            for n, name in enumerate(names)
        )
    )
    assert Counter(view["status"] for view in views) == {"succeeded": 200}
    assert {view["attempt"] for view in views} == {1}
    assert cluster.ran == Counter(names)
    first, second, _ = cluster.replicas
    for name in names[:20]:
        events = await read_stream(first.http, f"/tasks/{name}/events")
        assert [event["index"] for event in events] == list(range(6))
        assert await read_stream(second.http, f"/tasks/{name}/events") == events


async def test_what_a_dead_replica_has_not_sent_is_sent_by_others(cluster: Cluster) -> None:
    dead, *others = cluster.replicas
    await cluster.serve(Counting(), others[0])
    await dead.queue.close()
    names = [f"t{n}" for n in range(20)]
    for name in names:
        await submit(dead.http, task_id=name, arguments={"name": name})
    assert len(await dead.store.read(lambda tx: tx.outbox.load())) == len(names)
    await dead.die()
    for name in names:
        assert (await get(others[1].http, f"/tasks/{name}", wait=20))["status"] == "succeeded"
    assert cluster.ran == Counter(names)

    async def outbox_is_empty() -> bool:
        return not await others[0].store.read(lambda tx: tx.outbox.load())

    await eventually(outbox_is_empty)


@pytest.mark.parametrize("ends", ["dies", "closes"])
async def test_a_route_goes_on_once_when_the_control_plane_that_asks_is_gone(
    postgresql_uri: str, ends: str
) -> None:
    orchestrator = StuckChain()
    async with running_cluster(postgresql_uri, orchestrator=Chain()) as cluster:
        stuck, (first, second, _) = await cluster.add(orchestrator=orchestrator), cluster.replicas[:PLANES]
        for letter in "abc":
            await cluster.serve(Hop(letter, cluster.ran), first, letter)
        sessions = []
        for n in range(2):
            options = SessionOptions(session_id=f"s{n}", policy=SessionPolicy.PARALLEL)
            sessions.append(await first.server.plane.sessions.create(options))
        names = [f"t{n}" for n in range(24)]
        for n, name in enumerate(names):
            await submit(
                (first, second, stuck)[n % 3].http,
                task_id=name,
                service_name="a",
                session_id=sessions[n % 2],
                arguments={"name": name},
            )

        async def is_in_the_middle() -> bool:
            views = await asyncio.gather(*map(first.server.plane.tasks.get, names))
            return bool(orchestrator.stuck) and any(view.status.is_terminal for view in views)

        await eventually(is_in_the_middle)
        await (stuck.die() if ends == "dies" else stuck.server.close())
        for name in names:
            view = await first.server.plane.tasks.get(name, wait=30)
            assert view.status is TaskStatus.SUCCEEDED
            assert view.result is not None
            assert view.result.value == "abc"
        assert cluster.ran == Counter(f"{name} at {letter}" for name in names for letter in "abc")
        for n, session in enumerate(sessions):
            state = (await first.server.plane.sessions.state(session)).state
            own = [name for m, name in enumerate(names) if m % 2 == n]
            assert state.get("count", 0) == 3 * len(own)
            assert all(state.get(f"done_{name}") == ["a", "ab", "abc"] for name in own)


async def test_a_replica_that_joins_leaves_leases_and_messages_alone(cluster: Cluster) -> None:
    first = cluster.replicas[0]
    definition = ServiceDefinition(service_name="idle", instance_id="one")
    await first.server.plane.services.register(definition)
    await submit(first.http, task_id="t", service_name="idle")

    async def look() -> tuple[Any, ...]:
        (instance,) = await first.store.read(lambda tx: tx.instances.load())
        task = (await first.store.read(lambda tx: tx.tasks.load(["t"])))["t"]
        return instance.lease_expires_at, task.dispatches

    before = await look()
    await cluster.add()
    assert await look() == before


async def test_a_task_that_two_replicas_find_due_is_handed_out_once(postgresql_uri: str) -> None:
    async with running_cluster(postgresql_uri, redispatch_seconds=60) as cluster:
        plane, store = cluster.replicas[0].server.plane, cluster.replicas[0].store
        await plane.services.register(ServiceDefinition(service_name="idle"))
        await plane.tasks.submit(TaskSubmission(service_name="idle", task_id="t"))
        published: list[Outgoing] = []
        writers = [
            Writer(
                replica.store,
                clock=utc_now,
                topics=plane.topics,
                pace=DispatchPace(unclaimed=Backoff(60, longest=60), lost=Backoff(1, longest=60)),
                after_commit=lambda committed: published.extend(committed.outgoing),
            )
            for replica in cluster.replicas
        ]
        dispatchers = [
            Dispatcher(
                store=replica.store,
                writer=writer,
                clock=utc_now,
                lease=timedelta(seconds=LEASE),
                is_waiting=lambda _: False,
            )
            for replica, writer in zip(cluster.replicas, writers, strict=True)
        ]

        async def stored() -> TaskRecord:
            return (await store.read(lambda tx: tx.tasks.load(["t"])))["t"]

        due = (await stored())._replace(redispatch_at=utc_now())
        in_an_hour = utc_now() + timedelta(hours=1)
        living = an_instance(service_name="idle")._replace(lease_expires_at=in_an_hour)
        await store.transact(lambda tx: tx.instances.put([living]))
        await store.transact(lambda tx: tx.tasks.update([due]))
        await asyncio.gather(*(dispatcher.dispatch([due]) for dispatcher in dispatchers))
        await dispatchers[0].dispatch([due])
        assert (await stored()).dispatches == due.dispatches + 1
        assert [item.message.data["task_id"] for item in published] == ["t"]
        await asyncio.gather(*(writer.close() for writer in writers))


async def test_the_tasks_of_a_dead_instance_move_on_though_its_replica_died_too(
    postgresql_uri: str,
) -> None:
    async with running_cluster(postgresql_uri, lease_seconds=1.0) as cluster:
        dead, *others = cluster.replicas
        plane = dead.server.plane
        await plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
        await submit(dead.http, task_id="t", arguments={"name": "t"})
        async with await dead.queue.subscribe("llama_deploy.echo") as work:
            (delivery,) = await asyncio.wait_for(work.receive(1), 10)
            await delivery.ack()
        gateway = dead.server.gateway()
        claimed = await gateway.claim(ClaimRequest(task_id="t", attempt=1, instance_id="one"))
        assert claimed.granted
        await dead.die()
        died = time.monotonic()
        await cluster.serve(Counting(), others[0])
        view = await get(others[1].http, "/tasks/t", wait=20)
        assert (view["status"], view["attempt"]) == ("succeeded", 2)
        assert time.monotonic() - died < 12  # before anything is published again


# -- the database goes away


@pytest.fixture
def own_server() -> Iterator[PostgreSQLServer]:
    with running_server() as server:
        yield server


async def test_an_instance_that_knows_all_replicas_outlives_its_own(cluster: Cluster) -> None:
    first, second, _ = cluster.replicas
    workflow = Asking(timeout=None)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="echo")
    async with await SimpleMessageQueue.connect(cluster.queue) as queue:
        service = WorkflowService(workflow, queue, config)
        await service.register_to_control_plane([replica.server.config.url for replica in cluster.replicas])
        serving = await service.launch_local()
        await submit(second.http, task_id="t")
        await eventually(lambda: _has_status(second, "t", TaskStatus.WAITING))
        await first.server.close()
        # When the lease of a later instance has ended, so has the first one, unless its heartbeats arrive.
        silent = ServiceDefinition(service_name="other", instance_id="silent")
        await second.server.plane.services.register(silent)
        await eventually(lambda: _is_lost(second, "other"))
        assert not await _is_lost(second, "echo")
        view = await get(second.http, "/tasks/t")
        assert (view["status"], view["attempt"]) == ("waiting", 1)
        await post(second.http, "/tasks/t/cancel")
        assert (await get(second.http, "/tasks/t", wait=10))["status"] == "cancelled"
        await _stop(serving)


async def test_cut_connections_are_survived(cluster: Cluster, postgresql_server: PostgreSQLServer) -> None:
    await cluster.serve(Counting(), cluster.replicas[0])
    database = cluster.uri.rpartition("/")[2]
    others = f"datname = '{database}' AND pid != pg_backend_pid()"
    cut = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}"  # noqa: S608
    for n in range(5):
        assert await asyncio.to_thread(postgresql_server.execute, cut) > 0
        names = [f"t{n}-{i}" for i in range(PLANES)]
        for name, replica in zip(names, cluster.replicas, strict=True):
            submission = TaskSubmission(service_name="echo", task_id=name, arguments={"name": name})
            await eventually(partial(_is_accepted, replica, submission))
        for name in names:
            view = await get(cluster.replicas[n % PLANES].http, f"/tasks/{name}", wait=20)
            assert view["status"] == "succeeded"
    assert set(cluster.ran.values()) == {1}


async def _is_accepted(replica: Replica, submission: TaskSubmission) -> bool:
    try:
        await replica.server.plane.tasks.submit(submission)
    except UnavailableError:
        return False
    return True


async def test_a_killed_database_is_survived(own_server: PostgreSQLServer) -> None:
    async with running_cluster(own_server.uri("postgres"), lease_seconds=2.0) as cluster:
        first, second, third = cluster.replicas
        await cluster.serve(
            Asking(timeout=None), first, allowed_types=["workflows.events.HumanResponseEvent"]
        )
        await submit(first.http, task_id="t")
        await eventually(lambda: _has_status(first, "t", TaskStatus.WAITING))
        waiting = asyncio.create_task(eventually(partial(_has_ended, third, "t"), seconds=40))
        await post(second.http, "/sessions/create")  # a synced commit, which makes the claim before it safe
        own_server.kill()
        with pytest.raises(UnavailableError) as refused:
            await second.server.plane.tasks.get("t")
        assert "secret" not in str(refused.value)
        # Longer than a lease: no heartbeat was stored, and no task may move on for that.
        await asyncio.sleep(3)
        await asyncio.to_thread(own_server.start)
        await eventually(lambda: _answers(second), seconds=20)
        view = await second.server.plane.tasks.get("t")
        assert (view.status, view.attempt) == (TaskStatus.WAITING, 1)
        event = (
            '{"__is_pydantic": true, "value": {"_data": {"text": "back"}},'
            ' "qualified_name": "workflows.events.HumanResponseEvent"}'
        )
        await post(second.http, f"/sessions/{view.session_id}/tasks/t/send_event", {"event_obj_str": event})
        done = await get(second.http, "/tasks/t", wait=20)
        assert (done["status"], done["attempt"]) == ("succeeded", 1)
        await waiting


async def test_what_is_reported_while_the_database_is_away_is_kept(
    own_server: PostgreSQLServer, caplog: pytest.LogCaptureFixture
) -> None:
    may_end = asyncio.Event()

    class Reporting(Workflow):
        @step
        async def report(self, ctx: Context, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - the library asks for it
            await may_end.wait()
            ctx.write_event_to_stream(Progress(n=0))
            return StopEvent(result="done")

    # So few that giving reports back would soon make them dead letters.
    async with running_cluster(own_server.uri("postgres"), max_deliveries=2) as cluster:
        first, second, _ = cluster.replicas
        await cluster.serve(Reporting(timeout=None), first, durability="task")
        await submit(first.http, task_id="t")
        await eventually(lambda: _has_status(first, "t", TaskStatus.RUNNING))
        await post(second.http, "/sessions/create")  # a synced commit, which makes the claim before it safe
        own_server.kill()
        may_end.set()
        await eventually(lambda: "reports wait" in caplog.text)
        await asyncio.sleep(2)  # how long the database is away
        await asyncio.to_thread(own_server.start)
        await eventually(lambda: _has_ended(second, "t"), seconds=40)
        view = await second.server.plane.tasks.get("t")
        assert (view.status, view.attempt) == (TaskStatus.SUCCEEDED, 1)


async def _has_ended(replica: Replica, task_id: str) -> bool:
    """Wait for the end of a task as clients do: again, when the control plane cannot tell."""
    try:
        return (await replica.server.plane.tasks.get(task_id, wait=20)).status.is_terminal
    except UnavailableError:
        return False


async def _answers(replica: Replica) -> bool:
    try:
        await replica.server.plane.services.all()
    except UnavailableError:
        return False
    return True


class Granting(Workflow):
    """Asks a person in the step `ask`."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=[ev.n, answer.response])


class GrantingAnew(Workflow):
    """The same, with another name of the step."""

    @step
    async def request(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=[ev.n, answer.response, "anew"])


async def test_versions_that_join_at_different_replicas_are_known_to_all(cluster: Cluster) -> None:
    first, second, third = cluster.replicas
    await cluster.serve(Granting(timeout=None), first, idle_timeout=0.01)
    tasks = [(await submit(third.http, service_name="echo", arguments={"n": n}))["task_id"] for n in range(6)]
    for task_id in tasks:
        await eventually(partial(_has_status, third, task_id, TaskStatus.WAITING))
    await cluster.serve(GrantingAnew(timeout=None), second)
    answer = {"qualified_name": "workflows.events.HumanResponseEvent", "value": {"response": "yes"}}
    for task_id in tasks:
        await post(third.http, f"/tasks/{task_id}/events", json={"event_obj_str": json.dumps(answer)})
    ended = [await get(third.http, f"/tasks/{task_id}", wait=20) for task_id in tasks]
    assert [each["result"]["value"] for each in ended] == [[n, "yes"] for n in range(6)]
    versions = {each["version"] for each in (await get(third.http, "/services/echo"))["instances"]}
    assert len(versions) == 2
