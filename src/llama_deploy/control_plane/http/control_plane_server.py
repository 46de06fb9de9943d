"""The control plane as an HTTP server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Self

from fastapi import Request
from pydantic import SecretStr
from starlette.types import ASGIApp

from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.http.actors import denials_of
from llama_deploy.control_plane.http.audit_routes import audit_routes
from llama_deploy.control_plane.http.callers import ControlPlaneCallers, requires_keys
from llama_deploy.control_plane.http.core_endpoints import CoreEndpoints
from llama_deploy.control_plane.http.core_routes import core_routes
from llama_deploy.control_plane.http.feed_routes import feed_routes
from llama_deploy.control_plane.http.inbox_routes import inbox_routes
from llama_deploy.control_plane.http.instance_routes import instance_routes, instance_shortcuts
from llama_deploy.control_plane.http.key_routes import key_routes
from llama_deploy.control_plane.http.metrics_routes import MetricSource, metrics_routes
from llama_deploy.control_plane.http.protocol_check import ProtocolCheck
from llama_deploy.control_plane.http.retry_routes import retry_routes
from llama_deploy.control_plane.http.session_routes import session_routes
from llama_deploy.control_plane.http.storage_routes import storage_routes
from llama_deploy.control_plane.http.task_list_routes import task_list_routes
from llama_deploy.control_plane.http.task_routes import task_routes, task_shortcuts
from llama_deploy.control_plane.measuring.plane_metrics import PlaneMetrics
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.readiness import HealthCheck
from llama_deploy.errors import ConfigError, UnavailableError
from llama_deploy.health import is_healthy, summary
from llama_deploy.interceptors import ControlPlaneInterceptor, control_plane_interceptors
from llama_deploy.message_consumers import BaseMessageQueueConsumer, CallableMessageConsumer
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback, StartConsumingCallable
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.renamed import see
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.tracing import is_active
from llama_deploy.types.topics import CONTROL_PLANE, Topics
from llama_deploy.web.application import create_app
from llama_deploy.web.connection_settings import ClientCertificate, ConnectionSettings
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.authentication import Anonymous
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.health_routes import add_health_routes, may_see_reasons
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.raw_paths import RawPaths

logger = logging.getLogger(__name__)


class ControlPlaneServer(CoreEndpoints):
    """The control plane as an HTTP server. Use `launch_server`, `start` and `close`, or `async with`.

    Args:
        message_queue: The message queue. The caller closes it.
        orchestrator: Sends tasks from service to service. None: each task goes to the service that it names.
        publish_callback: Called with each message after it is published.
        state_store: The state store. The caller closes it. None: opened from the settings, and closed here.
        config: Settings. None: from the environment and the defaults.
        checks: What else must be healthy for `/health/ready` to answer 200, by name. Each raises a
            `LlamaDeployError` with the reason if it is not.
        callers: Who may use it, if the settings turn `authentication` on and other servers in this process
            have the same callers; `state_store` is their store. None: from the settings and the store.
        interceptors: Hooks around its work, in addition to those of installed packages; see
            `llama_deploy.interceptors`.
        metrics: What `/metrics` shows in addition: each returns text in the format of Prometheus.
        client_certificate: What the services of this process show over HTTP, if `tls_client_ca` is set.
            None: they have no certificate.
    """

    def __init__(  # noqa: PLR0913 - 0.6 has five of them, and the others are keyword-only
        self,
        message_queue: AbstractMessageQueue,
        orchestrator: BaseOrchestrator | None = None,
        publish_callback: PublishCallback | None = None,
        state_store: StateStore | None = None,
        config: ControlPlaneConfig | None = None,
        *,
        checks: Mapping[str, HealthCheck] = MappingProxyType({}),
        callers: ControlPlaneCallers | None = None,
        interceptors: Sequence[ControlPlaneInterceptor] = (),
        metrics: Sequence[MetricSource] = (),
        client_certificate: ClientCertificate | None = None,
    ) -> None:
        if state_store is not None and not isinstance(state_store, StateStore):
            raise ConfigError(
                f"state_store is a {type(state_store).__name__}, not a StateStore; set state_store_uri"
                f" instead; {see('State stores')}"
            )
        self.message_queue = message_queue
        self.orchestrator = orchestrator or SimpleOrchestrator()
        self.publish_callback = publish_callback
        self.config = config or ControlPlaneConfig()
        self._store = state_store
        self._checks = checks
        requires_keys(self.config)  # or says which setting has no effect
        self._given_callers = callers
        self._interceptors = interceptors
        self._metrics = metrics
        self._client_certificate = client_certificate
        self._callers: ControlPlaneCallers | None = None
        self._plane: ControlPlane | None = None
        self._resources = AsyncExitStack()

    @property
    def plane(self) -> ControlPlane:
        """The control plane without HTTP.

        Raises:
            ConfigError: The server was not started.
        """
        if self._plane is None:
            raise ConfigError("the control plane is not started; await start() or launch_server() first")
        return self._plane

    def gateway(self) -> DirectGateway:
        """Return a gateway for services in the same process and event loop."""
        return DirectGateway(self.plane, self.connection)

    @property
    def connection(self) -> ConnectionSettings:
        """How the services of this process and of its children reach the control plane over HTTP."""
        key, tls = self.process_key, self.config.tls
        settings = ConnectionSettings(
            urls=[self.config.url],
            client_certificate=self._client_certificate,
            server_certificates=[] if tls is None else [tls.cert],
        )
        return settings.with_api_key(None if key is None else SecretStr(key))

    @property
    def process_key(self) -> str | None:
        """The key of the services of this process and of its children; a new one at each start.

        None: they need none, or the server was not started.
        """
        return None if self._callers is None else self._callers.process_key

    async def start(self) -> None:
        """Open the store, resume the work in it, and listen. Returns when requests are served.

        Raises:
            ConfigError: A setting cannot work, or the address cannot be bound.
            StoreLockedError: Another control plane uses the store.
            UnavailableError: The queue or the store does not answer.
        """
        async with AsyncExitStack() as stack:
            store = self._store
            if store is None:
                store = await stack.enter_async_context(await open_state_store(self.config.store_uri))
            stack.callback(self._detach)
            if requires_keys(self.config):
                self._callers = self._given_callers or ControlPlaneCallers(self.config, store)
            plane = self._plane = await stack.enter_async_context(
                ControlPlane(
                    queue=self.message_queue,
                    store=store,
                    config=self.config,
                    orchestrator=self.orchestrator,
                    publish_callback=self.publish_callback,
                    checks=self._checks,
                    key_callers=None if self._callers is None else self._callers.key_callers,
                    interceptors=[*_tracing(), *control_plane_interceptors(), *self._interceptors],
                    counted=PlaneMetrics() if self.config.metrics else None,
                )
            )
            host, port = self._address()
            http = await stack.enter_async_context(
                await HttpServer.start(
                    self._build_app(),
                    host=host,
                    port=port,
                    allow_remote=self.config.allow_remote or self._callers is not None,
                    max_connections=self.config.max_connections,
                    tls=self.config.tls,
                )
            )
            # Runs before the HTTP server closes, so that it need not wait for long polls.
            stack.callback(plane.wake_waiters)
            if self.config.port == 0:
                self.config = self.config.model_copy(update={"port": http.port})
            self._resources = stack.pop_all()
        logger.info("control plane on %s", self.config.url, extra={"action": "control_plane_started"})

    @ends_quietly
    async def launch_server(self) -> None:
        """Serve until cancelled; raises if a part fails."""
        logger.info("Launching control plane server at %s:%s", *self._address(), extra={"action": "launch"})
        async with self:
            await self.plane.run()

    async def close(self) -> None:
        """Stop serving and finish pending writes. Deletes nothing. Idempotent."""
        resources, self._resources = self._resources, AsyncExitStack()
        await resources.aclose()

    def _detach(self) -> None:
        self._plane = None
        self._callers = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # -- the 0.6 API

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - 0.6
        """Return a consumer that passes messages to this control plane.

        Args:
            remote: Kept for 0.6 programs. The control plane reads its topic itself.
        """
        del remote
        return CallableMessageConsumer(message_type=CONTROL_PLANE, handler=self.process_message)

    async def process_message(self, message: QueueMessage) -> None:
        """Process one report of an instance.

        Raises:
            LlamaDeployError: The report must be sent again.
        """
        answer = (await self.plane.attempts.take([message]))[0]
        if answer is not None:
            raise answer

    def get_topic(self, msg_type: str) -> str:
        """Return the topic for messages of this type."""
        return Topics(self.config.topic_namespace).work(msg_type)

    async def register_to_message_queue(self) -> StartConsumingCallable:
        """Return a callable that waits forever, for 0.6 programs; see `as_consumer`."""

        @ends_quietly
        async def wait() -> None:
            await asyncio.Event().wait()

        return wait

    async def health(self) -> dict[str, Any]:
        """Return `ok` if tasks are accepted and dispatched; see `/health/ready`.

        Raises:
            UnavailableError: They are not; the text says why.
        """
        checks = await self.plane.readiness.checks()
        if not is_healthy(checks):
            raise UnavailableError(f"the control plane is not ready: {summary(checks)}")
        return {"status": "ok", "version": version("llama-deploy")}

    async def answer_health(self, request: Request) -> dict[str, Any]:
        """Return `ok` if tasks are accepted and dispatched; see `/health/ready`."""
        try:
            return await self.health()
        except UnavailableError as exc:
            if may_see_reasons(request):
                raise
            raise UnavailableError("the control plane is not ready; its operators see why") from exc

    def _address(self) -> tuple[str, int]:
        config = self.config
        port = config.internal_port if config.internal_port is not None else config.port
        if port is None:
            raise ConfigError("neither port nor internal_port is set; set the one to bind")
        return config.internal_host or config.host, port

    def _build_app(self) -> ASGIApp:
        config, plane = self.config, self.plane
        app = create_app(title="llama_deploy control plane")
        app.include_router(metrics_routes(plane, self._metrics))
        app.include_router(core_routes(self))
        app.include_router(session_routes(plane))
        app.include_router(task_list_routes(plane))
        app.include_router(task_routes(plane))
        app.include_router(inbox_routes(plane))
        app.include_router(retry_routes(plane))
        app.include_router(feed_routes(plane))
        app.include_router(instance_routes(plane))
        app.include_router(storage_routes(plane))
        app.include_router(key_routes(plane))
        app.include_router(audit_routes(plane))
        health = new_router(CONTROL_PLANE_ACCESS)
        health.add_api_route("/health", self.answer_health, methods=["GET"], name="health")
        add_health_routes(health, plane.readiness.checks)
        app.include_router(health)
        settings = EdgeSettings(
            env_prefix="CONTROL_PLANE_",
            hosts=[config.host, config.internal_host or "", *config.trusted_hosts],
            cors_origins=config.cors_origins or (),
            allow_navigation=True,
            max_body_bytes=config.max_body_bytes,
            max_total_body_bytes=config.max_total_body_bytes,
            authenticator=self._callers or Anonymous(),
            access=CONTROL_PLANE_ACCESS,
            on_denied=denials_of(plane),
        )
        shortcuts = {**task_shortcuts(plane), **instance_shortcuts(plane)}
        return build_edge(RawPaths(app), settings, shortcuts=shortcuts, layers=[ProtocolCheck])


def _tracing() -> Sequence[ControlPlaneInterceptor]:
    """Return what writes traces, if the program has set up OpenTelemetry."""
    if not is_active():
        return ()
    from llama_deploy.control_plane.measuring.plane_tracing import PlaneTracing  # noqa: PLC0415 - see `tracing`

    return (PlaneTracing(),)
