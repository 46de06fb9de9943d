"""The HTTP routes of a workflow service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from llama_deploy.health import Checks
from llama_deploy.messages import QueueMessage
from llama_deploy.web.application import create_app
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.health_routes import add_health_routes

if TYPE_CHECKING:
    from llama_deploy.services.shell.workflow_service import WorkflowService


def create_service_app(service: WorkflowService) -> FastAPI:
    """Return the application of a service, which processes tasks while the application runs."""
    app = create_app(title=f"llama_deploy service {service.service_name}", lifespan=service.lifespan)

    app.get("/")(service.home)

    async def ready() -> Checks:
        return service.health_checks()

    add_health_routes(app, ready)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Return that the service answers."""
        return {"status": "ok"}

    @app.post("/process_message")
    async def process_message(request: Request) -> None:
        """Process a queue message. A status other than 2xx returns it to the queue."""
        await service.process_message(QueueMessage.decode(await request.body()))

    return app


def service_edge(service: WorkflowService) -> ASGIApp:
    """Return the application of a service behind the layers of the edge, to be served."""
    config = service.config
    hosts = [config.host, config.internal_host or "", *config.trusted_hosts]
    return build_edge(service.app, EdgeSettings(env_prefix="LLAMA_DEPLOY_WF_SERVICE_", hosts=hosts))
