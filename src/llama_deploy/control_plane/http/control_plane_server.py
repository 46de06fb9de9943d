"""The control plane as an HTTP server."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.http.core_routes import CoreEndpoints, core_routes
from llama_deploy.control_plane.http.instance_routes import instance_routes, instance_shortcuts
from llama_deploy.control_plane.http.protocol_check import ProtocolCheck
from llama_deploy.control_plane.http.task_routes import task_routes, task_shortcuts
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.errors import ConfigError
from llama_deploy.message_consumers import BaseMessageQueueConsumer, CallableMessageConsumer
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback, StartConsumingCallable
from llama_deploy.messages import QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator, SimpleOrchestrator
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types.topics import CONTROL_PLANE
from llama_deploy.web.application import create_app
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.shortcuts import Shortcuts

logger = logging.getLogger(__name__)


class ControlPlaneServer(CoreEndpoints):
    """The control plane behind HTTP. `launch_server` runs it; or `start` and `close` it, or use `async with`.

    Args:
        message_queue: Carries the messages; stays the caller's to close.
        orchestrator: Chooses the service for a task of the 0.6 form. None: a `SimpleOrchestrator`.
        publish_callback: Called with each message after the queue has it.
        state_store: Keeps the state; stays the caller's to close. None: opened from the settings.
        config: Settings. None: from the environment and the defaults.
    """

    def __init__(
        self,
        message_queue: AbstractMessageQueue,
        orchestrator: BaseOrchestrator | None = None,
        publish_callback: PublishCallback | None = None,
        state_store: StateStore | None = None,
        config: ControlPlaneConfig | None = None,
    ) -> None:
        self.message_queue = message_queue
        self.orchestrator = orchestrator or SimpleOrchestrator()
        self.publish_callback = publish_callback
        self.config = config or ControlPlaneConfig()
        self._store = state_store
        self._plane: ControlPlane | None = None
        self._http: HttpServer | None = None
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
        """Return the way to this control plane for services in the same process and loop."""
        return DirectGateway(self.plane)

    async def start(self) -> None:
        """Open the store, continue what was left there, and listen; returns when requests are served.

        Raises:
            ConfigError: A setting cannot work, or the address cannot be bound.
            StoreLockedError: Another control plane works on the store.
            UnavailableError: The queue or the store does not answer.
        """
        async with AsyncExitStack() as stack:
            store = self._store
            if store is None:
                store = await stack.enter_async_context(await open_state_store(self.config.store_uri))
            plane = self._plane = await stack.enter_async_context(
                await ControlPlane.start(
                    queue=self.message_queue,
                    store=store,
                    config=self.config,
                    orchestrator=self.orchestrator,
                    publish_callback=self.publish_callback,
                )
            )
            host, port = self._address()
            self._http = await stack.enter_async_context(
                await HttpServer.start(
                    self._build_app(), host=host, port=port, allow_remote=self.config.allow_remote
                )
            )
            # Closed before the HTTP server is, so that long-polls end and do not hold it up.
            stack.callback(plane.wake_waiters)
            if self.config.port == 0:
                self.config = self.config.model_copy(update={"port": self._http.port})
                plane.config = self.config
            self._resources = stack.pop_all()
        logger.info("control plane on %s", self.config.url, extra={"action": "control_plane_started"})

    async def launch_server(self) -> None:
        """Serve until cancelled; raises if a part fails."""
        async with self:
            await self.plane.run()

    async def close(self) -> None:
        """Stop serving, finish the writes under way. Deletes nothing. Idempotent."""
        resources, self._resources = self._resources, AsyncExitStack()
        await resources.aclose()
        self._plane = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    # -- the 0.6 API

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - 0.6
        """Return a consumer that hands messages to this control plane.

        Args:
            remote: Kept for 0.6 programs; the control plane reads its topic itself.
        """
        del remote
        return CallableMessageConsumer(message_type=CONTROL_PLANE, handler=self.process_message)

    async def process_message(self, message: QueueMessage) -> None:
        """Take one report of an instance.

        Raises:
            LlamaDeployError: It should be sent again.
        """
        answer = (await self.plane.attempts.take([message]))[0]
        if answer is not None:
            raise answer

    async def register_to_message_queue(self) -> StartConsumingCallable:
        """Return a callable for 0.6 programs that wait in it; the control plane reads its topic itself."""

        async def wait() -> None:
            await asyncio.Event().wait()

        return wait

    async def health(self) -> dict[str, Any]:
        """Say that requests are served and the store answers."""
        await self.plane.services.all()
        return {"status": "ok", "version": version("llama-deploy")}

    def _address(self) -> tuple[str, int]:
        config = self.config
        port = config.internal_port if config.internal_port is not None else config.port
        if port is None:
            raise ConfigError("neither port nor internal_port is set; set the one to bind")
        return config.internal_host or config.host, port

    def _build_app(self) -> ASGIApp:
        config = self.config
        app = create_app(title="llama_deploy control plane", max_body_bytes=config.max_body_bytes)
        app.include_router(core_routes(self))
        app.include_router(task_routes(self.plane))
        app.include_router(instance_routes(self.plane))
        app.add_api_route("/health", self.health, methods=["GET"])
        if config.cors_origins:
            app.add_middleware(
                CORSMiddleware, allow_origins=config.cors_origins, allow_methods=["*"], allow_headers=["*"]
            )
            return ProtocolCheck(app)  # shortcuts would lead past the CORS middleware
        shortcuts = {**task_shortcuts(self.plane), **instance_shortcuts(self.plane)}
        return ProtocolCheck(Shortcuts(app, shortcuts, max_body_bytes=config.max_body_bytes))
