"""Services in this process, for a control plane elsewhere: `llamactl worker`, and children of commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.output import optional_output
from llama_deploy.cli.serving.announcement import announce_instances
from llama_deploy.cli.serving.health_address import HealthAddress
from llama_deploy.cli.serving.program import Program, drain_seconds
from llama_deploy.cli.serving.stopping import run_until_stopped
from llama_deploy.cli.serving.trace_setup import set_up_tracing
from llama_deploy.cli.serving.waiting import wait_for_control_plane
from llama_deploy.client import ClientSettings
from llama_deploy.deploy import HostedWorkflow, run_workflow
from llama_deploy.deploy.together import run_together
from llama_deploy.health import PASSED, Checks, failed
from llama_deploy.measures import process_text
from llama_deploy.message_queues import config_from_url
from llama_deploy.metric_texts import merged
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.services.supervised_gateway import connection_facts
from llama_deploy.supervisor.health_server import HealthServer
from llama_deploy.supervisor.link import SupervisorLink


@dataclass(frozen=True, slots=True)
class Work:
    """Runs services in this process until Ctrl-C or SIGTERM."""

    control_plane_urls: Sequence[str]
    """The URLs of the control plane's replicas."""
    queue: str | None
    """The URL of the message queue. None: the control plane tells."""
    loop: EventLoop
    insecure: bool = False
    """Whether to accept any certificate."""
    as_json: bool | None = None
    """See `announce_instances`. None: announce nothing."""
    link: SupervisorLink | None = None
    """The link to the supervisor of this process. None: it has none."""
    health: HealthAddress | None = None
    """Where this process answers probes. None: nowhere."""
    api_key: str | None = field(default=None, repr=False)
    """The key for the control plane. None: that of the environment, if there is one."""
    server_certificates: Sequence[str] = ()
    """See `ConnectionSettings`."""

    def run(self, hosted: Sequence[HostedWorkflow]) -> None:
        """Run services of these workflows.

        Raises:
            CommandError: An environment variable is not valid.
            LlamaDeployError: As `run_workflow`.
        """
        set_up_tracing()
        link, alone = self.link, None if self.link is None else self.link.place.alone
        if alone is not None:
            hosted = [_one_at_a_time(each) for each in hosted if each.config.service_name == alone]
        given: dict[str, Any] = {
            "control_plane_url": tuple(self.control_plane_urls),
            "disable_ssl": self.insecure,
        }
        if self.api_key is not None:
            given["api_key"] = self.api_key
        with settings_of(ClientSettings):
            settings = ClientSettings(**given)
        control_plane = settings.connect_to(self.control_plane_urls)
        control_plane = replace(control_plane, server_certificates=self.server_certificates)
        message_queue_config = None if self.queue is None else config_from_url(self.queue)
        ready: list[WorkflowService] = []
        if link is not None:
            link.tell_metrics(partial(_metrics_of, ready))
            link.hello(
                {
                    "connection": connection_facts(control_plane),
                    "drain_timeout": drain_seconds(hosted),
                    "blocked_limit": min(each.config.blocked_limit for each in hosted),
                }
            )
        names = [each.config.service_name for each in hosted]
        health_url = None if link is None else link.place.health_url
        if self.health is not None:
            health_url = self.health.listen(_probes_of(ready, [each.config for each in hosted]))

        def on_ready(service: WorkflowService) -> None:
            ready.append(service)
            if len(ready) < len(hosted):
                return
            ready.sort(key=lambda each: names.index(each.service_name))
            if alone is None:
                self._announce(ready, health_url)
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

        run_until_stopped(work_on_all(), loop=self.loop, drain_seconds=drain_seconds(hosted), link=link)

    def _announce(self, services: Sequence[WorkflowService], health_url: str | None) -> None:
        if self.as_json is None:
            return
        link = self.link
        # Nobody needs to read on when the first process has printed.
        with nullcontext() if link is None or link.place.is_first else optional_output():
            announce_instances(
                services,
                control_plane_url=", ".join(self.control_plane_urls),
                stop_pid=os.getpid() if link is None else link.place.parent,
                health_url=health_url,
                as_json=self.as_json,
            )


def work_for_parent(program: Program, *, queue: str | None, link: SupervisorLink, loop: EventLoop) -> None:
    """Run services for the control plane of the process that has started this one.

    Raises:
        CommandError: A workflow was not found, or an environment variable is not valid.
        LlamaDeployError: As `Work.run`.
    """
    _forget_admin_key()
    try:
        hosted = program.load()
    finally:
        # If the control plane cannot start, only that is reported.
        served = link.control_plane()
    work = Work(
        [served.url],
        queue,
        loop,
        link=link,
        api_key=served.api_key,
        server_certificates=served.certificates,
    )
    work.run(hosted)


def _forget_admin_key() -> None:
    """Keep the key of the control plane that has all rights from the steps, which inherit its environment."""
    for name in [each for each in os.environ if each.upper() == "CONTROL_PLANE_ADMIN_KEY"]:
        del os.environ[name]


def _one_at_a_time(hosted: HostedWorkflow) -> HostedWorkflow:
    return replace(hosted, config=hosted.config.model_copy(update={"max_concurrent_tasks": 1}))


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

    return HealthServer(live=live, ready=ready, metrics=partial(_metrics_of, services))


def _metrics_of(services: Sequence[WorkflowService]) -> str:
    """Return the metrics of services and of this process. Thread-safe."""
    texts = [service.metrics_text() for service in list(services)]
    return merged((text, {}) for text in (*texts, process_text()))
