"""What a step's client sends belongs to the owner of its task, also from threads without its context."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import Client, ControlPlaneConfig, SimpleMessageQueueConfig, SyncClient
from llama_deploy.deploy import HostedWorkflow, LocalStack
from llama_deploy.errors import ConfigError, TaskNotFoundError
from llama_deploy.workflow import ServiceClient, TaskInfo
from tests.integration.guarded_server import ADMIN
from tests.integration.tenant_stack import OWNED, Talk


def failure_of(call: Callable[[], Any]) -> str:
    """Return what a call raises."""
    try:
        return f"returned {call()!r}"
    except (ConfigError, TaskNotFoundError) as exc:
        return f"{type(exc).__name__}: {exc}"


class InExecutor(Workflow):
    @step
    async def call(self, ev: StartEvent) -> StopEvent:
        loop = asyncio.get_running_loop()
        with SyncClient() as client:
            found = await loop.run_in_executor(None, lambda: client.run("talk", text=ev.text))
        return StopEvent(result=found)


class InPool(Workflow):
    @step
    def call(self, ev: StartEvent) -> StopEvent:
        with SyncClient() as client, ThreadPoolExecutor() as pool:
            return StopEvent(result=pool.submit(client.run, "talk", text=ev.text).result())


class InThread(Workflow):
    @step
    async def call(self, ev: StartEvent) -> StopEvent:
        found: list[Any] = []
        async with Client() as client:
            # The client without `await` is created in the thread.
            thread = threading.Thread(target=lambda: found.append(client.sync.run("talk", text=ev.text)))
            thread.start()
            await asyncio.to_thread(thread.join)
        return StopEvent(result=found[0])


class OwnLoop(Workflow):
    @step
    def call(self, ev: StartEvent) -> StopEvent:
        client = Client()

        async def run() -> Any:
            async with client:
                session = await client.core.sessions.create()
                return await client.run("talk", session=session, text=ev.text)

        with ThreadPoolExecutor() as pool:
            return StopEvent(result=pool.submit(asyncio.run, run()).result())


class Reads(Workflow):
    @step
    def call(self, ev: StartEvent) -> StopEvent:
        with SyncClient() as client, ThreadPoolExecutor() as pool:
            return StopEvent(result=pool.submit(failure_of, lambda: client.task(ev.text).result()).result())


class Shared(Workflow):
    @step
    async def call(self, ev: StartEvent, client: ServiceClient, task: TaskInfo) -> StopEvent:
        sync, loop = client.sync, asyncio.get_running_loop()
        failure = await loop.run_in_executor(None, failure_of, lambda: sync.run("talk", text=ev.text))
        talked: list[Any] = await asyncio.to_thread(sync.run, "talk", text=ev.text)
        return StopEvent(result=[failure, talked[3:], task.subject])


async def test_a_thread_of_a_step_works_for_the_owner_of_its_task(tmp_path: Path) -> None:
    named = {
        "talk": Talk,
        "executor": InExecutor,
        "pool": InPool,
        "thread": InThread,
        "loop": OwnLoop,
        "reads": Reads,
        "shared": Shared,
    }
    stack = await LocalStack.start(
        [HostedWorkflow.named(name, workflow) for name, workflow in named.items()],
        control_plane_config=ControlPlaneConfig(
            port=0,
            state_store_uri=f"sqlite:///{tmp_path}/state.db",
            authentication="keys",
            admin_key=SecretStr(ADMIN),
        ),
        message_queue_config=SimpleMessageQueueConfig(port=0),
    )
    async with stack, Client(stack.control_plane_url, api_key=ADMIN) as admin:
        await admin.run("talk", text="of the default tenant")
        [private] = (await admin.tasks.list()).items
        keys = [
            (await admin.core.keys.create(OWNED, expires_in=None, tenant="acme", subject=subject)).key
            for subject in ("zoe", "yan")
        ]
        for subject, key in zip(("zoe", "yan"), keys, strict=True):
            async with Client(stack.control_plane_url, api_key=key) as owner:
                for service in ("executor", "pool", "thread", "loop"):
                    handle = await owner.submit(service, text="hi")
                    talked = await handle.result()
                    assert talked[3:] == ["acme", subject], service
                    [child] = (await owner.tasks.list(parent=handle.task_id)).items
                    assert child.task_id == talked[1]
                read = await owner.run("reads", text=private.task_id)
                assert read.startswith("TaskNotFoundError")
                failure, talked, _ = await owner.run("shared", text="hi")
                assert failure.startswith("ConfigError: no task is known here")
                assert talked == ["acme", subject]
        assert [task.task_id for task in (await admin.tasks.list()).items] == [private.task_id]
