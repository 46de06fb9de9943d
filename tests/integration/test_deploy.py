"""deploy_core, deploy_workflow and LocalStack, with real sockets, in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
    WorkflowServiceConfig,
    deploy_core,
    deploy_workflow,
)
from llama_deploy.deploy import HostedWorkflow, LocalStack
from llama_deploy.deploy.readiness import connect_queue, with_real_host
from llama_deploy.deploy.together import run_together
from llama_deploy.errors import ConfigError, StoreLockedError, UnavailableError
from llama_deploy.services.background import end
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port

PATIENCE = 20.0


class Words(StartEvent):
    text: str


class Shout(Workflow):
    """Says it louder.

    More about it.
    """

    @step
    async def shout(self, ev: Words) -> StopEvent:
        return StopEvent(result=ev.text.upper())


class Held(Workflow):
    """Ends when it is let go."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    @step
    async def hold(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - the library's signature
        self.begun.set()
        await self.go.wait()
        return StopEvent(result="let go")


class Counter(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - as above
        count = await ctx.store.get("count", default=0) + 1
        await ctx.store.set("count", count)
        return StopEvent(result=count)


class Tally(Workflow):
    """Counts its runs."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.count = start

    @step
    async def add(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - as above
        self.count += 1
        return StopEvent(result=self.count)


def control_plane_at(port: int, folder: Path) -> ControlPlaneConfig:
    return ControlPlaneConfig(port=port, state_store_uri=f"sqlite:///{folder / 'control_plane.db'}")


@asynccontextmanager
async def running(coroutine: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[Client]:
    """A client, once the control plane answers there."""
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(PATIENCE):
        await (await connect_queue(url)).close()
    async with Client(control_plane_url=url, timeout=PATIENCE) as client:
        yield client


@asynccontextmanager
async def local_stack(*workflows: HostedWorkflow, folder: Path) -> AsyncIterator[LocalStack]:
    stack = await LocalStack.start(
        workflows,
        control_plane_config=control_plane_at(0, folder),
        message_queue_config=SimpleMessageQueueConfig(port=0),
    )
    async with stack:
        yield stack


async def until_registered(client: Client, name: str) -> None:
    async def is_registered() -> bool:
        return any(found.id == name and found.instances for found in await client.core.services.list())

    await eventually(is_registered, seconds=PATIENCE)


async def until_draining(caplog: pytest.LogCaptureFixture) -> None:
    """Wait until a service with a running task has been told to stop."""
    await eventually(lambda: "is draining" in caplog.text, seconds=PATIENCE)


class TestDeployCore:
    async def test_core_and_workflow_in_any_order_run_tasks(self, tmp_path: Path) -> None:
        port = free_port()
        control_plane = control_plane_at(port, tmp_path)
        service = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="shout")
        async with (
            running(deploy_workflow(Shout(), service, control_plane)),
            running(deploy_core(control_plane, SimpleMessageQueueConfig(port=0))),
            client_of(port) as client,
        ):
            await until_registered(client, "shout")
            assert await client.run("shout", text="hello") == "HELLO"

    async def test_queue_and_control_plane_can_run_apart(self, tmp_path: Path) -> None:
        queue, control_plane = (
            SimpleMessageQueueConfig(port=free_port()),
            control_plane_at(free_port(), tmp_path),
        )
        port = control_plane.port or 0
        service = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="shout")
        async with (
            running(deploy_core(control_plane, queue, disable_message_queue=True)),
            running(deploy_core(None, queue, disable_control_plane=True)),
            running(deploy_workflow(Shout(), service, control_plane)),
            client_of(port) as client,
        ):
            await until_registered(client, "shout")
            assert await client.run("shout", text="apart") == "APART"

    async def test_cancelling_frees_ports_and_store(self, tmp_path: Path) -> None:
        queue, control_plane = (
            SimpleMessageQueueConfig(port=free_port()),
            control_plane_at(free_port(), tmp_path),
        )
        for _ in range(2):
            async with running(deploy_core(control_plane, queue)), client_of(control_plane.port or 0):
                pass

    async def test_a_part_that_fails_raises(self, tmp_path: Path) -> None:
        async with SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as other:
            taken = SimpleMessageQueueConfig(port=other.config.port)
            with pytest.raises(ConfigError, match="another process uses this port"):
                await deploy_core(control_plane_at(0, tmp_path), taken)

    async def test_a_second_control_plane_on_the_store_is_refused(self, tmp_path: Path) -> None:
        control_plane = control_plane_at(free_port(), tmp_path)
        async with (
            running(deploy_core(control_plane, SimpleMessageQueueConfig(port=0))),
            client_of(control_plane.port or 0),
        ):
            with pytest.raises(StoreLockedError, match="another control plane"):
                await deploy_core(control_plane_at(0, tmp_path), SimpleMessageQueueConfig(port=0))

    async def test_nothing_to_run_is_said(self) -> None:
        with pytest.raises(ConfigError, match="nothing to run"):
            await deploy_core(disable_control_plane=True, disable_message_queue=True)


class TestDeployWorkflow:
    async def test_it_says_once_that_it_waits(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "llama_deploy.deploy")

        control_plane = control_plane_at(free_port(), tmp_path)
        service = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="shout")
        async with running(deploy_workflow(Shout(), service, control_plane)) as deployed:
            await eventually(lambda: caplog.records, seconds=PATIENCE)
            assert not deployed.done()
            async with (
                running(deploy_core(control_plane, SimpleMessageQueueConfig(port=0))),
                client_of(control_plane.port or 0) as client,
            ):
                await until_registered(client, "shout")
        ours = [each for each in caplog.records if each.name.startswith("llama_deploy.deploy.")]
        waiting = [each for each in ours if each.getMessage().endswith("; retrying")]
        # One of the service, one of this test's own client.
        assert 1 <= len(waiting) <= 2

    async def test_cancelling_drains_and_deregisters_the_instance(self, tmp_path: Path) -> None:
        held = Held()
        service = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="held")
        control_plane = control_plane_at(free_port(), tmp_path)
        async with (
            running(deploy_core(control_plane, SimpleMessageQueueConfig(port=0))),
            client_of(control_plane.port or 0) as client,
        ):
            async with running(deploy_workflow(held, service, control_plane)) as deployed:
                await until_registered(client, "held")
                handle = await client.submit("held")
                await asyncio.wait_for(held.begun.wait(), PATIENCE)
                deployed.cancel()
                held.go.set()
                assert await handle.result() == "let go"
                await asyncio.wait({deployed})
            (known,) = await client.core.services.list()
            assert known.instances == []

    async def test_a_factory_that_fails_is_reported_before_anything_is_waited_for(self) -> None:
        def make() -> Workflow:
            raise OSError("the model is not there")

        service = WorkflowServiceConfig(host="127.0.0.1", port=0)
        nowhere = ControlPlaneConfig(port=free_port())
        with pytest.raises(ConfigError, match="without arguments failed: OSError: the model is not there"):
            await asyncio.wait_for(deploy_workflow(make, service, nowhere), PATIENCE)

    async def test_a_port_that_is_taken_raises(self, tmp_path: Path) -> None:
        async with local_stack(folder=tmp_path) as stack:
            taken = urlsplit(stack.message_queue_url).port
            service = WorkflowServiceConfig(host="127.0.0.1", port=taken, service_name="shout")
            with pytest.raises(ConfigError, match=str(taken)):
                await deploy_workflow(Shout(), service, stack.control_plane.config)

    async def test_what_is_no_control_plane_is_refused(self) -> None:
        async with SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as other:
            service = WorkflowServiceConfig(host="127.0.0.1", port=0)
            with pytest.raises(ConfigError, match="does not answer as a control plane"):
                await deploy_workflow(Shout(), service, ControlPlaneConfig(port=other.config.port))


class TestLocalStack:
    async def test_services_work_and_the_ports_are_known(self, tmp_path: Path) -> None:
        hosted = HostedWorkflow.named("shout", Shout()), HostedWorkflow.named("counter", Counter())
        async with (
            local_stack(*hosted, folder=tmp_path) as stack,
            Client(control_plane_url=stack.control_plane_url) as client,
        ):
            assert not stack.control_plane_url.endswith(":0")
            assert not stack.message_queue_url.endswith(":0")
            assert await client.run("shout", text="hello") == "HELLO"
            session = await client.core.sessions.create()
            assert [await session.run("counter") for _ in range(3)] == ["1", "2", "3"]

    async def test_each_run_of_a_class_or_a_function_has_its_own_object(self, tmp_path: Path) -> None:
        hosted = [
            HostedWorkflow.named("class", Tally),
            HostedWorkflow.named("function", lambda: Tally(start=10)),
            HostedWorkflow(Tally, WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="bare")),
        ]
        assert hosted[0].config.description == hosted[1].config.description == "Counts its runs."
        async with (
            local_stack(*hosted, folder=tmp_path) as stack,
            Client(control_plane_url=stack.control_plane_url) as client,
        ):
            service = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="deployed")
            async with running(deploy_workflow(Tally, service, stack.control_plane.config)):
                await until_registered(client, "deployed")
                for name, count in (("class", 1), ("function", 11), ("bare", 1), ("deployed", 1)):
                    assert [await client.run(name) for _ in range(3)] == [count] * 3

    async def test_a_factory_that_fails_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="class str, which is not a Workflow"):
            HostedWorkflow.named("tally", cast("Any", str))

    async def test_the_docstring_describes_the_service(self) -> None:
        assert HostedWorkflow.named("shout", Shout()).config.description == "Says it louder."
        assert HostedWorkflow.named("counter", Counter()).config.description == ""

    async def test_settings_that_are_not_given_come_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert HostedWorkflow.named("shout", Shout()).config.max_concurrent_tasks == 8
        monkeypatch.setenv("LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS", "3")
        assert HostedWorkflow.named("shout", Shout()).config.max_concurrent_tasks == 3
        hosted = HostedWorkflow.named("shout", Shout(), max_concurrent_tasks=5)
        assert hosted.config.max_concurrent_tasks == 5

    async def test_instances_of_other_processes_can_join(self, tmp_path: Path) -> None:
        async with (
            local_stack(folder=tmp_path) as stack,
            Client(control_plane_url=stack.control_plane_url) as client,
        ):
            service = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="shout")
            async with running(deploy_workflow(Shout(), service, stack.control_plane.config)):
                await until_registered(client, "shout")
                assert await client.run("shout", text="joined") == "JOINED"

    async def test_a_restart_keeps_what_was_accepted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        held = Held()
        async with local_stack(HostedWorkflow.named("held", held), folder=tmp_path) as stack:
            async with Client(control_plane_url=stack.control_plane_url) as client:
                handle = await client.submit("held")
                await asyncio.wait_for(held.begun.wait(), PATIENCE)
            draining = asyncio.create_task(stack.close())
            await until_draining(caplog)
            draining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await draining
        again = Held()
        again.go.set()
        async with (
            local_stack(HostedWorkflow.named("held", again), folder=tmp_path) as stack,
            Client(control_plane_url=stack.control_plane_url, timeout=PATIENCE) as client,
        ):
            assert await client.task(handle.task_id).result() == "let go"

    async def test_closing_waits_for_running_tasks(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        held = Held()
        async with local_stack(HostedWorkflow.named("held", held), folder=tmp_path) as stack:
            async with Client(control_plane_url=stack.control_plane_url) as client:
                handle = await client.submit("held")
                await asyncio.wait_for(held.begun.wait(), PATIENCE)
            closing = asyncio.create_task(stack.close())
            await until_draining(caplog)
            assert not closing.done()
            held.go.set()
            await asyncio.wait_for(closing, PATIENCE)
            await stack.close()
        async with (
            local_stack(folder=tmp_path) as stack,
            Client(control_plane_url=stack.control_plane_url, timeout=PATIENCE) as client,
        ):
            assert await client.task(handle.task_id).result() == "let go"

    async def test_a_service_that_cannot_start_leaves_nothing_running(self, tmp_path: Path) -> None:
        port = free_port()
        reserved = HostedWorkflow.named("control_plane", Shout())
        for _ in range(2):
            with pytest.raises(ValueError, match="reserved"):
                await LocalStack.start(
                    [reserved],
                    control_plane_config=control_plane_at(port, tmp_path),
                    message_queue_config=SimpleMessageQueueConfig(port=0),
                )


class TestTogether:
    async def test_the_first_failure_ends_the_others_and_is_raised(self) -> None:
        ended = asyncio.Event()

        async def goes_on() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def fails() -> None:
            raise UnavailableError("gone")

        with pytest.raises(UnavailableError, match="gone"):
            await run_together(goes_on(), fails())
        assert ended.is_set()

    async def test_cancelling_the_end_hurries_and_still_waits(self) -> None:
        cancellations = 0
        begun, hurried = asyncio.Event(), asyncio.Event()

        async def stubborn() -> None:
            nonlocal cancellations
            while cancellations < 2:
                try:
                    begun.set()
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancellations += 1
                    hurried.set()

        task = asyncio.create_task(stubborn())
        await begun.wait()
        ending = asyncio.create_task(end([task]))
        await hurried.wait()
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert task.done()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "planes.example"),  # noqa: S104 - not bound
        ("::", "planes.example"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_a_queue_on_all_addresses_is_found_beside_its_control_plane(host: str, expected: str) -> None:
    settings = with_real_host({"type": "simple", "host": host}, "http://planes.example:8000")
    assert settings == {"type": "simple", "host": expected}
