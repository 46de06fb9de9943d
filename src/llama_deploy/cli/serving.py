"""`llamactl serve` and `llamactl worker`."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from llama_deploy import workflow_library  # noqa: F401 - first, as it says why the library is not found
from llama_deploy.cli.addresses import check_ports, check_remote, explain_bind_error
from llama_deploy.cli.announcement import announce_instances, announce_stack
from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.health_address import HealthAddress
from llama_deploy.cli.logs import CommandLogging
from llama_deploy.cli.output import optional_output
from llama_deploy.cli.place import Place
from llama_deploy.cli.stopping import run_until_stopped
from llama_deploy.cli.targets import load_workflows
from llama_deploy.cli.waiting import wait_for_control_plane
from llama_deploy.client import ClientSettings
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.control_plane.readiness import HealthCheck
from llama_deploy.deploy import HostedWorkflow, LocalStack, run_workflow
from llama_deploy.deploy.together import run_together
from llama_deploy.errors import BindError, UnavailableError
from llama_deploy.health import PASSED, Checks, failed, is_healthy, summary
from llama_deploy.message_queues import MessageQueueConfig, SimpleMessageQueueConfig, config_from_url
from llama_deploy.orchestrators import SimpleOrchestratorConfig
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.supervised_gateway import connection_facts
from llama_deploy.supervisor.child_process import ChildCommand
from llama_deploy.supervisor.health_board import HealthBoard
from llama_deploy.supervisor.health_server import HealthServer
from llama_deploy.supervisor.link import SupervisorLink
from llama_deploy.supervisor.supervisor import Stop, Supervisor
from llama_deploy.types import ServiceDefinition


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


def serve(program: Program, place: Place, *, processes: int, loop: EventLoop, as_json: bool) -> None:
    """Run a control plane, services and, unless `place` has one, a message queue until Ctrl-C or SIGTERM.

    Args:
        program: The workflows.
        place: Where it listens and stores its data.
        processes: In how many processes the workflows run. 0: in this one.
        loop: The event loop.
        as_json: See `announce_stack`.

    Raises:
        CommandError: A workflow was not found, an address cannot be used, or `place` or an environment
            variable is not valid.
        LlamaDeployError: As `LocalStack.start`.
    """
    _check(place)
    children = _Children()
    if processes and program.targets:
        serving = _serve_with_children(children, place, processes=processes, as_json=as_json)
        drain_seconds = None  # the children know
    else:
        hosted = program.load()
        serving, drain_seconds = _serve(hosted, place, as_json=as_json), _drain_seconds(hosted)
    try:
        signum = run_until_stopped(serving, loop=loop, drain_seconds=drain_seconds)
    except BindError as exc:
        raise explain_bind_error(exc, place) from exc
    except _ChildFailedError:
        sys.exit(children.exit_code)
    if children.exit_code and signum is not None:
        sys.exit(128 + signum)


@dataclass(slots=True)
class _Children:
    """How the children of a supervisor have ended."""

    exit_code: int = 0
    """See `Supervisor.run`."""


def _check(place: Place) -> None:
    check_remote(place.host, what="run tasks there without authentication", allowed=place.allow_remote)
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
    async with await _start(hosted, place) as stack:
        definitions = [service.service_definition for service in stack.services]
        announce_stack(stack, place, definitions, as_json=as_json)
        await stack.run()


async def _serve_with_children(children: _Children, place: Place, *, processes: int, as_json: bool) -> None:
    loop = asyncio.get_running_loop()
    board = HealthBoard()

    async def check_processes() -> None:
        checks = board.checks()
        if not is_healthy(checks):
            raise UnavailableError(summary(checks))

    async with await _start([], place, checks={"processes": check_processes}) as stack:
        are_ready: asyncio.Future[tuple[list[dict[str, Any]], list[int]]] = loop.create_future()

        async def announce() -> None:
            services, pids = await are_ready
            definitions = [ServiceDefinition.model_validate(each) for each in services]
            announce_stack(stack, place, definitions, processes=pids, as_json=as_json)
            # This part must not end while the others run. If stdout is closed, printing ends all of them.
            await asyncio.Event().wait()

        supervisor = Supervisor(
            ChildCommand(ChildCommand.of_this_process(), stack.control_plane_url),
            processes=processes,
            board=board,
            on_ready=lambda *facts: loop.call_soon_threadsafe(are_ready.set_result, facts),
        )
        await run_together(stack.run(), _supervise(supervisor, children), announce())


async def _supervise(supervisor: Supervisor, children: _Children) -> None:
    """Run a supervisor in a thread. The first cancellation lets its children drain, later ones hand back.

    Args:
        supervisor: The supervisor.
        children: Learns how its children have ended.

    Raises:
        _ChildFailedError: The first child has ended before it was ready.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def run() -> None:
        try:
            code = supervisor.run()
        except OSError as exc:
            loop.call_soon_threadsafe(ended.set_exception, exc)
        else:
            loop.call_soon_threadsafe(ended.set_result, code)

    threading.Thread(target=run, name="supervisor", daemon=True).start()
    stop: Stop | None = None
    while not ended.done():
        try:
            await asyncio.wait({ended})
        except asyncio.CancelledError:
            stop = Stop.DRAIN if stop is None else Stop.HAND_BACK
            supervisor.request(stop)
    children.exit_code = ended.result()
    if stop is not None:
        raise asyncio.CancelledError
    raise _ChildFailedError


class _ChildFailedError(Exception):
    """A child has ended before any was ready, and has told why."""


async def _start(
    hosted: Sequence[HostedWorkflow], place: Place, *, checks: Mapping[str, HealthCheck] | None = None
) -> LocalStack:
    with settings_of(SimpleOrchestratorConfig):
        orchestrator_config = SimpleOrchestratorConfig()
    return await LocalStack.start(
        hosted,
        control_plane_config=_control_plane_config(place),
        message_queue_config=_message_queue_config(place),
        orchestrator_config=orchestrator_config,
        checks=checks,
    )


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


def work_for_parent(program: Program, *, queue: str | None, link: SupervisorLink, loop: EventLoop) -> None:
    """Run services for the control plane of the process that has started this one; see `work`."""
    url = link.place.control_plane_url
    work(
        program,
        control_plane_urls=[] if url is None else [url],
        insecure=False,
        queue=queue,
        link=link,
        loop=loop,
        as_json=None,
    )


def work(
    program: Program,
    *,
    control_plane_urls: Sequence[str],
    insecure: bool,
    queue: str | None,
    link: SupervisorLink | None,
    loop: EventLoop,
    as_json: bool | None,
    health: HealthAddress | None = None,
) -> None:
    """Run services in this process, for a control plane elsewhere, until Ctrl-C or SIGTERM.

    Args:
        program: The workflows.
        control_plane_urls: The URLs of the control plane's replicas.
        insecure: Whether to accept any certificate.
        queue: The URL of the message queue. None: the control plane tells.
        link: The link to the supervisor of this process. None: it has none.
        loop: The event loop.
        as_json: See `announce_instances`. None: announce nothing.
        health: Where this process answers probes. None: nowhere.

    Raises:
        CommandError: A workflow was not found, or an environment variable is not valid.
        LlamaDeployError: As `run_workflow`.
    """
    hosted = program.load()
    with settings_of(ClientSettings):
        settings = ClientSettings(control_plane_url=tuple(control_plane_urls), disable_ssl=insecure)
    control_plane = settings.connect_to(control_plane_urls)
    message_queue_config = None if queue is None else config_from_url(queue)
    drain_seconds = _drain_seconds(hosted)
    if link is not None:
        blocked_limits = [each.config.blocked_limit for each in hosted]
        link.hello(
            {
                "connection": connection_facts(control_plane),
                "drain_timeout": drain_seconds,
                "blocked_limit": min(blocked_limits),
            }
        )
    ready: list[WorkflowService] = []
    health_url = None if link is None else link.place.health_url
    if health is not None:
        health_url = health.listen(_probes_of(ready, [each.config for each in hosted]))

    def on_ready(service: WorkflowService) -> None:
        ready.append(service)
        if len(ready) == len(hosted):
            if as_json is not None:
                # Nobody needs to read on when the first process has printed.
                with nullcontext() if link is None or link.place.is_first else optional_output():
                    announce_instances(
                        ready,
                        control_plane_url=", ".join(control_plane_urls),
                        stop_pid=os.getpid() if link is None else link.place.parent,
                        health_url=health_url,
                        as_json=as_json,
                    )
            if link is not None:
                link.ready([each.service_definition.model_dump(mode="json") for each in ready])

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
                    link=link,
                )
                for each in hosted
            )
        )

    run_until_stopped(work_on_all(), loop=loop, drain_seconds=drain_seconds, link=link)


def _probes_of(services: Sequence[WorkflowService], configs: Sequence[WorkflowServiceConfig]) -> HealthServer:
    """Return what answers probes for the services of this process.

    Args:
        services: Those that have joined; others may follow.
        configs: The settings of all.
    """
    blocked_limit = min(config.blocked_limit for config in configs)

    def live() -> Checks:
        # Only another process can end this one if its loop stays blocked.
        blocked = max((service.blocked_seconds for service in services), default=0.0)
        reason = f"the event loop has been blocked for {blocked:.0f} s; restart this process"
        return {"event_loop": PASSED if blocked < blocked_limit else failed(reason)}

    def ready() -> Checks:
        checks = {
            f"{service.service_name} {name}": check
            for service in list(services)
            for name, check in service.health_checks().items()
        }
        joined = f"{len(services)} of {len(configs)} services have joined the control plane"
        return {"services": PASSED if len(services) == len(configs) else failed(joined), **checks}

    return HealthServer(live=live, ready=ready)


def _drain_seconds(hosted: Sequence[HostedWorkflow]) -> float:
    return max((each.config.drain_timeout for each in hosted), default=0.0)
