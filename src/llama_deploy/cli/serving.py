"""`llamactl serve` and `llamactl worker`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from llama_deploy import workflow_library  # noqa: F401 - first, as it says why the library is not found
from llama_deploy.cli.addresses import check_ports, explain_bind_error
from llama_deploy.cli.announcement import announce_instances, announce_stack
from llama_deploy.cli.children import Children
from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.logs import CommandLogging
from llama_deploy.cli.output import optional_output
from llama_deploy.cli.place import Place
from llama_deploy.cli.stopping import run_until_stopped
from llama_deploy.cli.targets import load_workflows, parse_targets
from llama_deploy.cli.waiting import wait_for_control_plane
from llama_deploy.client import ClientSettings
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy import HostedWorkflow, LocalStack, run_workflow
from llama_deploy.deploy.together import run_together
from llama_deploy.errors import BindError
from llama_deploy.message_queues import MessageQueueConfig, SimpleMessageQueueConfig, config_from_url
from llama_deploy.orchestrators import SimpleOrchestratorConfig
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.supervised_gateway import connection_facts
from llama_deploy.supervisor.link import SupervisorLink
from llama_deploy.supervisor.supervisor import Stop
from llama_deploy.types import ServiceDefinition
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

    def check(self) -> None:
        """Check what can be checked before the workflows are imported.

        Raises:
            CommandError: A target has the wrong form, or an environment variable is not valid.
        """
        parse_targets(self.targets)
        with settings_of(WorkflowServiceConfig):
            WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="any")

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


def serve(
    program: Program, place: Place, *, children: Children | None, loop: EventLoop, as_json: bool
) -> None:
    """Run a control plane, services and, unless `place` has one, a message queue until Ctrl-C or SIGTERM.

    Args:
        program: The workflows.
        place: Where it listens and stores its data.
        children: Run the workflows. None: this process runs them.
        loop: The event loop.
        as_json: See `announce_stack`.

    Raises:
        CommandError: A workflow was not found, an address cannot be used, or `place` or an environment
            variable is not valid.
        LlamaDeployError: As `LocalStack.start`.
    """
    program.check()
    _check(place)
    if children is not None:
        serving = _serve_with_children(children, place, as_json=as_json)
        drain_seconds = None  # the children know
    else:
        hosted = program.load()
        serving, drain_seconds = _serve(hosted, place, as_json=as_json), _drain_seconds(hosted)
    try:
        signum = run_until_stopped(serving, loop=loop, drain_seconds=drain_seconds)
    except BindError as exc:
        raise explain_bind_error(exc, place) from exc
    except _ChildFailedError:
        signum = None
    exit_code = 0 if children is None else children.ended.result()
    if exit_code:
        sys.exit(exit_code if signum is None else 128 + signum)


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
    async with await _start(hosted, place) as stack:
        definitions = [service.service_definition for service in stack.services]
        announce_stack(stack, place, definitions, as_json=as_json)
        await stack.run()


async def _serve_with_children(children: Children, place: Place, *, as_json: bool) -> None:
    async with await _start([], place) as stack:

        async def announce() -> None:
            services, pids = await asyncio.wrap_future(children.ready)
            definitions = [ServiceDefinition.model_validate(each) for each in services]
            announce_stack(stack, place, definitions, processes=pids, as_json=as_json)
            # This part must not end while the others run. If stdout is closed, printing ends all of them.
            await asyncio.Event().wait()

        children.supervisor.serve_at(stack.control_plane_url)
        await run_together(stack.run(), _supervise(children), announce())


async def _supervise(children: Children) -> None:
    """Wait until children end. The first cancellation lets them drain, later ones hand back.

    Raises:
        _ChildFailedError: The first child has ended before it was ready.
    """
    ended = asyncio.wrap_future(children.ended)
    stop: Stop | None = None
    while not ended.done():
        try:
            await asyncio.wait({ended})
        except asyncio.CancelledError:
            stop = Stop.DRAIN if stop is None else Stop.HAND_BACK
            children.supervisor.request(stop)
    ended.result()
    if stop is not None:
        raise asyncio.CancelledError
    raise _ChildFailedError


class _ChildFailedError(Exception):
    """A child has ended before any was ready, and has told why."""


async def _start(hosted: Sequence[HostedWorkflow], place: Place) -> LocalStack:
    with settings_of(SimpleOrchestratorConfig):
        orchestrator_config = SimpleOrchestratorConfig()
    return await LocalStack.start(
        hosted,
        control_plane_config=_control_plane_config(place),
        message_queue_config=_message_queue_config(place),
        orchestrator_config=orchestrator_config,
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
    try:
        hosted = program.load()
    finally:
        # If the control plane cannot start, only that is reported.
        urls = [link.control_plane_url()]
    _work(hosted, control_plane_urls=urls, insecure=False, queue=queue, link=link, loop=loop, as_json=None)


def work(
    program: Program,
    *,
    control_plane_urls: Sequence[str],
    insecure: bool,
    queue: str | None,
    link: SupervisorLink | None,
    loop: EventLoop,
    as_json: bool,
) -> None:
    """Run services in this process, for a control plane elsewhere, until Ctrl-C or SIGTERM.

    Args:
        program: The workflows.
        control_plane_urls: The URLs of the control plane's replicas.
        insecure: Whether to accept any certificate.
        queue: The URL of the message queue. None: the control plane tells.
        link: The link to the supervisor of this process. None: it has none.
        loop: The event loop.
        as_json: See `announce_instances`.

    Raises:
        CommandError: A workflow was not found, or an environment variable is not valid.
        LlamaDeployError: As `run_workflow`.
    """
    _work(
        program.load(),
        control_plane_urls=control_plane_urls,
        insecure=insecure,
        queue=queue,
        link=link,
        loop=loop,
        as_json=as_json,
    )


def _work(
    hosted: Sequence[HostedWorkflow],
    *,
    control_plane_urls: Sequence[str],
    insecure: bool,
    queue: str | None,
    link: SupervisorLink | None,
    loop: EventLoop,
    as_json: bool | None,
) -> None:
    # See `work`. Without `as_json`, nothing is announced.
    alone = None if link is None else link.place.alone
    if alone is not None:
        hosted = [_one_at_a_time(each) for each in hosted if each.config.service_name == alone]
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
    names = [each.config.service_name for each in hosted]
    ready: list[WorkflowService] = []

    def on_ready(service: WorkflowService) -> None:
        ready.append(service)
        if len(ready) == len(hosted):
            ready.sort(key=lambda each: names.index(each.service_name))
            if as_json is not None and alone is None:
                # Nobody needs to read on when the first process has printed.
                with nullcontext() if link is None or link.place.is_first else optional_output():
                    announce_instances(
                        ready,
                        control_plane_url=", ".join(control_plane_urls),
                        stop_pid=os.getpid() if link is None else link.place.parent,
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


def _one_at_a_time(hosted: HostedWorkflow) -> HostedWorkflow:
    return replace(hosted, config=hosted.config.model_copy(update={"max_concurrent_tasks": 1}))


def _drain_seconds(hosted: Sequence[HostedWorkflow]) -> float:
    return max((each.config.drain_timeout for each in hosted), default=0.0)
