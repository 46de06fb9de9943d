"""`llamactl serve` and `llamactl worker`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_deploy.cli.announcement import announce_instances, announce_stack
from llama_deploy.cli.stopping import run_until_stopped
from llama_deploy.cli.targets import load_workflows
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy import HostedWorkflow, LocalStack, run_workflow
from llama_deploy.deploy.together import run_together
from llama_deploy.message_queues import SimpleMessageQueueConfig
from llama_deploy.services import WorkflowService


@dataclass(frozen=True, slots=True)
class Place:
    """Where to keep data and where to listen."""

    data_dir: Path
    host: str
    port: int
    queue_port: int
    allow_remote: bool
    """Whether `host` may be an address that other machines reach."""


def serve(targets: Sequence[str], place: Place, *, max_concurrent_tasks: int, as_json: bool) -> None:
    """Run queue, control plane and services in this process until Ctrl-C or SIGTERM.

    Raises:
        CommandError: A workflow is not found.
        LlamaDeployError: As `LocalStack.start`.
    """
    hosted = _host(targets, max_concurrent_tasks=max_concurrent_tasks)
    run_until_stopped(_serve(hosted, place, as_json=as_json))


async def _serve(hosted: Sequence[HostedWorkflow], place: Place, *, as_json: bool) -> None:
    database = place.data_dir.resolve() / "control_plane.db"
    stack = await LocalStack.start(
        hosted,
        control_plane_config=ControlPlaneConfig(
            host=place.host,
            port=place.port,
            allow_remote=place.allow_remote,
            state_store_uri=f"sqlite:///{database}",
        ),
        message_queue_config=SimpleMessageQueueConfig(
            host=place.host, port=place.queue_port, allow_remote=place.allow_remote
        ),
    )
    async with stack:
        announce_stack(stack, data_dir=str(place.data_dir), as_json=as_json)
        await stack.run()


def work(targets: Sequence[str], *, control_plane_url: str, max_concurrent_tasks: int, as_json: bool) -> None:
    """Run instances of services in this process, for a control plane elsewhere, until Ctrl-C or SIGTERM.

    Raises:
        CommandError: A workflow is not found.
        LlamaDeployError: As `run_workflow`.
    """
    hosted = _host(targets, max_concurrent_tasks=max_concurrent_tasks)
    ready: list[WorkflowService] = []

    def on_ready(service: WorkflowService) -> None:
        ready.append(service)
        if len(ready) == len(hosted):
            announce_instances(ready, control_plane_url=control_plane_url, as_json=as_json)

    async def work_on_all() -> None:
        await run_together(
            *(
                run_workflow(
                    each.workflow, each.config, control_plane_url=control_plane_url, on_ready=on_ready
                )
                for each in hosted
            )
        )

    run_until_stopped(work_on_all())


def _host(targets: Sequence[str], *, max_concurrent_tasks: int) -> list[HostedWorkflow]:
    return [
        HostedWorkflow.named(name, workflow, max_concurrent_tasks=max_concurrent_tasks)
        for name, workflow in load_workflows(targets).items()
    ]
