"""Programs written for llama_deploy 0.6 run unchanged, each part in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from llama_deploy import Client
from llama_deploy.errors import ServiceNotFoundError, TaskFailedError, TaskTimeoutError, UnavailableError
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program, free_port

PROGRAMS = Path(__file__).parent / "programs"
SERVICES = ["echo_workflow", "streaming_workflow", "session_workflow", "hitl_workflow"]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A core and four services as processes; where they are, as environment variables."""
    folder = tmp_path_factory.mktemp("system")
    port = free_port()
    env = {
        "CONTROL_PLANE_PORT": str(port),
        "CONTROL_PLANE_STATE_STORE_URI": f"sqlite:///{folder}/state.db",
        "SIMPLE_MESSAGE_QUEUE_PORT": str(free_port()),
        "LLAMA_DEPLOY_CONTROL_PLANE_URL": f"http://127.0.0.1:{port}",
    }
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> None:
            output = folder / f"{'-'.join((name, *arguments))}.log"
            stack.enter_context(Program([str(PROGRAMS / name), *arguments], output=output, env=env))

        # The services first: they wait for the control plane by themselves.
        for name in SERVICES:
            start("workflows_0_6.py", name, str(free_port()))
        start("core.py")
        asyncio.run(services_are_there(env))
        yield env


async def services_are_there(env: dict[str, str]) -> None:
    async with Client(control_plane_url=env["LLAMA_DEPLOY_CONTROL_PLANE_URL"]) as client:

        async def there() -> bool:
            try:
                return {service.id for service in await client.core.services.list()} == set(SERVICES)
            except UnavailableError:
                return False

        await eventually(there, seconds=60)


EXPECTED = """\
run: hello_world_result
{more}progress: 0.3
progress: 0.6
progress: 0.9
streamed: hello_world_result
counted: 1 2 3
asked: {question}
answered: 42
{rest}"""


async def run_program(name: str, env: dict[str, str], tmp_path: Path) -> str:
    with Program([str(PROGRAMS / name)], output=tmp_path / f"{name}.out", env=env) as program:
        status = await asyncio.to_thread(program.wait, seconds=60)
        assert status == 0, program.text
        return program.text


async def test_the_async_client(env: dict[str, str], tmp_path: Path) -> None:
    output = await run_program("client_async.py", env, tmp_path)
    rest = "same session: True\nregistered: True\nderegistered: True\ndeleted: True\n"
    assert output == EXPECTED.format(more="tasks: 1\n", question="The answer? ", rest=rest)


async def test_the_sync_client(env: dict[str, str], tmp_path: Path) -> None:
    output = await run_program("client_sync.py", env, tmp_path)
    rest = f"services: {' '.join(sorted(SERVICES))}\n"
    assert output == EXPECTED.format(more="", question="What is the answer? ", rest=rest)


async def test_failures_raise(env: dict[str, str]) -> None:
    async with Client(control_plane_url=env["LLAMA_DEPLOY_CONTROL_PLANE_URL"]) as client:
        session = await client.core.sessions.create()
        with pytest.raises(TaskFailedError, match=r"arg1 is required\.") as caught:
            await session.run("echo_workflow")
        assert caught.value.error_type == "builtins.ValueError"
        assert "run_step" in (caught.value.traceback or "")
        with pytest.raises(ServiceNotFoundError, match="nobody"):
            await session.run("nobody")
        waiting = await client.submit("hitl_workflow")
        with pytest.raises(TaskTimeoutError):
            await waiting.result(timeout=0.2)
        await waiting.cancel()


async def test_500_concurrent_runs_in_separate_sessions(env: dict[str, str]) -> None:
    async with Client(control_plane_url=env["LLAMA_DEPLOY_CONTROL_PLANE_URL"]) as client:

        async def one(n: int) -> str:
            session = await client.core.sessions.create()
            result: str = await session.run("echo_workflow", arg1=f"n{n}")
            return result

        assert await asyncio.gather(*map(one, range(500))) == [f"n{n}_result" for n in range(500)]
