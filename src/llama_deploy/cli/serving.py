"""`llamactl serve` and `llamactl worker`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_deploy import workflow_library  # noqa: F401 - first, as it says why the library is not found
from llama_deploy.cli.addresses import check_ports, explain_bind_error
from llama_deploy.cli.announcement import announce_instances, announce_stack
from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.logs import CommandLogging
from llama_deploy.cli.place import Place
from llama_deploy.cli.stopping import run_until_stopped
from llama_deploy.cli.targets import load_workflows
from llama_deploy.cli.waiting import wait_for_control_plane
from llama_deploy.client import ClientSettings
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy import HostedWorkflow, LocalStack, run_workflow
from llama_deploy.deploy.together import run_together
from llama_deploy.errors import BindError
from llama_deploy.message_queues import MessageQueueConfig, SimpleMessageQueueConfig, config_from_url
from llama_deploy.orchestrators import SimpleOrchestratorConfig
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.web.http_server import is_loopback


@dataclass(frozen=True, slots=True)
class Program:
    """The workflows that the command line names, and how they are hosted."""

    targets: Sequence[str]
    logs: CommandLogging
    max_concurrent_tasks: int | None
    """For each service. None: from the environment or the default."""
    allowed_types: Sequence[str] | None
    """See `WorkflowServiceConfig.allowed_types`. None: from the environment or the default."""

    def load(self) -> list[HostedWorkflow]:
        """Import the workflows.

        Raises:
            CommandError: A workflow was not found, or an environment variable is not valid.
        """
        with self.logs.left_to_the_application():
            workflows = load_workflows(self.targets)
        with settings_of(WorkflowServiceConfig):
            return [
                HostedWorkflow.named(
                    name,
                    workflow,
                    max_concurrent_tasks=self.max_concurrent_tasks,
                    allowed_types=self.allowed_types,
                )
                for name, workflow in workflows.items()
            ]


def serve(program: Program, place: Place, *, loop: EventLoop, as_json: bool) -> None:
    """Run a control plane, services and, unless `place` has one, a message queue until Ctrl-C or SIGTERM.

    Raises:
        CommandError: A workflow was not found, an address cannot be used, or `place` or an environment
            variable is not valid.
        LlamaDeployError: As `LocalStack.start`.
    """
    _check(place)
    hosted = program.load()
    try:
        run_until_stopped(
            _serve(hosted, place, as_json=as_json), loop=loop, drain_seconds=_drain_seconds(hosted)
        )
    except BindError as exc:
        raise explain_bind_error(exc, place) from exc


def _check(place: Place) -> None:
    if not place.allow_remote and not is_loopback(place.host):
        raise CommandError(
            f"other machines can reach {place.host} and run tasks there without authentication",
            hint="leave out --host to listen on 127.0.0.1, or pass --allow-remote if you trust the network",
        )
    check_ports(place)
    if place.store is not None:
        return
    try:
        place.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CommandError(
            f"cannot store data in {place.data_dir}: {exc.strerror}",
            hint="choose another directory with --data-dir",
        ) from exc


async def _serve(hosted: Sequence[HostedWorkflow], place: Place, *, as_json: bool) -> None:
    with settings_of(SimpleOrchestratorConfig):
        orchestrator_config = SimpleOrchestratorConfig()
    stack = await LocalStack.start(
        hosted,
        control_plane_config=_control_plane_config(place),
        message_queue_config=_message_queue_config(place),
        orchestrator_config=orchestrator_config,
    )
    async with stack:
        announce_stack(stack, place, as_json=as_json)
        await stack.run()


def _control_plane_config(place: Place) -> ControlPlaneConfig:
    with settings_of(ControlPlaneConfig):
        return ControlPlaneConfig(
            host=place.host,
            port=place.port,
            allow_remote=place.allow_remote,
            state_store_uri=place.store_uri,
        )


def _message_queue_config(place: Place) -> MessageQueueConfig:
    if place.queue is not None:
        return config_from_url(place.queue)
    with settings_of(SimpleMessageQueueConfig):
        return SimpleMessageQueueConfig(
            host=place.host, port=place.queue_port, allow_remote=place.allow_remote
        )


def work(
    program: Program,
    *,
    control_plane_urls: Sequence[str],
    insecure: bool,
    queue: str | None,
    loop: EventLoop,
    as_json: bool,
) -> None:
    """Run services in this process, for a control plane elsewhere, until Ctrl-C or SIGTERM.

    Raises:
        CommandError: A workflow was not found, or an environment variable is not valid.
        LlamaDeployError: As `run_workflow`.
    """
    hosted = program.load()
    with settings_of(ClientSettings):
        settings = ClientSettings(control_plane_url=tuple(control_plane_urls), disable_ssl=insecure)
    control_plane = settings.connect_to(control_plane_urls)
    message_queue_config = None if queue is None else config_from_url(queue)
    ready: list[WorkflowService] = []

    def on_ready(service: WorkflowService) -> None:
        ready.append(service)
        if len(ready) == len(hosted):
            announce_instances(ready, control_plane_url=", ".join(control_plane_urls), as_json=as_json)

    async def work_on_all() -> None:
        await wait_for_control_plane(control_plane)
        await run_together(
            *(
                run_workflow(
                    each.workflow,
                    each.config,
                    control_plane_url=control_plane,
                    message_queue_config=message_queue_config,
                    on_ready=on_ready,
                )
                for each in hosted
            )
        )

    run_until_stopped(work_on_all(), loop=loop, drain_seconds=_drain_seconds(hosted))


def _drain_seconds(hosted: Sequence[HostedWorkflow]) -> float:
    return max((each.config.drain_timeout for each in hosted), default=0.0)
