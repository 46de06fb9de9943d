"""`llamactl serve`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext

from llama_deploy.cli.addresses import check_ports, check_remote, explain_bind_error
from llama_deploy.cli.environment import settings_of
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.event_loop import EventLoop
from llama_deploy.cli.place import Place
from llama_deploy.cli.serving.announcement import announce_stack
from llama_deploy.cli.serving.children import Children
from llama_deploy.cli.serving.program import Program, drain_seconds
from llama_deploy.cli.serving.stopping import run_until_stopped
from llama_deploy.cli.serving.trace_setup import set_up_tracing
from llama_deploy.client import ClientSettings
from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.control_plane.http.metrics_routes import MetricSource
from llama_deploy.control_plane.readiness import HealthCheck
from llama_deploy.deploy import HostedWorkflow, LocalStack
from llama_deploy.deploy.together import run_together
from llama_deploy.errors import BindError, UnavailableError
from llama_deploy.health import is_healthy, summary
from llama_deploy.message_queues import MessageQueueConfig, SimpleMessageQueueConfig, config_from_url
from llama_deploy.orchestrators import SimpleOrchestratorConfig
from llama_deploy.supervisor.served_control_plane import ServedControlPlane
from llama_deploy.supervisor.supervisor import Stop
from llama_deploy.types import ServiceDefinition
from llama_deploy.web.connection_settings import ClientCertificate


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
    # Unless the control plane was stopped while it started, the children have ended when they are closed.
    with nullcontext() if children is None else closing(children):
        signum = _serve_until_stopped(program, place, children, loop=loop, as_json=as_json)
    if children is not None and (exit_code := children.ended.result()):
        sys.exit(exit_code if signum is None else 128 + signum)


def _serve_until_stopped(
    program: Program, place: Place, children: Children | None, *, loop: EventLoop, as_json: bool
) -> int | None:
    """Return the first signal; None if a child has failed."""
    program.check()
    _check(place)
    if children is not None:
        set_up_tracing()
        serving = _serve_with_children(children, place, as_json=as_json)
        seconds = None  # the children know
    else:
        hosted = program.load()
        set_up_tracing()
        serving, seconds = _serve(hosted, place, as_json=as_json), drain_seconds(hosted)
    try:
        return run_until_stopped(serving, loop=loop, drain_seconds=seconds)
    except BindError as exc:
        raise explain_bind_error(exc, place) from exc
    except _ChildFailedError:
        return None


def _check(place: Place) -> None:
    check_remote(
        place.host,
        what="run tasks there without authentication",
        allowed=place.may_be_remote,
        closing="pass --auth keys, ",
    )
    check_ports(place)
    if place.tls is not None:
        place.tls.load()  # or says what is wrong with them
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
    async def check_processes() -> None:
        checks = children.board.checks()
        if not is_healthy(checks):
            raise UnavailableError(summary(checks))

    async def metrics() -> str:
        return await in_own_thread("metrics", children.supervisor.metrics)

    checks = {"processes": check_processes}
    async with await _start([], place, checks=checks, metrics=[metrics]) as stack:

        async def announce() -> None:
            services, pids = await asyncio.wrap_future(children.ready)
            definitions = [ServiceDefinition.model_validate(each) for each in services]
            announce_stack(stack, place, definitions, processes=pids, as_json=as_json)
            # This part must not end while the others run. If stdout is closed, printing ends all of them.
            await asyncio.Event().wait()

        children.supervisor.serve_at(_served(stack))
        await run_together(stack.run(), _supervise(children), announce())


def _served(stack: LocalStack) -> ServedControlPlane:
    """Return how children reach the control plane."""
    queue = stack.message_queue.as_config()
    own = [stack.control_plane.config.tls_cert]
    if isinstance(queue, SimpleMessageQueueConfig):
        own.append(queue.tls_cert)
    certificates = tuple({str(each) for each in own if each is not None})
    return ServedControlPlane(stack.control_plane_url, stack.control_plane.process_key, certificates)


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


async def _start(
    hosted: Sequence[HostedWorkflow],
    place: Place,
    *,
    checks: Mapping[str, HealthCheck] | None = None,
    metrics: Sequence[MetricSource] = (),
) -> LocalStack:
    with settings_of(SimpleOrchestratorConfig):
        orchestrator_config = SimpleOrchestratorConfig()
    return await LocalStack.start(
        hosted,
        control_plane_config=_control_plane_config(place),
        message_queue_config=_message_queue_config(place),
        orchestrator_config=orchestrator_config,
        checks=checks,
        metrics=metrics,
        client_certificate=_client_certificate(place),
    )


def _client_certificate(place: Place) -> ClientCertificate | None:
    """Return what the services show to the control plane.

    Raises:
        CommandError: It requires a certificate, and there is none.
    """
    if place.tls is None or place.tls.client_ca is None:
        return None
    with settings_of(ClientSettings):
        found = ClientSettings().client_certificate
    if found is None:
        raise CommandError(
            "with --tls-client-ca, the services of this command need a client certificate too",
            hint="set LLAMA_DEPLOY_CLIENT_CERT and LLAMA_DEPLOY_CLIENT_KEY to the PEM files of a certificate"
            f" of an authority in {place.tls.client_ca}",
        )
    return found


def _control_plane_config(place: Place) -> ControlPlaneConfig:
    with settings_of(ControlPlaneConfig):
        return ControlPlaneConfig(
            host=place.host,
            port=place.port,
            allow_remote=place.allow_remote,
            authentication=place.auth.value,
            state_store_uri=place.store_uri,
            **({} if place.tls is None else place.tls.settings),
        )


def _message_queue_config(place: Place) -> MessageQueueConfig:
    if place.queue is not None:
        return config_from_url(place.queue)
    with settings_of(SimpleMessageQueueConfig):
        config = SimpleMessageQueueConfig(
            host=place.host, port=place.queue_port, allow_remote=place.allow_remote
        )
    if place.tls is None or config.tls is not None:
        return config
    return config.model_copy(update=place.tls.settings)
